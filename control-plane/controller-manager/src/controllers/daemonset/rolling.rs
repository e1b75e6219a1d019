//! Which old daemons may go, and which nodes may get a second one, during a rolling update.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// One node's daemons, as far as a rolling update cares.
pub struct Daemons<'a> {
    pub node: &'a str,
    pub starts: bool,
    pub new: Vec<&'a Arc<Pod>>,
    pub old: Vec<&'a Arc<Pod>>,
}

/// What to do now.
#[derive(Default, Debug)]
pub struct Roll<'a> {
    pub delete: Vec<&'a Arc<Pod>>,
    /// Nodes whose daemon gets a successor beside it.
    pub surge: Vec<&'a str>,
}

/// Surge and unavailability in pods, for so many nodes (upstream's `UnavailableCount` and `SurgeCount`).
pub fn limits(set: &DaemonSet, desired: i32) -> (usize, usize) {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let count = |value| usize::try_from(api::intstr::scaled(value, desired, true)).unwrap_or_default();
    let surge = count(rolling.and_then(|r| r.max_surge.as_ref()));
    let unavailable = count(rolling.and_then(|r| r.max_unavailable.as_ref()));
    if surge == 0 && unavailable == 0 && desired > 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

/// Upstream's `rollingUpdate`. Nodes with more daemons than they should have are left to the count of daemons.
pub fn roll<'a>(
    nodes: &[Daemons<'a>],
    (max_surge, max_unavailable): (usize, usize),
    available: impl Fn(&Pod) -> bool,
) -> Roll<'a> {
    if max_surge == 0 {
        replace(nodes, max_unavailable, available)
    } else {
        surge(nodes, max_surge, available)
    }
}

fn replace<'a>(nodes: &[Daemons<'a>], max_unavailable: usize, available: impl Fn(&Pod) -> bool) -> Roll<'a> {
    let mut unavailable = 0;
    let (mut broken, mut candidates) = (Vec::new(), Vec::new());
    for daemons in nodes.iter().filter(|d| d.starts) {
        match (&daemons.new[..], &daemons.old[..]) {
            ([new], []) if available(new) => {}
            ([], [old]) if api::pod::is_terminating(old) => unavailable += 1,
            ([], [old]) if !available(old) => broken.push(*old),
            ([], [old]) => candidates.push(*old),
            _ => unavailable += 1,
        }
    }
    unavailable += broken.len();
    candidates.truncate(max_unavailable.saturating_sub(unavailable));
    broken.extend(candidates);
    Roll {
        delete: broken,
        surge: Vec::new(),
    }
}

fn surge<'a>(nodes: &[Daemons<'a>], max_surge: usize, available: impl Fn(&Pod) -> bool) -> Roll<'a> {
    let mut surging = 0;
    let mut roll = Roll::default();
    let mut candidates = Vec::new();
    for daemons in nodes.iter().filter(|d| d.starts) {
        match (&daemons.new[..], &daemons.old[..]) {
            (_, []) => {}
            ([], [old]) if !available(old) => roll.surge.push(daemons.node),
            ([], [_]) => candidates.push(daemons.node),
            ([_], [old]) if api::pod::is_terminating(old) => {}
            ([new], [old]) if available(new) || !available(old) => roll.delete.push(*old),
            _ => surging += 1,
        }
    }
    candidates.truncate(max_surge.saturating_sub(surging));
    roll.surge.extend(candidates);
    roll
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn pod(name: &str) -> Arc<Pod> {
        Arc::new(from_value(json!({"metadata": {"name": name}})).unwrap())
    }

    /// Pods whose names begin with `a` are available. A node is written `new/old`.
    fn run(nodes: &[(&str, &str)], limits: (usize, usize)) -> (Vec<String>, Vec<String>) {
        let pods: Vec<(Vec<Arc<Pod>>, Vec<Arc<Pod>>)> = nodes
            .iter()
            .map(|(new, old)| {
                let make = |text: &str| text.split_whitespace().map(pod).collect();
                (make(new), make(old))
            })
            .collect();
        let names: Vec<String> = (0..nodes.len()).map(|n| n.to_string()).collect();
        let daemons: Vec<Daemons> = pods
            .iter()
            .zip(&names)
            .map(|((new, old), node)| Daemons {
                node,
                starts: true,
                new: new.iter().collect(),
                old: old.iter().collect(),
            })
            .collect();
        let available = |p: &Pod| p.metadata.name.as_deref().is_some_and(|n| n.starts_with('a'));
        let roll = roll(&daemons, limits, available);
        let delete = roll
            .delete
            .iter()
            .filter_map(|p| p.metadata.name.clone())
            .collect();
        (delete, roll.surge.iter().map(|s| (*s).to_owned()).collect())
    }

    #[test]
    fn unavailability_is_never_exceeded() {
        for (nodes, unavailable, expected) in [
            (&[("", "a1"), ("", "a2")][..], 1, &["a1"][..]),
            (&[("x1", ""), ("", "a2")], 1, &[]),
            (&[("a1", ""), ("", "a2")], 1, &["a2"]),
            (&[("", "x1"), ("", "a2")], 1, &["x1"]),
            (&[("", "x1"), ("", "a2"), ("", "a3")], 2, &["x1", "a2"]),
            (&[("", ""), ("", "a2")], 1, &[]),
            (&[("a1", ""), ("a2", "")], 1, &[]),
        ] {
            assert_eq!(run(nodes, (0, unavailable)).0, expected, "{nodes:?}");
        }
    }

    #[test]
    fn surging_starts_the_successor_first() {
        for (nodes, delete, surge) in [
            (&[("", "a1"), ("", "a2")][..], &[][..], &["0"][..]),
            (&[("x1", "a1"), ("", "a2")], &[], &[]),
            (&[("a3", "a1"), ("", "a2")], &["a1"], &["1"]),
            (&[("x3", "x1"), ("", "a2")], &["x1"], &["1"]),
            (&[("", "x1"), ("", "a2")], &[], &["0", "1"]),
        ] {
            let found = run(nodes, (1, 0));
            assert_eq!(
                (&found.0[..], &found.1[..]),
                (
                    &delete.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..],
                    &surge.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..]
                ),
                "{nodes:?}"
            );
        }
    }
}
