//! Tells kubelets how long to believe what they know of Secrets and ConfigMaps: the longer, the more nodes there are.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// Upstream's steps: nodes below which the step is left, nodes above which the next one is taken, seconds.
const STEPS: [(usize, usize, u32); 6] = [
    (0, 100, 0),
    (90, 500, 15),
    (450, 1000, 30),
    (900, 2000, 60),
    (1800, 10_000, 300),
    (9000, usize::MAX, 600),
];

struct Ttl {
    caches: Arc<Caches>,
    nodes: Arc<AtomicUsize>,
    step: Mutex<usize>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let nodes = Arc::new(AtomicUsize::new(0));
    let (to, count) = (queue.clone(), nodes.clone());
    context.caches.nodes.on(move |change| {
        match (change.old, change.new) {
            (None, Some(_)) => _ = count.fetch_add(1, Ordering::Relaxed),
            (Some(_), None) => _ = count.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
        to.add(change.key.clone());
    });
    let controller = Ttl {
        caches: context.caches.clone(),
        nodes,
        step: Mutex::new(0),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for Ttl {
    const NAME: &'static str = "ttl-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(node) = self.caches.nodes.get(key) else {
            return Ok(Vec::new());
        };
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        *step = next(*step, self.nodes.load(Ordering::Relaxed));
        Ok(reconcile(&node, STEPS[*step].2))
    }
}

/// The ranges overlap, so that a node that comes and goes does not change everybody's annotation.
fn next(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

fn reconcile(node: &Node, seconds: u32) -> Vec<Action> {
    let annotations = node.metadata.annotations.as_ref();
    let said = annotations.and_then(|annotations| annotations.get(ANNOTATION));
    if said.is_some_and(|said| said.parse() == Ok(seconds)) {
        return Vec::new();
    }
    let patch = json!({"metadata": {"annotations": {ANNOTATION: seconds.to_string()}}});
    vec![Action::patch(node, patch)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    #[test]
    fn steps_overlap() {
        let mut step = 0;
        for (nodes, seconds) in [
            (1, 0),
            (100, 0),
            (101, 15),
            (95, 15),
            (89, 0),
            (5000, 300),
            (950, 60),
            (0, 0),
        ] {
            step = next(step, nodes);
            assert_eq!(STEPS[step].2, seconds, "{nodes}");
        }
    }

    #[test]
    fn only_a_change_is_written() {
        let node = |said: &str| -> Node {
            from_value(json!({"metadata": {"name": "a", "annotations": {ANNOTATION: said}}})).unwrap()
        };
        assert_eq!(reconcile(&node("15"), 15), []);
        for said in ["0", "soon"] {
            let plan = reconcile(&node(said), 15);
            let [Action::Patch { patch, .. }] = &plan[..] else {
                panic!("{plan:?}")
            };
            assert_eq!(patch["metadata"]["annotations"][ANNOTATION], "15");
        }
    }
}
