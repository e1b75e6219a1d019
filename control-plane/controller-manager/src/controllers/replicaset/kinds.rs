//! ReplicaSets and ReplicationControllers differ in how they are written down, and in nothing else.

use crate::cache::{Cache, Object};
use crate::caches::Caches;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};
use std::sync::Arc;

/// A kind that keeps a number of pods.
pub trait Replicated: Object {
    const CONTROLLER: &'static str;
    const SOURCE: &'static str;

    fn cache(caches: &Caches) -> &Arc<Cache<Self>>;
    fn selects(&self, labels: Option<&api::selector::Labels>) -> bool;
    fn wanted(&self) -> Option<ReplicaSetSpec>;
    fn reported(&self) -> ReplicaSetStatus;

    /// The status as this kind has it.
    fn report(status: ReplicaSetStatus) -> Value {
        json!(status)
    }
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";
    const SOURCE: &'static str = "replicaset-controller";

    fn cache(caches: &Caches) -> &Arc<Cache<Self>> {
        &caches.replica_sets
    }

    fn selects(&self, labels: Option<&api::selector::Labels>) -> bool {
        api::selector::matches_some(self.spec.as_ref().map(|s| &s.selector), labels)
    }

    fn wanted(&self) -> Option<ReplicaSetSpec> {
        self.spec.clone()
    }

    fn reported(&self) -> ReplicaSetStatus {
        self.status.clone().unwrap_or_default()
    }
}

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replicationcontroller-controller";
    const SOURCE: &'static str = "replication-controller";

    fn cache(caches: &Caches) -> &Arc<Cache<Self>> {
        &caches.replication_controllers
    }

    fn selects(&self, labels: Option<&api::selector::Labels>) -> bool {
        let selector = self.spec.as_ref().and_then(|s| s.selector.as_ref());
        selector.is_some_and(|s| api::selector::matches_map(s, labels))
    }

    fn wanted(&self) -> Option<ReplicaSetSpec> {
        let spec = self.spec.clone()?;
        Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: spec.replicas,
            selector: LabelSelector {
                match_labels: Some(spec.selector?),
                match_expressions: None,
            },
            template: spec.template,
        })
    }

    /// The fields and conditions have the same names.
    fn reported(&self) -> ReplicaSetStatus {
        serde_json::from_value(json!(self.status)).unwrap_or_default()
    }

    fn report(status: ReplicaSetStatus) -> Value {
        json!(ReplicaSetStatus {
            terminating_replicas: None,
            ..status
        })
    }
}
