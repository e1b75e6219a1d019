//! How large each ReplicaSet becomes in this step: rolling update, recreation, and scaling in proportion.

use super::annotations::{DESIRED_REPLICAS, MAX_REPLICAS, number};
use super::numbers::{
    available, is_rolling, max_surge, max_unavailable, new_set_size, size, total_size, wanted,
};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use std::cmp::Reverse;
use std::sync::Arc;

/// A ReplicaSet and its new size.
pub type Resize = (Arc<ReplicaSet>, i32);

pub fn created(set: &ReplicaSet) -> (Option<k8s_openapi::jiff::Timestamp>, Option<&str>) {
    (
        set.metadata.creation_timestamp.as_ref().map(|t| t.0),
        set.metadata.name.as_deref(),
    )
}

/// The new set grows as far as the surge allows, or shrinks to what is wanted.
pub fn resize_new(deployment: &Deployment, new: &Arc<ReplicaSet>, all: &[Arc<ReplicaSet>]) -> Option<Resize> {
    let (current, wanted) = (size(new), wanted(deployment));
    let target = if current > wanted {
        wanted
    } else {
        new_set_size(deployment, all, current)
    };
    (target != current).then(|| (new.clone(), target))
}

/// The old sets shrink as far as availability allows: broken pods first, then the oldest
/// (upstream's `reconcileOldReplicaSets`).
pub fn shrink_old(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    all: &[Arc<ReplicaSet>],
) -> Vec<Resize> {
    let minimum = wanted(deployment) - max_unavailable(deployment);
    let new_unavailable = new.map_or(0, |n| size(n) - available(n));
    let mut budget = total_size(all) - minimum - new_unavailable;
    if budget <= 0 || total_size(old) == 0 {
        return Vec::new();
    }
    let mut sets: Vec<Arc<ReplicaSet>> = old.iter().filter(|s| size(s) > 0).cloned().collect();
    sets.sort_by(|a, b| created(a).cmp(&created(b)));
    let mut sizes: Vec<i32> = sets.iter().map(|s| size(s)).collect();
    for (set, size) in sets.iter().zip(&mut sizes) {
        let broken = (*size - available(set)).clamp(0, budget.max(0));
        *size -= broken;
        budget -= broken;
    }
    let mut spare = all.iter().map(|s| available(s)).sum::<i32>() - minimum;
    for size in &mut sizes {
        let fewer = (*size).min(spare.max(0));
        *size -= fewer;
        spare -= fewer;
    }
    sets.into_iter()
        .zip(sizes)
        .filter(|(set, new)| size(set) != *new)
        .collect()
}

/// All old sets to nothing.
pub fn drop_old(old: &[Arc<ReplicaSet>]) -> Vec<Resize> {
    old.iter()
        .filter(|s| size(s) > 0)
        .map(|s| (s.clone(), 0))
        .collect()
}

