//! CRI's metrics (KEP-2371): cAdvisor's families of every container, from cgroup v2 files and /proc.

use super::memory::Container;
use super::stats::{keyed, number, parse_psi};
use super::{Runtime, blocking, container::cgroup_folder};
use crate::state::{SandboxRecord, now_nanos};
use cri_api::v1::{self, MetricType};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tonic::Status;

/// On every sample, in this order; a family's own labels follow.
const LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];

/// Families: name, own labels, `c`ounter or `g`auge, what it says.
const FAMILIES: &str = include_str!("metrics.table");

struct Family {
    name: &'static str,
    labels: Vec<&'static str>,
    kind: MetricType,
    help: &'static str,
}

fn families() -> impl Iterator<Item = Family> {
    FAMILIES.lines().filter_map(|line| {
        let [name, labels, kind, help] = line.split('|').collect::<Vec<_>>()[..] else {
            return None;
        };
        Some(Family {
            name,
            labels: labels.split(',').filter(|label| !label.is_empty()).collect(),
            kind: if kind == "c" {
                MetricType::Counter
            } else {
                MetricType::Gauge
            },
            help,
        })
    })
}

pub fn descriptors() -> Vec<v1::MetricDescriptor> {
    let all = families().map(|family| v1::MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: LABELS
            .iter()
            .chain(&family.labels)
            .map(|label| (*label).to_owned())
            .collect(),
    });
    all.collect()
}

