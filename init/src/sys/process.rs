//! Processes beyond what std offers: waiting for any child, signalling all, and where a child starts.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fmt, io, mem,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::Path,
    process::Command,
};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// Waits until any child has ended and leaves it unreaped. `None`: there are no children.
pub fn wait_any() -> io::Result<Option<u32>> {
    loop {
        // SAFETY: all-zero bytes are a valid `siginfo_t`, and waitid fills it.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        // SAFETY: `info` is valid for the call.
        if unsafe { libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOWAIT) } == 0 {
            // SAFETY: waitid has filled in a child's fields.
            return Ok(Some(unsafe { info.si_pid() }.unsigned_abs()));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    }
}

/// Takes an ended child out of the process table. `None`: somebody else did.
pub fn reap(pid: u32) -> Option<Exit> {
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    let reaped = unsafe { libc::waitpid(pid as i32, &mut status, libc::WNOHANG) };
    if reaped <= 0 {
        None
    } else if libc::WIFSIGNALED(status) {
        Some(Exit::Signal(libc::WTERMSIG(status)))
    } else {
        Some(Exit::Code(libc::WEXITSTATUS(status)))
    }
}

/// Signals one process; that it is gone already is no error.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill has no memory effects.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Signals every process but PID 1.
pub fn signal_all(signal: i32) {
    // SAFETY: kill has no memory effects; -1 excludes the caller and PID 1.
    unsafe { libc::kill(-1, signal) };
}

/// Makes the child start in its own session and in a cgroup, with its out-of-memory score and no signal blocked.
pub fn place(command: &mut Command, cgroup: Option<&Path>, oom_score_adj: i32) -> io::Result<()> {
    let cgroup = match cgroup {
        Some(dir) => Some(CString::new(dir.join("cgroup.procs").as_os_str().as_bytes())?),
        None => None,
    };
    let score = oom_score_adj.to_string();
    let enter = move || {
        if let Some(procs) = &cgroup {
            write_file(procs.as_ptr(), b"0")?;
        }
        write_file(c"/proc/self/oom_score_adj".as_ptr(), score.as_bytes())?;
        // SAFETY: setsid has no memory effects.
        unsafe { libc::setsid() };
        super::signals::unblock_all();
        Ok(())
    };
    // SAFETY: the closure only makes async-signal-safe calls on memory allocated before the fork.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

fn write_file(path: *const libc::c_char, content: &[u8]) -> io::Result<()> {
    // SAFETY: the caller passes a NUL-terminated path; `content` is valid for its length.
    unsafe {
        let fd = libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let written = libc::write(fd, content.as_ptr().cast(), content.len());
        let result = if written < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        };
        libc::close(fd);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_child_can_be_told_to_end() {
        super::super::signals::block();
        let mut command = Command::new("sh");
        command.args(["-c", "kill -TERM $$; exit 7"]);
        place(&mut command, None, 0).unwrap();
        assert_eq!(command.status().unwrap().signal(), Some(libc::SIGTERM));
    }
}
