//! Conditions, taints and pod readiness that follow from a node's health (upstream's `monitorNodeHealth`,
//! `doNoScheduleTaintingPass`, `processTaintBaseEviction`).

use crate::action::Action;
use api::condition::{self, Condition};
use api::event::{NORMAL, WARNING};
use api::node;
use api::taint::{NO_EXECUTE, NO_SCHEDULE, same};
use api::well_known::{
    TAINT_DISK_PRESSURE, TAINT_MEMORY_PRESSURE, TAINT_NETWORK_UNAVAILABLE, TAINT_NOT_READY,
    TAINT_PID_PRESSURE, TAINT_UNREACHABLE, TAINT_UNSCHEDULABLE,
};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Conditions the kubelet answers for.
const KUBELET_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Condition type, its status, and the NoSchedule taint it means.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", TAINT_NOT_READY),
    ("Ready", "Unknown", TAINT_UNREACHABLE),
    ("MemoryPressure", "True", TAINT_MEMORY_PRESSURE),
    ("DiskPressure", "True", TAINT_DISK_PRESSURE),
    ("PIDPressure", "True", TAINT_PID_PRESSURE),
    ("NetworkUnavailable", "True", TAINT_NETWORK_UNAVAILABLE),
];

pub struct Observed<'a> {
    pub node: &'a Node,
    pub silent_for: Duration,
    pub grace_period: Duration,
    /// For a node that never reported.
    pub startup_grace_period: Duration,
    pub monitor_period: Duration,
    /// Not one node of the cluster is ready: the fault is likely ours, nobody is evicted.
    pub disrupted: bool,
    /// The node may lose its pods now; it is silent, or says itself that it is not ready.
    pub may_evict: &'a dyn Fn(bool) -> bool,
    /// This process sees the node for the first time.
    pub registered: bool,
    /// The node's pods, if they matter.
    pub pods: &'a dyn Fn() -> Vec<Arc<Pod>>,
}

pub fn reconcile(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let node = observed.node;
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let mut plan = Vec::new();
    if observed.registered {
        let message = format!("Node {name} event: Registered Node {name} in Controller");
        plan.push(Action::event(node, NORMAL, "RegisteredNode", message));
    }
    let reported = node::condition(node, "Ready");
    let grace = if reported.is_some() {
        observed.grace_period
    } else {
        observed.startup_grace_period
    };
    let mut conditions: Vec<NodeCondition> = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let mut unknown = Vec::new();
    if observed.silent_for > grace {
        unknown = unknown_conditions(node, now);
        for condition in &unknown {
            condition::set(&mut conditions, condition.clone());
        }
    }
    let taints = wanted_taints(observed, &conditions, now);
    let same_taints = taints.len() == node::taints(node).len()
        && taints
            .iter()
            .all(|t| node::taints(node).iter().any(|old| same(old, t)));
    if !same_taints {
        plan.push(Action::patch_as_seen(node, json!({"spec": {"taints": taints}})));
    }
    // After the taints, whose patch holds only for the node as it was seen.
    if !unknown.is_empty() {
        plan.push(Action::strategic_status(node, json!({"conditions": unknown})));
    }
    if condition::find(Some(&conditions), "Ready").is_some_and(|c| c.status != "True") {
        let pods: Vec<Arc<Pod>> = (observed.pods)()
            .into_iter()
            .filter(|p| api::pod::is_ready(p))
            .collect();
        if reported.is_some_and(|c| c.status == "True") {
            plan.push(Action::event(
                node,
                NORMAL,
                "NodeNotReady",
                format!("Node {name} status is now: NodeNotReady"),
            ));
        }
        for pod in pods {
            let unready = PodCondition::new("Ready", "False", "", "", &Time(now));
            plan.push(Action::strategic_status(&*pod, json!({"conditions": [unready]})));
            plan.push(Action::event(&*pod, WARNING, "NodeNotReady", "Node is not ready"));
        }
    }
    plan.push(Action::Requeue(observed.monitor_period));
    plan
}

