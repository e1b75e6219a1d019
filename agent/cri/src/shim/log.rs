//! Container logs in CRI's format: `time stream tag line`, long lines in pieces.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Lines longer than this are written in pieces (containerd's default).
const MAX_LINE: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts a byte stream into log lines.
#[derive(Debug, Default)]
pub struct Framer {
    line: Vec<u8>,
}

impl Framer {
    /// Adds bytes; writes what is complete: whole lines, and pieces of long ones.
    pub fn push(&mut self, mut bytes: &[u8], stream: Stream, time: &str, out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.add(&bytes[..end], stream, time, out);
            self.write("F", stream, time, out);
            bytes = &bytes[end + 1..];
        }
        self.add(bytes, stream, time, out);
    }

    /// At the end of the stream: a last line without a newline stays marked as a piece.
    pub fn finish(&mut self, stream: Stream, time: &str, out: &mut Vec<u8>) {
        if !self.line.is_empty() {
            self.write("P", stream, time, out);
        }
    }

    fn add(&mut self, mut bytes: &[u8], stream: Stream, time: &str, out: &mut Vec<u8>) {
        while self.line.len() + bytes.len() > MAX_LINE {
            let (piece, rest) = bytes.split_at(MAX_LINE - self.line.len());
            self.line.extend_from_slice(piece);
            self.write("P", stream, time, out);
            bytes = rest;
        }
        self.line.extend_from_slice(bytes);
    }

    fn write(&mut self, tag: &str, stream: Stream, time: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{time} {} {tag} ", stream.name()).as_bytes());
        out.append(&mut self.line);
        out.push(b'\n');
    }
}

/// A container's log file.
pub struct Log {
    path: Option<PathBuf>,
    file: Option<File>,
    stdout: Framer,
    stderr: Framer,
}

impl Log {
    /// Opens the file; without a path everything is dropped.
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let mut log = Self {
            path,
            file: None,
            stdout: Framer::default(),
            stderr: Framer::default(),
        };
        log.reopen()?;
        Ok(log)
    }

    /// After rotation: goes on in a new file of the same name.
    pub fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            self.file = Some(OpenOptions::new().append(true).create(true).open(path)?);
        }
        Ok(())
    }

    pub fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let time = rfc3339_nanos(SystemTime::now());
        self.framer(stream).push(bytes, stream, &time, &mut out);
        self.append(&out);
    }

    pub fn finish(&mut self) {
        let time = rfc3339_nanos(SystemTime::now());
        let mut out = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.framer(stream).finish(stream, &time, &mut out);
        }
        self.append(&out);
    }

    fn framer(&mut self, stream: Stream) -> &mut Framer {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Some(file) = self.file.as_mut().filter(|_| !bytes.is_empty())
            && let Err(error) = file.write_all(bytes)
        {
            // A full disk must not stop the container.
            tracing::warn!(path = ?self.path, %error, bytes = bytes.len(), "log lines are lost");
        }
    }
}

/// `2026-01-02T03:04:05.000000006Z`
pub fn rfc3339_nanos(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_nanos()
    )
}

/// The Gregorian date of a day since 1970, in years that begin in March (leap days come last).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn framed(pieces: &[&[u8]]) -> String {
        let (mut framer, mut out) = (Framer::default(), Vec::new());
        for piece in pieces {
            framer.push(piece, Stream::Stdout, "T", &mut out);
        }
        framer.finish(Stream::Stdout, "T", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_framed_however_they_arrive() {
        for (pieces, expected) in [
            (&[&b"a\nb\n"[..]][..], "T stdout F a\nT stdout F b\n"),
            (&[b"a", b"b", b"\n"], "T stdout F ab\n"),
            (&[b"\n"], "T stdout F \n"),
            (&[b"no newline"], "T stdout P no newline\n"),
            (&[], ""),
        ] {
            assert_eq!(framed(pieces), expected);
        }
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let long = vec![b'x'; MAX_LINE * 2 + 3];
        let text = framed(&[&long, b"\n"]);
        let tags: Vec<(char, usize)> = text
            .lines()
            .map(|line| (line.chars().nth(9).unwrap(), line.len() - 11))
            .collect();
        assert_eq!(tags, [('P', MAX_LINE), ('P', MAX_LINE), ('F', 3)]);
        let exact = vec![b'x'; MAX_LINE];
        assert_eq!(framed(&[&exact, b"\n"]).lines().count(), 1);
    }

    #[test]
    fn times_are_written_with_nanoseconds() {
        for (seconds, nanos, expected) in [
            (0, 1, "1970-01-01T00:00:00.000000001Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000000Z"),
            (1_798_761_599, 5, "2026-12-31T23:59:59.000000005Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(
                rfc3339_nanos(UNIX_EPOCH + Duration::new(seconds, nanos)),
                expected
            );
        }
    }
}
