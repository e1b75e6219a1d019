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
use crate::scale::{Scales, group_of};
use api::owner::controller_of;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Expected, Observed, reconcile, relies_on_scale};
use std::collections::HashMap;
use std::sync::Arc;

struct Disruption {
    caches: Arc<Caches>,
    scales: Scales,
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
    watch_scale(scales(&queue), &caches.replication_controllers, |c| {
        c.spec.as_ref()?.replicas
    });
    watch_scale(scales(&queue), &caches.stateful_sets, |s| {
        s.spec.as_ref()?.replicas
    });
    let controller = Disruption {
        caches: caches.clone(),
        scales: Scales::new(context.client.clone()),
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
    /// The workload a pod belongs to, by UID, and how many pods that wants; none for a pod on its own.
    async fn scale(&self, pod: &Pod) -> Result<Option<(String, i32)>, String> {
        let (Some(owner), Some(namespace)) = (controller_of(&pod.metadata), &pod.metadata.namespace) else {
            return Ok(None);
        };
        let key = Key::new(namespace, &owner.name);
        let wanted = |replicas: Option<i32>| Some((owner.uid.clone(), replicas.unwrap_or(1)));
        let group = group_of(&owner.api_version).unwrap_or_default();
        Ok(match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => self.caches.replica_sets.get(&key).and_then(|set| {
                let above = controller_of(&set.metadata).filter(|o| o.kind == "Deployment");
                match above {
                    Some(above) => {
                        let key = Key::new(namespace, &above.name);
                        let deployment = self.caches.deployments.get(&key)?;
                        let replicas = deployment.spec.as_ref().and_then(|s| s.replicas);
                        Some((above.uid.clone(), replicas.unwrap_or(1)))
                    }
                    None => wanted(set.spec.as_ref().and_then(|s| s.replicas)),
                }
            }),
            ("apps", "StatefulSet") => {
                let set = self.caches.stateful_sets.get(&key);
                set.and_then(|set| wanted(set.spec.as_ref().and_then(|s| s.replicas)))
            }
            ("", "ReplicationController") => {
                let controller = self.caches.replication_controllers.get(&key);
                controller.and_then(|one| wanted(one.spec.as_ref().and_then(|s| s.replicas)))
            }
            _ => {
                let scale = self
                    .scales
                    .find(namespace, &owner.api_version, &owner.kind, &owner.name);
                let same = scale.await?.filter(|scale| scale.uid() == owner.uid);
                same.map(|scale| (owner.uid.clone(), scale.spec_replicas()))
            }
        })
    }

    /// How many pods the workloads of `pods` want together; each is asked once.
    async fn expect(&self, pods: &[Arc<Pod>]) -> Result<Expected, String> {
        let mut known: HashMap<String, Option<(String, i32)>> = HashMap::new();
        let mut scales = HashMap::new();
        let mut unscaled = Vec::new();
        for pod in pods {
            let owner = controller_of(&pod.metadata).map_or("", |owner| owner.uid.as_str());
            let scale = match known.get(owner) {
                Some(scale) => scale.clone(),
                None => self.scale(pod).await?,
            };
            known.insert(owner.to_owned(), scale.clone());
            match scale {
                Some((uid, wanted)) => _ = scales.insert(uid, wanted),
                None => unscaled.push(pod.metadata.name.clone().unwrap_or_default()),
            }
        }
        Ok(Expected {
            wanted: scales.values().sum(),
            unscaled,
        })
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
        let expected = match relies_on_scale(&budget) {
            true => self.expect(&pods).await,
            false => Ok(Expected::default()),
        };
        let observed = Observed {
            budget,
            pods,
            expected,
        };
        Ok(reconcile(&observed, now))
    }
}
