//! The list of controllers, and what each is given.

mod attach_detach;
mod bootstrap_signer;
mod clusterrole_aggregation;
mod cronjob;
mod csr_approving;
mod csr_cleaner;
mod csr_signing;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod ephemeral_volume;
mod garbage_collector;
mod history;
mod horizontal_pod_autoscaler;
mod job;
mod legacy_token_cleaner;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod owned;
mod persistentvolume_binder;
mod pod_garbage_collector;
mod replicaset;
mod resource_claim;
mod resourcequota;
mod root_ca_publisher;
mod service_cidr;
mod serviceaccount;
mod serviceaccount_token;
mod statefulset;
mod taint_eviction;
mod token_cleaner;
mod ttl;
mod ttl_after_finished;
mod volume_expander;
mod volume_protection;

use crate::caches::Caches;
use crate::config::{Config, Error};
use crate::executor::Executor;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::{self, Controller};
use k8s_openapi::api::core::v1::Namespace;
use std::pin::Pin;
use std::sync::Arc;

/// What a controller may use.
pub struct Context {
    pub client: kube::Client,
    pub caches: Arc<Caches>,
    pub config: Arc<Config>,
    pub executor: Arc<Executor>,
}

/// A controller, ready to run once the caches are filled.
pub type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

type Start = fn(&Context) -> Result<Running, Error>;

/// Upstream's names, for `--controllers`.
const CONTROLLERS: &[(&str, Start)] = &[
    ("bootstrap-signer-controller", bootstrap_signer::start),
    (
        "certificatesigningrequest-approving-controller",
        csr_approving::start,
    ),
    ("certificatesigningrequest-cleaner-controller", csr_cleaner::start),
    ("certificatesigningrequest-signing-controller", csr_signing::start),
    (
        "clusterrole-aggregation-controller",
        clusterrole_aggregation::start,
    ),
    ("cronjob-controller", cronjob::start),
    ("daemonset-controller", daemonset::start),
    ("deployment-controller", deployment::start),
    ("disruption-controller", disruption::start),
    ("endpoints-controller", endpoints::start),
    ("endpointslice-controller", endpointslice::start),
    (
        "endpointslice-mirroring-controller",
        endpointslice_mirroring::start,
    ),
    ("garbage-collector-controller", garbage_collector::start),
    (
        "horizontal-pod-autoscaler-controller",
        horizontal_pod_autoscaler::start,
    ),
    ("job-controller", job::start),
    (
        "legacy-serviceaccount-token-cleaner-controller",
        legacy_token_cleaner::start,
    ),
    ("namespace-controller", namespace::start),
    ("node-ipam-controller", node_ipam::start),
    ("node-lifecycle-controller", node_lifecycle::start),
    ("ephemeral-volume-controller", ephemeral_volume::start),
    ("persistentvolume-attach-detach-controller", attach_detach::start),
    (
        "persistentvolume-binder-controller",
        persistentvolume_binder::start,
    ),
    ("persistentvolume-expander-controller", volume_expander::start),
    (
        "persistentvolume-protection-controller",
        volume_protection::start_volumes,
    ),
    (
        "persistentvolumeclaim-protection-controller",
        volume_protection::start_claims,
    ),
    (
        "volumeattributesclass-protection-controller",
        volume_protection::start_attributes_classes,
    ),
    ("pod-garbage-collector-controller", pod_garbage_collector::start),
    ("replicaset-controller", replicaset::start),
    (
        "replicationcontroller-controller",
        replicaset::start_replication_controllers,
    ),
    ("resourceclaim-controller", resource_claim::start),
    ("resourcequota-controller", resourcequota::start),
    (
        "root-ca-certificate-publisher-controller",
        root_ca_publisher::start,
    ),
    ("service-cidr-controller", service_cidr::start),
    ("serviceaccount-controller", serviceaccount::start),
    ("serviceaccount-token-controller", serviceaccount_token::start),
    ("statefulset-controller", statefulset::start),
    ("taint-eviction-controller", taint_eviction::start),
    ("token-cleaner-controller", token_cleaner::start),
    ("ttl-controller", ttl::start),
    ("ttl-after-finished-controller", ttl_after_finished::start),
];

