//! Signals to PID 1 as values: blocked everywhere, taken by one thread.
#![allow(unsafe_code)]

use std::{io, mem, ptr};

/// The signals PID 1 acts on.
const TAKEN: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGUSR2];

fn taken() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set before anything reads it; the numbers are valid signals.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in TAKEN {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// Blocks them in this thread and all it starts, children too: see [`unblock_all`].
pub fn block() {
    // SAFETY: the set is initialised and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &taken(), ptr::null_mut()) };
}

/// Blocks none in this thread. Safe between fork and exec: a program starts with its parent's mask, and one that
/// inherits ours could not be told to end.
pub fn unblock_all() {
    // SAFETY: sigemptyset initialises the set before it is read, and the old one is not asked for.
    unsafe {
        let mut none = mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, ptr::null_mut());
    }
}

/// Waits for the next of them.
pub fn wait() -> io::Result<i32> {
    let mut signal = 0;
    // SAFETY: both pointers are valid for the call.
    match unsafe { libc::sigwait(&taken(), &mut signal) } {
        0 => Ok(signal),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
