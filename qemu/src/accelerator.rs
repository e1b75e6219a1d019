//! KVM when it truly works: a kernel must have started under it, since the device file alone proves nothing.

use crate::machine::PROGRAM;
use serde::{Deserialize, Serialize};
use std::{
    fs::OpenOptions,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    Kvm,
    Tcg,
}

/// Longer than any kernel needs to find that it has no root file system under KVM.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// The kernel has started once it says this on the serial console.
const KERNEL_SPEAKS: &str = "Linux version ";

impl Accelerator {
    pub fn arguments(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Kvm => &[("-accel", "kvm"), ("-cpu", "host")],
            // Without cx16 switched off, QEMU 7.2's TCG crashes Linux 6.12 early in one boot of four.
            Self::Tcg => &[("-accel", "tcg,thread=multi"), ("-cpu", "max,-cx16")],
        }
    }

    /// Starts `kernel` without a root under KVM: it must boot up to its panic, and QEMU must end with its reboot.
    pub fn probe(kernel: &Path) -> Self {
        if OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return Self::Tcg;
        }
        let child = Command::new(PROGRAM)
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-machine",
                "q35",
                "-accel",
                "kvm",
                "-cpu",
                "host",
            ])
            .args([
                "-m",
                "256",
                "-no-reboot",
                "-serial",
                "stdio",
                "-append",
                "console=ttyS0 panic=-1",
                "-kernel",
            ])
            .arg(kernel)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        if child.is_ok_and(verdict) {
            Self::Kvm
        } else {
            Self::Tcg
        }
    }
}

/// Whether the probe's machine spoke and ended by itself, in time.
fn verdict(mut child: Child) -> bool {
    let Some(mut stdout) = child.stdout.take() else {
        return false;
    };
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stdout, &mut said);
        String::from_utf8_lossy(&said).contains(KERNEL_SPEAKS)
    });
    let deadline = Instant::now() + PROBE_LIMIT;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    let spoke = reader.join().unwrap_or(false);
    ended && spoke
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(script: &str) -> bool {
        verdict(
            Command::new("sh")
                .args(["-c", script])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    #[test]
    fn only_a_kernel_that_speaks_and_ends_counts() {
        assert!(judge("echo 'Linux version 6'"));
        assert!(!judge("echo nothing"));
        assert!(!judge("echo 'Linux version 6'; exit 1"));
    }
}
