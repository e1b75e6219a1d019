//! PodDisruptionBudgets: how many pods may be evicted now. The API server's eviction spends from it.

mod reconcile;

use super::{Context, Running};
use crate::action::Action;
use crate::cache::{Cache, Object};
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::owner::controller_of;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Observed, reconcile};
use std::collections::HashMap;
use std::sync::Arc;

struct Disruption {
    caches: Arc<Caches>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    let to = queue.clone();
    caches
        .disruption_budgets
        .on(move |change| to.add(change.key.clone()));
    let (to, budgets) = (queue.clone(), caches.disruption_budgets.clone());
    caches.pods.on(move |change| {
        for budget in budgets.list_in(&change.key.namespace) {
            let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
            let selects = |p: &Pod| api::selector::matches_some(selector, p.metadata.labels.as_ref());
            if change.sides().any(selects) {
                to.add(Key::of(&budget.metadata));
            }
        }
    });
    let scales = |queue: &Arc<Queue>| (queue.clone(), caches.disruption_budgets.clone());
    watch_scale(scales(&queue), &caches.deployments, |d| d.spec.as_ref()?.replicas);
    watch_scale(scales(&queue), &caches.replica_sets, |s| {
        s.spec.as_ref()?.replicas
    });
    watch_scale(scales(&queue), &caches.stateful_sets, |s| {
        s.spec.as_ref()?.replicas
    });
    let controller = Disruption {
        caches: caches.clone(),
    };
    Ok(super::spawn(context, controller, queue))
}

/// Adds a namespace's budgets when a workload there changes its size.
fn watch_scale<K: Object>(
    (queue, budgets): (Arc<Queue>, Arc<Cache<PodDisruptionBudget>>),
    workloads: &Cache<K>,
    replicas: fn(&K) -> Option<i32>,
) {
    workloads.on(move |change| {
        if change.old.map(replicas) != change.new.map(replicas) {
            for budget in budgets.list_in(&change.key.namespace) {
                queue.add(Key::of(&budget.metadata));
            }
        }
    });
}

impl Disruption {
    /// The workload a pod belongs to, by UID, and how many pods that wants.
    fn scale(&self, pod: &Pod) -> Option<(String, i32)> {
        let owner = controller_of(&pod.metadata)?;
        let key = Key::new(pod.metadata.namespace.as_deref()?, &owner.name);
        let wanted = |replicas: Option<i32>| (owner.uid.clone(), replicas.unwrap_or(1));
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = self.caches.replica_sets.get(&key)?;
                let above = controller_of(&set.metadata).filter(|o| o.kind == "Deployment");
                match above {
                    Some(above) => {
                        let deployment = self
                            .caches
                            .deployments
                            .get(&Key::new(&key.namespace, &above.name))?;
                        let replicas = deployment.spec.as_ref().and_then(|s| s.replicas);
                        Some((above.uid.clone(), replicas.unwrap_or(1)))
                    }
                    None => Some(wanted(set.spec.as_ref().and_then(|s| s.replicas))),
                }
            }
            "StatefulSet" => {
                let set = self.caches.stateful_sets.get(&key)?;
                Some(wanted(set.spec.as_ref().and_then(|s| s.replicas)))
            }
            _ => None,
        }
    }
}

impl Controller for Disruption {
    const NAME: &'static str = "disruption-controller";
    const SOURCE: &'static str = "controllermanager";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(budget) = self.caches.disruption_budgets.get(key) else {
            return Ok(Vec::new());
        };
        let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        let selects = |p: &Arc<Pod>| api::selector::matches_some(selector, p.metadata.labels.as_ref());
        let pods: Vec<Arc<Pod>> = self
            .caches
            .pods
            .list_in(&key.namespace)
            .into_iter()
            .filter(selects)
            .collect();
        let mut scales = HashMap::new();
        let mut unscaled = Vec::new();
        for pod in &pods {
            match self.scale(pod) {
                Some((uid, wanted)) => {
                    scales.insert(uid, wanted);
                }
                None => unscaled.push(pod.metadata.name.clone().unwrap_or_default()),
            }
        }
        let observed = Observed {
            budget,
            pods,
            wanted: scales.values().sum(),
            unscaled,
        };
        Ok(reconcile(&observed, now))
    }
}
