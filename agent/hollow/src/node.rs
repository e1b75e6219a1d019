//! Registers the nodes and renews their leases.

use crate::Hollow;
use anyhow::Context as _;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The kubelet's defaults: leases last 40 s and are renewed four times in that.
const LEASE_SECONDS: u64 = 40;
const RENEWAL: Duration = Duration::from_secs(LEASE_SECONDS / 4);
/// Requests under way together.
const CONCURRENCY: usize = 32;

pub struct Nodes {
    prefix: String,
    count: usize,
    zones: usize,
    capacity: Value,
    kubelets: Option<Kubelets>,
}

/// Where the nodes' kubelets listen.
pub struct Kubelets {
    pub address: IpAddr,
    /// One a node.
    pub ports: Vec<u16>,
}

impl Nodes {
    pub fn new(options: &Hollow, kubelets: Option<Kubelets>) -> Self {
        Self {
            prefix: options.name_prefix.clone(),
            count: options.nodes,
            zones: options.zones.max(1),
            capacity: json!({"cpu": options.cpu, "memory": options.memory, "pods": options.pods.to_string(),
                "ephemeral-storage": "100Gi"}),
            kubelets,
        }
    }

    pub fn name(&self, index: usize) -> String {
        format!("{}-{index}", self.prefix)
    }

    /// The address of a node of ours; `None` for others' nodes.
    pub fn address(&self, name: &str) -> Option<String> {
        let index = name.strip_prefix(&self.prefix)?.strip_prefix('-')?;
        let index = index.parse().ok().filter(|i: &usize| *i < self.count)?;
        Some(address(index))
    }

    fn object(&self, index: usize, now: Timestamp) -> Value {
        let name = self.name(index);
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now.to_string(), "lastTransitionTime": now.to_string()})
        };
        let mut object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": format!("zone-{}", index % self.zones),
                "node.ironlet.dev/hollow": "true",
            }},
            "status": {
                "capacity": self.capacity, "allocatable": self.capacity,
                "addresses": [{"type": "InternalIP", "address": address(index)}, {"type": "Hostname", "address": name}],
                "conditions": [
                    condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                    condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                    condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                    condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
                ],
                "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "kubeletVersion": "v1.36.0",
                    "kubeProxyVersion": "", "containerRuntimeVersion": "hollow://0", "osImage": "hollow",
                    "kernelVersion": "", "machineID": name, "systemUUID": name, "bootID": name},
            },
        });
        if let Some(kubelets) = &self.kubelets {
            let status = &mut object["status"];
            status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": kubelets.ports[index]}});
            if let Some(addresses) = status["addresses"].as_array_mut() {
                addresses.push(json!({"type": "ExternalIP", "address": kubelets.address}));
            }
        }
        object
    }
}

fn address(index: usize) -> String {
    format!(
        "10.{}.{}.{}",
        192 + (index >> 16 & 63),
        index >> 8 & 255,
        index & 255
    )
}

fn lease(name: &str, now: Timestamp) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()},
    })
}

pub async fn keep(client: Client, nodes: Arc<Nodes>) -> anyhow::Result<()> {
    register(&client, &nodes).await?;
    tracing::info!(nodes = nodes.count, "hollow nodes are registered");
    let mut ticks = tokio::time::interval(RENEWAL);
    loop {
        ticks.tick().await;
        let renewals = stream::iter(0..nodes.count).map(|index| renew(&client, nodes.name(index)));
        let failed = renewals
            .buffer_unordered(CONCURRENCY)
            .filter(|result| std::future::ready(result.is_err()))
            .count()
            .await;
        if failed > 0 {
            tracing::warn!(failed, "leases could not be renewed");
        }
    }
}

async fn register(client: &Client, nodes: &Nodes) -> anyhow::Result<()> {
    let api: &Api<Node> = &Api::all(client.clone());
    stream::iter(0..nodes.count)
        .map(|index| async move {
            let name = nodes.name(index);
            let object = nodes.object(index, Timestamp::now());
            let node: Node = serde_json::from_value(object.clone())?;
            match api.create(&PostParams::default(), &node).await {
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                result => {
                    result.with_context(|| format!("node {name}"))?;
                }
            }
            let status = json!({"status": object["status"]});
            api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&status))
                .await
                .with_context(|| format!("status of node {name}"))?;
            renew(client, name).await
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await
}

async fn renew(client: &Client, name: String) -> anyhow::Result<()> {
    let api: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let lease = lease(&name, Timestamp::now());
    match api
        .patch(&name, &PatchParams::default(), &Patch::Merge(&lease))
        .await
    {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            api.create(&PostParams::default(), &serde_json::from_value(lease)?)
                .await?;
        }
        result => {
            result?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn nodes_know_their_own() {
        let nodes = Nodes::new(
            &Hollow::parse_from(["hollow", "--kubeconfig", "f", "--nodes", "300"]),
            None,
        );
        assert_eq!(nodes.address("hollow-299").as_deref(), Some("10.192.1.43"));
        for stranger in ["hollow-300", "hollow", "hollow-x", "other-1"] {
            assert_eq!(nodes.address(stranger), None, "{stranger}");
        }
    }
}
