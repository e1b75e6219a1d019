//! What every loop of the kubelet shares.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use cri_api::v1::DnsConfig;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::runtime::reflector::Store;

use crate::Config;
use crate::allocation::Allocations;
use crate::cgroups::Cgroups;
use crate::devices::Devices;
use crate::events::EventRecorder;
use crate::eviction::{Pressures, Signal};
use crate::image_collection::ImageHistory;
use crate::images::ImagePuller;
use crate::objects::Objects;
use crate::plugins::Drivers;
use crate::probes::ProbeManager;
use crate::runtime::Runtime;
use crate::server::Rates;
use crate::static_pods::Mirrors;

pub struct Context {
    pub config: Config,
    pub client: kube::Client,
    pub runtime: Runtime,
    /// CRI's `runtime_name`, the scheme of container ids.
    pub runtime_name: String,
    pub events: EventRecorder,
    pub objects: Objects,
    pub services: Store<Service>,
    pub images: ImagePuller,
    pub probes: ProbeManager,
    pub cgroups: Cgroups,
    pub pressures: Pressures,
    pub image_history: ImageHistory,
    pub allocations: Allocations,
    pub devices: Devices,
    pub drivers: Drivers,
    pub rates: Rates,
    pub mirrors: Mirrors,
    pub allocatable: BTreeMap<String, Quantity>,
    pub memory_capacity: i64,
    /// The node's resolver settings, which `dnsPolicy: Default` hands on.
    pub node_dns: DnsConfig,
}

impl Context {
    /// Whether the node lacks, or lately lacked, any of these.
    pub fn is_under(&self, signals: &[Signal]) -> bool {
        let transition = self.config.settings.eviction_pressure_transition_period;
        self.pressures.under(signals, Instant::now(), transition)
    }

    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.root_dir.join("pods").join(uid)
    }

    /// Upstream's layout, which log collectors know.
    pub fn pod_log_dir(&self, pod: &Pod) -> PathBuf {
        self.config
            .pod_logs_dir
            .join(format!("{}_{}_{}", namespace(pod), name(pod), uid(pod)))
    }
}

/// The annotation that says where a pod comes from when it is not the API server.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

/// A pod of a file on this node.
pub fn is_static(pod: &Pod) -> bool {
    let source = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(CONFIG_SOURCE));
    source.is_some_and(|source| source != "api")
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// Upstream's `format.Pod`, as messages print a pod.
pub fn format_pod(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}
