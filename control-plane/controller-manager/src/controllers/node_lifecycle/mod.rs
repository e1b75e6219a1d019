//! Nodes that fall silent: their conditions become Unknown, taints appear, their pods stop counting as ready.

mod health;
mod reconcile;
mod zones;

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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zones::{Zones, counts, zone_of};

struct NodeLifecycle {
    caches: Arc<Caches>,
    config: Arc<Config>,
    memory: Mutex<Memory>,
}

struct Memory {
    health: HashMap<String, Health>,
    zones: Zones,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context.caches.nodes.on(move |change| to.add(change.key.clone()));
    let controller = NodeLifecycle {
        caches: context.caches.clone(),
        config: context.config.clone(),
        memory: Mutex::new(Memory {
            health: HashMap::new(),
            zones: Zones::new(context.config.node_eviction),
        }),
    };
    Ok(super::spawn(context, controller, queue))
}

impl NodeLifecycle {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the nodes that are well. When the first is heard again after none was, all begin anew.
    fn look(&self, memory: &mut Memory, now: Timestamp) {
        let Memory { health, zones } = memory;
        let nodes = self.caches.nodes.list();
        let counted = nodes.iter().filter(|node| counts(node)).map(|node| {
            let known = health.get(node.metadata.name.as_deref().unwrap_or_default());
            let silent =
                known.is_some_and(|known| known.silent_for(now) > self.config.node_monitor_grace_period);
            (zone_of(node), api::node::is_ready(node) && !silent)
        });
        let was_disrupted = zones.is_disrupted();
        if zones.look(counted, now) {
            tracing::info!("some nodes are ready again, pods are evicted again");
            for known in health.values_mut() {
                known.begin_anew(now);
            }
        } else if zones.is_disrupted() && !was_disrupted {
            tracing::warn!("no node is ready, no pod is evicted for that");
        }
    }

    /// A node of `zone` may lose its pods now.
    fn may_evict(&self, zone: &str, is_silent: bool, now: Timestamp) -> bool {
        let mut memory = self.memory();
        if !memory.zones.has_turn(zone, now) {
            return false;
        }
        // What has happened since the last look may forbid it.
        self.look(&mut memory, now);
        let grace = self.config.node_monitor_grace_period;
        memory.zones.take_turn(zone, is_silent, grace, now)
    }
}

impl Controller for NodeLifecycle {
    const NAME: &'static str = "node-lifecycle-controller";
    const SOURCE: &'static str = "node-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let mut memory = self.memory();
        let Some(node) = self.caches.nodes.get(key) else {
            memory.health.remove(&key.name);
            return Ok(Vec::new());
        };
        let lease = self.caches.leases.get(&Key::new("kube-node-lease", &key.name));
        let seen = Health::observe(memory.health.get(&key.name), &node, lease.as_deref(), now);
        let registered = memory.health.insert(key.name.clone(), seen).is_none();
        if memory.zones.is_due(now, self.config.node_monitor_period) {
            self.look(&mut memory, now);
        }
        let silent_for = memory.health[&key.name].silent_for(now);
        let disrupted = memory.zones.is_disrupted();
        drop(memory);
        let pods = || {
            self.caches
                .pods
                .list()
                .into_iter()
                .filter(|p| api::pod::node_name(p) == Some(&key.name))
                .collect()
        };
        let may_evict = |is_silent: bool| self.may_evict(&zone_of(&node), is_silent, now);
        Ok(reconcile(
            &Observed {
                disrupted,
                silent_for,
                registered,
                grace_period: self.config.node_monitor_grace_period,
                startup_grace_period: self.config.node_startup_grace_period,
                monitor_period: self.config.node_monitor_period,
                may_evict: &may_evict,
                pods: &pods,
                node: &node,
            },
            now,
        ))
    }
}