/// A value of a family, with the values of the family's own labels.
type Sample = (&'static str, Vec<String>, u64);

impl Runtime {
    pub async fn pod_sandbox_metrics(self: &Arc<Self>) -> Result<Vec<v1::PodSandboxMetrics>, Status> {
        let runtime = Arc::clone(self);
        blocking(move || {
            let ready = runtime
                .memory
                .sandboxes()
                .into_iter()
                .filter(|sandbox| sandbox.ready);
            Ok::<_, Status>(ready.map(|sandbox| runtime.metrics_of(&sandbox)).collect())
        })
        .await
    }

    fn metrics_of(&self, sandbox: &SandboxRecord) -> v1::PodSandboxMetrics {
        let metadata = sandbox.config.metadata.clone().unwrap_or_default();
        let mut containers = self.memory.containers_of(&sandbox.id);
        containers.retain(Container::running);
        let pod_cgroup = self.cgroup_of(sandbox, "");
        let own = [
            &pod_cgroup.display().to_string(),
            "",
            "",
            "",
            &metadata.name,
            &metadata.namespace,
        ]
        .map(str::to_owned);
        let network = containers
            .first()
            .and_then(|container| container.process.as_ref());
        let network = network
            .and_then(|process| fs::read_to_string(format!("/proc/{}/net/dev", process.pid)).ok())
            .map(|text| interfaces(&text))
            .unwrap_or_default();
        let container_metrics = containers.iter().map(|container| {
            let record = &container.record;
            let name = record.config.metadata.clone().unwrap_or_default().name;
            let image = record.config.image.clone().unwrap_or_default();
            let image = if image.user_specified_image.is_empty() {
                image.image
            } else {
                image.user_specified_image
            };
            let labels = [
                record.cgroup.display().to_string(),
                record.id.clone(),
                image,
                name,
                metadata.name.clone(),
                metadata.namespace.clone(),
            ];
            v1::ContainerMetrics {
                container_id: record.id.clone(),
                metrics: told(&labels, self.samples_of(container)),
            }
        });
        v1::PodSandboxMetrics {
            pod_sandbox_id: sandbox.id.clone(),
            container_metrics: container_metrics.collect(),
            metrics: told(&own, network),
        }
    }

    fn samples_of(&self, container: &Container) -> Vec<Sample> {
        let record = &container.record;
        let cgroup = cgroup_folder(&record.cgroup);
        let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
        let (process, config) = (container.process.clone().unwrap_or_default(), &record.config);
        let resources = config
            .linux
            .clone()
            .and_then(|linux| linux.resources)
            .unwrap_or_default();
        let mut samples = cgroup_samples(&read);
        let mut put = |name, value| samples.push((name, vec![], value));
        put(
            "container_last_seen",
            (now_nanos() / 1_000_000_000).unsigned_abs(),
        );
        put(
            "container_start_time_seconds",
            (process.started_at / 1_000_000_000).unsigned_abs(),
        );
        put("container_processes", read("cgroup.procs").lines().count() as u64);
        put("container_threads", read("cgroup.threads").lines().count() as u64);
        put(
            "container_threads_max",
            number(&cgroup.join("pids.max")).unwrap_or(0),
        );
        let positive = |value: i64| u64::try_from(value).unwrap_or(0);
        put("container_spec_cpu_period", positive(resources.cpu_period));
        put("container_spec_cpu_quota", positive(resources.cpu_quota));
        put("container_spec_cpu_shares", positive(resources.cpu_shares));
        put(
            "container_spec_memory_limit_bytes",
            positive(resources.memory_limit_in_bytes),
        );
        put(
            "container_spec_memory_reservation_limit_bytes",
            number(&cgroup.join("memory.low")).unwrap_or(0),
        );
        put(
            "container_spec_memory_swap_limit_bytes",
            positive(resources.memory_swap_limit_in_bytes),
        );
        let (files, sockets) = descriptors_of(&read("cgroup.procs"));
        put("container_file_descriptors", files);
        put("container_sockets", sockets);
        let open_files = fs::read_to_string(format!("/proc/{}/limits", process.pid)).unwrap_or_default();
        if let Some(limit) = soft_limit(&open_files) {
            samples.push(("container_ulimits_soft", vec!["max_open_files".into()], limit));
        }
        samples.extend(self.file_system_samples(&record.id));
        samples
    }

    fn file_system_samples(&self, id: &str) -> Vec<Sample> {
        let folder = self.layout.containers();
        let device = || vec![folder.display().to_string()];
        let (used, _) = crate::snapshot::usage(&self.layout.upper(id));
        let mut samples = vec![("container_fs_usage_bytes", device(), used)];
        if let Ok(whole) = rustix::fs::statvfs(&folder) {
            samples.extend([
                (
                    "container_fs_limit_bytes",
                    device(),
                    whole.f_blocks * whole.f_frsize,
                ),
                ("container_fs_inodes_total", device(), whole.f_files),
                ("container_fs_inodes_free", device(), whole.f_ffree),
            ]);
        }
        samples
    }
}

fn told(labels: &[String], samples: Vec<Sample>) -> Vec<v1::Metric> {
    let timestamp = now_nanos();
    let kinds: std::collections::BTreeMap<_, _> =
        families().map(|family| (family.name, family.kind)).collect();
    let metric = |(name, own, value): Sample| v1::Metric {
        name: name.to_owned(),
        timestamp,
        metric_type: kinds.get(name).copied().unwrap_or(MetricType::Gauge) as i32,
        label_values: labels.iter().cloned().chain(own).collect(),
        value: Some(v1::UInt64Value { value }),
    };
    samples.into_iter().map(metric).collect()
}

/// What the files of a cgroup say; a file that is not there reads as zero.
fn cgroup_samples(read: &dyn Fn(&str) -> String) -> Vec<Sample> {
    let number = |file: &str| read(file).trim().parse::<u64>().unwrap_or(0);
    let of = |text: &str, key: &str| keyed(text, key).unwrap_or(0);
    let (cpu, memory, events) = (read("cpu.stat"), read("memory.stat"), read("memory.events"));
    let seconds = |key: &str| of(&cpu, key) / 1_000_000;
    let usage = number("memory.current");
    let mut samples: Vec<Sample> = [
        ("container_cpu_usage_seconds_total", seconds("usage_usec")),
        ("container_cpu_user_seconds_total", seconds("user_usec")),
        ("container_cpu_system_seconds_total", seconds("system_usec")),
        ("container_cpu_cfs_periods_total", of(&cpu, "nr_periods")),
        (
            "container_cpu_cfs_throttled_periods_total",
            of(&cpu, "nr_throttled"),
        ),
        (
            "container_cpu_cfs_throttled_seconds_total",
            seconds("throttled_usec"),
        ),
        ("container_memory_usage_bytes", usage),
        (
            "container_memory_working_set_bytes",
            usage.saturating_sub(of(&memory, "inactive_file")),
        ),
        ("container_memory_max_usage_bytes", number("memory.peak")),
        ("container_memory_rss", of(&memory, "anon")),
        ("container_memory_cache", of(&memory, "file")),
        ("container_memory_mapped_file", of(&memory, "file_mapped")),
        ("container_memory_kernel_usage", of(&memory, "kernel")),
        ("container_memory_swap", number("memory.swap.current")),
        ("container_memory_failcnt", of(&events, "max")),
        ("container_oom_events_total", of(&events, "oom_kill")),
    ]
    .map(|(name, value)| (name, vec![], value))
    .into();
    for (key, kind) in [("pgfault", "pgfault"), ("pgmajfault", "pgmajfault")] {
        let labels = vec![kind.to_owned(), "container".to_owned()];
        samples.push(("container_memory_failures_total", labels, of(&memory, key)));
    }
    for (file, waiting, stalled) in [
        (
            "cpu.pressure",
            "container_pressure_cpu_waiting_seconds_total",
            "container_pressure_cpu_stalled_seconds_total",
        ),
        (
            "memory.pressure",
            "container_pressure_memory_waiting_seconds_total",
            "container_pressure_memory_stalled_seconds_total",
        ),
        (
            "io.pressure",
            "container_pressure_io_waiting_seconds_total",
            "container_pressure_io_stalled_seconds_total",
        ),
    ] {
        let psi = parse_psi(&read(file)).unwrap_or_default();
        let total = |data: Option<v1::PsiData>| data.map_or(0, |data| data.total / 1_000_000_000);
        samples.push((waiting, vec![], total(psi.some)));
        samples.push((stalled, vec![], total(psi.full)));
    }
    for size in ["2MB", "1GB"] {
        let label = || vec![size.to_owned()];
        samples.push((
            "container_hugetlb_usage_bytes",
            label(),
            number(&format!("hugetlb.{size}.current")),
        ));
        samples.push((
            "container_hugetlb_max_usage_bytes",
            label(),
            number(&format!("hugetlb.{size}.max")),
        ));
    }
    for line in read("io.stat").lines() {
        samples.extend(device_samples(line));
    }
    samples
}

/// A line of io.stat: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn device_samples(line: &str) -> Vec<Sample> {
    let Some((device, counters)) = line.split_once(' ') else {
        return vec![];
    };
    let get = |key: &str| {
        let found = counters
            .split(' ')
            .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
        found.unwrap_or(0)
    };
    let (major, minor) = device.split_once(':').unwrap_or((device, ""));
    let label = || vec![device.to_owned()];
    let usage = |operation: &str| [device, major, minor, operation].map(str::to_owned).to_vec();
    vec![
        ("container_fs_reads_bytes_total", label(), get("rbytes")),
        ("container_fs_reads_total", label(), get("rios")),
        ("container_fs_writes_bytes_total", label(), get("wbytes")),
        ("container_fs_writes_total", label(), get("wios")),
        ("container_blkio_device_usage_total", usage("Read"), get("rbytes")),
        (
            "container_blkio_device_usage_total",
            usage("Write"),
            get("wbytes"),
        ),
    ]
}

