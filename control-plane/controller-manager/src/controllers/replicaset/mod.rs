//! ReplicaSets and ReplicationControllers: keep the wanted number of pods.

mod kinds;
mod ranking;
mod reconcile;

use super::{Context, Running, owned};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::owner::controller_of;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::jiff::Timestamp;
use kinds::Replicated;
use reconcile::{Observed, reconcile};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

struct Replicas<K> {
    caches: Arc<Caches>,
    /// What the server said when it refused our last plan for a key.
    failures: Mutex<HashMap<Key, String>>,
    kind: PhantomData<K>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    Ok(start_kind::<ReplicaSet>(context))
}

pub fn start_replication_controllers(context: &Context) -> Result<Running, StartError> {
    Ok(start_kind::<ReplicationController>(context))
}

fn start_kind<K: Replicated>(context: &Context) -> Running {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    owned::watch(caches, &queue, K::cache(caches), K::selects);
    let controller = Replicas::<K> {
        caches: caches.clone(),
        failures: Mutex::default(),
        kind: PhantomData,
    };
    super::spawn(context, controller, queue)
}

impl<K: Replicated> Controller for Replicas<K> {
    const NAME: &'static str = K::CONTROLLER;
    const SOURCE: &'static str = K::SOURCE;

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let sets = K::cache(&self.caches);
        let Some(set) = sets.get(key) else {
            self.failures
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(key);
            return Ok(Vec::new());
        };
        let siblings = match controller_of(set.meta()) {
            Some(owner) => sets.controlled_by(&owner.uid),
            None => vec![set.clone()],
        };
        let related = siblings
            .iter()
            .flat_map(|s| {
                let uid = s.meta().uid.as_deref();
                self.caches.pods.controlled_by(uid.unwrap_or_default())
            })
            .collect();
        let failure = self
            .failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned();
        let observed = Observed {
            pods: owned::candidates(&self.caches, set.meta()),
            set,
            related,
            failure,
        };
        Ok(reconcile(&observed, now))
    }

    fn finished(&self, key: &Key, result: Result<(), &Error>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => failures.remove(key),
            Err(error) => failures.insert(key.clone(), error.message().to_owned()),
        };
    }
}
