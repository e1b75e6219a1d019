//! Requests must fit into what is left; emptier nodes are better (LeastAllocated).

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{ClusterEvent, EventKind, MAX_SCORE, Plugin, Prepared, Rejection, Scope};
use crate::pod_info::PodInfo;
use std::borrow::Cow;
use std::collections::BTreeMap;

pub struct NodeResourcesFit;

struct Wanted<'a>(&'a PodInfo);

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        use EventKind::{NodeAdded, NodeAllocatable, PodRemoved, PodUpdated};
        matches!(kind, NodeAdded | NodeAllocatable | PodRemoved | PodUpdated)
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        event.node.is_none_or(|node| Wanted(pod).filter(node).is_ok())
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        Some(Box::new(Wanted(pod)))
    }
}

impl Prepared for Wanted<'_> {
    fn scope(&self) -> Scope {
        Scope::Pods
    }

    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let (wanted, have, used) = (&self.0.requests, &node.allocatable, &node.requested);
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        if node.pods.len() as i64 + 1 > node.allowed_pods {
            reasons.push("Too many pods".into());
        }
        let mut unresolvable = false;
        let mut check = |reason: &dyn Fn() -> Cow<'static, str>, wanted: i64, have: i64, used: i64| {
            if wanted > 0 && wanted > have - used {
                reasons.push(reason());
                unresolvable |= wanted > have;
            }
        };
        check(
            &|| "Insufficient cpu".into(),
            wanted.milli_cpu,
            have.milli_cpu,
            used.milli_cpu,
        );
        check(
            &|| "Insufficient memory".into(),
            wanted.memory,
            have.memory,
            used.memory,
        );
        check(
            &|| "Insufficient ephemeral-storage".into(),
            wanted.ephemeral_storage,
            have.ephemeral_storage,
            used.ephemeral_storage,
        );
        for (name, amount) in &wanted.extended {
            let of = |list: &BTreeMap<String, i64>| list.get(name).copied().unwrap_or_default();
            let reason = || format!("Insufficient {name}").into();
            check(&reason, *amount, of(&have.extended), of(&used.extended));
        }
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(Rejection {
                reasons,
                unresolvable,
            })
        }
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let (cpu, memory) = self.0.scoring;
        let score = |node: &&NodeInfo| {
            let parts = [
                least_allocated(node.allocatable.milli_cpu, node.scoring_requested.0 + cpu),
                least_allocated(node.allocatable.memory, node.scoring_requested.1 + memory),
            ];
            let known = parts.iter().flatten().count() as i64;
            parts.iter().flatten().sum::<i64>() / known.max(1)
        };
        Some(nodes.iter().map(score).collect())
    }
}

fn least_allocated(capacity: i64, requested: i64) -> Option<i64> {
    match capacity {
        0 => None,
        _ if requested > capacity => Some(0),
        _ => Some((capacity - requested) * MAX_SCORE / capacity),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use serde_json::{Value, json};

    fn asks(requests: Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}})
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let node =
            json!({"status": {"allocatable": {"cpu": "2", "memory": "2Gi", "pods": "2", "ex.io/gpu": "1"}}});
        let cluster = cluster(
            &[("n", node)],
            &[("x", "n", asks(json!({"cpu": "1", "ex.io/gpu": "1"})))],
        );
        for (requests, lacking) in [
            (json!({}), vec![]),
            (json!({"cpu": "1"}), vec![]),
            (json!({"cpu": "1001m"}), vec!["Insufficient cpu"]),
            (
                json!({"cpu": "2", "memory": "3Gi"}),
                vec!["Insufficient cpu", "Insufficient memory"],
            ),
            (json!({"ex.io/gpu": "1"}), vec!["Insufficient ex.io/gpu"]),
            (
                json!({"ephemeral-storage": "1"}),
                vec!["Insufficient ephemeral-storage"],
            ),
        ] {
            let pod = pod("p", asks(requests.clone()));
            let prepared = NodeResourcesFit.prepare(&pod, &cluster).unwrap();
            let result = prepared
                .filter(cluster.node("n").unwrap())
                .err()
                .map_or_else(Vec::new, |r| r.reasons);
            assert_eq!(result, lacking, "{requests}");
        }
    }

    #[test]
    fn a_full_node_is_full() {
        let cluster = cluster(
            &[(
                "n",
                json!({"status": {"allocatable": {"cpu": "2", "memory": "2Gi", "pods": "1"}}}),
            )],
            &[("x", "n", json!({}))],
        );
        let pod = pod("p", json!({}));
        let prepared = NodeResourcesFit.prepare(&pod, &cluster).unwrap();
        assert_eq!(
            prepared.filter(cluster.node("n").unwrap()),
            Err(Rejection {
                reasons: vec!["Too many pods".into()],
                unresolvable: false
            })
        );
    }

    #[test]
    fn least_allocated_scores() {
        assert_eq!(least_allocated(4000, 1000), Some(75));
        assert_eq!(least_allocated(4000, 5000), Some(0));
        assert_eq!(least_allocated(0, 5000), None);
    }
}
