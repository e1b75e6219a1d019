//! Deployments: roll ReplicaSets from one pod template to the next.

mod annotations;
mod numbers;
mod reconcile;
mod rolling;
mod status;

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

struct Deployments {
    caches: Arc<Caches>,
    /// What the server said when it refused our last plan for a key.
    failures: Mutex<HashMap<Key, String>>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    let to = queue.clone();
    caches.deployments.on(move |change| to.add(change.key.clone()));
    let (to, deployments) = (queue.clone(), caches.deployments.clone());
    caches.replica_sets.on(move |change| {
        for set in change.sides() {
            enqueue_owner(&to, &set.metadata, "Deployment");
        }
        if let Some(set) = change.new.filter(|set| controller_of(&set.metadata).is_none()) {
            for deployment in deployments.list_in(&change.key.namespace) {
                let selector = deployment.spec.as_ref().map(|s| &s.selector);
                if api::selector::matches_some(selector, set.metadata.labels.as_ref()) {
                    to.add(Key::of(&deployment.metadata));
                }
            }
        }
    });
    // Recreate waits for the last old pod to go.
    let (to, sets) = (queue.clone(), caches.replica_sets.clone());
    caches.pods.on(move |change| {
        let (Some(old), None) = (change.old, change.new) else {
            return;
        };
        let set = controller_of(&old.metadata)
            .and_then(|owner| sets.get(&Key::new(&change.key.namespace, &owner.name)));
        if let Some(set) = set {
            enqueue_owner(&to, &set.metadata, "Deployment");
        }
    });
    let controller = Deployments {
        caches: caches.clone(),
        failures: Mutex::default(),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(deployment) = self.caches.deployments.get(key) else {
            self.failures
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(key);
            return Ok(Vec::new());
        };
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let mut sets = self.caches.replica_sets.controlled_by(uid);
        let orphans = self.caches.replica_sets.list_in(&key.namespace);
        sets.extend(
            orphans
                .into_iter()
                .filter(|s| controller_of(&s.metadata).is_none()),
        );
        let taken = self
            .caches
            .replica_sets
            .list_in(&key.namespace)
            .iter()
            .filter_map(|s| s.metadata.name.clone())
            .collect();
        let pods = sets
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
            Observed {
                deployment,
                sets,
                pods,
                taken,
                failure,
            },
            now,
        ))
    }

    fn finished(&self, key: &Key, result: Result<(), &Error>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Err(error) if error.is_creation() => failures.insert(key.clone(), error.message().to_owned()),
            _ => failures.remove(key),
        };
    }
}
