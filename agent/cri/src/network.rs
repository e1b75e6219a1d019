//! The seam to the pod network: who gives a sandbox its interfaces and addresses.

use async_trait::async_trait;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Refused or failed work on a pod's network.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PodNetworkError(pub String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// "TCP", "UDP" or "SCTP".
    pub protocol: &'static str,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: Option<IpAddr>,
}

/// A sandbox that needs a network.
#[derive(Debug, Clone)]
pub struct PodAttachment {
    pub sandbox_id: String,
    /// A file bound to the sandbox's network namespace.
    pub netns: PathBuf,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub port_mappings: Vec<PortMapping>,
    pub annotations: BTreeMap<String, String>,
}

#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// The node's pod CIDRs (CRI UpdateRuntimeConfig); called again with the same value.
    async fn configure(&self, pod_cidrs: &[String]) -> Result<(), PodNetworkError>;
    /// The NetworkReady condition; the error is its message.
    fn readiness(&self) -> Result<(), String>;
    /// Gives the sandbox its interfaces; the first address is the pod's primary one.
    async fn attach(&self, pod: &PodAttachment) -> Result<Vec<IpAddr>, PodNetworkError>;
    /// Takes everything back; succeeds when there is nothing (left) to take.
    async fn detach(&self, sandbox_id: &str, netns: Option<&Path>) -> Result<(), PodNetworkError>;
}