/// The deployment's size changed, or it is paused: keep the proportions between its sets (upstream's `scale`).
pub fn scale(deployment: &Deployment, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> Vec<Resize> {
    let wanted = wanted(deployment);
    let active: Vec<Arc<ReplicaSet>> = old.iter().chain(new).filter(|s| size(s) > 0).cloned().collect();
    let only = match active.as_slice() {
        [] => new
            .cloned()
            .or_else(|| old.iter().max_by(|a, b| created(a).cmp(&created(b))).cloned()),
        [one] => Some(one.clone()),
        _ => None,
    };
    if let Some(only) = only {
        return if size(&only) == wanted {
            Vec::new()
        } else {
            vec![(only, wanted)]
        };
    }
    if active.is_empty() {
        return Vec::new();
    }
    if new.is_some_and(|n| is_saturated(deployment, n)) {
        return drop_old(old);
    }
    if !is_rolling(deployment) {
        return Vec::new();
    }
    let allowed = if wanted > 0 {
        wanted + max_surge(deployment)
    } else {
        0
    };
    let to_add = allowed - total_size(&active);
    let mut sets = active;
    if to_add >= 0 {
        sets.sort_by(|a, b| {
            (Reverse(size(a)), Reverse(created(a))).cmp(&(Reverse(size(b)), Reverse(created(b))))
        });
    } else {
        sets.sort_by(|a, b| (Reverse(size(a)), created(a)).cmp(&(Reverse(size(b)), created(b))));
    }
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(sets.len());
    for set in &sets {
        let share = if to_add == 0 {
            0
        } else {
            proportion(set, deployment, to_add, added)
        };
        sizes.push(size(set) + share);
        added += share;
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    sets.into_iter().zip(sizes).collect()
}

/// The new set has all it wants, and all of it is available.
fn is_saturated(deployment: &Deployment, new: &ReplicaSet) -> bool {
    let wanted = wanted(deployment);
    size(new) == wanted && number(new, DESIRED_REPLICAS) == Some(wanted) && available(new) == wanted
}

fn proportion(set: &ReplicaSet, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(set, deployment);
    let allowed = to_add - added;
    if to_add > 0 {
        fraction.min(allowed)
    } else {
        fraction.max(allowed)
    }
}

fn fraction(set: &ReplicaSet, deployment: &Deployment) -> i32 {
    let wanted = wanted(deployment);
    if wanted == 0 {
        return -size(set);
    }
    let after = f64::from(wanted + max_surge(deployment));
    let before = number(set, MAX_REPLICAS)
        .filter(|n| *n > 0)
        .or_else(|| deployment.status.as_ref().and_then(|s| s.replicas))
        .filter(|n| *n > 0);
    let Some(before) = before else { return 0 };
    (f64::from(size(set)) * after / f64::from(before)).round() as i32 - size(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn deployment(replicas: i32, surge: i32, unavailable: i32) -> Deployment {
        from_value(json!({"spec": {"replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .unwrap()
    }

    fn set(name: &str, size: i32, available: i32, max: i32) -> Arc<ReplicaSet> {
        Arc::new(
            from_value(json!({
                "metadata": {"name": name, "annotations": {
                    DESIRED_REPLICAS: size.to_string(), MAX_REPLICAS: max.to_string()}},
                "spec": {"replicas": size, "selector": {}}, "status": {"replicas": size, "availableReplicas": available}}))
            .unwrap(),
        )
    }

    fn named(resizes: Vec<Resize>) -> Vec<(String, i32)> {
        resizes
            .into_iter()
            .map(|(s, n)| (s.metadata.name.clone().unwrap(), n))
            .collect()
    }

    #[test]
    fn the_new_set_grows_within_the_surge() {
        for (new, old, surge, expected) in [
            (0, 10, 2, Some(2)),
            (0, 8, 2, Some(4)),
            (2, 10, 2, None),
            (12, 0, 2, Some(10)),
        ] {
            let (new, old) = (set("new", new, 0, 12), set("old", old, 10, 12));
            let resize = resize_new(&deployment(10, surge, 0), &new, &[old, new.clone()]);
            assert_eq!(resize.map(|r| r.1), expected);
        }
    }

    #[test]
    fn old_sets_shrink_only_as_availability_allows() {
        for (what, old_available, new_size, new_available, expected) in [
            ("nothing to spare", 10, 2, 0, vec![]),
            ("two new ones are up", 10, 2, 2, vec![("old".to_owned(), 8)]),
            ("broken old ones go first", 7, 2, 2, vec![("old".to_owned(), 8)]),
        ] {
            let (new, old) = (
                set("new", new_size, new_available, 12),
                set("old", 10, old_available, 12),
            );
            let all = [old, new];
            let shrunk = shrink_old(&deployment(10, 2, 0), Some(&all[1]), &all[..1], &all);
            assert_eq!(named(shrunk), expected, "{what}");
        }
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_keeps_proportions() {
        // Upstream's example: 10 replicas with surge 3 are 13; scaled to 30 with surge 3 there are 20 more to share.
        let (new, old) = (set("new", 5, 5, 13), set("old", 8, 8, 13));
        let resizes = named(scale(&deployment(30, 3, 2), Some(&new), &[old]));
        assert_eq!(resizes, [("old".to_owned(), 20), ("new".to_owned(), 13)]);
    }

    #[test]
    fn one_active_set_takes_everything() {
        let new = set("new", 3, 3, 4);
        assert_eq!(
            named(scale(&deployment(5, 1, 0), Some(&new), &[set("old", 0, 0, 4)])),
            [("new".to_owned(), 5)]
        );
        assert_eq!(named(scale(&deployment(3, 1, 0), Some(&new), &[])), []);
    }
}
