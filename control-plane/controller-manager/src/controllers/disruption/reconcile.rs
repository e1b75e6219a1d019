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

/// A workload that did not say how many pods it wants is asked again.
const TRY_AGAIN: Duration = Duration::from_secs(60);

pub struct Observed {
    pub budget: Arc<PodDisruptionBudget>,
    /// Pods the budget selects.
    pub pods: Vec<Arc<Pod>>,
    /// Looked at if [`relies_on_scale`]; or why a workload did not say.
    pub expected: Result<Expected, String>,
}

#[derive(Clone, Default)]
pub struct Expected {
    /// Pods their workloads want, together.
    pub wanted: i32,
    /// Names of pods without a workload.
    pub unscaled: Vec<String>,
}

/// Only a plain number of pods needs no workload's word.
pub fn relies_on_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    let plain = |available: &IntOrString| matches!(available, IntOrString::Int(_));
    spec.is_some_and(|spec| {
        spec.max_unavailable.is_some()
            || spec
                .min_available
                .as_ref()
                .is_some_and(|available| !plain(available))
    })
}

pub fn reconcile(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let budget = &*observed.budget;
    let Some(spec) = &budget.spec else {
        return Vec::new();
    };
    let old = budget.status.clone().unwrap_or_default();
    let mut plan = Vec::new();
    let expected = match &observed.expected {
        Ok(expected) => expected,
        Err(error) => return fail_safe(budget, &old, error, now),
    };
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
    let (total, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => {
            let allowed = api::intstr::scaled(Some(unavailable), expected.wanted, true);
            (expected.wanted, (expected.wanted - allowed).max(0))
        }
        (None, Some(IntOrString::Int(available))) => (count, *available),
        (None, Some(share)) => {
            let desired = api::intstr::scaled(Some(share), expected.wanted, true);
            (expected.wanted, desired)
        }
        (None, None) => (count, 0),
    };
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
    let allowed = if total > 0 { (healthy - desired).max(0) } else { 0 };
    let mut status = PodDisruptionBudgetStatus {
        observed_generation: budget.metadata.generation,
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(total),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        conditions: old.conditions.clone(),
    };
    let (value, reason) = match allowed > 0 {
        true => ("True", "SufficientPods"),
        false => ("False", "InsufficientPods"),
    };
    set_condition(&mut status, value, reason, "", now);
    if old != status {
        if relies_on_scale(budget) && !expected.unscaled.is_empty() {
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the \
                 status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account \
                 for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                selector_text(budget)
            );
            plan.push(Action::event(budget, WARNING, "UnmanagedPods", message));
        }
        plan.push(patch_as_seen(budget, &old, &status));
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

/// Nothing may be evicted while nobody knows how many pods there should be.
fn fail_safe(
    budget: &PodDisruptionBudget,
    old: &PodDisruptionBudgetStatus,
    error: &str,
    now: Timestamp,
) -> Vec<Action> {
    let message = format!("Failed to calculate the number of expected pods: {error}");
    let event = Action::event(budget, WARNING, "CalculateExpectedPodCountFailed", message);
    let mut status = PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        ..old.clone()
    };
    set_condition(&mut status, "False", "SyncFailed", error, now);
    let mut plan = vec![event, Action::Requeue(TRY_AGAIN)];
    if *old != status {
        plan.push(patch_as_seen(budget, old, &status));
    }
    plan
}

/// Evictions spend from the same status: only as we saw it.
fn patch_as_seen(
    budget: &PodDisruptionBudget,
    old: &PodDisruptionBudgetStatus,
    new: &PodDisruptionBudgetStatus,
) -> Action {
    let mut action = Action::patch_status(budget, old, new);
    if let Action::Patch { patch, .. } = &mut action {
        patch["metadata"]["resourceVersion"] = serde_json::json!(budget.metadata.resource_version);
    }
    action
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
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
        message: message.into(),
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
            expected: Ok(Expected {
                wanted,
                unscaled: vec![],
            }),
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
    fn nothing_is_evicted_while_the_number_of_pods_is_unknown() {
        let mut seen = observed(
            json!({"maxUnavailable": 1}),
            3,
            0,
            3,
            json!({"disruptionsAllowed": 1}),
        );
        assert!(relies_on_scale(&seen.budget));
        seen.expected = Err("jobs.batch does not implement the scale subresource".into());
        let plan = reconcile(&seen, now());
        let found = status(&plan);
        assert_eq!(found["disruptionsAllowed"], 0);
        assert_eq!(found["conditions"][0]["reason"], "SyncFailed");
        let Some(Action::Event(said)) = plan.first() else {
            panic!("{plan:?}")
        };
        assert_eq!(said.reason, "CalculateExpectedPodCountFailed");
        assert!(
            said.message
                .ends_with("expected pods: jobs.batch does not implement the scale subresource")
        );
        let plain = observed(json!({"minAvailable": 1}), 3, 0, 3, json!({}));
        assert!(!relies_on_scale(&plain.budget));
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
