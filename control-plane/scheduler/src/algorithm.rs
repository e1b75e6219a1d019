//! One scheduling decision: filter, score, choose.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{Plugin, Prepared};
use crate::pod_info::PodInfo;
use std::collections::{BTreeMap, BTreeSet};

/// No node will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unschedulable {
    /// For people.
    pub message: String,
    /// The plugins that rejected a node; none when there was no node at all.
    pub rejected_by: BTreeSet<&'static str>,
}

/// Finds the best node. `pick` chooses among equals: given how many there are, it returns one of them.
pub fn schedule(
    plugins: &[Box<dyn Plugin>],
    pod: &PodInfo,
    cluster: &Cluster,
    pick: impl FnOnce(usize) -> usize,
) -> Result<String, Unschedulable> {
    let prepared: Vec<(&dyn Plugin, Box<dyn Prepared>)> = plugins
        .iter()
        .filter_map(|p| Some((&**p, p.prepare(pod, cluster)?)))
        .collect();
    let mut feasible: Vec<&NodeInfo> = Vec::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut rejected_by = BTreeSet::new();
    let mut total = 0;
    for node in cluster.nodes() {
        total += 1;
        match prepared
            .iter()
            .find_map(|(plugin, p)| p.filter(node).err().map(|why| (plugin.name(), why)))
        {
            None => feasible.push(node),
            Some((name, why)) => {
                rejected_by.insert(name);
                for reason in why {
                    *reasons.entry(reason).or_default() += 1;
                }
            }
        }
    }
    match feasible.as_slice() {
        [] => Err(Unschedulable {
            message: message(total, &reasons),
            rejected_by,
        }),
        [only] => Ok(only.name().to_owned()),
        several => Ok(best(&prepared, several, pick).name().to_owned()),
    }
}

fn best<'a>(
    prepared: &[(&dyn Plugin, Box<dyn Prepared + '_>)],
    nodes: &[&'a NodeInfo],
    pick: impl FnOnce(usize) -> usize,
) -> &'a NodeInfo {
    let mut totals = vec![0i64; nodes.len()];
    for (plugin, p) in prepared.iter().filter(|(plugin, _)| plugin.weight() > 0) {
        for (total, score) in totals.iter_mut().zip(p.score(nodes).unwrap_or_default()) {
            *total += plugin.weight() * score;
        }
    }
    let highest = totals.iter().max().copied().unwrap_or_default();
    let tied: Vec<&NodeInfo> = nodes
        .iter()
        .zip(&totals)
        .filter(|(_, total)| **total == highest)
        .map(|(node, _)| *node)
        .collect();
    tied[pick(tied.len()).min(tied.len() - 1)]
}

/// Upstream's `FitError`.
fn message(total: usize, reasons: &BTreeMap<String, usize>) -> String {
    if total == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    format!("0/{total} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use crate::plugins;
    use serde_json::json;

    #[test]
    fn the_message_counts_reasons_as_upstream_does() {
        let cluster = cluster(
            &[
                (
                    "a",
                    json!({"status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}}}),
                ),
                (
                    "b",
                    json!({"status": {"allocatable": {"cpu": "1", "memory": "1Mi", "pods": "10"}}}),
                ),
                (
                    "c",
                    json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
                ),
            ],
            &[],
        );
        let pod = pod(
            "p",
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "2Mi"}}}]}}),
        );
        let error = schedule(&plugins::all(), &pod, &cluster, |_| 0).unwrap_err();
        assert_eq!(
            error.message,
            "0/3 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint(s), 2 Insufficient cpu."
        );
        assert_eq!(
            error.rejected_by,
            BTreeSet::from(["NodeResourcesFit", "TaintToleration"])
        );
    }

    #[test]
    fn the_emptier_node_wins() {
        let asks = |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}]}});
        let cluster = cluster(
            &[("busy", json!({})), ("idle", json!({}))],
            &[("x", "busy", asks("2"))],
        );
        assert_eq!(
            schedule(&plugins::all(), &pod("p", asks("1")), &cluster, |_| 0),
            Ok("idle".into())
        );
    }

    #[test]
    fn an_empty_cluster_says_so() {
        let error = schedule(&plugins::all(), &pod("p", json!({})), &cluster(&[], &[]), |_| 0).unwrap_err();
        assert_eq!(error.message, "no nodes available to schedule pods");
    }
}
