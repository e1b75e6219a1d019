//! Brings claims and volumes together, and reclaims volumes whose claim is gone.

mod claim;
mod volume;

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;

/// What binding looks at.
pub struct World<'a> {
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub classes: Vec<Arc<StorageClass>>,
    pub claim: &'a dyn Fn(&Key) -> Option<Arc<PersistentVolumeClaim>>,
    /// Pods of the claim's namespace.
    pub pods: Vec<Arc<Pod>>,
}

impl World<'_> {
    /// A pod that uses the claim and has no node yet.
    fn unscheduled_user(&self, claim: &PersistentVolumeClaim) -> Option<&str> {
        let name = claim.metadata.name.as_deref()?;
        let uses = |p: &&Arc<Pod>| api::volume::pod_claims(p).iter().any(|c| c.name == name);
        let mut pods = self.pods.iter().filter(|p| api::pod::node_name(p).is_none());
        pods.find(uses)?.metadata.name.as_deref()
    }
}

/// Keys with a namespace are claims, those without are volumes.
struct Binder(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    let (to, volumes) = (queue.clone(), caches.persistent_volumes.clone());
    caches.persistent_volume_claims.on(move |change| {
        to.add(change.key.clone());
        let named = change.sides().filter_map(api::volume::volume_name);
        named.for_each(|name| to.add(Key::new("", name)));
        if change.new.is_none() {
            let claimed = |v: &&Arc<PersistentVolume>| {
                let reference = v.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
                reference.is_some_and(|r| r.name.as_deref() == Some(&change.key.name))
            };
            volumes
                .list()
                .iter()
                .filter(claimed)
                .for_each(|v| to.add(Key::of(&v.metadata)));
        }
    });
    let (to, claims) = (queue.clone(), caches.persistent_volume_claims.clone());
    let enqueue_waiting = move |to: &Queue| {
        let waiting = |c: &&Arc<PersistentVolumeClaim>| !api::volume::is_bound(c);
        claims
            .list()
            .iter()
            .filter(waiting)
            .for_each(|c| to.add(Key::of(&c.metadata)));
    };
    let enqueue = enqueue_waiting.clone();
    caches.persistent_volumes.on(move |change| {
        to.add(change.key.clone());
        for reference in change.sides().filter_map(|v| v.spec.as_ref()?.claim_ref.as_ref()) {
            let (namespace, name) = (&reference.namespace, &reference.name);
            to.add(Key::new(
                namespace.as_deref().unwrap_or_default(),
                name.as_deref().unwrap_or_default(),
            ));
        }
        let free =
            |v: &PersistentVolume| v.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
        if change.new.is_some_and(free) && !change.old.is_some_and(free) {
            enqueue(&to);
        }
    });
    let to = queue.clone();
    caches.storage_classes.on(move |_| enqueue_waiting(&to));
    Ok(super::spawn(context, Binder(caches.clone()), queue))
}

impl Controller for Binder {
    const NAME: &'static str = "persistentvolume-binder-controller";
    const SOURCE: &'static str = "persistentvolume-controller";
    /// Two claims must not choose the same volume.
    const WORKERS: usize = 1;

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let caches = &self.0;
        let world = World {
            volumes: caches.persistent_volumes.list(),
            classes: caches.storage_classes.list(),
            claim: &|key| caches.persistent_volume_claims.get(key),
            pods: if key.namespace.is_empty() {
                Vec::new()
            } else {
                caches.pods.list_in(&key.namespace)
            },
        };
        let plan = if key.namespace.is_empty() {
            caches
                .persistent_volumes
                .get(key)
                .map(|v| volume::reconcile(&v, &world))
        } else {
            caches
                .persistent_volume_claims
                .get(key)
                .map(|c| claim::reconcile(&c, &world))
        };
        Ok(plan.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
