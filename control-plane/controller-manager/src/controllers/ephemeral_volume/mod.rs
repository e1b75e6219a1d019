//! Makes the claims that pods carry as templates; the pod owns them.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::event::WARNING;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;

struct EphemeralVolume(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context.caches.pods.on(move |change| {
        if change.new.is_some_and(has_templates) {
            to.add(change.key.clone());
        }
    });
    let to = queue.clone();
    context.caches.persistent_volume_claims.on(move |change| {
        if let (None, Some(old)) = (change.new, change.old) {
            super::enqueue_owner(&to, &old.metadata, "Pod");
        }
    });
    Ok(super::spawn(
        context,
        EphemeralVolume(context.caches.clone()),
        queue,
    ))
}

fn has_templates(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    volumes.into_iter().flatten().any(|v| v.ephemeral.is_some())
}

impl Controller for EphemeralVolume {
    const NAME: &'static str = "ephemeral-volume-controller";
    const SOURCE: &'static str = "ephemeral_volume";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let pod = self.0.pods.get(key).filter(|p| api::pod::is_active(p));
        let existing = |name: &str| {
            self.0
                .persistent_volume_claims
                .get(&Key::new(&key.namespace, name))
        };
        Ok(pod.map(|pod| reconcile(&pod, existing)).unwrap_or_default())
    }
}

fn reconcile(pod: &Pod, existing: impl Fn(&str) -> Option<Arc<PersistentVolumeClaim>>) -> Vec<Action> {
    let (Some(spec), Some(pod_name)) = (&pod.spec, pod.metadata.name.as_deref()) else {
        return Vec::new();
    };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut plan = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        let template = volume
            .ephemeral
            .as_ref()
            .and_then(|e| e.volume_claim_template.as_ref());
        let Some(template) = template else { continue };
        let name = format!("{pod_name}-{}", volume.name);
        match existing(&name) {
            Some(claim) if api::owner::is_controlled_by(&claim.metadata, uid) => {}
            Some(_) => {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let message = format!(
                    "PVC \"{namespace}/{name}\" was not created for pod \"{namespace}/{pod_name}\" (pod is not owner)"
                );
                plan.push(Action::event(pod, WARNING, "FailedCreate", message));
            }
            None => {
                let meta = template.metadata.clone().unwrap_or_default();
                plan.push(Action::create(&PersistentVolumeClaim {
                    metadata: ObjectMeta {
                        name: Some(name),
                        namespace: pod.metadata.namespace.clone(),
                        labels: meta.labels,
                        annotations: meta.annotations,
                        owner_references: Some(vec![api::owner::controller_ref("v1", "Pod", &pod.metadata)]),
                        ..ObjectMeta::default()
                    },
                    spec: Some(template.spec.clone()),
                    status: None,
                }));
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn templates_become_claims_once() {
        let pod: Pod = from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [],
            "volumes": [{"name": "data", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}},
                "spec": {"accessModes": ["ReadWriteOnce"]}}}}, {"name": "tmp", "emptyDir": {}}]}}))
        .unwrap();
        let plan = reconcile(&pod, |_| None);
        let [Action::Create { body, .. }] = plan.as_slice() else {
            panic!("{plan:?}")
        };
        assert_eq!(body["metadata"]["name"], "p-data");
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(body["metadata"]["labels"]["a"], "b");
        let made: Arc<PersistentVolumeClaim> = Arc::new(from_value(body.clone()).unwrap());
        assert!(reconcile(&pod, |_| Some(made.clone())).is_empty());
        let foreign: Arc<PersistentVolumeClaim> =
            Arc::new(from_value(json!({"metadata": {"name": "p-data"}})).unwrap());
        assert!(matches!(
            reconcile(&pod, |_| Some(foreign.clone())).as_slice(),
            [Action::Event(_)]
        ));
    }
}
