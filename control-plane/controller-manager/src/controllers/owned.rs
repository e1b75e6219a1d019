//! What controllers that own pods have in common: hearing about them, claiming them, making them.

use super::enqueue_owner;
use crate::action::{Action, Announce, owner_references_patch, reference};
use crate::cache::{Cache, Object};
use crate::caches::Caches;
use crate::key::Key;
use crate::queue::Queue;
use api::owner::{Claim, claim, controller_of, controller_ref};
use api::selector::Labels;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::Resource;
use serde_json::json;
use std::sync::Arc;

/// Adds an owner to `queue` when it changes, when a pod of it does, or when an orphan it selects appears.
pub fn watch<K: Object>(
    caches: &Caches,
    queue: &Arc<Queue>,
    owners: &Arc<Cache<K>>,
    selects: fn(&K, Option<&Labels>) -> bool,
) {
    let to = queue.clone();
    owners.on(move |change| to.add(change.key.clone()));
    let (to, owners) = (queue.clone(), owners.clone());
    caches.pods.on(move |change| {
        for pod in change.sides() {
            enqueue_owner(&to, &pod.metadata, &K::kind(&()));
        }
        if let Some(pod) = change.new.filter(|pod| controller_of(&pod.metadata).is_none()) {
            for owner in owners.list_in(&change.key.namespace) {
                if selects(&owner, pod.metadata.labels.as_ref()) {
                    to.add(Key::of(owner.meta()));
                }
            }
        }
    });
}

/// Pods that refer to `owner` as their controller, and those of its namespace that refer to none.
pub fn candidates(caches: &Caches, owner: &ObjectMeta) -> Vec<Arc<Pod>> {
    let mut pods = caches
        .pods
        .controlled_by(owner.uid.as_deref().unwrap_or_default());
    let orphans = caches
        .pods
        .list_in(owner.namespace.as_deref().unwrap_or_default());
    pods.extend(
        orphans
            .into_iter()
            .filter(|pod| controller_of(&pod.metadata).is_none()),
    );
    pods
}

/// Objects that are the owner's; adoptions and releases enter the plan.
pub fn claim_all<O, K>(
    owner: &O,
    selector: &LabelSelector,
    candidates: &[Arc<K>],
    adopts: impl Fn(&K) -> bool,
    plan: &mut Vec<Action>,
) -> Vec<Arc<K>>
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = ()> + 'static,
{
    claim_with(owner, selector, candidates, None, adopts, plan)
}

/// The same, for an owner that marks what is its own with a finalizer.
pub fn claim_with<O, K>(
    owner: &O,
    selector: &LabelSelector,
    candidates: &[Arc<K>],
    finalizer: Option<&str>,
    adopts: impl Fn(&K) -> bool,
    plan: &mut Vec<Action>,
) -> Vec<Arc<K>>
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = ()> + 'static,
{
    let mut owned = Vec::new();
    for object in candidates {
        let matches = api::selector::matches(selector, object.meta().labels.as_ref());
        match claim(owner.meta(), object.meta(), matches) {
            Claim::Keep => owned.push(object.clone()),
            Claim::Adopt if adopts(object) => {
                let reference = controller_ref(&O::api_version(&()), &O::kind(&()), owner.meta());
                let mut patch = owner_references_patch(object.meta(), |list| list.push(json!(reference)));
                if let Some(finalizer) = finalizer {
                    let others = object.meta().finalizers.iter().flatten().map(String::as_str);
                    let kept = others.filter(|f| *f != finalizer);
                    patch["metadata"]["finalizers"] = json!(kept.chain([finalizer]).collect::<Vec<_>>());
                }
                plan.push(Action::patch_as_seen(&**object, patch));
                owned.push(object.clone());
            }
            Claim::Release => {
                let mut patch = owner_references_patch(object.meta(), |list| {
                    list.retain(|r| r["uid"] != json!(owner.meta().uid));
                });
                if let Some(finalizer) = finalizer {
                    let others = object.meta().finalizers.iter().flatten();
                    patch["metadata"]["finalizers"] =
                        json!(others.filter(|f| *f != finalizer).collect::<Vec<_>>());
                }
                plan.push(Action::patch_as_seen(&**object, patch));
            }
            Claim::Adopt | Claim::Ignore => {}
        }
    }
    owned
}

/// A pod of `owner` as the template says, not yet named.
pub fn pod_of<O: Resource<DynamicType = ()>>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let name = owner.meta().name.as_deref().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_ref(
                &O::api_version(&()),
                &O::kind(&()),
                owner.meta(),
            )]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates the pod and tells so in upstream's words.
pub fn create<O: Resource<DynamicType = ()>>(owner: &O, pod: &Pod) -> Action {
    Action::create(pod).announced(Announce {
        about: reference(owner),
        success: ("SuccessfulCreate", "Created pod: {}".into()),
        failure: ("FailedCreate", "Error creating: {}".into()),
        source: "",
    })
}

/// Deletes the pod and tells so in upstream's words.
pub fn delete<O: Resource<DynamicType = ()>>(owner: &O, pod: &Pod) -> Action {
    Action::delete(pod).announced(Announce {
        about: reference(owner),
        success: ("SuccessfulDelete", "Deleted pod: {}".into()),
        failure: ("FailedDelete", "Error deleting: {}".into()),
        source: "",
    })
}
