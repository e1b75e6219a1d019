//! Block devices: dropping what the page cache holds of them, reading their partition tables anew, growing ext4.
#![allow(unsafe_code)]

use rustix::fd::AsRawFd;
use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

/// linux/fs.h
const BLKRRPART: libc::Ioctl = 0x125F;
const BLKFLSBUF: libc::Ioctl = 0x1261;

/// Makes what was written durable, and the reads that follow come from the device.
pub fn flush(device: &File) -> io::Result<()> {
    device.sync_all()?;
    command(device, BLKFLSBUF)
}

/// linux/ext4.h: `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;

/// Has a mounted ext4 grow to so many blocks; nothing happens when it has them.
pub fn grow_ext4(mounted: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: the request reads one u64, which lives through the call.
    if unsafe { libc::ioctl(mounted.as_raw_fd(), EXT4_IOC_RESIZE_FS, &blocks) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Fails with EBUSY while a partition is in use.
pub fn read_partitions(device: &File) -> io::Result<()> {
    command(device, BLKRRPART)
}

/// Makes the device blank to who looks at its start: file systems and partition tables are gone.
pub fn erase_start(path: &Path) -> io::Result<()> {
    const START: usize = 4 << 20;
    let mut device = File::options().write(true).open(path)?;
    device.write_all(&vec![0; START])?;
    device.sync_all()
}

fn command(device: &File, request: libc::Ioctl) -> io::Result<()> {
    // SAFETY: both requests take no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), request, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
