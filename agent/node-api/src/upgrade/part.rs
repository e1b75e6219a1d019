//! Files within a stream of bytes, hashed as they pass.

use std::cell::RefCell;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// The next `size` bytes of a source that several parts share.
pub struct Part<'a, R> {
    source: &'a RefCell<R>,
    left: u64,
    seen: u64,
    hash: Sha256,
}

impl<'a, R: Read> Part<'a, R> {
    pub fn new(source: &'a RefCell<R>, size: u64) -> Self {
        Self {
            source,
            left: size,
            seen: 0,
            hash: Sha256::new(),
        }
    }

    /// How many bytes there were, and their SHA-256.
    pub fn finish(self) -> (u64, String) {
        (self.seen, hex(&self.hash.finalize()))
    }
}

impl<R: Read> Read for Part<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.source.borrow_mut().read(&mut buffer[..most])?;
        self.hash.update(&buffer[..count]);
        self.seen += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

pub fn hash(from: &mut dyn Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that arrive from elsewhere, read where blocking is allowed. A source that breaks off is an error, not an end.
pub struct Arriving {
    chunks: tokio::sync::mpsc::Receiver<io::Result<Vec<u8>>>,
    chunk: io::Cursor<Vec<u8>>,
}

impl Arriving {
    pub fn new(chunks: tokio::sync::mpsc::Receiver<io::Result<Vec<u8>>>) -> Self {
        Self {
            chunks,
            chunk: io::Cursor::default(),
        }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.chunk.read(buffer)? {
                0 if !buffer.is_empty() => {}
                count => return Ok(count),
            }
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = io::Cursor::new(chunk?),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_one_stream() {
        let source = RefCell::new(b"abcdef".as_slice());
        let (mut first, mut second) = (Part::new(&source, 3), Part::new(&source, 9));
        let mut text = String::new();
        first.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
        second.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcdef");
        let (size, sha256) = first.finish();
        assert_eq!(size, 3);
        assert_eq!(sha256, hash(&mut b"abc".as_slice()).unwrap());
        assert!(sha256.starts_with("ba7816bf8f01cfea"), "{sha256}");
        assert_eq!(second.finish().0, 3, "the stream was shorter than promised");
    }

    #[test]
    fn what_breaks_off_is_no_end() {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        sender.blocking_send(Ok(b"ab".to_vec())).unwrap();
        sender.blocking_send(Ok(vec![])).unwrap();
        sender
            .blocking_send(Err(io::ErrorKind::ConnectionReset.into()))
            .unwrap();
        let mut bytes = Vec::new();
        let error = Arriving::new(receiver).read_to_end(&mut bytes).unwrap_err();
        assert_eq!(
            (bytes.as_slice(), error.kind()),
            (b"ab".as_slice(), io::ErrorKind::ConnectionReset)
        );
    }
}
