//! Taints keep pods away (NoSchedule, NoExecute) or make a node less liked (PreferNoSchedule).

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{
    ClusterEvent, EventKind, Plugin, Prepared, Rejection, Scope, normalize, reject_for_good,
};
use crate::pod_info::PodInfo;
use api::taint::{NO_EXECUTE, NO_SCHEDULE, PREFER_NO_SCHEDULE, first_untolerated, tolerates};
use k8s_openapi::api::core::v1::Toleration;

pub struct TaintToleration;

struct Tolerations<'a>(&'a [Toleration]);

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        matches!(kind, EventKind::NodeAdded | EventKind::NodeTaints)
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        let tolerations = pod.spec().tolerations.as_deref().unwrap_or_default();
        event
            .node
            .is_none_or(|node| Tolerations(tolerations).filter(node).is_ok())
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        Some(Box::new(Tolerations(
            pod.spec().tolerations.as_deref().unwrap_or_default(),
        )))
    }
}

impl Prepared for Tolerations<'_> {
    fn scope(&self) -> Scope {
        Scope::Node
    }

    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        match first_untolerated(api::node::taints(&node.node), self.0, &[NO_SCHEDULE, NO_EXECUTE]) {
            Some(_) => reject_for_good("node(s) had untolerated taint(s)"),
            None => Ok(()),
        }
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let disliked = |node: &NodeInfo| {
            let taints = api::node::taints(&node.node)
                .iter()
                .filter(|t| t.effect == PREFER_NO_SCHEDULE);
            taints
                .filter(|taint| !self.0.iter().any(|t| tolerates(t, taint)))
                .count() as i64
        };
        let mut scores: Vec<i64> = nodes.iter().map(|n| disliked(n)).collect();
        normalize(&mut scores, true);
        Some(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use serde_json::json;

    #[test]
    fn hard_taints_filter_and_soft_ones_score() {
        let taint =
            |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
        let nodes = [
            ("soft", taint("PreferNoSchedule")),
            ("hard", taint("NoExecute")),
            ("free", json!({})),
        ];
        let cluster = cluster(&nodes, &[]);
        let node = |name| cluster.node(name).unwrap();
        let plain = pod("p", json!({}));
        let prepared = TaintToleration.prepare(&plain, &cluster).unwrap();
        assert!(prepared.filter(node("hard")).is_err());
        assert!(prepared.filter(node("soft")).is_ok());
        assert_eq!(prepared.score(&[node("soft"), node("free")]), Some(vec![0, 100]));
        let tolerant = pod(
            "t",
            json!({"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}}),
        );
        let prepared = TaintToleration.prepare(&tolerant, &cluster).unwrap();
        assert!(prepared.filter(node("hard")).is_ok());
        assert_eq!(
            prepared.score(&[node("soft"), node("free")]),
            Some(vec![100, 100])
        );
    }
}
