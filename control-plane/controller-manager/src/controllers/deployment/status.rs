//! What a deployment reports about itself (upstream's `calculateStatus`, `syncRolloutStatus`).

use super::numbers::{available, max_unavailable, size, wanted};
use api::condition::{self, Condition};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// A deadline of the largest int32 means none.
const NO_DEADLINE: i32 = i32::MAX;

/// Counts, and the Available condition.
pub fn counts(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    all: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |f: &dyn Fn(&ReplicaSet) -> i32| all.iter().map(|s| f(s)).sum::<i32>();
    let status_of = |s: &ReplicaSet| s.status.clone().unwrap_or_default();
    let is_available = sum(&available);
    let nonzero = |n: i32| (n > 0).then_some(n);
    let mut conditions = old.conditions.unwrap_or_default();
    let condition = if is_available >= wanted(deployment) - max_unavailable(deployment) {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    let available_now =
        DeploymentCondition::new("Available", condition.0, condition.1, condition.2, &Time(now));
    condition::set(&mut conditions, available_now);
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(&|s| status_of(s).replicas)),
        updated_replicas: nonzero(new.map_or(0, |s| status_of(s).replicas)),
        ready_replicas: nonzero(sum(&|s| status_of(s).ready_replicas.unwrap_or_default())),
        available_replicas: nonzero(is_available),
        unavailable_replicas: nonzero(sum(&size) - is_available),
        terminating_replicas: Some(sum(&|s| status_of(s).terminating_replicas.unwrap_or_default())),
        collision_count: old.collision_count,
        conditions: Some(conditions),
    }
}

pub fn deadline(deployment: &Deployment) -> Option<i32> {
    let seconds = deployment
        .spec
        .as_ref()
        .and_then(|s| s.progress_deadline_seconds)?;
    (seconds != NO_DEADLINE).then_some(seconds)
}

/// Everything wanted is updated, available, and nothing old is left.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(wanted(deployment)).filter(|n| *n > 0);
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// The Progressing and ReplicaFailure conditions of a rollout; returns when the deadline is worth another look.
pub fn rollout(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    new: Option<&Arc<ReplicaSet>>,
    all: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> Option<Duration> {
    let conditions = status.conditions.clone();
    let current = condition::find(conditions.as_ref(), "Progressing");
    let mut conditions = conditions.clone().unwrap_or_default();
    let subject = match new {
        Some(set) => format!(
            "ReplicaSet {:?}",
            set.metadata.name.as_deref().unwrap_or_default()
        ),
        None => format!(
            "Deployment {:?}",
            deployment.metadata.name.as_deref().unwrap_or_default()
        ),
    };
    let progressing = |status: &str, reason: &str, verb: &str| {
        DeploymentCondition::new(
            "Progressing",
            status,
            reason,
            &format!("{subject} {verb}"),
            &Time(now),
        )
    };
    let settled = status.replicas == status.updated_replicas
        && current.is_some_and(|c| c.reason() == "NewReplicaSetAvailable");
    match deadline(deployment) {
        None => conditions.retain(|c| c.type_ != "Progressing"),
        Some(_) if settled => {}
        Some(seconds) => {
            if is_complete(deployment, status) {
                let done = progressing("True", "NewReplicaSetAvailable", "has successfully progressed.");
                condition::set(&mut conditions, done);
            } else if has_progressed(deployment, status) {
                // The update time moves with every step, the transition time does not.
                let mut step = progressing("True", "ReplicaSetUpdated", "is progressing.");
                if let Some(current) = current.filter(|c| c.status == "True") {
                    step.last_transition_time = current.last_transition_time.clone();
                }
                conditions.retain(|c| c.type_ != "Progressing");
                conditions.push(step);
            } else if is_timed_out(current, seconds, now) {
                let late = progressing("False", "ProgressDeadlineExceeded", "has timed out progressing.");
                condition::set(&mut conditions, late);
            }
        }
    }
    let failure = new
        .into_iter()
        .chain(all)
        .find_map(|s| condition::find(s.status.as_ref()?.conditions.as_ref(), "ReplicaFailure"));
    match failure {
        Some(f) => {
            let copied =
                DeploymentCondition::new("ReplicaFailure", &f.status, f.reason(), f.message(), &Time(now));
            condition::set(&mut conditions, copied);
        }
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    let look_again = look_again(deployment, status, &conditions, now);
    status.conditions = Some(conditions);
    look_again
}

fn has_progressed(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let old = deployment.status.clone().unwrap_or_default();
    let n = |value: Option<i32>| value.unwrap_or_default();
    let still_old = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(status.updated_replicas) > n(old.updated_replicas)
        || still_old(status) < still_old(&old)
        || n(status.ready_replicas) > n(old.ready_replicas)
        || n(status.available_replicas) > n(old.available_replicas)
}

fn is_timed_out(current: Option<&DeploymentCondition>, deadline: i32, now: Timestamp) -> bool {
    let Some(current) = current else { return false };
    match current.reason() {
        "NewReplicaSetAvailable" => false,
        "ProgressDeadlineExceeded" => true,
        _ => current
            .last_update_time
            .as_ref()
            .is_some_and(|t| now.as_second() - t.0.as_second() > i64::from(deadline)),
    }
}

fn look_again(
    deployment: &Deployment,
    status: &DeploymentStatus,
    conditions: &[DeploymentCondition],
    now: Timestamp,
) -> Option<Duration> {
    let seconds = deadline(deployment)?;
    let current = conditions.iter().find(|c| c.type_ == "Progressing")?;
    if is_complete(deployment, status) || current.reason() == "ProgressDeadlineExceeded" {
        return None;
    }
    let since = current.last_update_time.as_ref()?.0.as_second();
    let left = since + i64::from(seconds) - now.as_second() + 1;
    Some(Duration::from_secs(left.max(1).unsigned_abs()))
}
