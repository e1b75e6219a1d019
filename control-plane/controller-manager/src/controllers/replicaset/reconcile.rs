//! Creates missing pods, deletes surplus ones, claims orphans, and reports (upstream's `syncReplicaSet`).

use super::ranking::rank;
use crate::action::{Action, Announce, owner_references_patch, reference};
use api::condition::{self, Condition};
use api::owner::{Claim, claim, controller_ref};
use api::pod::{is_active, is_available, is_ready, is_terminating};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Pods created or deleted by one plan at most.
const BURST: usize = 500;
/// Conditions and events have room for this many bytes of an error.
const LONGEST_MESSAGE: usize = 1024;

pub struct Observed {
    pub set: Arc<ReplicaSet>,
    /// Pods that refer to the set as their controller, and those of its namespace that refer to none.
    pub pods: Vec<Arc<Pod>>,
    /// Pods of all ReplicaSets of the same workload.
    pub related: Vec<Arc<Pod>>,
    /// Why the last plan failed.
    pub failure: Option<String>,
}

pub fn reconcile(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let set = &*observed.set;
    let Some(spec) = &set.spec else { return Vec::new() };
    let mut plan = Vec::new();
    let mut owned = Vec::new();
    for pod in &observed.pods {
        let matches = api::selector::matches(&spec.selector, pod.metadata.labels.as_ref());
        match claim(&set.metadata, &pod.metadata, matches) {
            Claim::Keep => owned.push(pod.clone()),
            Claim::Adopt if is_active(pod) => {
                let reference = controller_ref("apps/v1", "ReplicaSet", &set.metadata);
                let patch = owner_references_patch(&pod.metadata, |list| list.push(json!(reference)));
                plan.push(Action::patch_as_seen(&**pod, patch));
                owned.push(pod.clone());
            }
            Claim::Release => {
                let patch = owner_references_patch(&pod.metadata, |list| {
                    list.retain(|r| r["uid"] != json!(set.metadata.uid))
                });
                plan.push(Action::patch_as_seen(&**pod, patch));
            }
            Claim::Adopt | Claim::Ignore => {}
        }
    }
    let terminating = owned
        .iter()
        .filter(|p| is_terminating(p) && !api::pod::is_terminal(p))
        .count();
    let mut active: Vec<Arc<Pod>> = owned.into_iter().filter(|p| is_active(p)).collect();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or_default();
    let status = status(
        set,
        &active,
        terminating,
        observed.failure.as_deref(),
        wanted,
        now,
    );
    let old = set.status.clone().unwrap_or_default();
    if old != status {
        plan.push(Action::patch_status(set, &old, &status));
    }
    if set.metadata.deletion_timestamp.is_none() {
        if active.len() < wanted {
            plan.extend((active.len()..wanted).take(BURST).map(|_| create(set)));
        } else if active.len() > wanted {
            let surplus = (active.len() - wanted).min(BURST);
            if surplus < active.len() {
                rank(&mut active, &observed.related, now);
            }
            plan.extend(active[..surplus].iter().map(|pod| delete(set, pod)));
        }
    }
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    if min_ready > 0 && status.ready_replicas != status.available_replicas {
        plan.extend(soonest_available(&active, min_ready, now).map(Action::Requeue));
    }
    plan
}

fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&str>,
    wanted: usize,
    now: Timestamp,
) -> ReplicaSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let spec = set.spec.clone().unwrap_or_default();
    let template_labels = spec
        .template
        .as_ref()
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    let count =
        |f: &dyn Fn(&Pod) -> bool| i32::try_from(active.iter().filter(|p| f(p)).count()).unwrap_or(i32::MAX);
    let nonzero = |n: i32| (n > 0).then_some(n);
    let mut conditions = old.conditions.unwrap_or_default();
    match failure {
        Some(message) => {
            let reason = if active.len() < wanted {
                "FailedCreate"
            } else {
                "FailedDelete"
            };
            let message: String = message.chars().take(LONGEST_MESSAGE).collect();
            let failed = ReplicaSetCondition::new("ReplicaFailure", "True", reason, &message, &Time(now));
            condition::set(&mut conditions, failed);
        }
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: nonzero(count(&|p| {
            api::selector::matches_map(&template_labels, p.metadata.labels.as_ref())
        })),
        ready_replicas: nonzero(count(&is_ready)),
        available_replicas: nonzero(count(&|p| {
            is_available(p, spec.min_ready_seconds.unwrap_or_default(), now)
        })),
        terminating_replicas: Some(i32::try_from(terminating).unwrap_or(i32::MAX)),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

fn create(set: &ReplicaSet) -> Action {
    let template = set
        .spec
        .as_ref()
        .and_then(|s| s.template.clone())
        .unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    let pod = Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name.as_deref().unwrap_or_default())),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_ref("apps/v1", "ReplicaSet", &set.metadata)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    };
    Action::create(&pod).announced(Announce {
        about: reference(set),
        success: ("SuccessfulCreate", "Created pod: "),
        failure: ("FailedCreate", "Error creating: "),
        source: "",
    })
}

