//! DaemonSets: one pod on every node that is fit for it.

mod placement;
mod reconcile;
mod rolling;

use super::{Context, Running, enqueue_owner, owned};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::owner::controller_of;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Kills, Observed, reconcile};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

struct DaemonSets {
    caches: Arc<Caches>,
    /// Failed pods deleted lately, by DaemonSet.
    kills: Mutex<HashMap<Key, Kills>>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    owned::watch(caches, &queue, &caches.daemon_sets, |set, labels| {
        api::selector::matches_some(set.spec.as_ref().map(|s| &s.selector), labels)
    });
    let to = queue.clone();
    caches.controller_revisions.on(move |change| {
        for revision in change.sides() {
            enqueue_owner(&to, &revision.metadata, "DaemonSet");
        }
    });
    let (to, sets) = (queue.clone(), caches.daemon_sets.clone());
    caches.nodes.on(move |change| {
        if change.old.map(fitness) != change.new.map(fitness) {
            for set in sets.list() {
                to.add(Key::of(&set.metadata));
            }
        }
    });
    let controller = DaemonSets {
        caches: caches.clone(),
        kills: Mutex::default(),
    };
    Ok(super::spawn(context, controller, queue))
}

/// What of a node decides whether daemons run there.
fn fitness(node: &Node) -> impl PartialEq + use<> {
    (node.metadata.labels.clone(), api::node::taints(node).to_vec())
}

impl Controller for DaemonSets {
    const NAME: &'static str = "daemonset-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let mut kills = self.kills.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(set) = self.caches.daemon_sets.get(key) else {
            kills.remove(key);
            return Ok(Vec::new());
        };
        let revisions = self.caches.controller_revisions.list_in(&key.namespace);
        let uid = set.metadata.uid.as_deref();
        let observed = Observed {
            pods: owned::candidates(&self.caches, &set.metadata),
            nodes: self.caches.nodes.list(),
            taken: revisions.iter().filter_map(|r| r.metadata.name.clone()).collect(),
            revisions: revisions
                .into_iter()
                .filter(|r| controller_of(&r.metadata).is_none_or(|o| Some(o.uid.as_str()) == uid))
                .collect(),
            kills: kills.get(key).cloned().unwrap_or_default(),
            set,
        };
        let (plan, killed) = reconcile(&observed, now);
        kills.insert(key.clone(), killed);
        Ok(plan)
    }
}
