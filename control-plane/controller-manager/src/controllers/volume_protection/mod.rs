//! Claims that pods use, and volumes that claims have, are not deleted under them: a finalizer holds them.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use serde_json::json;
use std::sync::Arc;

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const CLASS_FINALIZER: &str = "kubernetes.io/vac-protection";

struct Claims(Arc<Caches>);
struct Volumes(Arc<Caches>);
struct AttributesClasses(Arc<Caches>);

pub fn start_claims(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .persistent_volume_claims
        .on(move |change| to.add(change.key.clone()));
    let (to, claims) = (queue.clone(), context.caches.persistent_volume_claims.clone());
    context.caches.pods.on(move |change| {
        if change.new.is_some_and(uses_anything) {
            return;
        }
        for pod in change.sides() {
            for claim in api::volume::pod_claims(pod) {
                let key = Key::new(&change.key.namespace, &claim.name);
                if claims
                    .get(&key)
                    .is_some_and(|c| c.metadata.deletion_timestamp.is_some())
                {
                    to.add(key);
                }
            }
        }
    });
    Ok(super::spawn(context, Claims(context.caches.clone()), queue))
}

pub fn start_volumes(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .persistent_volumes
        .on(move |change| to.add(change.key.clone()));
    Ok(super::spawn(context, Volumes(context.caches.clone()), queue))
}

pub fn start_attributes_classes(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .volume_attributes_classes
        .on(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    context.caches.persistent_volume_claims.on(move |change| {
        change
            .sides()
            .flat_map(classes_of)
            .for_each(|name| to.add(Key::new("", name)));
    });
    let to = queue.clone();
    context.caches.persistent_volumes.on(move |change| {
        let named = change
            .sides()
            .filter_map(|v| v.spec.as_ref()?.volume_attributes_class_name.as_deref());
        named.for_each(|name| to.add(Key::new("", name)));
    });
    Ok(super::spawn(
        context,
        AttributesClasses(context.caches.clone()),
        queue,
    ))
}

impl Controller for Claims {
    const NAME: &'static str = "persistentvolumeclaim-protection-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(claim) = self.0.persistent_volume_claims.get(key) else {
            return Ok(Vec::new());
        };
        let used = || {
            self.0
                .pods
                .list_in(&key.namespace)
                .iter()
                .any(|p| uses(p, &claim))
        };
        Ok(guard(&*claim, CLAIM_FINALIZER, used).into_iter().collect())
    }
}

impl Controller for Volumes {
    const NAME: &'static str = "persistentvolume-protection-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(volume) = self.0.persistent_volumes.get(key) else {
            return Ok(Vec::new());
        };
        let bound = || volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        Ok(guard(&*volume, VOLUME_FINALIZER, bound).into_iter().collect())
    }
}

impl Controller for AttributesClasses {
    const NAME: &'static str = "volumeattributesclass-protection-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(class) = self.0.volume_attributes_classes.get(key) else {
            return Ok(Vec::new());
        };
        let used = || {
            let claims = self.0.persistent_volume_claims.list();
            let volumes = self.0.persistent_volumes.list();
            claims.iter().any(|c| classes_of(c).any(|name| name == key.name))
                || volumes.iter().any(|v| {
                    let named = v
                        .spec
                        .as_ref()
                        .and_then(|s| s.volume_attributes_class_name.as_ref());
                    named == Some(&key.name)
                })
        };
        Ok(guard(&*class, CLASS_FINALIZER, used).into_iter().collect())
    }
}

fn classes_of(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &str> {
    let wanted = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.as_deref());
    let current = claim
        .status
        .as_ref()
        .and_then(|s| s.current_volume_attributes_class_name.as_deref());
    wanted.into_iter().chain(current)
}

/// On a node and not finished: the kubelet may have the volumes in its hands.
fn uses_anything(pod: &Pod) -> bool {
    api::pod::node_name(pod).is_some() && !api::pod::is_terminal(pod)
}

fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let named = || {
        api::volume::pod_claims(pod)
            .into_iter()
            .find(|c| Some(&c.name) == claim.metadata.name.as_ref())
    };
    let owned =
        || api::owner::is_controlled_by(&claim.metadata, pod.metadata.uid.as_deref().unwrap_or_default());
    uses_anything(pod) && named().is_some_and(|c| !c.ephemeral || owned())
}

/// Puts the finalizer on what lives, takes it from what shall go and nobody uses.
fn guard<K: Resource<DynamicType = ()> + 'static>(
    object: &K,
    finalizer: &str,
    used: impl FnOnce() -> bool,
) -> Option<Action> {
    let meta = object.meta();
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let held = finalizers.iter().any(|f| f == finalizer);
    match (meta.deletion_timestamp.is_some(), held) {
        (false, false) => finalizers.push(finalizer.to_owned()),
        (true, true) if !used() => finalizers.retain(|f| f != finalizer),
        _ => return None,
    }
    Some(Action::patch_as_seen(
        object,
        json!({"metadata": {"finalizers": finalizers}}),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    fn claim(meta: Value) -> PersistentVolumeClaim {
        let mut body = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}});
        for (key, value) in meta.as_object().into_iter().flatten() {
            body["metadata"][key] = value.clone();
        }
        from_value(body).unwrap()
    }

    fn finalizers(action: Option<Action>) -> Option<Value> {
        match action {
            Some(Action::Patch { patch, .. }) => Some(patch["metadata"]["finalizers"].clone()),
            _ => None,
        }
    }

    #[test]
    fn the_finalizer_comes_and_goes() {
        let going =
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [CLAIM_FINALIZER, "other"]});
        for (what, meta, used, expected) in [
            ("new", json!({}), false, Some(json!([CLAIM_FINALIZER]))),
            ("held", json!({"finalizers": [CLAIM_FINALIZER]}), false, None),
            ("going, used", going.clone(), true, None),
            ("going, unused", going, false, Some(json!(["other"]))),
        ] {
            assert_eq!(
                finalizers(guard(&claim(meta), CLAIM_FINALIZER, || used)),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn only_pods_on_nodes_use_claims() {
        for (spec, phase, expected) in [
            (json!({"nodeName": "a"}), "Running", true),
            (json!({}), "Pending", false),
            (json!({"nodeName": "a"}), "Succeeded", false),
        ] {
            let mut body = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec, "status": {"phase": phase}});
            body["spec"]["containers"] = json!([]);
            body["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
            let pod: Pod = from_value(body).unwrap();
            assert_eq!(uses(&pod, &claim(json!({}))), expected, "{phase}");
        }
    }
}
