//! Which pods to remove by force (upstream's `gcc.gc`).

use crate::action::Action;
use api::condition::Condition;
use api::well_known::TAINT_OUT_OF_SERVICE;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(20);
/// A node must be missing this long, so that a slow watch isn't mistaken for a lost node.
const QUARANTINE: i64 = 40;

pub struct Observed<'a> {
    pub pods: &'a [Arc<Pod>],
    pub missing: &'a HashMap<String, Timestamp>,
    pub out_of_service: &'a dyn Fn(&str) -> bool,
    pub threshold: usize,
}

/// Not ready, and an administrator said it won't come back.
pub fn is_out_of_service(node: &Node) -> bool {
    !api::node::is_ready(node)
        && api::node::taints(node)
            .iter()
            .any(|t| t.key == TAINT_OUT_OF_SERVICE)
}

pub fn reconcile(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let mut plan = Vec::new();
    for pod in observed.pods {
        let node = api::pod::node_name(pod);
        let lost = |n: &str| {
            observed
                .missing
                .get(n)
                .is_some_and(|since| now.as_second() - since.as_second() >= QUARANTINE)
        };
        if node.is_some_and(lost) {
            plan.extend(evict(pod, "PodGC: node no longer exists", now));
        } else if api::pod::is_terminating(pod) && node.is_none() {
            plan.extend(evict(pod, "", now));
        } else if api::pod::is_terminating(pod) && node.is_some_and(|n| (observed.out_of_service)(n)) {
            plan.extend(evict(pod, "PodGC: node is out of service", now));
        }
    }
    let mut finished: Vec<&Arc<Pod>> = observed
        .pods
        .iter()
        .filter(|p| api::pod::is_terminal(p) && !api::pod::is_terminating(p))
        .collect();
    if observed.threshold > 0 && finished.len() > observed.threshold {
        finished.sort_by_key(|p| p.metadata.creation_timestamp.clone());
        let surplus = finished.len() - observed.threshold;
        plan.extend(
            finished[..surplus]
                .iter()
                .map(|pod| Action::force_delete(&***pod)),
        );
    }
    plan.push(Action::Requeue(PERIOD));
    plan
}

/// A pod that can't have ended by itself is marked as failed before it goes.
fn evict(pod: &Pod, message: &str, now: Timestamp) -> Vec<Action> {
    let mut plan = Vec::new();
    if !api::pod::is_terminal(pod) {
        let mut status = json!({"phase": "Failed"});
        if !message.is_empty() {
            let condition =
                PodCondition::new("DisruptionTarget", "True", "DeletionByPodGC", message, &Time(now));
            status["conditions"] = json!([condition]);
        }
        plan.push(Action::strategic_status(pod, status));
    }
    plan.push(Action::force_delete(pod));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    fn pod(name: &str, node: Option<&str>, phase: &str, terminating: bool) -> Arc<Pod> {
        let deleted = terminating.then_some("2026-01-01T00:00:00Z");
        let mut body: Value = json!({"metadata": {"name": name, "namespace": "n", "deletionTimestamp": deleted},
            "spec": {"containers": []}, "status": {"phase": phase}});
        if let Some(node) = node {
            body["spec"]["nodeName"] = json!(node);
        }
        Arc::new(from_value(body).unwrap())
    }

    fn deleted(pods: &[Arc<Pod>], missing_for: i64, threshold: usize) -> Vec<String> {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let since = Timestamp::from_second(1_000_000 - missing_for).unwrap();
        let missing = HashMap::from([("lost".to_owned(), since)]);
        let out_of_service = |name: &str| name == "dead";
        let observed = Observed {
            pods,
            missing: &missing,
            out_of_service: &out_of_service,
            threshold,
        };
        reconcile(&observed, now)
            .iter()
            .filter_map(|a| match a {
                Action::Delete { at, options, .. } => {
                    assert_eq!(options["gracePeriodSeconds"], 0);
                    Some(at.key.name.clone())
                }
                _ => None,
            })
            .collect()
    }

    #[test]
    fn what_goes_and_what_stays() {
        let pods = [
            pod("fine", Some("n"), "Running", false),
            pod("lost", Some("lost"), "Running", false),
            pod("unscheduled", None, "Pending", true),
            pod("leaving", Some("n"), "Running", true),
            pod("dead", Some("dead"), "Running", true),
            pod("done", Some("n"), "Succeeded", false),
        ];
        assert_eq!(deleted(&pods, 40, 10), ["lost", "unscheduled", "dead"]);
        assert_eq!(deleted(&pods[..2], 39, 10), Vec::<String>::new(), "quarantine");
        assert_eq!(
            deleted(&pods[5..], 0, 0),
            Vec::<String>::new(),
            "threshold 0 keeps all"
        );
        let two = [pods[5].clone(), pod("failed", Some("n"), "Failed", false)];
        assert_eq!(deleted(&two, 0, 1).len(), 1);
    }
}
