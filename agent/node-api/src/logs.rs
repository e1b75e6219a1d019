//! What services said: init keeps each one's lines in two files, `NAME` and the older `NAME.1`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc::Sender;
use tonic::Status;

use crate::v1::{LogLines, LogsRequest};

/// Lines in one message.
const BATCH: usize = 500;
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Error)]
pub enum LogError {
    #[error("no service {0:?} has said anything on this node; those that have: {1}")]
    Unknown(String, String),
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

impl From<LogError> for Status {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Unknown(..) => Self::not_found(error.to_string()),
            LogError::Io(..) => Self::internal(error.to_string()),
        }
    }
}

/// A file that grows, is renamed when it is full, and followed by a new one of the same name.
pub struct Log {
    path: PathBuf,
    file: File,
    /// The beginning of a line that is not whole yet.
    rest: Vec<u8>,
}

impl Log {
    /// Opens a service's log; the older lines come first.
    pub fn open(directory: &Path, service: &str) -> Result<(Self, Vec<String>), LogError> {
        let names = names(directory);
        if !names.iter().any(|name| name == service) {
            return Err(LogError::Unknown(service.to_owned(), names.join(", ")));
        }
        let path = directory.join(service);
        let at = |error| LogError::Io(path.clone(), error);
        // The newer file first: what is renamed in between is then missing from neither.
        let file = File::open(&path).map_err(at)?;
        let older = fs::read(directory.join(format!("{service}.1"))).unwrap_or_default();
        let mut log = Self {
            path: path.clone(),
            file,
            rest: Vec::new(),
        };
        let mut lines = split(&mut log.rest, &older);
        log.rest.clear();
        lines.extend(log.more().map_err(at)?);
        Ok((log, lines))
    }

    /// The lines that were added since the last time.
    pub fn more(&mut self) -> io::Result<Vec<String>> {
        let mut lines = self.read()?;
        let current = fs::metadata(&self.path);
        let own = self.file.metadata()?.ino();
        if current.is_ok_and(|current| current.ino() != own) {
            // What was written between the last read and the renaming.
            lines.extend(self.read()?);
            self.file = File::open(&self.path)?;
            lines.extend(self.read()?);
        }
        Ok(lines)
    }

    fn read(&mut self) -> io::Result<Vec<String>> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        Ok(split(&mut self.rest, &bytes))
    }
}

/// Whole lines of what was left and what came.
fn split(rest: &mut Vec<u8>, bytes: &[u8]) -> Vec<String> {
    rest.extend_from_slice(bytes);
    let Some(end) = rest.iter().rposition(|&byte| byte == b'\n') else {
        return vec![];
    };
    let whole: Vec<u8> = rest.drain(..=end).collect();
    String::from_utf8_lossy(&whole)
        .lines()
        .map(str::to_owned)
        .collect()
}

/// The services that have a log.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.ends_with(".1"))
        .collect();
    names.sort();
    names
}

fn last(lines: Vec<String>, tail: u32) -> Vec<String> {
    let skipped = match tail {
        0 => 0,
        tail => lines.len().saturating_sub(tail as usize),
    };
    lines.into_iter().skip(skipped).collect()
}

/// Sends a log's lines until there are no more or, when following, until nobody listens.
pub async fn send(
    (mut log, lines): (Log, Vec<String>),
    request: LogsRequest,
    to: Sender<Result<LogLines, Status>>,
) {
    let mut lines = last(lines, request.tail);
    loop {
        for batch in lines.chunks(BATCH) {
            let message = LogLines {
                lines: batch.to_vec(),
            };
            if to.send(Ok(message)).await.is_err() {
                return;
            }
        }
        if !request.follow {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = to.closed() => return,
        }
        lines = match log.more() {
            Ok(lines) => lines,
            Err(error) => {
                // Who has gone needs no answer.
                let _ = to.send(Err(LogError::Io(log.path, error).into())).await;
                return;
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_come_once_and_in_order_across_a_rotation() {
        let dir = std::env::temp_dir().join(format!("node-api-logs-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let append = |text: &str| {
            let mut file = File::options()
                .create(true)
                .append(true)
                .open(dir.join("agent"))
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        fs::write(dir.join("agent.1"), "one\n").unwrap();
        append("two\nthr");
        let (mut log, lines) = Log::open(&dir, "agent").unwrap();
        assert_eq!(lines, ["one", "two"]);
        append("ee\n");
        assert_eq!(log.more().unwrap(), ["three"]);
        append("four\n");
        fs::rename(dir.join("agent"), dir.join("agent.1")).unwrap();
        append("five\n");
        assert_eq!(log.more().unwrap(), ["four", "five"]);
        assert_eq!(log.more().unwrap(), [""; 0]);
        for name in ["kubelet", "../agent", "agent.1", ""] {
            let error = Log::open(&dir, name).err().unwrap().to_string();
            assert!(error.contains("those that have: agent"), "{error}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_tail_is_the_end() {
        let lines = || ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(last(lines(), 0), lines());
        assert_eq!(last(lines(), 2), ["b", "c"]);
        assert_eq!(last(lines(), 9), lines());
    }
}
