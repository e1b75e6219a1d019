//! Keeps the node alive when memory, disk or process ids run short: reclaims what nobody uses, then evicts pods.

mod local_storage;
mod ranking;
mod signals;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::quantity::Quantity;
use cri_api::v1::ContainerStats;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::{Context, name, namespace, uid};
use crate::events::pod_reference;
use crate::node::Machine;
use crate::pod_manager::Pods;
use crate::runtime::{CONTAINER_NAME, RuntimeError, identity};
use crate::{disk_usage, garbage_collection, image_collection};

use ranking::{Candidate, Consumer};
use signals::{Crossings, Shortage};
pub use signals::{Pressures, Reading, Signal, threshold};

const PERIOD: Duration = Duration::from_secs(10);
/// Pods from this priority on keep the cluster itself running and stay.
const CRITICAL: i32 = 2_000_000_000;

/// Why a pod must go, and how long it has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    pub message: String,
    pub grace_seconds: u64,
}

/// Upstream's grace period for a pod that must go now.
pub const IMMEDIATE_GRACE: u64 = 1;

pub async fn run(context: Arc<Context>, pods: Pods, machine: Machine, stop: CancellationToken) {
    let mut crossings = Crossings::default();
    while !stop.is_cancelled() {
        if let Err(error) = watch_once(&context, &pods, &machine, &mut crossings).await {
            warn!(%error, "eviction cannot see what pods use");
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => {}
        }
    }
}

fn shortages(context: &Context, machine: &Machine, crossings: &mut Crossings) -> Vec<Shortage> {
    let readings = machine.readings(&context.config.root_dir);
    crossings.shortages(&readings, &context.config.settings, Instant::now())
}

/// Ends pods that use more of the disk than they may.
async fn enforce_local_storage(context: &Context, pods: &Pods) -> Result<(), RuntimeError> {
    let all = pods.all();
    let stats = context.runtime.container_stats().await?;
    for pod in all.iter().filter(|pod| is_evictable(pod)) {
        let used = local_storage::measure(context, pod, &stats);
        if let Some(message) = used.and_then(|used| local_storage::excess(pod, &used)) {
            evict(context, pods, pod, message, IMMEDIATE_GRACE);
        }
    }
    Ok(())
}

fn evict(context: &Context, pods: &Pods, pod: &Pod, message: String, grace_seconds: u64) {
    warn!(
        pod = name(pod),
        namespace = namespace(pod),
        message,
        "pod evicted"
    );
    context
        .events
        .warning(pod_reference(pod), "Evicted", message.clone());
    let eviction = Eviction {
        message,
        grace_seconds,
    };
    pods.evict(uid(pod), eviction);
}

async fn watch_once(
    context: &Context,
    pods: &Pods,
    machine: &Machine,
    crossings: &mut Crossings,
) -> Result<(), RuntimeError> {
    enforce_local_storage(context, pods).await?;
    let short = shortages(context, machine, crossings);
    for shortage in &short {
        context.pressures.note(shortage.reading.signal, Instant::now());
    }
    let Some(shortage) = short.first().copied() else {
        return Ok(());
    };
    let reading = shortage.reading;
    let resource = reading.signal.resource();
    warn!(resource, available = reading.available, "the node runs short");
    let message = format!("Attempting to reclaim {resource}");
    context
        .events
        .warning(context.events.node(), "EvictionThresholdMet", message);
    if reading.signal.is_disk() {
        garbage_collection::collect(context, pods).await?;
        image_collection::free(context, u64::MAX).await?;
        if !shortages(context, machine, crossings)
            .iter()
            .any(|left| left.reading.signal == reading.signal)
        {
            info!(resource, "the node has room again, no pod was evicted");
            return Ok(());
        }
    }
    let stats = context.runtime.container_stats().await?;
    let all = pods.all();
    let candidates = all.iter().filter(|pod| is_evictable(pod));
    let candidates = candidates.map(|pod| candidate(context, pod, reading.signal, &stats));
    let Some(chosen) = ranking::first(reading.signal, candidates.collect()) else {
        warn!(resource, "no pod can be evicted");
        return Ok(());
    };
    let message = ranking::message(&shortage, &chosen);
    if let Some(pod) = all.iter().find(|pod| uid(pod) == chosen.uid) {
        let soft = context.config.settings.eviction_max_pod_grace_period;
        let own = crate::pod_executor::grace_seconds(pod, None);
        let grace = if shortage.soft {
            soft.min(own).max(IMMEDIATE_GRACE)
        } else {
            IMMEDIATE_GRACE
        };
        evict(context, pods, pod, message, grace);
    }
    Ok(())
}

fn is_evictable(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
        && pod.metadata.deletion_timestamp.is_none()
        && api::pod::priority(pod) < CRITICAL
}

fn candidate(context: &Context, pod: &Pod, signal: Signal, stats: &[ContainerStats]) -> Candidate {
    let requests = requests(pod, signal);
    let mut used: HashMap<String, u64> = HashMap::new();
    for one in stats {
        let Some(labels) = one.attributes.as_ref().map(|attributes| &attributes.labels) else {
            continue;
        };
        if identity(labels).is_some_and(|owner| owner.uid == uid(pod)) {
            let container = labels.get(CONTAINER_NAME).cloned().unwrap_or_default();
            *used.entry(container).or_default() += container_usage(one, signal);
        }
    }
    let containers: Vec<Consumer> = used
        .into_iter()
        .map(|(name, usage)| Consumer {
            request: requests.get(&name).copied().unwrap_or(0),
            name,
            usage,
        })
        .collect();
    let own = containers.iter().map(|container| container.usage).sum::<u64>();
    Candidate {
        uid: uid(pod).to_owned(),
        priority: api::pod::priority(pod),
        usage: own + pod_usage(context, pod, signal),
        request: requests.values().sum(),
        containers,
    }
}

/// Requests of the containers by name; nobody can request inodes or process ids.
fn requests(pod: &Pod, signal: Signal) -> HashMap<String, u64> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let request = |container: &k8s_openapi::api::core::v1::Container| {
        let wire = container
            .resources
            .as_ref()?
            .requests
            .as_ref()?
            .get(signal.resource())?;
        u64::try_from(Quantity::of(wire).value()).ok()
    };
    containers
        .map(|container| (container.name.clone(), request(container).unwrap_or(0)))
        .collect()
}

fn container_usage(stats: &ContainerStats, signal: Signal) -> u64 {
    let layer = stats.writable_layer.as_ref();
    let value = match signal {
        Signal::Memory => stats.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref()),
        Signal::Storage => layer.and_then(|layer| layer.used_bytes.as_ref()),
        Signal::Inodes => layer.and_then(|layer| layer.inodes_used.as_ref()),
        Signal::Pids => None,
    };
    value.map_or(0, |value| value.value)
}

/// What the pod uses beside its containers: volumes and logs, and processes, which are counted by pod.
fn pod_usage(context: &Context, pod: &Pod, signal: Signal) -> u64 {
    match signal {
        Signal::Memory => 0,
        Signal::Pids => context.cgroups.processes(pod),
        Signal::Storage | Signal::Inodes => {
            let directories = [
                context.pod_dir(uid(pod)).join("volumes"),
                context.pod_log_dir(pod),
            ];
            let mut used = disk_usage::Usage::default();
            directories.iter().for_each(|path| used.add(disk_usage::of(path)));
            let (bytes, inodes) = (used.bytes, used.inodes);
            if signal == Signal::Storage { bytes } else { inodes }
        }
    }
}
