//! A connection from the server: lines or frames in, bytes out, descriptors beside the lines.

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// A reader that is this far behind is let go: a container never waits for a terminal.
const MAX_BEHIND: usize = 8 << 20;

pub struct Connection {
    pub stream: UnixStream,
    pub input: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
    output: Vec<u8>,
    pub closed: bool,
    /// Close once everything has been written.
    pub finished: bool,
}

impl Connection {
    pub fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            descriptors: Vec::new(),
            output: Vec::new(),
            closed: false,
            finished: false,
        })
    }

    /// Reads what has arrived.
    pub fn receive(&mut self) {
        let mut buffer = [0u8; 16 * 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match rustix::net::recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut buffer)],
                &mut control,
                flags,
            ) {
                Ok(message) => {
                    for item in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(descriptors) = item {
                            self.descriptors.extend(descriptors);
                        }
                    }
                    if message.bytes == 0 || message.flags.contains(ReturnFlags::CTRUNC) {
                        self.closed = true;
                        return;
                    }
                    self.input.extend_from_slice(&buffer[..message.bytes]);
                    if message.bytes < buffer.len() {
                        return;
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    /// The next whole line.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        Some(self.input.drain(..=end).collect())
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
        self.flush();
        if self.output.len() > MAX_BEHIND {
            self.closed = true;
        }
    }

    pub fn send_line(&mut self, message: &impl serde::Serialize) {
        match serde_json::to_vec(message) {
            Ok(mut line) => {
                line.push(b'\n');
                self.send(&line);
            }
            Err(_) => self.closed = true,
        }
    }

    pub fn wants_to_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Writes as much as the socket takes.
    pub fn flush(&mut self) {
        while !self.output.is_empty() {
            match rustix::net::send(
                &self.stream,
                &self.output,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    pub fn is_over(&self) -> bool {
        self.closed || (self.finished && self.output.is_empty())
    }
}
