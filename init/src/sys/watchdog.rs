//! The timeout of a watchdog device.
#![allow(unsafe_code)]

use rustix::fd::AsRawFd;
use std::{fs::File, io, time::Duration};

/// linux/watchdog.h: `_IOWR('W', 6, int)`.
const WDIOC_SETTIMEOUT: libc::Ioctl = 0xC004_5706_u32 as libc::Ioctl;

pub fn set_timeout(device: &File, timeout: Duration) -> io::Result<()> {
    let mut seconds = i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX);
    // SAFETY: the request reads and writes one int, which lives through the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), WDIOC_SETTIMEOUT, &mut seconds) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
