//! ReplicaSets: keep the wanted number of pods.

mod ranking;
mod reconcile;

use super::{Context, Running, enqueue_owner};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::owner::controller_of;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Observed, reconcile};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

struct ReplicaSets {
    caches: Arc<Caches>,
    /// What the server said when it refused our last plan for a key.
    failures: Mutex<HashMap<Key, String>>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    let to = queue.clone();
    caches.replica_sets.on(move |change| to.add(change.key.clone()));
    let (to, sets) = (queue.clone(), caches.replica_sets.clone());
    caches.pods.on(move |change| {
        for pod in change.sides() {
            enqueue_owner(&to, &pod.metadata, "ReplicaSet");
        }
        if let Some(pod) = change.new.filter(|pod| controller_of(&pod.metadata).is_none()) {
            for set in sets.list_in(&change.key.namespace) {
                let selector = set.spec.as_ref().map(|s| &s.selector);
                if api::selector::matches_some(selector, pod.metadata.labels.as_ref()) {
                    to.add(Key::of(&set.metadata));
                }
            }
        }
    });
    let controller = ReplicaSets {
        caches: caches.clone(),
        failures: Mutex::default(),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(set) = self.caches.replica_sets.get(key) else {
            self.failures
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(key);
            return Ok(Vec::new());
        };
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let siblings = match controller_of(&set.metadata) {
            Some(owner) => self.caches.replica_sets.controlled_by(&owner.uid),
            None => vec![set.clone()],
        };
        let mut pods = self.caches.pods.controlled_by(&uid);
        pods.extend(
            self.caches
                .pods
                .list_in(&key.namespace)
                .into_iter()
                .filter(|p| controller_of(&p.metadata).is_none()),
        );
        let related = siblings
            .iter()
            .flat_map(|s| {
                self.caches
                    .pods
                    .controlled_by(s.metadata.uid.as_deref().unwrap_or_default())
            })
            .collect();
        let failure = self
            .failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned();
        Ok(reconcile(
            &Observed {
                set,
                pods,
                related,
                failure,
            },
            now,
        ))
    }

    fn finished(&self, key: &Key, result: Result<(), &Error>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => failures.remove(key),
            Err(error) => failures.insert(key.clone(), error.message().to_owned()),
        };
    }
}
