//! Nodes that fall silent: their conditions become Unknown, taints appear, their pods stop counting as ready.

mod health;
mod reconcile;

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::{Config, Error as StartError};
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use health::Health;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Observed, reconcile};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

struct NodeLifecycle {
    caches: Arc<Caches>,
    config: Arc<Config>,
    health: Mutex<HashMap<String, Health>>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context.caches.nodes.on(move |change| to.add(change.key.clone()));
    let controller = NodeLifecycle {
        caches: context.caches.clone(),
        config: context.config.clone(),
        health: Mutex::default(),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for NodeLifecycle {
    const NAME: &'static str = "node-lifecycle-controller";
    const SOURCE: &'static str = "node-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let mut all = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(node) = self.caches.nodes.get(key) else {
            all.remove(&key.name);
            return Ok(Vec::new());
        };
        let lease = self.caches.leases.get(&Key::new("kube-node-lease", &key.name));
        let seen = Health::observe(all.get(&key.name), &node, lease.as_deref(), now);
        let registered = all.insert(key.name.clone(), seen.clone()).is_none();
        drop(all);
        let pods = || {
            self.caches
                .pods
                .list()
                .into_iter()
                .filter(|p| api::pod::node_name(p) == Some(&key.name))
                .collect()
        };
        let nodes = self.caches.nodes.list();
        Ok(reconcile(
            &Observed {
                all_silent: nodes.iter().all(|n| !api::node::is_ready(n)),
                silent_for: seen.silent_for(now),
                registered,
                grace_period: self.config.node_monitor_grace_period,
                monitor_period: self.config.node_monitor_period,
                pods: &pods,
                node: &node,
            },
            now,
        ))
    }
}
