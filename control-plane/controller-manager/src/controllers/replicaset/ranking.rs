//! Which pods go first when there are too many (upstream's `ActivePodsWithRanks`).

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorts the pods that should be deleted first to the front. `related` are the active pods of the whole workload:
/// a node that has many of them gives one up first.
pub fn rank(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for node in related
        .iter()
        .filter(|p| api::pod::is_active(p))
        .filter_map(|p| api::pod::node_name(p))
    {
        *on_node.entry(node).or_default() += 1;
    }
    let crowd = |pod: &Pod| {
        api::pod::node_name(pod)
            .and_then(|n| on_node.get(n))
            .copied()
            .unwrap_or_default()
    };
    pods.sort_by(|a, b| {
        let flags = |p: &Pod| {
            (
                api::pod::node_name(p).is_some(),
                phase_order(p),
                api::pod::is_ready(p),
                cost(p),
            )
        };
        flags(a)
            .cmp(&flags(b))
            .then_with(|| Reverse(crowd(a)).cmp(&Reverse(crowd(b))))
            .then_with(|| younger_first(api::pod::ready_since(a), api::pod::ready_since(b), now))
            .then_with(|| Reverse(api::pod::max_restarts(a)).cmp(&Reverse(api::pod::max_restarts(b))))
            .then_with(|| younger_first(created(a), created(b), now))
    });
}

fn phase_order(pod: &Pod) -> u8 {
    match api::pod::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|a| a.get(DELETION_COST))
        .and_then(|v| v.parse().ok())
        .unwrap_or_default()
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

/// Ages of the same power of two count as equal, so that not always the same generation goes.
fn younger_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let magnitude = |t: Timestamp| (now.as_second() - t.as_second()).max(0).checked_ilog2();
    match (a, b) {
        (Some(a), Some(b)) => magnitude(a).cmp(&magnitude(b)),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn pod(name: &str, body: Value) -> Arc<Pod> {
        let mut body = body;
        body["metadata"]["name"] = json!(name);
        Arc::new(from_value(body).unwrap())
    }

    fn first(a: Value, b: Value, related: &[Arc<Pod>]) -> String {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let mut pods = vec![pod("a", a), pod("b", b)];
        rank(&mut pods, related, now);
        pods[0].metadata.name.clone().unwrap()
    }

    fn ready(node: &str, since: &str) -> Value {
        json!({"spec": {"nodeName": node, "containers": []}, "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": since}]}})
    }

    #[test]
    fn the_least_valuable_pod_goes_first() {
        let early = "2026-01-01T00:00:00Z";
        let assigned = json!({"spec": {"nodeName": "n", "containers": []}});
        assert_eq!(
            first(assigned.clone(), json!({}), &[]),
            "b",
            "unassigned before assigned"
        );
        assert_eq!(
            first(ready("n", early), assigned, &[]),
            "b",
            "pending before running"
        );
        let mut unready = ready("n", early);
        unready["status"]["conditions"][0]["status"] = json!("False");
        assert_eq!(
            first(ready("n", early), unready, &[]),
            "b",
            "unready before ready"
        );
        let mut cheap = ready("n", early);
        cheap["metadata"] = json!({"annotations": {DELETION_COST: "-5"}});
        assert_eq!(first(ready("n", early), cheap, &[]), "b", "cheap before dear");
        let crowd = [pod("x", ready("m", early)), pod("y", ready("m", early))];
        assert_eq!(
            first(ready("n", early), ready("m", early), &crowd),
            "b",
            "crowded node before empty one"
        );
        assert_eq!(
            first(ready("n", early), ready("n", "2026-01-01T00:59:00Z"), &[]),
            "b",
            "younger before older"
        );
    }
}
