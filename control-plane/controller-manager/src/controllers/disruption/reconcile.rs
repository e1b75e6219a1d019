//! The budget's arithmetic (upstream's `getExpectedPodCount` and `updatePdbStatus`).

use crate::action::Action;
use api::event::WARNING;
use api::pod::{is_ready, is_terminal, is_terminating};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// An eviction whose pod is still there after this did not happen.
const DELETION_TIMEOUT: i64 = 120;

pub struct Observed {
    pub budget: Arc<PodDisruptionBudget>,
    /// Pods the budget selects.
    pub pods: Vec<Arc<Pod>>,
    /// Pods their workloads want, together.
    pub wanted: i32,
    /// Names of pods whose workload, if any, has no size.
    pub unscaled: Vec<String>,
}

pub fn reconcile(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let budget = &*observed.budget;
    let Some(spec) = &budget.spec else {
        return Vec::new();
    };
    let old = budget.status.clone().unwrap_or_default();
    let mut plan = Vec::new();
    let mut disrupted = old.disrupted_pods.clone().unwrap_or_default();
    disrupted.retain(|name, since| {
        let left = since.0.as_second() + DELETION_TIMEOUT - now.as_second();
        let there = observed
            .pods
            .iter()
            .any(|p| p.metadata.name.as_ref() == Some(name) && !is_terminating(p));
        let waits = there && left > 0;
        if waits {
            plan.push(Action::Requeue(Duration::from_secs(left.unsigned_abs())));
        }
        waits
    });
    let count = i32::try_from(observed.pods.iter().filter(|p| !is_terminal(p)).count()).unwrap_or(i32::MAX);
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => {
            let allowed = api::intstr::scaled(Some(unavailable), observed.wanted, true);
            (observed.wanted, (observed.wanted - allowed).max(0))
        }
        (None, Some(IntOrString::Int(available))) => (count, *available),
        (None, Some(share)) => {
            let desired = api::intstr::scaled(Some(share), observed.wanted, true);
            (observed.wanted, desired)
        }
        (None, None) => (count, 0),
    };
    let relies_on_scale = !matches!(
        (&spec.max_unavailable, &spec.min_available),
        (None, Some(IntOrString::Int(_)) | None)
    );
    let healthy = observed
        .pods
        .iter()
        .filter(|p| !is_terminating(p) && is_ready(p))
        .filter(|p| {
            p.metadata
                .name
                .as_ref()
                .is_none_or(|n| !disrupted.contains_key(n))
        })
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let allowed = if expected > 0 {
        (healthy - desired).max(0)
    } else {
        0
    };
    let mut status = PodDisruptionBudgetStatus {
        observed_generation: budget.metadata.generation,
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        conditions: old.conditions.clone(),
    };
    set_condition(&mut status, allowed > 0, now);
    if old != status {
        if relies_on_scale && !observed.unscaled.is_empty() {
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the \
                 status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account \
                 for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                selector_text(budget)
            );
            plan.push(Action::event(budget, WARNING, "UnmanagedPods", message));
        }
        // Evictions spend from the same status: only as we saw it.
        let mut patch = Action::patch_status(budget, &old, &status);
        if let Action::Patch { patch, .. } = &mut patch {
            patch["metadata"]["resourceVersion"] = serde_json::json!(budget.metadata.resource_version);
        }
        plan.push(patch);
    }
    plan
}

fn selector_text(budget: &PodDisruptionBudget) -> String {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    let labels = selector.and_then(|s| s.match_labels.as_ref());
    let parts: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    parts.join(",")
}

fn set_condition(status: &mut PodDisruptionBudgetStatus, allowed: bool, now: Timestamp) {
    let (value, reason) = if allowed {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().position(|c| c.type_ == "DisruptionAllowed");
    let since = known
        .map(|i| &conditions[i])
        .filter(|c| c.status == value)
        .map_or(Time(now), |c| c.last_transition_time.clone());
    let new = Condition {
        type_: "DisruptionAllowed".into(),
        status: value.into(),
        reason: reason.into(),
        message: String::new(),
        last_transition_time: since,
        observed_generation: status.observed_generation,
    };
    match known {
        Some(i) => conditions[i] = new,
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn now() -> Timestamp {
        "2026-01-01T00:01:00Z".parse().unwrap()
    }

    fn observed(spec: Value, ready: usize, unready: usize, wanted: i32, status: Value) -> Observed {
        let pod = |n: usize, ready: bool| {
            let body = json!({"metadata": {"name": format!("p{n}"), "namespace": "n"}, "status": {"phase": "Running",
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
            Arc::new(from_value(body).unwrap())
        };
        let body = json!({"metadata": {"name": "b", "namespace": "n", "generation": 2}, "spec": spec, "status": status});
        Observed {
            budget: Arc::new(from_value(body).unwrap()),
            pods: (0..ready + unready).map(|n| pod(n, n < ready)).collect(),
            wanted,
            unscaled: vec![],
        }
    }

    fn status(plan: &[Action]) -> Value {
        let found = plan.iter().find_map(|a| match a {
            Action::Patch { patch, .. } => Some(patch["status"].clone()),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("no status: {plan:?}"))
    }

    #[test]
    fn budgets_are_computed_as_upstreams() {
        for (spec, ready, unready, wanted, desired, allowed) in [
            (json!({"minAvailable": 2}), 3, 0, 3, 2, 1),
            (json!({"minAvailable": 2}), 2, 1, 3, 2, 0),
            (json!({"minAvailable": 2}), 0, 0, 0, 2, 0),
            (json!({"minAvailable": "50%"}), 5, 0, 5, 3, 2),
            (json!({"maxUnavailable": 1}), 3, 0, 3, 2, 1),
            (json!({"maxUnavailable": 1}), 2, 1, 3, 2, 0),
            (json!({"maxUnavailable": "30%"}), 10, 0, 10, 7, 3),
            (json!({"maxUnavailable": 5}), 3, 0, 3, 0, 3),
        ] {
            let found = status(&reconcile(
                &observed(spec.clone(), ready, unready, wanted, json!({})),
                now(),
            ));
            assert_eq!(
                (&found["desiredHealthy"], &found["disruptionsAllowed"]),
                (&json!(desired), &json!(allowed)),
                "{spec}"
            );
            let condition = &found["conditions"][0];
            let reason = if allowed > 0 {
                "SufficientPods"
            } else {
                "InsufficientPods"
            };
            assert_eq!(condition["reason"], reason);
            let settled = observed(spec, ready, unready, wanted, found);
            assert_eq!(reconcile(&settled, now()), []);
        }
    }

    #[test]
    fn evicted_pods_count_as_gone_until_they_are_or_two_minutes_pass() {
        let disrupted = |at: &str| json!({"disruptedPods": {"p0": at, "gone": at}});
        let young = observed(
            json!({"minAvailable": 1}),
            2,
            0,
            2,
            disrupted("2026-01-01T00:00:30Z"),
        );
        let plan = reconcile(&young, now());
        assert!(
            plan.contains(&Action::Requeue(Duration::from_secs(90))),
            "{plan:?}"
        );
        assert_eq!(status(&plan)["disruptionsAllowed"], 0);
        assert_eq!(status(&plan)["disruptedPods"], json!({"gone": null}));
        let old = observed(
            json!({"minAvailable": 1}),
            2,
            0,
            2,
            disrupted("2025-12-31T23:00:00Z"),
        );
        assert_eq!(status(&reconcile(&old, now()))["disruptionsAllowed"], 1);
    }
}
