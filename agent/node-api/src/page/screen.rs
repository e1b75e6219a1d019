//! A Linux terminal (console_codes(4)) as a sheet of lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::termios::tcgetwinsize;

/// What the kernel's VGA console has, where nobody says.
const USUAL: Size = Size {
    columns: 80,
    rows: 25,
};
const CLEAR: &str = "\x1b[H\x1b[2J";
const HIDE_CURSOR: &str = "\x1b[?25l";
const NO_BLANKING: &str = "\x1b[9;0]";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
}

pub struct Screen {
    terminal: File,
}

impl Screen {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::NOCTTY.bits() as i32;
        let mut terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        terminal.write_all([HIDE_CURSOR, NO_BLANKING].concat().as_bytes())?;
        Ok(Self { terminal })
    }

    pub fn size(&self) -> Size {
        match tcgetwinsize(&self.terminal) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size {
                columns: usize::from(size.ws_col),
                rows: usize::from(size.ws_row),
            },
            _ => USUAL,
        }
    }

    /// In one write, so that no half page is seen.
    pub fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let page = format!("{CLEAR}{}\r\n", lines.join("\r\n"));
        self.terminal.write_all(page.as_bytes())
    }
}
