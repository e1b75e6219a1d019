//! NoExecute taints: pods that don't tolerate them leave, at once or after their tolerationSeconds.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::condition::Condition;
use api::event::NORMAL;
use api::taint::{NO_EXECUTE, tolerates};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

struct TaintEviction {
    caches: Arc<Caches>,
    /// Since when pods endure their nodes' taints, with their UIDs. As upstream counts it: a taint's `timeAdded` is
    /// the word of whoever set it, and older than pods that came later.
    enduring: Mutex<HashMap<Key, (Option<String>, Timestamp)>>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let (to, nodes) = (queue.clone(), context.caches.nodes.clone());
    context.caches.pods.on(move |change| {
        let node = change
            .new
            .and_then(|p| api::pod::node_name(p))
            .and_then(|n| nodes.get(&Key::new("", n)));
        if node.is_some_and(|n| no_execute(&n).next().is_some()) {
            to.add(change.key.clone());
        }
    });
    let (to, pods) = (queue.clone(), context.caches.pods.clone());
    context.caches.nodes.on(move |change| {
        let Some(new) = change.new else { return };
        let taints = |node| no_execute(node).collect::<Vec<_>>();
        if change.old.map(taints).unwrap_or_default() != taints(new) {
            let on_node = |p: &&Arc<Pod>| api::pod::node_name(p) == Some(&change.key.name);
            pods.list()
                .iter()
                .filter(on_node)
                .for_each(|p| to.add(Key::of(&p.metadata)));
        }
    });
    Ok(super::spawn(
        context,
        TaintEviction {
            caches: context.caches.clone(),
            enduring: Mutex::default(),
        },
        queue,
    ))
}

impl Controller for TaintEviction {
    const NAME: &'static str = "taint-eviction-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let pod = self.caches.pods.get(key);
        let node = pod.as_deref().and_then(api::pod::node_name);
        let node = node.and_then(|name| self.caches.nodes.get(&Key::new("", name)));
        let mut enduring = self.enduring.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(pod), Some(node)) = (pod, node) else {
            enduring.remove(key);
            return Ok(Vec::new());
        };
        let uid = &pod.metadata.uid;
        let known = enduring.remove(key).filter(|(of, _)| of == uid);
        let since = known.as_ref().map_or(now, |(_, since)| *since);
        let stay = stay(&pod, &node);
        if matches!(stay, Stay::Seconds(_)) && !api::pod::is_terminating(&pod) {
            enduring.insert(key.clone(), (uid.clone(), since));
        }
        Ok(reconcile(&pod, &stay, since, known.is_some(), now))
    }
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    api::node::taints(node).iter().filter(|t| t.effect == NO_EXECUTE)
}

/// How long a pod may stay.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    ForEver,
    /// Since it was first seen with the taints.
    Seconds(i64),
    No,
}

fn stay(pod: &Pod, node: &Node) -> Stay {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref());
    let mut shortest = None;
    for taint in no_execute(node) {
        let mut matching = tolerations
            .unwrap_or_default()
            .iter()
            .filter(|t| tolerates(t, taint))
            .peekable();
        if matching.peek().is_none() {
            return Stay::No;
        }
        shortest = matching
            .filter_map(|t| t.toleration_seconds)
            .chain(shortest)
            .min();
    }
    shortest.map_or(Stay::ForEver, |seconds| Stay::Seconds(seconds.max(0)))
}

/// `was_to_leave`: somebody has been told that it goes.
fn reconcile(pod: &Pod, stay: &Stay, since: Timestamp, was_to_leave: bool, now: Timestamp) -> Vec<Action> {
    if api::pod::is_terminating(pod) {
        return Vec::new();
    }
    let told = |what: &str| {
        let message = format!("{what} deletion of Pod {}", Key::of(&pod.metadata));
        Action::event(pod, NORMAL, "TaintManagerEviction", message)
    };
    let due = match stay {
        Stay::ForEver if was_to_leave => return vec![told("Cancelling")],
        Stay::ForEver => return Vec::new(),
        Stay::Seconds(seconds) => since.saturating_add(SignedDuration::from_secs(*seconds)),
        Stay::No => Ok(now),
    };
    let due = due.unwrap_or(Timestamp::MAX);
    if due > now {
        let left = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        return vec![Action::Requeue(left)];
    }
    let condition = PodCondition::new(
        "DisruptionTarget",
        "True",
        "DeletionByTaintManager",
        "Taint manager: deleting due to NoExecute taint",
        &Time(now),
    );
    vec![
        told("Marking for"),
        Action::strategic_status(pod, json!({"conditions": [condition]})),
        Action::delete(pod),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    const NOW: &str = "2026-01-01T00:01:00Z";

    fn pod(tolerations: &Value) -> Pod {
        from_value(
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [], "tolerations": tolerations}}),
        )
        .unwrap()
    }

    fn tolerating(key: &str, seconds: Value) -> Value {
        json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds})
    }

    #[test]
    fn the_shortest_toleration_counts() {
        let cases = [
            (json!([]), json!([]), Stay::ForEver),
            (
                json!([]),
                json!([{"key": "a", "effect": "NoSchedule"}]),
                Stay::ForEver,
            ),
            (json!([]), json!([{"key": "a", "effect": "NoExecute"}]), Stay::No),
            (
                json!([tolerating("a", json!(300)), tolerating("b", json!(60))]),
                json!([{"key": "a", "effect": "NoExecute"}, {"key": "b", "effect": "NoExecute"}]),
                Stay::Seconds(60),
            ),
            (
                json!([tolerating("a", Value::Null)]),
                json!([{"key": "a", "effect": "NoExecute"}]),
                Stay::ForEver,
            ),
            (
                json!([tolerating("a", json!(300))]),
                json!([{"key": "a", "effect": "NoExecute"}, {"key": "b", "effect": "NoExecute"}]),
                Stay::No,
            ),
        ];
        for (tolerations, taints, expected) in cases {
            let node: Node =
                from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}})).unwrap();
            assert_eq!(
                stay(&pod(&tolerations), &node),
                expected,
                "{tolerations} {taints}"
            );
        }
    }

    #[test]
    fn a_limited_toleration_counts_from_when_the_pod_was_seen_with_the_taint() {
        let run = |stay, since: &str, was_to_leave| {
            let (since, now) = (since.parse().unwrap(), NOW.parse().unwrap());
            reconcile(&pod(&json!([])), &stay, since, was_to_leave, now)
        };
        let minute_ago = "2026-01-01T00:00:00Z";
        assert_eq!(
            run(Stay::Seconds(300), minute_ago, true),
            [Action::Requeue(Duration::from_secs(240))]
        );
        for gone in [
            run(Stay::Seconds(60), minute_ago, true),
            run(Stay::No, NOW, false),
        ] {
            assert!(matches!(gone.last(), Some(Action::Delete { .. })));
        }
        assert_eq!(run(Stay::ForEver, NOW, false), []);
        assert_eq!(run(Stay::ForEver, NOW, true).len(), 1);
    }
}
