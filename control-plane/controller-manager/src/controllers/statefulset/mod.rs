//! StatefulSets: pods with names and volumes that outlive them.

mod claims;
mod identity;
mod reconcile;

use super::{Context, Running, enqueue_owner, owned};
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
use std::sync::Arc;

struct StatefulSets {
    caches: Arc<Caches>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    owned::watch(caches, &queue, &caches.stateful_sets, |set, labels| {
        api::selector::matches_some(set.spec.as_ref().map(|s| &s.selector), labels)
    });
    let to = queue.clone();
    caches.controller_revisions.on(move |change| {
        for revision in change.sides() {
            enqueue_owner(&to, &revision.metadata, "StatefulSet");
        }
    });
    let controller = StatefulSets {
        caches: caches.clone(),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for StatefulSets {
    const NAME: &'static str = "statefulset-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(set) = self.caches.stateful_sets.get(key) else {
            return Ok(Vec::new());
        };
        let uid = set.metadata.uid.as_deref();
        let revisions = self.caches.controller_revisions.list_in(&key.namespace);
        let claims = self.caches.persistent_volume_claims.list_in(&key.namespace);
        let observed = Observed {
            pods: owned::candidates(&self.caches, &set.metadata),
            claims: claims
                .into_iter()
                .filter_map(|c| Some((c.metadata.name.clone()?, c)))
                .collect(),
            taken: revisions.iter().filter_map(|r| r.metadata.name.clone()).collect(),
            revisions: revisions
                .into_iter()
                .filter(|r| controller_of(&r.metadata).is_none_or(|o| Some(o.uid.as_str()) == uid))
                .collect(),
            set,
        };
        Ok(reconcile(&observed, now))
    }
}
