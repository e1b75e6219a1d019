//! Resource use, read straight from cgroup v2 files and the pod's network namespace.

use super::memory::Container;
use super::{Runtime, blocking, container::cgroup_folder, convert};
use crate::state::{SandboxRecord, now_nanos};
use cri_api::v1;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tonic::Status;

impl Runtime {
    pub async fn container_stats(self: &Arc<Self>, id: &str) -> Result<v1::ContainerStats, Status> {
        let container = self.memory.container(id)?;
        let runtime = Arc::clone(self);
        blocking(move || Ok::<_, Status>(runtime.stats_of(&container))).await
    }

    pub async fn list_container_stats(
        self: &Arc<Self>,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>, Status> {
        let filter = filter.unwrap_or_default();
        let mut containers = self.memory.containers();
        containers.retain(|container| {
            container.running()
                && convert::id_matches(&container.record.id, &filter.id)
                && convert::id_matches(&container.record.sandbox_id, &filter.pod_sandbox_id)
                && convert::labels_match(&container.record.config.labels, &filter.label_selector)
        });
        let runtime = Arc::clone(self);
        blocking(move || {
            Ok::<_, Status>(
                containers
                    .iter()
                    .map(|container| runtime.stats_of(container))
                    .collect(),
            )
        })
        .await
    }

    fn stats_of(&self, container: &Container) -> v1::ContainerStats {
        let record = &container.record;
        let cgroup = cgroup_folder(&record.cgroup);
        let upper = self.layout.upper(&record.id);
        let (bytes, inodes) = crate::snapshot::usage(&upper);
        v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
            }),
            cpu: cpu(&cgroup),
            memory: memory(&cgroup),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp: now_nanos(),
                fs_id: Some(v1::FilesystemIdentifier {
                    mountpoint: self.layout.containers().display().to_string(),
                }),
                used_bytes: some(bytes),
                inodes_used: some(inodes),
            }),
            swap: swap(&cgroup),
            io: io(&cgroup),
        }
    }

    pub async fn pod_sandbox_stats(self: &Arc<Self>, id: &str) -> Result<v1::PodSandboxStats, Status> {
        let sandbox = self.memory.sandbox(id)?;
        let runtime = Arc::clone(self);
        blocking(move || Ok::<_, Status>(runtime.sandbox_stats_of(&sandbox))).await
    }

    pub async fn list_pod_sandbox_stats(
        self: &Arc<Self>,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, Status> {
        let filter = filter.unwrap_or_default();
        let mut sandboxes = self.memory.sandboxes();
        sandboxes.retain(|sandbox| {
            sandbox.ready
                && convert::id_matches(&sandbox.id, &filter.id)
                && convert::labels_match(&sandbox.config.labels, &filter.label_selector)
        });
        let runtime = Arc::clone(self);
        blocking(move || {
            Ok::<_, Status>(
                sandboxes
                    .iter()
                    .map(|sandbox| runtime.sandbox_stats_of(sandbox))
                    .collect(),
            )
        })
        .await
    }

    fn sandbox_stats_of(&self, sandbox: &SandboxRecord) -> v1::PodSandboxStats {
        let containers = self.memory.containers_of(&sandbox.id);
        let pod = self.cgroup_of(sandbox, &sandbox.id);
        let cgroup = cgroup_folder(pod.parent().unwrap_or(&pod));
        v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: sandbox.id.clone(),
                metadata: sandbox.config.metadata.clone(),
                labels: sandbox.config.labels.clone(),
                annotations: sandbox.config.annotations.clone(),
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: cpu(&cgroup),
                memory: memory(&cgroup),
                network: self.network_usage(sandbox, &containers),
                process: number(&cgroup.join("pids.current")).map(|count| v1::ProcessUsage {
                    timestamp: now_nanos(),
                    process_count: some(count),
                }),
                containers: containers
                    .iter()
                    .filter(|c| c.running())
                    .map(|c| self.stats_of(c))
                    .collect(),
                io: io(&cgroup),
            }),
            windows: None,
        }
    }

    /// Through any process of the pod: /proc/PID/net shows that process's namespace.
    fn network_usage(&self, sandbox: &SandboxRecord, containers: &[Container]) -> Option<v1::NetworkUsage> {
        if convert::namespace_options(sandbox).network() == v1::NamespaceMode::Node {
            return None;
        }
        let pid = containers.iter().find(|c| c.running())?.process.as_ref()?.pid;
        let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
        let (default, interfaces) = interfaces(&text);
        Some(v1::NetworkUsage {
            timestamp: now_nanos(),
            default_interface: default,
            interfaces,
        })
    }
}

