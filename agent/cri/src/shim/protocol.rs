//! What server and shim say to each other: JSON lines over a unix socket, descriptors beside them.

use crate::state::ProcessRecord;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Creates and starts a container's process; the bundle lies ready.
    Start(StartRequest),
    /// Runs a process beside a running container. Descriptors: stdin, stdout, stderr, or a console socket alone.
    Exec(ExecRequest),
    /// Turns the connection into frames of the container's streams.
    Attach {
        container_id: String,
        stdin: bool,
    },
    Kill {
        container_id: String,
        signal: i32,
    },
    ReopenLog {
        container_id: String,
    },
    /// Turns the connection into a stream of starts and exits; earlier ones are in the records.
    Subscribe,
    /// Ends the shim; it refuses while a container runs.
    Shutdown,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartRequest {
    pub container_id: String,
    /// Holds `config.json`; the shim puts `process.json` there.
    pub bundle: PathBuf,
    pub libcontainer_root: PathBuf,
    pub log_path: Option<PathBuf>,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Owner of the stdio pipes, so that the program may reopen them.
    pub uid: u32,
    /// Where the container's cgroup is.
    pub cgroup: PathBuf,
    /// Ends with its first process only when that is a PID 1; otherwise the rest must be killed.
    pub own_pid_namespace: bool,
    /// The sandbox's own PID 1: no program, it only reaps.
    pub pause: bool,
    /// `None`: every device.
    pub devices: Option<Vec<DeviceRule>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceRule {
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub access: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecRequest {
    pub container_id: String,
    pub args: Vec<String>,
    pub tty: bool,
    /// End the process when the server closes the connection.
    pub kill_on_close: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "re", rename_all = "snake_case")]
pub enum Reply {
    Done,
    Started {
        process: ProcessRecord,
    },
    /// The exec's program runs (the first answer to `Exec`).
    Running,
    Failed {
        message: String,
        exit_code: i32,
    },
    /// The exec's program has ended (the second answer).
    Ended {
        exit_code: i32,
    },
    /// For subscribers: a start has succeeded or failed, perhaps one that a server before them ordered.
    Began {
        container_id: String,
        process: ProcessRecord,
    },
    Exited {
        container_id: String,
        process: ProcessRecord,
    },
}

/// Frames after `Attach`: kind, length (u32, big endian), bytes.
pub mod frame {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    /// Two u16, big endian: width and height.
    pub const RESIZE: u8 = 4;
    pub const CLOSE_STDIN: u8 = 5;
    pub const HEADER: usize = 5;
    /// Longer frames are cut by the sender and refused by the receiver.
    pub const MAX: usize = 64 * 1024;

    pub fn encode(kind: u8, bytes: &[u8], out: &mut Vec<u8>) {
        for piece in bytes.chunks(MAX) {
            header(kind, piece.len(), out);
            out.extend_from_slice(piece);
        }
        if bytes.is_empty() {
            header(kind, 0, out);
        }
    }

    fn header(kind: u8, length: usize, out: &mut Vec<u8>) {
        out.push(kind);
        out.extend_from_slice(&(length as u32).to_be_bytes());
    }

    /// Takes the first whole frame off the buffer; an error when it cannot be one.
    pub fn decode(buffer: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, &'static str> {
        let Some(header) = buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, a, b, c, d] = *header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > MAX {
            return Err("frame is too long");
        }
        if buffer.len() < HEADER + length {
            return Ok(None);
        }
        let bytes = buffer[HEADER..HEADER + length].to_vec();
        buffer.drain(..HEADER + length);
        Ok(Some((kind, bytes)))
    }
}

pub const SOCKET_NAME: &str = "shim.sock";

/// A path to the socket short enough for `sockaddr_un`, through an open folder.
pub fn socket_path(folder: &impl std::os::fd::AsRawFd) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(SOCKET_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let mut stream = Vec::new();
        frame::encode(frame::STDOUT, b"hello", &mut stream);
        frame::encode(frame::CLOSE_STDIN, b"", &mut stream);
        frame::encode(frame::STDERR, &vec![7; frame::MAX + 1], &mut stream);
        for step in [1, 3, 1000, stream.len()] {
            let (mut buffer, mut got) = (Vec::new(), Vec::new());
            for piece in stream.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some((kind, bytes)) = frame::decode(&mut buffer).unwrap() {
                    got.push((kind, bytes.len()));
                }
            }
            assert_eq!(got, [(1, 5), (5, 0), (2, frame::MAX), (2, 1)], "{step}");
        }
        assert!(frame::decode(&mut vec![0, 0xff, 0, 0, 0]).is_err());
    }
}
