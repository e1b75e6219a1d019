//! One machine's connection: frames with QEMU's 4-byte big-endian length before each, in and out, never blocking.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};

/// QEMU's own limit (NET_BUFSIZE): 64 KiB of data and headers.
const MAX_FRAME: usize = 4096 + 65536;
/// Bytes kept for a machine that reads slowly; then frames are lost.
const MAX_QUEUE: usize = 1 << 20;
const LENGTH: usize = 4;

pub struct Port {
    pub stream: UnixStream,
    input: Vec<u8>,
    output: VecDeque<u8>,
}

impl Port {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: VecDeque::new(),
        }
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads what is there; the complete frames come back. An error means that the connection is over.
    pub fn receive(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut buffer = [0; 1 << 16];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                frames(&mut self.input)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a frame, or drops it when the machine has not taken the earlier ones.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.output.len() + LENGTH + frame.len() > MAX_QUEUE {
            return Ok(());
        }
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.output.extend(length.to_be_bytes());
        self.output.extend(frame);
        self.flush()
    }

    /// Writes as much as the machine takes now.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let (head, _) = self.output.as_slices();
            match self.stream.write(head) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Takes the complete frames out of the buffer.
fn frames(input: &mut Vec<u8>) -> io::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    let mut rest = input.as_slice();
    while let Some((length, body)) = rest.split_first_chunk::<LENGTH>() {
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a frame of {length} bytes"),
            ));
        }
        let Some((frame, after)) = body.split_at_checked(length) else {
            break;
        };
        found.push(frame.to_vec());
        rest = after;
    }
    let left = rest.len();
    input.drain(..input.len() - left);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_wherever_the_reads_fell() {
        let stream = [&[0, 0, 0, 2, 7, 8][..], &[0, 0, 0, 0], &[0, 0, 0, 3, 1, 2, 3]].concat();
        for cut in 0..=stream.len() {
            let mut buffer = stream[..cut].to_vec();
            let mut got = frames(&mut buffer).unwrap();
            buffer.extend_from_slice(&stream[cut..]);
            got.extend(frames(&mut buffer).unwrap());
            assert_eq!(got, [vec![7, 8], vec![], vec![1, 2, 3]], "cut at {cut}");
            assert!(buffer.is_empty());
        }
        assert!(frames(&mut vec![0xff, 0, 0, 0]).is_err());
    }
}