fn unknown_conditions(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let created = node.metadata.creation_timestamp.clone();
    KUBELET_CONDITIONS
        .into_iter()
        .filter_map(|kind| match node::condition(node, kind) {
            Some(c) if c.status == "Unknown" => None,
            Some(c) => Some(NodeCondition {
                last_heartbeat_time: c.last_heartbeat_time.clone(),
                ..NodeCondition::new(
                    kind,
                    "Unknown",
                    "NodeStatusUnknown",
                    "Kubelet stopped posting node status.",
                    &Time(now),
                )
            }),
            None => Some(NodeCondition {
                last_heartbeat_time: created.clone(),
                ..NodeCondition::new(
                    kind,
                    "Unknown",
                    "NodeStatusNeverUpdated",
                    "Kubelet never posted node status.",
                    &Time(now),
                )
            }),
        })
        .collect()
}

/// The node's taints with ours replaced by what the conditions mean.
fn wanted_taints(observed: &Observed, conditions: &[NodeCondition], now: Timestamp) -> Vec<Taint> {
    let holds = |kind: &str, status: &str| conditions.iter().any(|c| c.type_ == kind && c.status == status);
    let taint = |key: &str, effect: &str| Taint {
        key: key.into(),
        effect: effect.into(),
        value: None,
        time_added: None,
    };
    let mut wanted: Vec<Taint> = CONDITION_TAINTS
        .iter()
        .filter(|(kind, status, _)| holds(kind, status))
        .map(|(_, _, key)| taint(key, NO_SCHEDULE))
        .collect();
    if node::is_unschedulable(observed.node) {
        wanted.push(taint(TAINT_UNSCHEDULABLE, NO_SCHEDULE));
    }
    let current = node::taints(observed.node);
    // By what the server knows: how many nodes share the fate is seen after the condition is written.
    let reported = node::condition(observed.node, "Ready").map(|c| c.status.as_str());
    let evicting = match reported {
        Some("False") => Some(TAINT_NOT_READY),
        Some("Unknown") => Some(TAINT_UNREACHABLE),
        _ => None,
    };
    if let Some(key) = evicting.filter(|_| !observed.disrupted) {
        let is_evicted = current.iter().any(|t| t.effect == NO_EXECUTE && is_ours(t));
        if is_evicted || (observed.may_evict)(reported == Some("Unknown")) {
            wanted.push(Taint {
                time_added: Some(Time(now)),
                ..taint(key, NO_EXECUTE)
            });
        }
    }
    let kept = current
        .iter()
        .filter(|t| !is_ours(t) || wanted.iter().any(|w| same(w, t)));
    let mut taints: Vec<Taint> = kept.cloned().collect();
    taints.extend(wanted.into_iter().filter(|w| !current.iter().any(|t| same(w, t))));
    taints
}

