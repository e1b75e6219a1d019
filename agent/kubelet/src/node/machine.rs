//! Facts about the machine from `/proc`, `/sys` and the file systems.

use std::fs;
use std::path::Path;

use crate::eviction::{Reading, Signal};

#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
    pub architecture: String,
    pub runtime_version: String,
    pub cpus: u64,
    pub memory_bytes: u64,
    pub storage_bytes: u64,
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.lines().next().map(|line| line.trim().to_owned()))
        .unwrap_or_default()
}

/// The number in kB of a `/proc/meminfo` field, as bytes.
fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// All tasks of the machine, the number after the slash in `/proc/loadavg`.
fn tasks(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// A value of `/etc/os-release`.
fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Machine {
    pub fn read(root_dir: &Path, runtime_version: String) -> Self {
        let boot_id = first_line("/proc/sys/kernel/random/boot_id");
        let machine_id = match first_line("/etc/machine-id") {
            empty if empty.is_empty() => boot_id.replace('-', ""),
            id => id,
        };
        let system_uuid = match first_line("/sys/class/dmi/id/product_uuid") {
            empty if empty.is_empty() => machine_id.clone(),
            uuid => uuid,
        };
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            machine_id,
            system_uuid,
            boot_id,
            kernel_version: first_line("/proc/sys/kernel/osrelease"),
            os_image: os_release(&release, "PRETTY_NAME").unwrap_or_else(|| "Ironlet".into()),
            architecture: go_architecture().into(),
            runtime_version,
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
            memory_bytes: meminfo(&memory, "MemTotal").unwrap_or_default(),
            storage_bytes: rustix::fs::statvfs(root_dir).map_or(0, |fs| fs.f_blocks * fs.f_frsize),
        }
    }

    /// How much is left of what eviction watches, the most pressing first.
    pub fn readings(&self, root_dir: &Path) -> Vec<Reading> {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = meminfo(&memory, "MemAvailable").map(|available| Reading {
            signal: Signal::Memory,
            available,
            capacity: self.memory_bytes,
        });
        let inodes = rustix::fs::statvfs(root_dir).ok().map(|fs| Reading {
            signal: Signal::Inodes,
            available: fs.f_favail,
            capacity: fs.f_files,
        });
        let maximum = first_line("/proc/sys/kernel/pid_max").parse::<u64>().ok();
        let used = tasks(&first_line("/proc/loadavg"));
        let pids = maximum.zip(used).map(|(maximum, used)| Reading {
            signal: Signal::Pids,
            available: maximum.saturating_sub(used),
            capacity: maximum,
        });
        [memory, disk(root_dir), inodes, pids]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// The room on the file system of a directory.
pub fn disk(directory: &Path) -> Option<Reading> {
    let fs = rustix::fs::statvfs(directory).ok()?;
    Some(Reading {
        signal: Signal::Storage,
        available: fs.f_bavail * fs.f_frsize,
        capacity: fs.f_blocks * fs.f_frsize,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_kernels_and_the_systems_files() {
        let memory = "MemTotal:       24612004 kB\nMemFree:        1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(meminfo(memory, "MemTotal"), Some(24_612_004 * 1024));
        assert_eq!(meminfo(memory, "MemAvailable"), Some(2 << 20));
        assert_eq!(meminfo(memory, "Mem"), None);
        assert_eq!(tasks("0.10 0.20 0.30 2/345 6789"), Some(345));
        assert_eq!(
            os_release("NAME=x\nPRETTY_NAME=\"Iron let\"\n", "PRETTY_NAME").as_deref(),
            Some("Iron let")
        );
    }

    #[test]
    fn this_machine_has_memory_and_a_kernel() {
        let machine = Machine::read(Path::new("/"), "x://1".into());
        assert!(machine.memory_bytes > 0 && machine.cpus > 0 && machine.storage_bytes > 0);
        assert!(!machine.kernel_version.is_empty() && !machine.boot_id.is_empty());
    }
}
