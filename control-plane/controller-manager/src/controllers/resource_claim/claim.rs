//! Who still uses a claim.

use super::{is_done, reservations};
use crate::action::Action;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

fn is_pod(consumer: &ResourceClaimConsumerReference) -> bool {
    consumer.resource == "pods" && consumer.api_group.as_deref().unwrap_or_default().is_empty()
}

/// Names of the pods it is reserved for.
pub fn consumers(claim: &ResourceClaim) -> impl Iterator<Item = &str> {
    let pods = reservations(claim).iter().filter(|consumer| is_pod(consumer));
    pods.map(|consumer| consumer.name.as_str())
}

/// `owner` is the pod of the name the claim was made for.
pub fn reconcile(
    claim: &ResourceClaim,
    pods: &BTreeMap<String, Arc<Pod>>,
    owner: Option<&Pod>,
) -> Vec<Action> {
    let is_used = |consumer: &&ResourceClaimConsumerReference| {
        let pod = pods.get(&consumer.name);
        let lives = pod.is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&consumer.uid) && !is_done(pod));
        !is_pod(consumer) || lives
    };
    let used: Vec<_> = reservations(claim).iter().filter(is_used).cloned().collect();
    let has_finalizer = claim.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
    let is_leaving = claim.metadata.deletion_timestamp.is_some();
    let status = claim.status.clone().unwrap_or_default();
    let mut next = status.clone();
    if used.len() < reservations(claim).len() {
        next.reserved_for = (!used.is_empty()).then(|| used.clone());
    } else if !(is_leaving && has_finalizer) {
        return if used.is_empty() {
            unneeded(claim, owner)
        } else {
            Vec::new()
        };
    }
    if used.is_empty() && has_finalizer {
        // Whoever comes next is not tied to the node of the last.
        next.allocation = None;
    }
    let mut plan = Vec::new();
    if next != status {
        plan.push(Action::patch_status_as_seen(claim, &status, &next));
    }
    if has_finalizer && used.is_empty() {
        let kept = claim
            .metadata
            .finalizers
            .iter()
            .flatten()
            .filter(|f| *f != FINALIZER);
        let kept: Vec<&String> = kept.collect();
        let patch = json!({"metadata": {"uid": claim.metadata.uid, "finalizers": kept}});
        plan.push(Action::patch(claim, patch));
    }
    if used.is_empty() {
        plan.extend(unneeded(claim, owner));
    }
    plan
}

/// A claim made for a pod goes before the pod is collected, when that will not run.
fn unneeded(claim: &ResourceClaim, owner: Option<&Pod>) -> Vec<Action> {
    let made_for = api::owner::controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod");
    let (Some(made_for), Some(owner)) = (made_for, owner) else {
        return Vec::new();
    };
    let is_other = owner.metadata.uid.as_deref() != Some(&made_for.uid);
    if claim.metadata.deletion_timestamp.is_none() && (is_other || is_done(owner)) {
        vec![Action::delete(claim)]
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    fn pod(name: &str, uid: &str, phase: &str) -> Pod {
        from_value(
            json!({"metadata": {"name": name, "uid": uid}, "spec": {"containers": [], "nodeName": "node"},
            "status": {"phase": phase}}),
        )
        .unwrap()
    }

    fn claim(consumers: &[(&str, &str)], finalizers: &[&str], extra: Value) -> ResourceClaim {
        let consumers = consumers
            .iter()
            .map(|(name, uid)| json!({"resource": "pods", "name": name, "uid": uid}));
        let mut claim = json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "c-uid", "resourceVersion": "7", "finalizers": finalizers},
            "spec": {},
            "status": {"allocation": {}, "reservedFor": consumers.collect::<Vec<_>>()},
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            claim["metadata"][key] = value.clone();
        }
        from_value(claim).unwrap()
    }

    fn plan(claim: &ResourceClaim, owner: Option<&Pod>) -> Vec<Action> {
        let pods = [
            pod("a", "a", "Running"),
            pod("b", "b", "Succeeded"),
            pod("c", "new", "Running"),
        ];
        let named = |pod: Pod| (pod.metadata.name.clone().unwrap(), Arc::new(pod));
        reconcile(claim, &pods.into_iter().map(named).collect(), owner)
    }

    fn body(action: &Action) -> &Value {
        match action {
            Action::Patch { patch, .. } => patch,
            other => panic!("{other:?}"),
        }
    }

    fn bodies(plan: &[Action]) -> Vec<&Value> {
        plan.iter().map(body).collect()
    }

    #[test]
    fn pods_that_are_done_or_gone_lose_their_reservation() {
        let made = plan(
            &claim(
                &[("a", "a"), ("b", "b"), ("c", "c"), ("gone", "g")],
                &[FINALIZER],
                json!({}),
            ),
            None,
        );
        let expected = json!({"reservedFor": [{"resource": "pods", "name": "a", "uid": "a"}]});
        assert_eq!(bodies(&made)[0]["status"], expected);
        assert_eq!(made.len(), 1);
        assert_eq!(plan(&claim(&[("a", "a")], &[FINALIZER], json!({})), None), []);
    }

    #[test]
    fn the_last_one_gives_the_devices_back() {
        let made = plan(&claim(&[("b", "b")], &["mine", FINALIZER], json!({})), None);
        let [status, finalizers] = bodies(&made)[..] else {
            panic!("{made:?}")
        };
        assert_eq!(status["status"], json!({"allocation": null, "reservedFor": null}));
        assert_eq!(status["metadata"]["resourceVersion"], "7");
        assert_eq!(
            finalizers["metadata"],
            json!({"uid": "c-uid", "finalizers": ["mine"]})
        );
        // One that was allocated and not yet used keeps what it has.
        assert_eq!(plan(&claim(&[], &[FINALIZER], json!({})), None), []);
    }

    #[test]
    fn a_deleted_claim_is_released_once_unused() {
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let made = plan(&claim(&[], &[FINALIZER], deleted.clone()), None);
        assert_eq!(bodies(&made)[0]["status"], json!({"allocation": null}));
        assert_eq!(bodies(&made)[1]["metadata"]["finalizers"], json!([]));
        assert_eq!(plan(&claim(&[("a", "a")], &[FINALIZER], deleted), None), []);
    }

    #[test]
    fn claims_of_pods_that_will_not_run_go() {
        let owners =
            json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        let made = claim(&[], &[], json!({"ownerReferences": owners}));
        let cases = [
            (pod("p", "u", "Running"), false),
            (pod("p", "u", "Failed"), true),
            (pod("p", "other", "Running"), true),
        ];
        for (owner, goes) in cases {
            let is_deleted = matches!(plan(&made, Some(&owner))[..], [Action::Delete { .. }]);
            assert_eq!(is_deleted, goes, "{owner:?}");
        }
        assert_eq!(plan(&made, None), []);
    }
}
