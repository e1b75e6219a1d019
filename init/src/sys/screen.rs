//! Which virtual terminal shows the kernel's messages (TIOCLINUX of ioctl_console(2)).
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

const REDIRECT_MESSAGES: u8 = 11;

/// `terminal` 0 is the one in the foreground.
pub fn kernel_messages_to(console: BorrowedFd<'_>, terminal: u8) -> io::Result<()> {
    let mut order = [REDIRECT_MESSAGES, terminal];
    // SAFETY: the kernel reads these two bytes during the call.
    match unsafe { libc::ioctl(console.as_raw_fd(), libc::TIOCLINUX, order.as_mut_ptr()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
