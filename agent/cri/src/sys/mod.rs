//! The few system calls that no safe wrapper offers.
#![allow(unsafe_code)]

pub mod device_filter;

use nix::libc;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Which side of a fork this is.
pub enum Fork {
    Parent(i32),
    Child,
}

/// Forks. The caller has a single thread.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: helpers and shims never start threads, so the child may go on as its parent could.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Fork::Parent(child.as_raw())),
        nix::unistd::ForkResult::Child => Ok(Fork::Child),
    }
}

/// Takes over a descriptor that the parent process handed down by number.
pub fn inherited(descriptor: i32) -> OwnedFd {
    // SAFETY: helpers are given each number once, of a descriptor opened for them alone.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Undoes what a Rust process and a shim do to signals and a new program would inherit.
pub fn restore_signals() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
    SigSet::empty().thread_set_mask()?;
    // SAFETY: installs no handler of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}

/// Marks every descriptor from `first` on to be closed by exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes no pointers; descriptors stay valid until the exec.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Closes every descriptor from `first` on; only before a process that will never use them again.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the caller (the pause process) owns no descriptor it will touch or drop afterwards.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })
}

/// Brings up the loopback interface of the calling thread's network namespace.
pub fn loopback_up(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    // SAFETY: the request lives across the call and SIOCGIFFLAGS writes only into it.
    check(i64::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request)
    }))?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: as above; SIOCSIFFLAGS only reads it.
    check(i64::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request)
    }))
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
