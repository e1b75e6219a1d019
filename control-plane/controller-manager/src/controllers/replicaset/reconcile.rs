//! Creates missing pods, deletes surplus ones, claims orphans, and reports (upstream's `syncReplicaSet`).

use super::kinds::Replicated;
use super::ranking::rank;
use crate::action::Action;
use crate::controllers::owned::{claim_all, create, delete, pod_of};
use api::condition::{self, Condition};
use api::pod::{is_active, is_available, is_ready, is_terminating};
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// Pods created or deleted by one plan at most.
const BURST: usize = 500;
/// Conditions and events have room for this many bytes of an error.
const LONGEST_MESSAGE: usize = 1024;

pub struct Observed<K> {
    pub set: Arc<K>,
    /// Pods that refer to the set as their controller, and those of its namespace that refer to none.
    pub pods: Vec<Arc<Pod>>,
    /// Pods of all sets of the same workload.
    pub related: Vec<Arc<Pod>>,
    /// Why the last plan failed.
    pub failure: Option<String>,
}

pub fn reconcile<K: Replicated>(observed: &Observed<K>, now: Timestamp) -> Vec<Action> {
    let set = &*observed.set;
    let Some(spec) = set.wanted() else {
        return Vec::new();
    };
    let mut plan = Vec::new();
    let owned = claim_all(set, &spec.selector, &observed.pods, is_active, &mut plan);
    let terminating = owned
        .iter()
        .filter(|p| is_terminating(p) && !api::pod::is_terminal(p))
        .count();
    let mut active: Vec<Arc<Pod>> = owned.into_iter().filter(|p| is_active(p)).collect();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or_default();
    let counted = Counted {
        active: &active,
        terminating,
        failure: observed.failure.as_deref().filter(|_| active.len() != wanted),
        wanted,
    };
    let old = set.reported();
    let status = counted.status(set.meta().generation, &spec, &old, now);
    let (old, status) = (K::report(old), K::report(status));
    if old != status {
        plan.push(Action::patch_status(set, &old, &status));
    }
    if set.meta().deletion_timestamp.is_none() {
        if active.len() < wanted {
            let pod = pod_of(set, &spec.template.unwrap_or_default());
            plan.extend((active.len()..wanted).take(BURST).map(|_| create(set, &pod)));
        } else if active.len() > wanted {
            let surplus = (active.len() - wanted).min(BURST);
            if surplus < active.len() {
                rank(&mut active, &observed.related, now);
            }
            plan.extend(active[..surplus].iter().map(|pod| delete(set, pod)));
        }
    }
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    if min_ready > 0 && status["readyReplicas"] != status["availableReplicas"] {
        plan.extend(soonest_available(&active, min_ready, now).map(Action::Requeue));
    }
    plan
}

struct Counted<'a> {
    active: &'a [Arc<Pod>],
    terminating: usize,
    failure: Option<&'a str>,
    wanted: usize,
}

impl Counted<'_> {
    fn status(
        &self,
        generation: Option<i64>,
        spec: &ReplicaSetSpec,
        old: &ReplicaSetStatus,
        now: Timestamp,
    ) -> ReplicaSetStatus {
        let template = spec.template.as_ref().and_then(|t| t.metadata.as_ref());
        let template_labels = template.and_then(|m| m.labels.clone()).unwrap_or_default();
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let count = |f: &dyn Fn(&Pod) -> bool| number(self.active.iter().filter(|p| f(p)).count());
        let nonzero = |n: i32| (n > 0).then_some(n);
        let min_ready = spec.min_ready_seconds.unwrap_or_default();
        let mut conditions = old.conditions.clone().unwrap_or_default();
        match self.failure {
            Some(message) => {
                let missing = self.active.len() < self.wanted;
                let reason = if missing { "FailedCreate" } else { "FailedDelete" };
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
            available_replicas: nonzero(count(&|p| is_available(p, min_ready, now))),
            terminating_replicas: Some(number(self.terminating)),
            observed_generation: generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        }
    }
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
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::ReplicationController;
    use serde_json::{Value, from_value, json};

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

    #[test]
    fn a_replication_controller_is_worked_the_same_way() {
        let set: ReplicationController = from_value(json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "rs", "generation": 1},
            "spec": {"replicas": 2, "selector": {"app": "web"},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}},
        }))
        .unwrap();
        let observed = Observed {
            set: Arc::new(set),
            pods: vec![pod("a", web(), None), pod("b", json!({"app": "other"}), None)],
            related: vec![],
            failure: None,
        };
        let plan = reconcile(&observed, "2026-01-01T01:00:00Z".parse().unwrap());
        let [
            Action::Patch { patch: adoption, .. },
            Action::Patch { patch: status, .. },
            Action::Create { body, .. },
        ] = &plan[..]
        else {
            panic!("{plan:?}")
        };
        assert_eq!(
            adoption["metadata"]["ownerReferences"][0]["kind"],
            "ReplicationController"
        );
        assert_eq!(status["status"]["readyReplicas"], 1);
        assert_eq!(status["status"].get("terminatingReplicas"), None);
        assert_eq!(body["metadata"]["ownerReferences"][0]["apiVersion"], "v1");
    }
}
