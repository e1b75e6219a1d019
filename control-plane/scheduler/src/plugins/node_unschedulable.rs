//! Cordoned nodes take only pods that tolerate it.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{EventKind, Plugin, Prepared, Rejection, Scope, reject_for_good};
use crate::pod_info::PodInfo;
use api::taint::{NO_SCHEDULE, tolerates};
use k8s_openapi::api::core::v1::Taint;

pub struct NodeUnschedulable;

struct ForPod {
    tolerated: bool,
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        matches!(kind, EventKind::NodeAdded | EventKind::NodeTaints)
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        let cordon = Taint {
            key: api::well_known::TAINT_UNSCHEDULABLE.into(),
            effect: NO_SCHEDULE.into(),
            ..Taint::default()
        };
        let tolerated = pod
            .spec()
            .tolerations
            .iter()
            .flatten()
            .any(|t| tolerates(t, &cordon));
        Some(Box::new(ForPod { tolerated }))
    }
}

impl Prepared for ForPod {
    fn scope(&self) -> Scope {
        Scope::Node
    }

    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if api::node::is_unschedulable(&node.node) && !self.tolerated {
            return reject_for_good("node(s) were unschedulable");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use serde_json::json;

    #[test]
    fn cordon() {
        let cluster = cluster(&[("n", json!({"spec": {"unschedulable": true}}))], &[]);
        let tolerant = json!({"spec": {"tolerations": [
            {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]}});
        for (body, fits) in [(json!({}), false), (tolerant, true)] {
            let pod = pod("p", body);
            let prepared = NodeUnschedulable.prepare(&pod, &cluster).unwrap();
            assert_eq!(prepared.filter(cluster.node("n").unwrap()).is_ok(), fits);
        }
    }
}
