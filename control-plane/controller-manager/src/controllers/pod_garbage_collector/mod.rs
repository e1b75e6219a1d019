//! Removes pods nobody else will: too many finished ones, those of nodes that are gone, those deleted before they
//! had a node.

mod reconcile;

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Observed, reconcile};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

struct PodGarbageCollector {
    caches: Arc<Caches>,
    threshold: usize,
    /// Nodes that pods speak of and that don't exist, since when.
    missing: Mutex<HashMap<String, Timestamp>>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    queue.add(Key::default());
    let controller = PodGarbageCollector {
        caches: context.caches.clone(),
        threshold: context.config.terminated_pod_gc_threshold,
        missing: Mutex::default(),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for PodGarbageCollector {
    const NAME: &'static str = "pod-garbage-collector-controller";
    const WORKERS: usize = 1;

    async fn plan(&self, _: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let pods = self.caches.pods.list();
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = |name: &str| self.caches.nodes.get(&Key::new("", name)).is_none();
        missing.retain(|name, _| gone(name));
        for name in pods
            .iter()
            .filter_map(|p| api::pod::node_name(p))
            .filter(|n| gone(n))
        {
            missing.entry(name.to_owned()).or_insert(now);
        }
        let out_of_service = |name: &str| {
            let node = self.caches.nodes.get(&Key::new("", name));
            node.is_some_and(|n| reconcile::is_out_of_service(&n))
        };
        let observed = Observed {
            pods: &pods,
            missing: &missing,
            out_of_service: &out_of_service,
            threshold: self.threshold,
        };
        Ok(reconcile(&observed, now))
    }
}
