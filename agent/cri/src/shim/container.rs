//! A container as its shim sees it: the process, its streams, its log.

use super::log::{Log, Stream};
use super::protocol::StartRequest;
use crate::state::ProcessRecord;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Input waiting for a program that does not read.
const MAX_STDIN: usize = 1 << 20;

pub struct Container {
    pub request: StartRequest,
    pub process: ProcessRecord,
    pub log: Log,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// A pipe's end, or with a terminal a copy of its master.
    pub stdin: Option<OwnedFd>,
    waiting: Vec<u8>,
    close_stdin: bool,
}

impl Container {
    pub fn new(request: StartRequest, log: Log) -> Self {
        Self {
            request,
            process: ProcessRecord::default(),
            log,
            stdout: None,
            stderr: None,
            stdin: None,
            waiting: Vec::new(),
            close_stdin: false,
        }
    }

    /// With a terminal: its master carries both directions.
    pub fn set_terminal(&mut self, master: OwnedFd) -> std::io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        self.stdin = Some(master.try_clone()?);
        self.stdout = Some(master);
        Ok(())
    }

    pub fn output(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
        .map(AsFd::as_fd)
    }

    /// Reads what is there, logs it and returns it; closes the stream at its end.
    pub fn read(&mut self, stream: Stream) -> Vec<u8> {
        let mut got = Vec::new();
        let mut buffer = [0u8; 32 * 1024];
        while got.len() < 256 * 1024 {
            let Some(descriptor) = self.output(stream) else {
                break;
            };
            match rustix::io::read(descriptor, &mut buffer) {
                Ok(n) if n > 0 => got.extend_from_slice(&buffer[..n]),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // End of file; a terminal whose other side is closed says EIO.
                Ok(_) | Err(_) => {
                    match stream {
                        Stream::Stdout => self.stdout = None,
                        Stream::Stderr => self.stderr = None,
                    }
                    break;
                }
            }
        }
        if !got.is_empty() {
            self.log.write(stream, &got);
        }
        got
    }

    pub fn accepts_stdin(&self) -> bool {
        self.waiting.len() < MAX_STDIN
    }

    pub fn write_stdin(&mut self, bytes: &[u8]) {
        if self.stdin.is_some() {
            self.waiting.extend_from_slice(bytes);
            self.flush_stdin();
        }
    }

    /// Closes the program's input once it has read what is waiting.
    pub fn finish_stdin(&mut self) {
        self.close_stdin = true;
        self.flush_stdin();
    }

    pub fn stdin_waits(&self) -> Option<BorrowedFd<'_>> {
        self.stdin
            .as_ref()
            .filter(|_| !self.waiting.is_empty())
            .map(AsFd::as_fd)
    }

    pub fn flush_stdin(&mut self) {
        while let Some(stdin) = self.stdin.as_ref().filter(|_| !self.waiting.is_empty()) {
            match rustix::io::write(stdin, &self.waiting) {
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.waiting.clear();
                    self.stdin = None;
                }
            }
        }
        // A terminal's input ends by a key, not by closing.
        if self.close_stdin && !self.request.tty {
            self.stdin = None;
        }
    }

    pub fn resize(&self, bytes: &[u8]) {
        if let (Some([a, b, c, d]), Some(master)) = (bytes.first_chunk::<4>(), &self.stdin) {
            let (columns, rows) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
            let size = rustix::termios::Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            if self.request.tty
                && let Err(error) = rustix::termios::tcsetwinsize(master, size)
            {
                tracing::warn!(container = self.request.container_id, %error, "cannot resize the terminal");
            }
        }
    }
}