/// Upstream's others: they may be disabled, and cannot be asked for.
const LACKING: &[&str] = &[
    "cloud-node-lifecycle-controller",
    "device-taint-eviction-controller",
    "kube-apiserver-serving-clustertrustbundle-publisher-controller",
    "node-route-controller",
    "podcertificaterequest-cleaner-controller",
    "podgroup-protection-controller",
    "resourcepoolstatusrequest-controller",
    "selinux-warning-controller",
    "service-lb-controller",
    "storage-version-migrator-controller",
    "storageversion-garbage-collector-controller",
    "validatingadmissionpolicy-status-controller",
];

/// Every enabled controller, its handlers attached to the caches.
pub fn all(context: &Context) -> Result<Vec<Running>, Error> {
    CONTROLLERS
        .iter()
        .filter(|(name, _)| is_enabled(&context.config.controllers, name))
        .map(|(_, start)| start(context))
        .collect()
}

/// Refuses names in `--controllers` that mean nothing.
pub fn check_names(wanted: &[String]) -> Result<(), Error> {
    for name in wanted {
        let plain = name.strip_prefix('-').unwrap_or(name);
        if plain == "*" || CONTROLLERS.iter().any(|(known, _)| *known == plain) {
            continue;
        }
        match LACKING.contains(&plain) {
            true if plain != name => {}
            true => return Err(Error::LackingController { name: plain.into() }),
            false => {
                let known: Vec<&str> = CONTROLLERS.iter().map(|(name, _)| *name).collect();
                return Err(Error::UnknownController {
                    name: plain.into(),
                    known: known.join(", "),
                });
            }
        }
    }
    Ok(())
}

/// Upstream's rule: named beats `*`, and `-name` beats that.
fn is_enabled(wanted: &[String], name: &str) -> bool {
    let disabled = wanted.iter().any(|w| w.strip_prefix('-') == Some(name));
    !disabled && wanted.iter().any(|w| w == "*" || w == name)
}

/// Runs a controller that needs nothing but its queue.
fn spawn<C: Controller>(context: &Context, controller: C, queue: Arc<Queue>) -> Running {
    Box::pin(runner::run(Arc::new(controller), queue, context.executor.clone()))
}

/// Adds to `queue` the controllers of kind `kind` that an object has, or has had.
fn enqueue_owner(
    queue: &Queue,
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    kind: &str,
) {
    if let Some(owner) = api::owner::controller_of(meta).filter(|owner| owner.kind == kind) {
        queue.add(Key::new(
            meta.namespace.as_deref().unwrap_or_default(),
            &owner.name,
        ));
    }
}

/// Adds to `queue` the Services that select, or did select, a pod that changed.
fn enqueue_services_of_pods(context: &Context, queue: &Arc<Queue>) {
    let (to, services) = (queue.clone(), context.caches.services.clone());
    context.caches.pods.on(move |change| {
        for service in services.list_in(&change.key.namespace) {
            let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
            let selects = |labels| selector.is_some_and(|s| api::selector::matches_map(s, labels));
            if change.sides().any(|pod| selects(pod.metadata.labels.as_ref())) {
                to.add(Key::of(&service.metadata));
            }
        }
    });
}

/// Things are still put into this namespace.
fn is_live(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selecting_controllers() {
        let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        assert!(is_enabled(&list(&["*"]), "replicaset-controller"));
        assert!(!is_enabled(
            &list(&["*", "-replicaset-controller"]),
            "replicaset-controller"
        ));
        assert!(!is_enabled(
            &list(&["deployment-controller"]),
            "replicaset-controller"
        ));
        assert!(check_names(&list(&["*", "-nonsense"])).is_err());
        assert!(check_names(&list(&["*", "-deployment-controller"])).is_ok());
        for name in LACKING {
            assert!(check_names(&list(&["*", &format!("-{name}")])).is_ok(), "{name}");
            let refused = check_names(&list(&["*", name]));
            assert!(matches!(refused, Err(Error::LackingController { .. })), "{name}");
        }
    }
}
