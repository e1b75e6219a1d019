//! `/stats/summary`: what the node, its pods and their containers use, in upstream's words.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use cri_api::v1::{
    ContainerStats, CpuUsage, FilesystemUsage, MemoryUsage, NetworkInterfaceUsage, NetworkUsage,
    PodSandboxStats, SwapUsage, UInt64Value,
};
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::{Answer, json as json_answer, text};
use crate::context::{Context, name, namespace, uid};
use crate::disk_usage::{self, Usage};
use crate::node::{NodeUsage, node_usage};
use crate::pod_manager::Pods;
use crate::runtime::{CONTAINER_NAME, POD_UID, RuntimeError};

/// Samples closer together than this say nothing about a rate.
const MINIMUM_NANOSECONDS: i64 = 500_000_000;

/// Processor time as last seen, to tell how fast it is spent.
#[derive(Default)]
pub struct Rates(Mutex<HashMap<String, Sample>>);

struct Sample {
    at: i64,
    used: u64,
    rate: Option<u64>,
}

impl Rates {
    /// Nanoseconds of processor time a second, since the last look.
    pub fn nano_cores(&self, id: &str, at: i64, used: u64) -> Option<u64> {
        let mut samples = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let last = samples.get(id);
        let passed = last.map_or(0, |last| at - last.at);
        if last.is_some() && passed < MINIMUM_NANOSECONDS {
            return last.and_then(|last| last.rate);
        }
        let rate = last.and_then(|last| {
            let spent = u128::from(used.checked_sub(last.used)?);
            u64::try_from(spent * 1_000_000_000 / u128::try_from(passed).ok()?).ok()
        });
        samples.insert(id.to_owned(), Sample { at, used, rate });
        rate
    }

    fn retain(&self, ids: &[String]) {
        let mut samples = self.0.lock().unwrap_or_else(|e| e.into_inner());
        samples.retain(|id, _| ids.contains(id));
    }
}

/// Everything that was measured at one time.
pub struct Measured {
    pub node: NodeUsage,
    pub pods: Vec<(Pod, Option<PodSandboxStats>)>,
}

pub async fn measure(context: &Context, pods: &Pods) -> Result<Measured, RuntimeError> {
    let mut stats: HashMap<String, PodSandboxStats> = HashMap::new();
    for one in context.runtime.pod_stats().await? {
        let uid = one
            .attributes
            .as_ref()
            .and_then(|attributes| attributes.labels.get(POD_UID).cloned());
        if let Some(uid) = uid {
            stats.insert(uid, one);
        }
    }
    let pods = pods.all().into_iter().map(|pod| {
        let own = stats.remove(uid(&pod));
        (pod, own)
    });
    Ok(Measured {
        node: node_usage(),
        pods: pods.collect(),
    })
}

pub fn value(number: Option<&UInt64Value>) -> Option<u64> {
    number.map(|number| number.value)
}

/// The name by which a container's stats are known.
pub fn container_name(stats: &ContainerStats) -> Option<&str> {
    stats
        .attributes
        .as_ref()?
        .labels
        .get(CONTAINER_NAME)
        .map(String::as_str)
}

fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default()
}

/// An object of those fields that have a value.
fn object(fields: &[(&str, Option<u64>)]) -> Map<String, Value> {
    let present = fields
        .iter()
        .filter_map(|(name, value)| Some(((*name).to_owned(), json!((*value)?))));
    present.collect()
}

fn stamped(at: Timestamp, fields: &[(&str, Option<u64>)]) -> Value {
    let mut all = object(fields);
    all.insert("time".into(), json!(at));
    Value::Object(all)
}

fn cpu(usage: &CpuUsage, rate: Option<u64>) -> Value {
    let used = value(usage.usage_core_nano_seconds.as_ref());
    let rate = value(usage.usage_nano_cores.as_ref()).or(rate);
    stamped(
        time(usage.timestamp),
        &[("usageCoreNanoSeconds", used), ("usageNanoCores", rate)],
    )
}

fn memory(usage: &MemoryUsage) -> Value {
    let fields = [
        ("availableBytes", value(usage.available_bytes.as_ref())),
        ("usageBytes", value(usage.usage_bytes.as_ref())),
        ("workingSetBytes", value(usage.working_set_bytes.as_ref())),
        ("rssBytes", value(usage.rss_bytes.as_ref())),
        ("pageFaults", value(usage.page_faults.as_ref())),
        ("majorPageFaults", value(usage.major_page_faults.as_ref())),
    ];
    stamped(time(usage.timestamp), &fields)
}