fn delete(set: &ReplicaSet, pod: &Pod) -> Action {
    Action::delete(pod).announced(Announce {
        about: reference(set),
        success: ("SuccessfulDelete", "Deleted pod: "),
        failure: ("FailedDelete", "Error deleting: "),
        source: "",
    })
}

fn soonest_available(active: &[Arc<Pod>], min_ready: i32, now: Timestamp) -> Option<Duration> {
    active
        .iter()
        .filter(|p| !is_available(p, min_ready, now))
        .filter_map(|p| api::pod::ready_since(p))
        .map(|since| since.as_second() + i64::from(min_ready) - now.as_second())
        .min()
        .map(|seconds| Duration::from_secs(seconds.max(1).unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    fn set(replicas: i32, status: Value) -> Arc<ReplicaSet> {
        Arc::new(
            from_value(json!({
                "metadata": {"name": "web", "namespace": "n", "uid": "rs", "generation": 1},
                "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                    "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}},
                "status": status,
            }))
            .unwrap(),
        )
    }

    fn pod(name: &str, labels: Value, owner: Option<&str>) -> Arc<Pod> {
        let owners = owner.map(|uid| {
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": true}])
        });
        Arc::new(
            from_value(json!({
                "metadata": {"name": name, "namespace": "n", "uid": name, "labels": labels, "ownerReferences": owners},
                "spec": {"containers": []},
                "status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap(),
        )
    }

    fn run(set: Arc<ReplicaSet>, pods: Vec<Arc<Pod>>, failure: Option<&str>) -> Vec<Action> {
        let related = pods.clone();
        let observed = Observed {
            set,
            pods,
            related,
            failure: failure.map(str::to_owned),
        };
        reconcile(&observed, "2026-01-01T01:00:00Z".parse().unwrap())
    }

    fn web() -> Value {
        json!({"app": "web"})
    }

    const CONVERGED: &str = r#"{"replicas": 2, "readyReplicas": 2, "availableReplicas": 2, "fullyLabeledReplicas": 2,
        "terminatingReplicas": 0, "observedGeneration": 1}"#;

    #[test]
    fn converged_means_nothing_to_do() {
        let status = serde_json::from_str(CONVERGED).unwrap();
        assert_eq!(
            run(
                set(2, status),
                vec![pod("a", web(), Some("rs")), pod("b", web(), Some("rs"))],
                None
            ),
            []
        );
    }

    #[test]
    fn missing_pods_are_created_from_the_template() {
        let plan = run(
            set(3, json!({"replicas": 1})),
            vec![pod("a", web(), Some("rs"))],
            None,
        );
        let bodies: Vec<&Value> = plan
            .iter()
            .filter_map(|a| {
                if let Action::Create { body, .. } = a {
                    Some(body)
                } else {
                    None
                }
            })
            .collect();
        assert_eq!(bodies.len(), 2);
        assert_eq!(bodies[0]["metadata"]["generateName"], "web-");
        assert_eq!(bodies[0]["metadata"]["ownerReferences"][0]["uid"], "rs");
        assert_eq!(bodies[0]["metadata"]["labels"], web());
    }

    #[test]
    fn surplus_pods_are_deleted() {
        let pods = vec![
            pod("a", web(), Some("rs")),
            pod("b", web(), Some("rs")),
            pod("c", web(), Some("rs")),
        ];
        let plan = run(set(1, json!({"replicas": 3})), pods, None);
        assert_eq!(
            plan.iter().filter(|a| matches!(a, Action::Delete { .. })).count(),
            2
        );
    }

    #[test]
    fn orphans_are_adopted_and_strangers_released() {
        let status: Value = serde_json::from_str(CONVERGED).unwrap();
        let pods = vec![
            pod("a", web(), Some("rs")),
            pod("orphan", web(), None),
            pod("stray", json!({"app": "other"}), Some("rs")),
            pod("foreign", web(), Some("other")),
        ];
        let plan = run(set(2, status), pods, None);
        let patches: Vec<(&str, &Value)> = plan
            .iter()
            .map(|a| match a {
                Action::Patch { at, patch } => (at.key.name.as_str(), &patch["metadata"]["ownerReferences"]),
                other => panic!("unexpected {other:?}"),
            })
            .collect();
        assert_eq!(patches.len(), 2);
        assert_eq!((patches[0].0, &patches[0].1[0]["uid"]), ("orphan", &json!("rs")));
        assert_eq!(patches[1], ("stray", &json!([])));
    }

    #[test]
    fn a_refused_creation_shows_in_the_conditions() {
        let plan = run(set(1, json!({"replicas": 0})), vec![], Some("exceeded quota"));
        let Action::Patch { patch, .. } = &plan[0] else {
            panic!("status first: {plan:?}")
        };
        let condition = &patch["status"]["conditions"][0];
        assert_eq!(
            (&condition["type"], &condition["reason"]),
            (&json!("ReplicaFailure"), &json!("FailedCreate"))
        );
        assert_eq!(condition["message"], "exceeded quota");
    }
}
