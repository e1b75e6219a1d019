//! The Node object: registering it, keeping its status and lease fresh, and taking its pod CIDR to the runtime.

mod lease;
mod machine;
mod status;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::StatusResponse;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::api::{Api, Patch, PatchParams, PostParams};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::context::Context;
use crate::eviction::Signal;
use crate::runtime::unmet;
use crate::volumes::local;

pub use lease::run as run_lease;
pub use machine::{Machine, NodeUsage, disk, node_usage};
pub use status::{allocatable, limits};

#[derive(Debug, Error)]
pub enum NodeError {
    #[error("API server: {0}")]
    Api(#[from] Box<kube::Error>),
    #[error("runtime: {0}")]
    Runtime(#[from] crate::runtime::RuntimeError),
}

fn boxed(error: kube::Error) -> NodeError {
    NodeError::Api(Box::new(error))
}

struct NodeLoop {
    context: Arc<Context>,
    machine: Machine,
    /// Pod CIDRs that the runtime was told.
    pod_cidrs: Vec<String>,
    registered: bool,
    written: Option<(NodeStatus, Timestamp)>,
}

/// Registers the node and reports its status until told to stop.
pub async fn run(context: Arc<Context>, machine: Machine, stop: CancellationToken) {
    let mut node = NodeLoop {
        context,
        machine,
        pod_cidrs: Vec::new(),
        registered: false,
        written: None,
    };
    let period = node.context.config.settings.node_status_update_frequency;
    let mut quick = Duration::from_millis(200);
    while !stop.is_cancelled() {
        let pause = match node.sync().await {
            Ok(true) => period,
            // Not ready yet: the pod CIDR and the runtime are worth waiting for closely.
            Ok(false) => {
                quick = (quick * 2).min(Duration::from_secs(2));
                quick
            }
            Err(error) => {
                warn!(%error, "node status not written");
                Duration::from_secs(2)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

impl NodeLoop {
    /// One round; true when the node is ready and all is told.
    async fn sync(&mut self) -> Result<bool, NodeError> {
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        let name = self.context.config.node_name.clone();
        let node = match nodes.get_opt(&name).await.map_err(boxed)? {
            Some(node) if self.registered => node,
            found => self.register(&nodes, found).await?,
        };
        self.tell_runtime_pod_cidrs(&node).await?;
        let (condition, runtime) = self.runtime_condition().await;
        let images = self.context.runtime.list_images().await.unwrap_or_default();
        let parameter_errors = std::fs::read_to_string(&self.context.config.parameter_errors).ok();
        let under = |signals: &[Signal]| self.context.is_under(signals);
        let devices = self.context.devices.resources();
        let facts = status::Facts {
            machine: &self.machine,
            config: &self.context.config,
            images: &images,
            not_ready: condition.err(),
            runtime: &runtime,
            allocatable: &self.context.allocatable,
            disk_pressure: under(&[Signal::Storage, Signal::Inodes]),
            memory_pressure: under(&[Signal::Memory]),
            pid_pressure: under(&[Signal::Pids]),
            devices: &devices,
            volumes_in_use: crate::volumes::csi::in_use(&self.context.config.root_dir),
            parameter_errors: parameter_errors.as_deref(),
        };
        let now = Timestamp::now();
        let old = node.status.clone().unwrap_or_default();
        let new = status::node_status(&facts, &old, now);
        let report = self.context.config.settings.node_status_report_frequency;
        let due = self
            .written
            .as_ref()
            .is_none_or(|(_, at)| Duration::try_from(now.duration_since(*at)).unwrap_or_default() >= report);
        if due || status::is_changed(&old, &new) {
            self.write_status(&nodes, &old, &new).await?;
            self.tell_transition(&old, &new);
            self.written = Some((new.clone(), now));
        }
        let ready = facts.not_ready.is_none();
        if let Err(error) = self.delete_volumes(&nodes, &node).await {
            warn!(%error, "names of removed local volumes not taken off the node");
        }
        Ok(ready)
    }

    /// Removes the directories of volumes that the node names, then their names.
    async fn delete_volumes(&self, nodes: &Api<Node>, node: &Node) -> Result<(), NodeError> {
        let names = local::listed(node);
        if names.is_empty() {
            return Ok(());
        }
        let root_dir = self.context.config.root_dir.clone();
        let remove = move || local::remove(names, &root_dir, Path::new(api::metal::VOLUMES));
        let done = tokio::task::spawn_blocking(remove).await.unwrap_or_default();
        let name = &self.context.config.node_name;
        // Removing takes time, in which others may have named more.
        let current = nodes.get(name).await.map_err(boxed)?;
        if let Some(patch) = local::patch(&current, &done) {
            nodes
                .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map_err(boxed)?;
        }
        Ok(())
    }

    /// Creates the node, or brings the labels of the one that exists up to date.
    async fn register(&mut self, nodes: &Api<Node>, existing: Option<Node>) -> Result<Node, NodeError> {
        let wanted = status::initial_node(&self.context.config);
        let node = match existing {
            None => {
                let created = nodes
                    .create(&PostParams::default(), &wanted)
                    .await
                    .map_err(boxed)?;
                info!(node = self.context.config.node_name, "node registered");
                created
            }
            Some(found) => {
                let labels = wanted.metadata.labels.unwrap_or_default();
                let present = found.metadata.labels.clone().unwrap_or_default();
                if labels.iter().all(|(key, value)| present.get(key) == Some(value)) {
                    found
                } else {
                    let patch = json!({ "metadata": { "labels": labels } });
                    let name = &self.context.config.node_name;
                    nodes
                        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                        .await
                        .map_err(boxed)?
                }
            }
        };
        if !self.registered {
            self.context
                .events
                .normal(self.context.events.node(), "Starting", "Starting kubelet.");
        }
        self.registered = true;
        Ok(node)
    }

    async fn tell_runtime_pod_cidrs(&mut self, node: &Node) -> Result<(), NodeError> {
        let cidrs = api::node::pod_cidrs(node).to_vec();
        if cidrs.is_empty() || cidrs == self.pod_cidrs {
            return Ok(());
        }
        self.context.runtime.set_pod_cidr(&cidrs.join(",")).await?;
        info!(cidrs = cidrs.join(","), "pod CIDR handed to the runtime");
        self.pod_cidrs = cidrs;
        Ok(())
    }

    /// Why the runtime or its network cannot run pods, if so: upstream's message of `KubeletNotReady`.
    async fn runtime_condition(&mut self) -> (Result<(), String>, StatusResponse) {
        let answer = match self.context.runtime.status().await {
            Ok(answer) => answer,
            Err(error) => {
                // A restarted runtime must be told its pod CIDR again.
                self.pod_cidrs.clear();
                let down = format!("container runtime is down: {error}");
                return (Err(down), StatusResponse::default());
            }
        };
        let network = unmet(&answer, "NetworkReady");
        if network.is_some() {
            self.pod_cidrs.clear();
        }
        let problems: Vec<String> = unmet(&answer, "RuntimeReady")
            .into_iter()
            .chain(network)
            .collect();
        let verdict = if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.join(", "))
        };
        (verdict, answer)
    }

    async fn write_status(
        &self,
        nodes: &Api<Node>,
        old: &NodeStatus,
        new: &NodeStatus,
    ) -> Result<(), NodeError> {
        let patch = status::patch(old, new);
        let name = &self.context.config.node_name;
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .map_err(boxed)?;
        debug!(node = name, "node status written");
        Ok(())
    }

    fn tell_transition(&self, old: &NodeStatus, new: &NodeStatus) {
        let ready = |status: &NodeStatus| {
            let conditions = status.conditions.iter().flatten();
            conditions
                .into_iter()
                .find(|condition| condition.type_ == "Ready")
                .map(|condition| condition.status.clone())
        };
        let (before, after) = (ready(old), ready(new));
        if before == after {
            return;
        }
        let reason = if after.as_deref() == Some("True") {
            "NodeReady"
        } else {
            "NodeNotReady"
        };
        let name = &self.context.config.node_name;
        // Booting is judged by this figure; qemu reads it from the console.
        let now = clock_gettime(ClockId::Boottime);
        let seconds_after_kernel_start = (now.tv_sec * 1000 + now.tv_nsec / 1_000_000) as f64 / 1000.0;
        info!(
            node = name,
            reason, seconds_after_kernel_start, "node readiness changed"
        );
        self.context.events.normal(
            self.context.events.node(),
            reason,
            format!("Node {name} status is now: {reason}"),
        );
    }
}