fn some(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

pub fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The value of a key in a flat-keyed file.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn cpu(cgroup: &Path) -> Option<v1::CpuUsage> {
    let text = fs::read_to_string(cgroup.join("cpu.stat")).ok()?;
    Some(v1::CpuUsage {
        timestamp: now_nanos(),
        usage_core_nano_seconds: some(keyed(&text, "usage_usec")? * 1000),
        usage_nano_cores: None,
        psi: psi(&cgroup.join("cpu.pressure")),
    })
}

fn memory(cgroup: &Path) -> Option<v1::MemoryUsage> {
    let usage = number(&cgroup.join("memory.current"))?;
    let stat = fs::read_to_string(cgroup.join("memory.stat")).ok()?;
    // What can be given back at once is not at work (cAdvisor's working set).
    let working_set = usage.saturating_sub(keyed(&stat, "inactive_file").unwrap_or(0));
    let limit = number(&cgroup.join("memory.max"));
    let major = keyed(&stat, "pgmajfault").unwrap_or(0);
    Some(v1::MemoryUsage {
        timestamp: now_nanos(),
        working_set_bytes: some(working_set),
        available_bytes: limit.and_then(|limit| some(limit.saturating_sub(working_set))),
        usage_bytes: some(usage),
        rss_bytes: keyed(&stat, "anon").and_then(some),
        page_faults: some(keyed(&stat, "pgfault").unwrap_or(0).saturating_sub(major)),
        major_page_faults: some(major),
        psi: psi(&cgroup.join("memory.pressure")),
    })
}

fn swap(cgroup: &Path) -> Option<v1::SwapUsage> {
    let usage = number(&cgroup.join("memory.swap.current"))?;
    let limit = number(&cgroup.join("memory.swap.max"));
    Some(v1::SwapUsage {
        timestamp: now_nanos(),
        swap_available_bytes: limit.and_then(|limit| some(limit.saturating_sub(usage))),
        swap_usage_bytes: some(usage),
    })
}

fn io(cgroup: &Path) -> Option<v1::IoUsage> {
    psi(&cgroup.join("io.pressure")).map(|psi| v1::IoUsage {
        timestamp: now_nanos(),
        psi: Some(psi),
    })
}

fn psi(file: &Path) -> Option<v1::PsiStats> {
    parse_psi(&fs::read_to_string(file).ok()?)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, then the same for `full`.
pub fn parse_psi(text: &str) -> Option<v1::PsiStats> {
    let row = |kind: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let field = |name: &str| {
            line.split(' ')
                .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
        };
        let average = |name: &str| {
            field(name)
                .and_then(|value| value.parse().ok())
                .unwrap_or_default()
        };
        Some(v1::PsiData {
            total: field("total")?.parse::<u64>().ok()? * 1000,
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
        })
    };
    Some(v1::PsiStats {
        some: Some(row("some")?),
        full: row("full"),
    })
}

/// /proc/net/dev as the pod's main interface and the others; loopback does not count.
fn interfaces(text: &str) -> (Option<v1::NetworkInterfaceUsage>, Vec<v1::NetworkInterfaceUsage>) {
    let mut all: Vec<v1::NetworkInterfaceUsage> = text
        .lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> = counters
                .split_whitespace()
                .filter_map(|field| field.parse().ok())
                .collect();
            let [rx_bytes, _, rx_errors, _, _, _, _, _, tx_bytes, _, tx_errors, ..] = counters[..] else {
                return None;
            };
            Some(v1::NetworkInterfaceUsage {
                name: name.trim().to_owned(),
                rx_bytes: some(rx_bytes),
                rx_errors: some(rx_errors),
                tx_bytes: some(tx_bytes),
                tx_errors: some(tx_errors),
            })
        })
        .filter(|interface| interface.name != "lo")
        .collect();
    let main = all
        .iter()
        .position(|interface| interface.name == "eth0")
        .map(|index| all.remove(index));
    (main, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_cpu_come_from_the_cgroups_files() {
        let dir = crate::test_support::TempDir::new("stats");
        for (file, text) in [
            ("memory.current", "1000\n"),
            ("memory.max", "5000\n"),
            (
                "memory.stat",
                "anon 400\nfile 600\ninactive_file 300\npgfault 9\npgmajfault 2\n",
            ),
            ("cpu.stat", "usage_usec 42\nuser_usec 40\n"),
            ("memory.swap.current", "7\n"),
            ("memory.swap.max", "max\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let usage = memory(dir.path()).unwrap();
        let values = [
            usage.working_set_bytes,
            usage.available_bytes,
            usage.usage_bytes,
            usage.rss_bytes,
            usage.page_faults,
        ];
        assert_eq!(
            values.map(|value| value.unwrap().value),
            [700, 4300, 1000, 400, 7]
        );
        assert_eq!(
            cpu(dir.path()).unwrap().usage_core_nano_seconds.unwrap().value,
            42_000
        );
        assert_eq!(swap(dir.path()).unwrap().swap_available_bytes, None);
        assert!(memory(Path::new("/nonexistent")).is_none());
    }

    #[test]
    fn pressure_is_told_in_nanoseconds() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=3\nfull avg10=0.00 avg60=0.00 avg300=0.25 total=2\n";
        let psi = parse_psi(text).unwrap();
        assert_eq!((psi.some.unwrap().avg10, psi.some.unwrap().total), (1.5, 3000));
        assert_eq!((psi.full.unwrap().avg300, psi.full.unwrap().total), (0.25, 2000));
    }

    #[test]
    fn interfaces_are_counted_without_loopback() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 1 2 0 0 0 0 0 20 1 3 0 0 0 0 0\n";
        let (main, others) = interfaces(text);
        let main = main.unwrap();
        assert_eq!(
            (
                main.rx_bytes.unwrap().value,
                main.tx_errors.unwrap().value,
                others.len()
            ),
            (10, 3, 0)
        );
    }
}
