//! SPDY's header blocks: one zlib stream a connection, primed with the protocol's dictionary.

use flate2::{Decompress, FlushDecompress};
use std::collections::HashMap;

/// The dictionary's entries that carry a length before them (SPDY/3, 2.6.10.1) …
const COUNTED: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|\
accept-ranges|age|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|\
content-length|content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|\
if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|\
proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|\
user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|\
keep-alive|origin";
/// … and what follows them as it is.
const PLAIN: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// zlib's header (two bytes) and, when its flag is set, the dictionary's checksum (four).
const ZLIB_HEADER: usize = 2;
const DICTIONARY_FLAG: u8 = 0x20;
const DICTIONARY_ID: usize = 4;
/// A client's headers are a few short words.
const MAX_BLOCK: usize = 64 * 1024;

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in COUNTED.split('|') {
        bytes.extend((entry.len() as u32).to_be_bytes());
        bytes.extend(entry.as_bytes());
    }
    bytes.extend(PLAIN.as_bytes());
    bytes
}

pub struct HeaderReader {
    inflate: Decompress,
    started: bool,
}

impl HeaderReader {
    pub fn new() -> Self {
        Self {
            inflate: Decompress::new(false),
            started: false,
        }
    }

    /// The headers of a block, names in lower case; `None` when it is damaged.
    pub fn read(&mut self, block: &[u8]) -> Option<HashMap<String, String>> {
        let mut block = block;
        if !self.started {
            let flags = *block.get(1)?;
            block = block.get(ZLIB_HEADER..)?;
            if flags & DICTIONARY_FLAG != 0 {
                block = block.get(DICTIONARY_ID..)?;
                self.prime()?;
            }
            self.started = true;
        }
        parse(&self.inflate(block)?)
    }

    /// Raw deflate has no dictionaries, but whatever a stored block has put out can be referred to.
    fn prime(&mut self) -> Option<()> {
        let dictionary = dictionary();
        let length = u16::try_from(dictionary.len()).ok()?;
        let mut stored = vec![0];
        stored.extend(length.to_le_bytes());
        stored.extend((!length).to_le_bytes());
        stored.extend(&dictionary);
        (self.inflate(&stored)? == dictionary).then_some(())
    }

    fn inflate(&mut self, mut input: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            out.reserve(4096);
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            self.inflate
                .decompress_vec(input, &mut out, FlushDecompress::Sync)
                .ok()?;
            input = input.get((self.inflate.total_in() - read) as usize..)?;
            let quiet = self.inflate.total_out() == written;
            if out.len() > MAX_BLOCK {
                return None;
            }
            if input.is_empty() && (quiet || out.len() < out.capacity()) {
                return Some(out);
            }
            if quiet && self.inflate.total_in() == read {
                return None;
            }
        }
    }
}

fn parse(block: &[u8]) -> Option<HashMap<String, String>> {
    let mut rest = block;
    let number = |rest: &mut &[u8]| {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        *rest = tail;
        Some(u32::from_be_bytes(*head) as usize)
    };
    let mut headers = HashMap::new();
    for _ in 0..number(&mut rest)? {
        let mut text = || {
            let length = number(&mut rest)?;
            let bytes = rest.get(..length)?;
            rest = &rest[length..];
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let (name, value) = (text()?, text()?);
        headers.insert(name.to_ascii_lowercase(), value);
    }
    Some(headers)
}

/// A block without headers, stored, in a zlib stream of its own beginning: every
/// reply after the first continues it.
pub fn empty_block(first: bool) -> Vec<u8> {
    let mut out = if first { vec![0x78, 0x01] } else { vec![] };
    out.extend(stored(&[0, 0, 0, 0]));
    out
}

/// A stored deflate block: not compressed at all, which every inflater takes. The empty block after it is zlib's sync
/// flush, without which Go's inflater reads on for a next block, meets the end and fails for good.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u16;
    let mut out = vec![0];
    out.extend(length.to_le_bytes());
    out.extend((!length).to_le_bytes());
    out.extend(bytes);
    out.extend([0, 0, 0, 0xff, 0xff]);
    out
}

/// A client's first block, for tests.
#[cfg(test)]
pub fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        plain.extend((text.len() as u32).to_be_bytes());
        plain.extend(text.as_bytes());
    }
    let mut out = vec![0x78, 0x01];
    out.extend(stored(&plain));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65_521;
            (a, (b + a) % 65_521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_the_protocols() {
        // Every SPDY/3 stream begins with this checksum of it.
        assert_eq!((dictionary().len(), adler32(&dictionary())), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_compressed_with_the_dictionary_are_read() {
        // Made with zlib: compressobj(zdict=…), then sync flush; {"streamtype": "error", "port": "80"}, twice.
        let first = hex(FIRST);
        let second = hex(SECOND);
        let mut reader = HeaderReader::new();
        for block in [first, second] {
            let headers = reader.read(&block).unwrap();
            assert_eq!(
                (headers["streamtype"].as_str(), headers["port"].as_str()),
                ("error", "80")
            );
        }
    }

    #[test]
    fn damaged_blocks_are_refused() {
        assert!(HeaderReader::new().read(&[]).is_none());
        assert!(
            HeaderReader::new()
                .read(&[0x78, 0x01, 0xff, 0xff, 0xff])
                .is_none()
        );
        let mut long = block(&[("a", "b")]);
        let at = long.len() - 5;
        long[at] = 0xff;
        assert!(HeaderReader::new().read(&long).is_none());
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    const FIRST: &str = "78f9e3c6a7c202e50e703a2b294a4dcc851625aca9a0808614cb45a024cc646100000000ffff";
    const SECOND: &str = "225a21000000ffff";
}
