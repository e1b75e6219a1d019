//! A deployment's arithmetic: surge, unavailability, how large each ReplicaSet should be.

use api::intstr::scaled;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use std::sync::Arc;

pub fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub fn total_size(sets: &[Arc<ReplicaSet>]) -> i32 {
    sets.iter().map(|s| size(s)).sum()
}

pub fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|s| s.available_replicas)
        .unwrap_or_default()
}

pub fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) != Some("Recreate")
}

/// Surge and unavailability in pods. Both zero would stand still, so one pod may then be missing
/// (upstream's `ResolveFenceposts`).
pub fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let total = wanted(deployment);
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.rolling_update.as_ref());
    let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), total, true);
    let unavailable = scaled(rolling.and_then(|r| r.max_unavailable.as_ref()), total, false);
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

pub fn max_surge(deployment: &Deployment) -> i32 {
    fenceposts(deployment).0
}

/// Never more than there are pods.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    fenceposts(deployment).1.min(wanted(deployment))
}

/// How large the new ReplicaSet may be now (upstream's `NewRSNewReplicas`).
pub fn new_set_size(deployment: &Deployment, all: &[Arc<ReplicaSet>], current: i32) -> i32 {
    let wanted = wanted(deployment);
    if !is_rolling(deployment) {
        return wanted;
    }
    let room = wanted + max_surge(deployment) - total_size(all);
    if room <= 0 {
        current
    } else {
        current + room.min(wanted - current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn deployment(replicas: i32, rolling: Value) -> Deployment {
        from_value(
            json!({"spec": {"replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}}),
        )
        .unwrap()
    }

    #[test]
    fn fenceposts_round_as_upstreams() {
        for (replicas, rolling, expected) in [
            (10, json!({"maxSurge": "25%", "maxUnavailable": "25%"}), (3, 2)),
            (1, json!({"maxSurge": "25%", "maxUnavailable": "25%"}), (1, 0)),
            (4, json!({"maxSurge": 0, "maxUnavailable": 0}), (0, 1)),
            (4, json!({"maxSurge": 0, "maxUnavailable": "10%"}), (0, 1)),
            (4, json!({"maxSurge": 2, "maxUnavailable": "100%"}), (2, 4)),
        ] {
            assert_eq!(
                fenceposts(&deployment(replicas, rolling.clone())),
                expected,
                "{replicas} {rolling}"
            );
        }
    }
}
