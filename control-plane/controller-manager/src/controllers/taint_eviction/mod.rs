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
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

struct TaintEviction(Arc<Caches>);

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
        if no_execute(new).next().is_some()
            && change
                .old
                .is_none_or(|old| api::node::taints(old) != api::node::taints(new))
        {
            let on_node = |p: &&Arc<Pod>| api::pod::node_name(p) == Some(&change.key.name);
            pods.list()
                .iter()
                .filter(on_node)
                .for_each(|p| to.add(Key::of(&p.metadata)));
        }
    });
    Ok(super::spawn(
        context,
        TaintEviction(context.caches.clone()),
        queue,
    ))
}

impl Controller for TaintEviction {
    const NAME: &'static str = "taint-eviction-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(pod) = self.0.pods.get(key) else {
            return Ok(Vec::new());
        };
        let node = api::pod::node_name(&pod).and_then(|n| self.0.nodes.get(&Key::new("", n)));
        Ok(node.map(|node| reconcile(&pod, &node, now)).unwrap_or_default())
    }
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    api::node::taints(node).iter().filter(|t| t.effect == NO_EXECUTE)
}

fn reconcile(pod: &Pod, node: &Node, now: Timestamp) -> Vec<Action> {
    if api::pod::is_terminating(pod) {
        return Vec::new();
    }
    match leaves_at(pod, node, now) {
        None => Vec::new(),
        Some(due) if due > now => {
            let left = Duration::try_from(due.duration_since(now)).unwrap_or_default();
            vec![Action::Requeue(left)]
        }
        Some(_) => {
            let key = Key::of(&pod.metadata);
            let condition = PodCondition::new(
                "DisruptionTarget",
                "True",
                "DeletionByTaintManager",
                "Taint manager: deleting due to NoExecute taint",
                &Time(now),
            );
            vec![
                Action::event(
                    pod,
                    NORMAL,
                    "TaintManagerEviction",
                    format!("Marking for deletion Pod {key}"),
                ),
                Action::strategic_status(pod, json!({"conditions": [condition]})),
                Action::delete(pod),
            ]
        }
    }
}

/// When the pod must go: `None` for never.
fn leaves_at(pod: &Pod, node: &Node, now: Timestamp) -> Option<Timestamp> {
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|s| s.tolerations.as_deref())
        .unwrap_or_default();
    no_execute(node)
        .filter_map(|taint| {
            let since = taint.time_added.as_ref().map_or(now, |t| t.0);
            let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
            if matching.peek().is_none() {
                return Some(now);
            }
            let shortest = matching.filter_map(|t| t.toleration_seconds).min()?;
            Some(
                Timestamp::from_second(since.as_second().saturating_add(shortest.max(0)))
                    .unwrap_or(Timestamp::MAX),
            )
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    fn run(tolerations: Value, taints: Value) -> Vec<Action> {
        let pod: Pod = from_value(
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [], "tolerations": tolerations}}),
        )
        .unwrap();
        let node: Node = from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}})).unwrap();
        reconcile(&pod, &node, "2026-01-01T00:01:00Z".parse().unwrap())
    }

    fn unreachable() -> Value {
        json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}])
    }

    fn tolerates_for(seconds: Value) -> Value {
        json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds}])
    }

    #[test]
    fn untainted_or_tolerated_for_ever_stays() {
        assert_eq!(run(json!([]), json!([])), []);
        assert_eq!(run(json!([]), json!([{"key": "k", "effect": "NoSchedule"}])), []);
        assert_eq!(run(tolerates_for(Value::Null), unreachable()), []);
    }

    #[test]
    fn a_limited_toleration_counts_from_the_taint() {
        assert_eq!(
            run(tolerates_for(json!(300)), unreachable()),
            [Action::Requeue(Duration::from_secs(240))]
        );
        assert!(matches!(
            run(tolerates_for(json!(60)), unreachable()).last(),
            Some(Action::Delete { .. })
        ));
        assert!(matches!(
            run(json!([]), unreachable()).last(),
            Some(Action::Delete { .. })
        ));
    }
}
