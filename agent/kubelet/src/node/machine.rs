//! Facts about the machine from `/proc`, `/sys` and the file systems.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jiff::Timestamp;

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
    /// Huge pages reserved at boot: bytes by size in kB.
    pub huge_pages: BTreeMap<u64, u64>,
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

/// What the kernel has set aside, from directories called `hugepages-NkB`.
fn huge_pages(directory: &Path) -> BTreeMap<u64, u64> {
    let sizes = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let size: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
            Some((size, count.trim().parse::<u64>().ok()? * size * 1024))
        });
    sizes.collect()
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
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
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

/// What the whole machine uses now.
#[derive(Clone, Debug, Default)]
pub struct NodeUsage {
    pub started: Timestamp,
    pub cpu_nanoseconds: u64,
    pub memory_available: u64,
    pub memory_used: u64,
    pub memory_working_set: u64,
    pub memory_rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub max_pids: Option<u64>,
    pub tasks: Option<u64>,
    pub interfaces: Vec<Interface>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

/// The counters of `/proc/net/dev` but loopback's.
fn interfaces(text: &str) -> Vec<Interface> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let parsed = lines.filter_map(|(name, counters)| {
        let counters: Vec<u64> = counters
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        Some(Interface {
            name: name.trim().to_owned(),
            rx_bytes: *counters.first()?,
            rx_errors: *counters.get(2)?,
            tx_bytes: *counters.get(8)?,
            tx_errors: *counters.get(10)?,
        })
    });
    parsed.filter(|interface| interface.name != "lo").collect()
}

/// Time that processors were busy, from the first line of `/proc/stat`, whose unit is a hundredth of a second.
fn busy_nanoseconds(stat: &str) -> u64 {
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum();
    busy * 10_000_000
}

pub fn node_usage() -> NodeUsage {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (memory, stat, vmstat) = (read("/proc/meminfo"), read("/proc/stat"), read("/proc/vmstat"));
    let kilobytes = |field: &str| meminfo(&memory, field).unwrap_or(0);
    let counter = |text: &str, key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|number| number.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    let (total, available) = (kilobytes("MemTotal"), kilobytes("MemAvailable"));
    let booted = i64::try_from(counter(&stat, "btime")).unwrap_or(0);
    NodeUsage {
        started: Timestamp::from_second(booted).unwrap_or_default(),
        cpu_nanoseconds: busy_nanoseconds(&stat),
        memory_available: available,
        memory_used: total.saturating_sub(kilobytes("MemFree")),
        memory_working_set: total.saturating_sub(available),
        memory_rss: kilobytes("AnonPages"),
        page_faults: counter(&vmstat, "pgfault"),
        major_page_faults: counter(&vmstat, "pgmajfault"),
        max_pids: first_line("/proc/sys/kernel/pid_max").parse().ok(),
        tasks: tasks(&first_line("/proc/loadavg")),
        interfaces: interfaces(&read("/proc/net/dev")),
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
    fn counters_of_the_machine() {
        assert_eq!(
            busy_nanoseconds("cpu  1 2 3 400 5 6 7 8 0 0\ncpu0 1\n"),
            27 * 10_000_000
        );
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                    eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let expected = Interface {
            name: "eth0".into(),
            rx_bytes: 1,
            rx_errors: 3,
            tx_bytes: 9,
            tx_errors: 11,
        };
        assert_eq!(interfaces(text), [expected]);
    }

    #[test]
    fn this_machine_has_memory_and_a_kernel() {
        let machine = Machine::read(Path::new("/"), "x://1".into());
        assert!(machine.memory_bytes > 0 && machine.cpus > 0 && machine.storage_bytes > 0);
        assert!(!machine.kernel_version.is_empty() && !machine.boot_id.is_empty());
    }
}
