//! Facts about the machine from `/proc`, `/sys` and the file systems.

use std::fs;
use std::path::Path;

/// Below this the node has memory pressure (upstream's default hard eviction threshold `memory.available<100Mi`).
const MEMORY_AVAILABLE: u64 = 100 << 20;
/// Likewise `nodefs.available<10%` and `nodefs.inodesFree<5%`.
const DISK_PERCENT: u64 = 10;
const INODES_PERCENT: u64 = 5;
/// Fewer free process ids than this are pressure.
const PIDS_PERCENT: u64 = 10;

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

    pub fn memory_pressure(&self) -> bool {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        meminfo(&memory, "MemAvailable")
            .is_some_and(|available| available < MEMORY_AVAILABLE.min(self.memory_bytes / 10))
    }

    pub fn pid_pressure(&self) -> bool {
        let maximum = first_line("/proc/sys/kernel/pid_max").parse::<u64>();
        let used = tasks(&first_line("/proc/loadavg"));
        matches!((maximum, used), (Ok(maximum), Some(used)) if maximum.saturating_sub(used) * 100 < maximum * PIDS_PERCENT)
    }

    pub fn disk_pressure(&self, root_dir: &Path) -> bool {
        rustix::fs::statvfs(root_dir).is_ok_and(|fs| {
            let short = |free: u64, total: u64, percent: u64| total > 0 && free * 100 < total * percent;
            short(fs.f_bavail, fs.f_blocks, DISK_PERCENT) || short(fs.f_favail, fs.f_files, INODES_PERCENT)
        })
    }
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
