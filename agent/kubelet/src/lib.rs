//! The kubelet: makes this machine a Kubernetes node and keeps the pods bound to it running through CRI.
//!
//! Loops (`node`, `pod_manager`, `pod_worker`, `server`) observe and act; the decisions they carry out
//! (`pod_actions`, `pod_status`, `back_off`, `env`, `probes::state`, …) are pure and have their tests beside them.

mod admission;
mod allocation;
mod back_off;
mod cgroups;
mod container_config;
mod container_hash;
mod context;
mod devices;
mod disk_usage;
mod dns;
mod env;
mod ephemeral;
mod etc_hosts;
mod events;
mod eviction;
mod field_path;
mod garbage_collection;
mod image_collection;
mod images;
mod lifecycle;
mod log_rotation;
mod node;
mod objects;
mod plugins;
mod pod_actions;
mod pod_executor;
mod pod_manager;
mod pod_status;
mod pod_worker;
mod probes;
mod resize;
mod resources;
mod retries;
mod runtime;
mod runtime_pod;
mod sandbox_config;
mod security_context;
mod server;
mod settings;
mod start_up;
mod static_pods;
mod status_writer;
mod termination_message;
mod user_namespaces;
mod volumes;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use rustls::server::ResolvesServerCert;

pub use settings::{Settings, SettingsError};
pub use start_up::{Error, run};

/// The Kubernetes version whose behaviour this kubelet has; reported as `nodeInfo.kubeletVersion`.
pub const KUBELET_VERSION: &str = "v1.36.0";

/// What a kubelet must be told; everything else it finds out from the machine, CRI and the API server.
#[derive(Clone)]
pub struct Config {
    pub node_name: String,
    /// Reported as `InternalIP`; none = the address of the default route.
    pub node_ip: IpAddr,
    /// Pod directories (volumes, hosts files, termination messages) live here.
    pub root_dir: PathBuf,
    /// Container logs in CRI format, `/var/log/pods` on a node.
    pub pod_logs_dir: PathBuf,
    /// What init found wrong with the kernel parameters, one error a line; no such file, no such node condition.
    pub parameter_errors: PathBuf,
    /// `unix:///path` of the CRI server.
    pub cri_endpoint: String,
    pub node_labels: BTreeMap<String, String>,
    pub node_taints: Vec<Taint>,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// Where the kubelet's own API listens, 10250 on a node.
    pub bind_address: IpAddr,
    pub port: u16,
    /// The cgroup v2 mount, `/sys/fs/cgroup`.
    pub cgroup_root: PathBuf,
    /// PEM bundle that client certificates presented to the kubelet's API must chain to.
    pub client_ca_pem: String,
    /// Certificate of the kubelet's API; a resolver, because it is replaced while serving.
    pub serving_certificate: Arc<dyn ResolvesServerCert>,
    pub settings: Settings,
}