/// /proc/net/dev, without loopback.
fn interfaces(text: &str) -> Vec<Sample> {
    /// Column of each family.
    const COLUMNS: [(&str, usize); 8] = [
        ("container_network_receive_bytes_total", 0),
        ("container_network_receive_packets_total", 1),
        ("container_network_receive_errors_total", 2),
        ("container_network_receive_packets_dropped_total", 3),
        ("container_network_transmit_bytes_total", 8),
        ("container_network_transmit_packets_total", 9),
        ("container_network_transmit_errors_total", 10),
        ("container_network_transmit_packets_dropped_total", 11),
    ];
    let rows = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() != "lo");
    rows.flat_map(|(name, counters)| {
        let counters: Vec<u64> = counters
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        let columns = COLUMNS.into_iter();
        columns.filter_map(move |(family, column)| {
            Some((family, vec![name.trim().to_owned()], *counters.get(column)?))
        })
    })
    .collect()
}

/// Open files of all processes, and how many of them are sockets.
fn descriptors_of(processes: &str) -> (u64, u64) {
    let (mut files, mut sockets) = (0, 0);
    for pid in processes.lines() {
        for entry in fs::read_dir(Path::new("/proc").join(pid).join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            files += 1;
            let target = fs::read_link(entry.path()).unwrap_or_default();
            sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    (files, sockets)
}

/// `Max open files  1024  4096  files`
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_a_family_with_its_labels() {
        let mut samples = cgroup_samples(&|file| match file {
            "io.stat" => "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n".into(),
            _ => String::new(),
        });
        samples.extend(interfaces(
            "  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n    lo: 1 1\n",
        ));
        let families: Vec<Family> = families().collect();
        assert_eq!(families.len(), FAMILIES.lines().count());
        for (name, own, _) in &samples {
            let family = families.iter().find(|family| family.name == *name).expect(name);
            assert_eq!(family.labels.len(), own.len(), "{name}");
        }
        let value = |name: &str| {
            samples
                .iter()
                .find(|sample| sample.0 == name)
                .map(|sample| sample.2)
        };
        assert_eq!(value("container_fs_writes_total"), Some(4));
        assert_eq!(value("container_network_transmit_packets_dropped_total"), Some(8));
        assert_eq!(
            samples
                .iter()
                .filter(|sample| sample.1.first().is_some_and(|label| label == "lo"))
                .count(),
            0
        );
    }

    #[test]
    fn cgroup_files_become_samples() {
        let samples = cgroup_samples(&|file| match file {
            "cpu.stat" => "usage_usec 5000000\nnr_throttled 3\n".into(),
            "memory.current" => "100\n".into(),
            "memory.stat" => "anon 40\ninactive_file 30\npgmajfault 2\n".into(),
            _ => String::new(),
        });
        for (name, expected) in [
            ("container_cpu_usage_seconds_total", 5),
            ("container_cpu_cfs_throttled_periods_total", 3),
            ("container_memory_working_set_bytes", 70),
            ("container_memory_rss", 40),
        ] {
            assert!(samples.contains(&(name, vec![], expected)), "{name}");
        }
        assert_eq!(
            soft_limit(
                "Limit  Soft\nMax open files            1024                 4096                 files"
            ),
            Some(1024)
        );
    }
}