fn swap(usage: &SwapUsage) -> Value {
    let fields = [
        ("swapAvailableBytes", value(usage.swap_available_bytes.as_ref())),
        ("swapUsageBytes", value(usage.swap_usage_bytes.as_ref())),
    ];
    stamped(time(usage.timestamp), &fields)
}

fn interface(one: &NetworkInterfaceUsage) -> Map<String, Value> {
    let mut fields = object(&[
        ("rxBytes", value(one.rx_bytes.as_ref())),
        ("rxErrors", value(one.rx_errors.as_ref())),
        ("txBytes", value(one.tx_bytes.as_ref())),
        ("txErrors", value(one.tx_errors.as_ref())),
    ]);
    fields.insert("name".into(), one.name.clone().into());
    fields
}

fn network(usage: &NetworkUsage) -> Value {
    let mut fields = usage
        .default_interface
        .as_ref()
        .map(interface)
        .unwrap_or_default();
    fields.insert("time".into(), json!(time(usage.timestamp)));
    let interfaces = usage.interfaces.iter().map(|one| Value::Object(interface(one)));
    fields.insert("interfaces".into(), interfaces.collect());
    Value::Object(fields)
}

/// A file system, and the part of it that something uses.
fn file_system(at: Timestamp, directory: &Path, used: Option<Usage>) -> Value {
    let Ok(fs) = rustix::fs::statvfs(directory) else {
        return stamped(at, &[]);
    };
    let size = |blocks: u64| Some(blocks * fs.f_frsize);
    let used = used.unwrap_or(Usage {
        bytes: (fs.f_blocks - fs.f_bfree) * fs.f_frsize,
        inodes: fs.f_files - fs.f_ffree,
    });
    let fields = [
        ("availableBytes", size(fs.f_bavail)),
        ("capacityBytes", size(fs.f_blocks)),
        ("usedBytes", Some(used.bytes)),
        ("inodes", Some(fs.f_files)),
        ("inodesFree", Some(fs.f_ffree)),
        ("inodesUsed", Some(used.inodes)),
    ];
    stamped(at, &fields)
}

fn layer(usage: &FilesystemUsage) -> Usage {
    Usage {
        bytes: value(usage.used_bytes.as_ref()).unwrap_or(0),
        inodes: value(usage.inodes_used.as_ref()).unwrap_or(0),
    }
}

fn container(
    context: &Context,
    pod: &Pod,
    stats: &ContainerStats,
    now: Timestamp,
    disk: &mut Usage,
) -> Option<Value> {
    let container = container_name(stats)?;
    let root = &context.config.root_dir;
    let id = stats
        .attributes
        .as_ref()
        .map(|attributes| attributes.id.as_str())
        .unwrap_or_default();
    let started = pod.status.iter().flat_map(|status| {
        let all = [
            &status.container_statuses,
            &status.init_container_statuses,
            &status.ephemeral_container_statuses,
        ];
        all.into_iter().flatten().flatten()
    });
    let started = started.into_iter().find(|status| status.name == container);
    let started = started.and_then(|status| status.state.as_ref()?.running.as_ref()?.started_at.clone());
    let logs = disk_usage::of(&context.pod_log_dir(pod).join(container));
    let mut fields = json!({ "name": container, "startTime": started,
        "logs": file_system(now, &context.config.pod_logs_dir, Some(logs)) });
    disk.add(logs);
    if let Some(own) = &stats.cpu {
        let used = value(own.usage_core_nano_seconds.as_ref());
        let rate = used.and_then(|used| context.rates.nano_cores(id, own.timestamp, used));
        fields["cpu"] = cpu(own, rate);
    }
    if let Some(own) = &stats.memory {
        fields["memory"] = memory(own);
    }
    if let Some(own) = &stats.swap {
        fields["swap"] = swap(own);
    }
    if let Some(own) = &stats.writable_layer {
        disk.add(layer(own));
        fields["rootfs"] = file_system(now, root, Some(layer(own)));
    }
    Some(fields)
}

