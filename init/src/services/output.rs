//! What a service says: each line goes to the consoles and into a bounded ring that can be read later.
//!
//! The ring is two files in /run (memory): `NAME` and, when that is full, `NAME.1` with the older half.

use crate::console;
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// A half of the ring.
const HALF_BYTES: u64 = 256 * 1024;

/// A longer line is cut into pieces of this size.
const LINE_BYTES: u64 = 8 * 1024;

#[derive(Clone)]
pub struct Output {
    name: String,
    ring: Arc<Mutex<Ring>>,
}

struct Ring {
    path: PathBuf,
    file: Option<File>,
    written: u64,
}

impl Output {
    pub fn new(name: &str, dir: &Path) -> Self {
        let ring = Ring {
            path: dir.join(name),
            file: None,
            written: 0,
        };
        Self {
            name: name.to_owned(),
            ring: Arc::new(Mutex::new(ring)),
        }
    }

    /// Reads until the writers are gone.
    pub fn follow(&self, pipe: impl Read) {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => self.line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])),
            }
        }
    }

    fn line(&self, line: &str) {
        console::relay(&self.name, line);
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.append(line).is_err() {
            // The line is on the console; the next one opens the file anew.
            ring.file = None;
        }
    }
}

impl Ring {
    fn append(&mut self, line: &str) -> io::Result<()> {
        if self.written >= HALF_BYTES {
            self.file = None;
            self.written = 0;
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            fs::rename(&self.path, older)?;
        }
        if self.file.is_none() {
            let file = File::options().create(true).append(true).open(&self.path)?;
            self.written = file.metadata()?.len();
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file {
            file.write_all(format!("{line}\n").as_bytes())?;
        }
        self.written += line.len() as u64 + 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_latest_lines_within_its_bound() {
        let dir = std::env::temp_dir().join(format!("init-output-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let output = Output::new("agent", &dir);
        let lines: String = (0..40_000)
            .map(|number| format!("line {number:06} of the test\n"))
            .collect();
        output.follow(lines.as_bytes());
        let newer = fs::read_to_string(dir.join("agent")).unwrap();
        let older = fs::read_to_string(dir.join("agent.1")).unwrap();
        assert!(newer.ends_with("line 039999 of the test\n"));
        let kept = older + &newer;
        assert!(
            kept.len() as u64 <= 2 * (HALF_BYTES + LINE_BYTES),
            "{}",
            kept.len()
        );
        assert!(
            lines.ends_with(&kept),
            "the ring must hold an unbroken end of the stream"
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
