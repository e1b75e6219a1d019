//! Where a DaemonSet's pods belong, and how each is tied to its node.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use api::taint::{NO_EXECUTE, NO_SCHEDULE};
use api::well_known::{
    TAINT_DISK_PRESSURE, TAINT_MEMORY_PRESSURE, TAINT_NETWORK_UNAVAILABLE, TAINT_NOT_READY,
    TAINT_PID_PRESSURE, TAINT_UNREACHABLE, TAINT_UNSCHEDULABLE,
};

const NODE_NAME_FIELD: &str = "metadata.name";

/// What every daemon tolerates (upstream's `AddOrUpdateDaemonPodTolerations`).
const TOLERATED: [(&str, &str); 6] = [
    (TAINT_NOT_READY, NO_EXECUTE),
    (TAINT_UNREACHABLE, NO_EXECUTE),
    (TAINT_DISK_PRESSURE, NO_SCHEDULE),
    (TAINT_MEMORY_PRESSURE, NO_SCHEDULE),
    (TAINT_PID_PRESSURE, NO_SCHEDULE),
    (TAINT_UNSCHEDULABLE, NO_SCHEDULE),
];

/// A node's place in the set: pods are started there, or at least not taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub starts: bool,
    pub stays: bool,
}

/// The template's pod specification with the tolerations of daemons.
pub fn daemon_spec(set: &DaemonSet) -> PodSpec {
    let spec = set.spec.as_ref().and_then(|s| s.template.spec.clone());
    let mut spec = spec.unwrap_or_default();
    let host_network = spec.host_network.unwrap_or_default();
    let network = host_network.then_some((TAINT_NETWORK_UNAVAILABLE, NO_SCHEDULE));
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        match tolerations.iter_mut().find(|t| {
            t.key == toleration.key
                && t.effect == toleration.effect
                && t.operator == toleration.operator
                && t.value.as_deref().unwrap_or_default().is_empty()
        }) {
            Some(same) => *same = toleration,
            None => tolerations.push(toleration),
        }
    }
    spec
}

/// Upstream's `NodeShouldRunDaemonPod`; `spec` comes from [`daemon_spec`].
pub fn place(spec: &PodSpec, node: &Node) -> Place {
    let elsewhere = spec
        .node_name
        .as_deref()
        .is_some_and(|n| !n.is_empty() && Some(n) != node.metadata.name.as_deref());
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let labels = node.metadata.labels.as_ref();
    let selected = spec
        .node_selector
        .as_ref()
        .is_none_or(|s| api::selector::matches_map(s, labels))
        && required.is_none_or(|r| api::selector::matches_node(r, node));
    if elsewhere || !selected {
        return Place {
            starts: false,
            stays: false,
        };
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let tolerates = |effects: &[&str]| {
        api::taint::first_untolerated(api::node::taints(node), tolerations, effects).is_none()
    };
    Place {
        starts: tolerates(&[NO_SCHEDULE, NO_EXECUTE]),
        stays: tolerates(&[NO_EXECUTE]),
    }
}

/// Leaves the scheduler one node to choose (upstream's `ReplaceDaemonSetPodNodeNameNodeAffinity`).
pub fn tie(spec: &mut PodSpec, node: &str) {
    let this = vec![NodeSelectorRequirement {
        key: NODE_NAME_FIELD.into(),
        operator: "In".into(),
        values: Some(vec![node.into()]),
    }];
    let affinity = spec
        .affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default();
    let terms = &mut affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector {
            node_selector_terms: Vec::new(),
        })
        .node_selector_terms;
    if terms.is_empty() {
        terms.push(NodeSelectorTerm::default());
    }
    for term in terms {
        term.match_fields = Some(this.clone());
    }
}

/// The node a daemon runs on, or is meant for.
pub fn target(pod: &Pod) -> Option<&str> {
    let required = || {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let terms = &affinity
            .required_during_scheduling_ignored_during_execution
            .as_ref()?
            .node_selector_terms;
        let fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
        let mut named = fields.filter(|f| f.key == NODE_NAME_FIELD && f.operator == "In");
        named.next()?.values.as_ref()?.first().map(String::as_str)
    };
    api::pod::node_name(pod).or_else(required)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn set(spec: Value) -> DaemonSet {
        from_value(json!({"metadata": {"name": "d"}, "spec": {"selector": {}, "template": {"spec": spec}}}))
            .unwrap()
    }

    #[test]
    fn nodes_are_chosen_by_affinity_and_taints() {
        let required = |key: &str| {
            json!({"containers": [], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": key, "operator": "Exists"}]}]}}}})
        };
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        for (spec, taints, starts, stays) in [
            (json!({"containers": []}), json!([]), true, true),
            (
                json!({"containers": [], "nodeSelector": {"disk": "ssd"}}),
                json!([]),
                true,
                true,
            ),
            (
                json!({"containers": [], "nodeSelector": {"disk": "hdd"}}),
                json!([]),
                false,
                false,
            ),
            (
                json!({"containers": [], "nodeName": "other"}),
                json!([]),
                false,
                false,
            ),
            (required("disk"), json!([]), true, true),
            (required("gpu"), json!([]), false, false),
            (
                json!({"containers": []}),
                taint("mine", "NoSchedule"),
                false,
                true,
            ),
            (
                json!({"containers": []}),
                taint("mine", "NoExecute"),
                false,
                false,
            ),
            (
                json!({"containers": []}),
                taint(TAINT_NOT_READY, "NoExecute"),
                true,
                true,
            ),
            (
                json!({"containers": []}),
                taint(TAINT_UNSCHEDULABLE, "NoSchedule"),
                true,
                true,
            ),
            (
                json!({"containers": []}),
                taint(TAINT_NETWORK_UNAVAILABLE, "NoSchedule"),
                false,
                true,
            ),
            (
                json!({"containers": [], "hostNetwork": true}),
                taint(TAINT_NETWORK_UNAVAILABLE, "NoSchedule"),
                true,
                true,
            ),
        ] {
            let node: Node = from_value(
                json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}}, "spec": {"taints": taints}}),
            )
            .unwrap();
            let found = place(&daemon_spec(&set(spec.clone())), &node);
            assert_eq!(found, Place { starts, stays }, "{spec} {taints}");
        }
    }

    #[test]
    fn a_tied_pod_knows_its_node() {
        let mut spec = daemon_spec(&set(json!({"containers": []})));
        tie(&mut spec, "n7");
        let pod = Pod {
            spec: Some(spec),
            ..Pod::default()
        };
        assert_eq!(target(&pod), Some("n7"));
    }
}