fn volumes(context: &Context, pod: &Pod, now: Timestamp, disk: &mut Usage) -> Vec<Value> {
    let base = context.pod_dir(uid(pod)).join("volumes");
    let specified = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let measured = specified.filter_map(|volume| {
        let claim = volume.persistent_volume_claim.as_ref();
        let plugins = std::fs::read_dir(&base).into_iter().flatten().flatten();
        let path = plugins
            .map(|plugin| plugin.path().join(&volume.name))
            .find(|path| path.is_dir())?;
        let used = disk_usage::of(&path);
        if volume
            .empty_dir
            .as_ref()
            .is_some_and(|source| source.medium.as_deref() != Some("Memory"))
        {
            disk.add(used);
        }
        let mut fields = file_system(now, &path, Some(used));
        fields["name"] = volume.name.clone().into();
        if let Some(claim) = claim {
            fields["pvcRef"] = json!({ "name": claim.claim_name, "namespace": namespace(pod) });
        }
        Some(fields)
    });
    measured.collect()
}

pub async fn summary(context: &Context, pods: &Pods, only_cpu_and_memory: bool) -> Answer {
    let measured = match measure(context, pods).await {
        Ok(measured) => measured,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let now = Timestamp::now();
    let mut ids = vec![String::new()];
    let mut all = Vec::new();
    for (pod, stats) in &measured.pods {
        let mut disk = Usage::default();
        let started = pod.status.as_ref().and_then(|status| status.start_time.clone());
        let mut fields = json!({
            "podRef": { "name": name(pod), "namespace": namespace(pod), "uid": uid(pod) },
            "startTime": started,
        });
        let linux = stats
            .as_ref()
            .and_then(|stats| stats.linux.clone())
            .unwrap_or_default();
        let own = linux.containers.iter();
        let containers: Vec<Value> = own
            .filter_map(|one| container(context, pod, one, now, &mut disk))
            .collect();
        ids.extend(
            linux
                .containers
                .iter()
                .filter_map(|one| Some(one.attributes.as_ref()?.id.clone())),
        );
        ids.push(uid(pod).to_owned());
        fields["containers"] = containers.into();
        if let Some(own) = &linux.cpu {
            let used = value(own.usage_core_nano_seconds.as_ref());
            let rate = used.and_then(|used| context.rates.nano_cores(uid(pod), own.timestamp, used));
            fields["cpu"] = cpu(own, rate);
        }
        if let Some(own) = &linux.memory {
            fields["memory"] = memory(own);
        }
        if !only_cpu_and_memory {
            fields["volume"] = volumes(context, pod, now, &mut disk).into();
            fields["ephemeral-storage"] = file_system(now, &context.config.root_dir, Some(disk));
            if let Some(own) = &linux.network {
                fields["network"] = network(own);
            }
            if let Some(process) = &linux.process {
                let count = value(process.process_count.as_ref());
                fields["process_stats"] = Value::Object(object(&[("process_count", count)]));
            }
        }
        all.push(fields);
    }
    context.rates.retain(&ids);
    let node = &measured.node;
    let at = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
    let rate = context.rates.nano_cores("", at, node.cpu_nanoseconds);
    let mut fields = json!({
        "nodeName": context.config.node_name,
        "startTime": node.started,
        "cpu": stamped(now, &[("usageCoreNanoSeconds", Some(node.cpu_nanoseconds)), ("usageNanoCores", rate)]),
        "memory": stamped(now, &[
            ("availableBytes", Some(node.memory_available)),
            ("usageBytes", Some(node.memory_used)),
            ("workingSetBytes", Some(node.memory_working_set)),
            ("rssBytes", Some(node.memory_rss)),
            ("pageFaults", Some(node.page_faults)),
            ("majorPageFaults", Some(node.major_page_faults)),
        ]),
    });
    if !only_cpu_and_memory {
        let root = file_system(now, &context.config.root_dir, None);
        fields["fs"] = root.clone();
        fields["runtime"] = json!({ "imageFs": root, "containerFs": root });
        fields["rlimit"] = stamped(now, &[("maxpid", node.max_pids), ("curproc", node.tasks)]);
        fields["network"] = json!({ "time": now, "interfaces": node.interfaces.iter().map(|one| json!({
            "name": one.name, "rxBytes": one.rx_bytes, "rxErrors": one.rx_errors,
            "txBytes": one.tx_bytes, "txErrors": one.tx_errors })).collect::<Vec<_>>() });
    }
    json_answer(&json!({ "node": fields, "pods": all }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_two_samples_and_time_between_them() {
        let rates = Rates::default();
        let second = 1_000_000_000;
        for (at, used, expected) in [
            (0, 0, None),
            (second, 500_000_000, Some(500_000_000)),
            (second + 1, 900_000_000, Some(500_000_000)),
            (3 * second, 2_500_000_000, Some(1_000_000_000)),
            (4 * second, 0, None),
        ] {
            assert_eq!(rates.nano_cores("c", at, used), expected, "{at}");
        }
    }
}
