//! Processes that outlive us: started apart from our terminal, found again by identity, and signalled only when the
//! process is still the one we started.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A process and when it started, in clock ticks since boot `boot`: together these never name another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub started: u64,
    pub boot: String,
}

/// Starts a program in a process group of its own, its output going to `log`.
pub fn spawn<S: AsRef<OsStr>>(program: &OsStr, arguments: &[S], log: &Path) -> io::Result<Process> {
    let out = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .process_group(0)
        .spawn()?;
    let pid = child.id().cast_signed();
    let stat = read_stat(pid)
        .ok_or_else(|| io::Error::other(format!("process {pid} has no readable /proc entry")))?;
    Ok(Process {
        pid,
        started: stat.started,
        boot: boot_id()?,
    })
}

impl Process {
    pub fn is_alive(&self) -> bool {
        let ours = |stat: &Stat| stat.started == self.started && stat.state != 'Z';
        boot_id().is_ok_and(|boot| boot == self.boot) && read_stat(self.pid).as_ref().is_some_and(ours)
    }

    /// Kills it if it is still the one; waits for its end. The pidfd rules out that the pid is reused in between.
    pub fn kill(&self, limit: Duration) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(());
        };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if !self.is_alive() {
            return Ok(());
        }
        pidfd_send_signal(handle, Signal::KILL)?;
        if self.wait(limit) {
            Ok(())
        } else {
            Err(io::Error::other(format!("process {} does not end", self.pid)))
        }
    }

    /// Waits for the end; false when it did not come in time.
    pub fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

struct Stat {
    state: char,
    started: u64,
}

fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 and 22 of proc_pid_stat(5); the name in field 2 may hold anything, so counting starts behind it.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Stat {
        state,
        started: fields.nth(18)?.parse().ok()?,
    })
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_hostile_name() {
        let stat = parse_stat("7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 99 1").unwrap();
        assert_eq!((stat.state, stat.started), ('S', 4242));
        assert!(parse_stat("7 (x").is_none());
    }

    #[test]
    fn only_the_process_we_started_is_killed() {
        let log = std::env::temp_dir().join(format!("qemu-process-test-{}", std::process::id()));
        let process = spawn(OsStr::new("sleep"), &["600"], &log).unwrap();
        fs::remove_file(&log).unwrap();
        let reused = Process {
            started: process.started + 1,
            ..process.clone()
        };
        assert!(!reused.is_alive());
        reused.kill(Duration::from_secs(1)).unwrap();
        assert!(
            process.is_alive(),
            "another identity with the same pid must not be hit"
        );
        process.kill(Duration::from_secs(10)).unwrap();
        assert!(!process.is_alive());
    }
}
