//! A machine's serial console on this terminal.

use anyhow::Context;
use rustix::{
    event::{PollFd, PollFlags, poll},
    termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr},
};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

/// Ctrl-] leaves, as in telnet.
const LEAVE: u8 = 0x1d;

/// Connects until Ctrl-], the end of the input or the machine's end.
pub fn attach(socket: &Path) -> anyhow::Result<()> {
    let mut serial =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    let _raw = RawTerminal::enter()?;
    eprint!("connected, Ctrl-] leaves\r\n");
    let mut buffer = [0; 4096];
    loop {
        let mut waits = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(&serial, PollFlags::IN),
        ];
        match poll(&mut waits, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("wait for the console"),
        }
        let [from_user, from_machine] =
            [waits[0].revents(), waits[1].revents()].map(|events| !events.is_empty());
        if from_machine {
            let count = serial.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            stdout.write_all(&buffer[..count])?;
            stdout.flush()?;
        }
        if from_user {
            let count = stdin.read(&mut buffer)?;
            let typed = &buffer[..count];
            let leave = typed.iter().position(|byte| *byte == LEAVE);
            serial.write_all(&typed[..leave.unwrap_or(count)])?;
            if leave.is_some() || count == 0 {
                return Ok(());
            }
        }
    }
}

/// The terminal without line editing, until dropped.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> anyhow::Result<Self> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("change the terminal's settings")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
