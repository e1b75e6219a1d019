//! Keeps the size of a workload at what its metrics ask for: horizontal-pod-autoscaler.

mod behavior;
mod metrics;
mod proposal;
mod reconcile;
mod replicas;
#[cfg(test)]
mod tests;

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::{Config, Error as StartError};
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use crate::scale::{Scale, Scales};
use behavior::Memory;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Observed, Target, conclude, decide, wants_metrics, without_target};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

struct HorizontalPodAutoscalers {
    client: kube::Client,
    caches: Arc<Caches>,
    config: Arc<Config>,
    scales: Scales,
    memories: Mutex<HashMap<Key, Memory>>,
    /// What the target of each autoscaler selects, as of its last turn.
    selectors: Mutex<HashMap<Key, LabelSelector>>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context.caches.autoscalers.on(move |change| {
        // Our own words about the status are no reason to look again before it is time.
        if change.old.map(|hpa| &hpa.spec) != change.new.map(|hpa| &hpa.spec) {
            to.add(change.key.clone());
        }
    });
    let controller = HorizontalPodAutoscalers {
        client: context.client.clone(),
        caches: context.caches.clone(),
        config: context.config.clone(),
        scales: Scales::new(context.client.clone()),
        memories: Mutex::default(),
        selectors: Mutex::default(),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for HorizontalPodAutoscalers {
    const NAME: &'static str = "horizontal-pod-autoscaler-controller";
    const SOURCE: &'static str = "horizontal-pod-autoscaler";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(hpa) = self.caches.autoscalers.get(key) else {
            self.memories().remove(key);
            self.selectors().remove(key);
            return Ok(Vec::new());
        };
        let wanted = &hpa.spec.scale_target_ref;
        let version = wanted.api_version.as_deref().unwrap_or("v1");
        let mut plan = match self
            .scales
            .get(&key.namespace, version, &wanted.kind, &wanted.name)
            .await
        {
            Err(error) => conclude(&hpa, without_target(&hpa, &error, now), &Ok(()), now),
            Ok(scale) => self.follow(key, hpa.clone(), &scale, now).await,
        };
        plan.push(Action::Requeue(self.config.autoscaling.sync_period));
        Ok(plan)
    }
}

impl HorizontalPodAutoscalers {
    async fn follow(
        &self,
        key: &Key,
        hpa: Arc<HorizontalPodAutoscaler>,
        scale: &Scale,
        now: Timestamp,
    ) -> Vec<Action> {
        let observed = Observed {
            target: self.observe(key, &hpa, scale).await,
            hpa,
        };
        let mut memory = self.memories().get(key).cloned().unwrap_or_default();
        let decision = decide(&observed, &mut memory, &self.config.autoscaling, now);
        let rescaled = match decision.rescale {
            Some(size) => self.scales.set(scale, size).await,
            None => Ok(()),
        };
        if let (Some(size), Ok(())) = (decision.rescale, &rescaled) {
            memory.rescaled(scale.spec_replicas(), size, now);
            tracing::info!(autoscaler = %key, from = scale.spec_replicas(), to = size, reason = decision.reason, "rescaled");
        }
        self.memories().insert(key.clone(), memory);
        conclude(&observed.hpa, decision, &rescaled, now)
    }

    async fn observe(&self, key: &Key, hpa: &HorizontalPodAutoscaler, scale: &Scale) -> Target {
        let selector = api::selector::parse(scale.selector()).ok();
        let selector = selector.filter(|_| !scale.selector().is_empty());
        let pods = match &selector {
            Some(selector) => self.selected(&key.namespace, selector),
            None => Vec::new(),
        };
        let mut readings = Vec::new();
        if wants_metrics(hpa, scale.spec_replicas()) && selector.is_some() {
            for spec in hpa.spec.metrics.iter().flatten() {
                readings.push(metrics::read(&self.client, spec, &key.namespace, scale.selector()).await);
            }
        }
        Target {
            spec_replicas: scale.spec_replicas(),
            status_replicas: scale.status_replicas(),
            selector: scale.selector().to_owned(),
            selecting: self.selecting(key, selector, &pods),
            pods,
            readings,
        }
    }

    fn selected(&self, namespace: &str, selector: &LabelSelector) -> Vec<Arc<Pod>> {
        let mut pods = self.caches.pods.list_in(namespace);
        pods.retain(|pod| api::selector::matches(selector, pod.metadata.labels.as_ref()));
        pods
    }

    /// Everybody whose target's selector selects one of the pods.
    fn selecting(&self, key: &Key, own: Option<LabelSelector>, pods: &[Arc<Pod>]) -> Vec<String> {
        let mut selectors = self.selectors();
        match own {
            Some(own) => _ = selectors.insert(key.clone(), own),
            None => _ = selectors.remove(key),
        }
        let mut selecting: Vec<String> = selectors
            .iter()
            .filter(|(other, selector)| {
                let selects = |pod: &Arc<Pod>| api::selector::matches(selector, pod.metadata.labels.as_ref());
                other.namespace == key.namespace && pods.iter().any(selects)
            })
            .map(|(other, _)| other.to_string())
            .collect();
        selecting.sort();
        selecting
    }

    fn memories(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn selectors(&self) -> std::sync::MutexGuard<'_, HashMap<Key, LabelSelector>> {
        self.selectors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