fn is_ours(taint: &Taint) -> bool {
    match taint.effect.as_str() {
        NO_SCHEDULE => {
            taint.key == TAINT_UNSCHEDULABLE || CONDITION_TAINTS.iter().any(|(_, _, key)| *key == taint.key)
        }
        NO_EXECUTE => taint.key == TAINT_NOT_READY || taint.key == TAINT_UNREACHABLE,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    fn node(ready: &str, spec: Value) -> Node {
        let conditions: Vec<Value> = KUBELET_CONDITIONS
            .iter()
            .map(|kind| json!({"type": kind, "status": if *kind == "Ready" { ready } else { "False" }}))
            .collect();
        from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}}))
            .unwrap()
    }

    fn run(node: &Node, silent: u64, disrupted: bool) -> Vec<Action> {
        run_at_pace(node, silent, disrupted, true)
    }

    fn run_at_pace(node: &Node, silent: u64, disrupted: bool, may_evict: bool) -> Vec<Action> {
        let pod: Arc<Pod> = Arc::new(
            from_value(
                json!({"metadata": {"name": "p", "namespace": "x"}, "status": {"conditions": [
                {"type": "Ready", "status": "True"}]}}),
            )
            .unwrap(),
        );
        let pods = || vec![pod.clone()];
        let observed = Observed {
            node,
            silent_for: Duration::from_secs(silent),
            grace_period: Duration::from_secs(50),
            monitor_period: Duration::from_secs(5),
            disrupted,
            may_evict: &|_| may_evict,
            startup_grace_period: Duration::from_secs(60),
            registered: false,
            pods: &pods,
        };
        let mut plan = reconcile(&observed, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(plan.pop(), Some(Action::Requeue(Duration::from_secs(5))));
        plan
    }

    fn taints(plan: &[Action]) -> Vec<String> {
        let patch = plan.iter().find_map(|a| {
            if let Action::Patch { patch, .. } = a {
                Some(patch)
            } else {
                None
            }
        });
        let list = patch
            .and_then(|p| p["spec"]["taints"].as_array())
            .cloned()
            .unwrap_or_default();
        list.iter()
            .map(|t| format!("{}:{}", t["key"].as_str().unwrap(), t["effect"].as_str().unwrap()))
            .collect()
    }

    #[test]
    fn a_healthy_node_is_left_alone() {
        let foreign = json!({"taints": [{"key": "mine", "effect": "NoExecute"}]});
        assert_eq!(run(&node("True", foreign), 0, false), []);
    }

    #[test]
    fn silence_makes_conditions_unknown_and_taints_and_pods_unready() {
        let plan = run(&node("True", json!({})), 51, false);
        let Action::StrategicPatch { patch, .. } = &plan[1] else {
            panic!("{plan:?}")
        };
        let list = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(list.len(), 4);
        assert_eq!(list[0]["reason"], "NodeStatusUnknown");
        assert_eq!(taints(&plan), ["node.kubernetes.io/unreachable:NoSchedule"]);
        assert!(
            plan.iter()
                .any(|a| matches!(a, Action::StrategicPatch { at, .. } if at.key.name == "p"))
        );
        assert_eq!(run(&node("True", json!({})), 49, false), []);
    }

    #[test]
    fn a_returning_node_loses_our_taints_only() {
        let spec = json!({"taints": [
            {"key": "mine", "effect": "NoExecute"},
            {"key": TAINT_UNREACHABLE, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
            {"key": TAINT_UNREACHABLE, "effect": "NoSchedule"}]});
        assert_eq!(taints(&run(&node("True", spec), 0, false)), ["mine:NoExecute"]);
    }

    #[test]
    fn pods_are_evicted_once_the_condition_is_known_and_its_turn_has_come() {
        let scheduled = |key: &str| json!({"key": key, "effect": "NoSchedule"});
        for (status, key) in [("Unknown", TAINT_UNREACHABLE), ("False", TAINT_NOT_READY)] {
            let node = node(status, json!({"taints": [scheduled(key)]}));
            let expected = [format!("{key}:NoSchedule"), format!("{key}:NoExecute")];
            assert_eq!(taints(&run(&node, 0, false)), expected);
            let held = run_at_pace(&node, 0, false, false);
            assert!(
                !held.iter().any(|a| matches!(a, Action::Patch { .. })),
                "{held:?}"
            );
        }
    }

    #[test]
    fn a_tainted_node_changes_its_taint_without_waiting() {
        let spec = json!({"taints": [{"key": TAINT_NOT_READY, "effect": "NoExecute"}]});
        assert_eq!(
            taints(&run_at_pace(&node("Unknown", spec), 51, false, false)),
            [
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
    }

    #[test]
    fn when_all_nodes_are_silent_nobody_is_evicted() {
        let spec = json!({"taints": [{"key": TAINT_UNREACHABLE, "effect": "NoExecute"}]});
        assert_eq!(
            taints(&run(&node("Unknown", spec), 51, true)),
            ["node.kubernetes.io/unreachable:NoSchedule"]
        );
    }

    #[test]
    fn cordoned_nodes_are_tainted() {
        let plan = run(&node("True", json!({"unschedulable": true})), 0, false);
        assert_eq!(taints(&plan), ["node.kubernetes.io/unschedulable:NoSchedule"]);
    }
}
