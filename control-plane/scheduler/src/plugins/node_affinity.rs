//! nodeSelector and node affinity.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{
    ClusterEvent, EventKind, Plugin, Prepared, Rejection, Scope, normalize, reject_for_good,
};
use crate::pod_info::PodInfo;
use k8s_openapi::api::core::v1::{NodeAffinity as Affinity, PreferredSchedulingTerm};

pub struct NodeAffinity;

struct Wishes<'a> {
    pod: &'a PodInfo,
    preferred: &'a [PreferredSchedulingTerm],
}

/// nodeSelector and required node affinity both hold.
pub fn matches_required(pod: &PodInfo, node: &NodeInfo) -> bool {
    let selector = pod.spec().node_selector.as_ref();
    selector.is_none_or(|s| api::selector::matches_map(s, node.labels()))
        && affinity(pod)
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
            .is_none_or(|required| api::selector::matches_node(required, &node.node))
}

/// Does the pod narrow down its nodes at all?
pub fn requires_nodes(pod: &PodInfo) -> bool {
    pod.spec().node_selector.as_ref().is_some_and(|s| !s.is_empty())
        || affinity(pod).is_some_and(|a| a.required_during_scheduling_ignored_during_execution.is_some())
}

fn affinity(pod: &PodInfo) -> Option<&Affinity> {
    pod.spec().affinity.as_ref()?.node_affinity.as_ref()
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        matches!(kind, EventKind::NodeAdded | EventKind::NodeLabels)
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        event.node.is_none_or(|node| matches_required(pod, node))
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        let preferred = affinity(pod)
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref())
            .unwrap_or_default();
        let silent = pod.spec().node_selector.is_none() && affinity(pod).is_none();
        (!silent).then(|| Box::new(Wishes { pod, preferred }) as Box<dyn Prepared + 'a>)
    }
}

impl Prepared for Wishes<'_> {
    fn scope(&self) -> Scope {
        Scope::Node
    }

    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if matches_required(self.pod, node) {
            return Ok(());
        }
        reject_for_good("node(s) didn't match Pod's node affinity/selector")
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.preferred.is_empty() {
            return None;
        }
        let liked = |node: &NodeInfo| -> i64 {
            let terms = self
                .preferred
                .iter()
                .filter(|t| api::selector::matches_node_term(&t.preference, &node.node));
            terms.map(|t| i64::from(t.weight)).sum()
        };
        let mut scores: Vec<i64> = nodes.iter().map(|n| liked(n)).collect();
        normalize(&mut scores, false);
        Some(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use serde_json::json;

    #[test]
    fn selectors_filter_and_preferences_score() {
        let labelled = |disk: &str| json!({"metadata": {"labels": {"disk": disk}}});
        let cluster = cluster(&[("ssd", labelled("ssd")), ("hdd", labelled("hdd"))], &[]);
        let node = |name| cluster.node(name).unwrap();
        let picky = pod("p", json!({"spec": {"nodeSelector": {"disk": "ssd"}}}));
        let prepared = NodeAffinity.prepare(&picky, &cluster).unwrap();
        assert!(prepared.filter(node("ssd")).is_ok());
        assert!(prepared.filter(node("hdd")).is_err());
        let term = json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["hdd"]}]});
        let soft = pod(
            "s",
            json!({"spec": {"affinity": {"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "preference": term}]}}}}),
        );
        let prepared = NodeAffinity.prepare(&soft, &cluster).unwrap();
        assert!(prepared.filter(node("ssd")).is_ok());
        assert_eq!(prepared.score(&[node("ssd"), node("hdd")]), Some(vec![0, 100]));
        assert!(NodeAffinity.prepare(&pod("x", json!({})), &cluster).is_none());
    }
}
