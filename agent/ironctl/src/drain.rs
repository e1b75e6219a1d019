//! Pods leave a node before its machine restarts, as with `kubectl drain --ignore-daemonsets --delete-emptydir-data`.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{EvictParams, ListParams};
use kube::{Api, Client, ResourceExt};

const LOOK: Duration = Duration::from_secs(1);
const GONE_WITHIN: Duration = Duration::from_secs(300);
/// Static pods' copies in the API.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Whether a pod has to leave.
fn leaves(pod: &Pod) -> bool {
    let finished = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| ["Succeeded", "Failed"].contains(&phase));
    let of_daemon_set = pod
        .owner_references()
        .iter()
        .any(|owner| owner.kind == "DaemonSet");
    !finished && !of_daemon_set && !pod.annotations().contains_key(MIRROR)
}

/// True when the node was open for pods before.
pub async fn drain(client: &Client, node: &str) -> anyhow::Result<bool> {
    let nodes: Api<Node> = Api::all(client.clone());
    let before = nodes.get(node).await.with_context(|| format!("node {node}"))?;
    let closed = before.spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
    if !closed {
        nodes
            .cordon(node)
            .await
            .with_context(|| format!("cordon {node}"))?;
    }
    println!("node {node} is cordoned; its pods leave");
    let all: Api<Pod> = Api::all(client.clone());
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = all.list(&on_node).await.context("list the node's pods")?;
        let mut staying: Vec<String> = Vec::new();
        for pod in pods.items.iter().filter(|pod| leaves(pod)) {
            let namespace = pod.namespace().unwrap_or_default();
            let name = pod.name_any();
            if pod.metadata.deletion_timestamp.is_none() {
                let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
                match pods.evict(&name, &EvictParams::default()).await {
                    // A disruption budget forbids it for now.
                    Err(kube::Error::Api(status)) if status.code == 429 => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => continue,
                    result => {
                        result.with_context(|| format!("evict {namespace}/{name}"))?;
                    }
                }
            }
            staying.push(format!("{namespace}/{name}"));
        }
        if staying.is_empty() {
            return Ok(!closed);
        }
        if Instant::now() > deadline {
            bail!(
                "after {} s these pods are still on {node}, which stays cordoned: {}",
                GONE_WITHIN.as_secs(),
                staying.join(", ")
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub async fn uncordon(client: &Client, node: &str) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    nodes
        .uncordon(node)
        .await
        .with_context(|| format!("uncordon {node}"))?;
    println!("node {node} takes pods again");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_belong_to_the_node_stay() {
        for (pod, expected) in [
            (r#"{"metadata":{"name":"a"}}"#, true),
            (
                r#"{"metadata":{"annotations":{"kubernetes.io/config.mirror":"x"}}}"#,
                false,
            ),
            (
                r#"{"metadata":{"ownerReferences":[{"apiVersion":"apps/v1","kind":"DaemonSet","name":"d","uid":"u"}]}}"#,
                false,
            ),
            (r#"{"metadata":{},"status":{"phase":"Succeeded"}}"#, false),
            (r#"{"metadata":{},"status":{"phase":"Running"}}"#, true),
        ] {
            assert_eq!(leaves(&serde_json::from_str(pod).unwrap()), expected, "{pod}");
        }
    }
}
