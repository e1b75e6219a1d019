//! Claims that want to grow are handed to whoever can grow their volume.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::event::NORMAL;
use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;

const RESIZER: &str = "volume.kubernetes.io/storage-resizer";

struct Expander(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context.caches.persistent_volume_claims.on(move |change| {
        if change.new.is_some_and(wants_more) {
            to.add(change.key.clone());
        }
    });
    Ok(super::spawn(context, Expander(context.caches.clone()), queue))
}

/// Bound, and asks for more than it has.
fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let capacity = claim
        .status
        .as_ref()
        .and_then(|s| s.capacity.as_ref()?.get("storage"));
    api::volume::is_bound(claim)
        && capacity.is_some_and(|have| api::volume::requested(claim) > Quantity::of(have))
}

impl Controller for Expander {
    const NAME: &'static str = "persistentvolume-expander-controller";
    const SOURCE: &'static str = "volume_expand";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(claim) = self.0.persistent_volume_claims.get(key).filter(|c| wants_more(c)) else {
            return Ok(Vec::new());
        };
        let name = api::volume::volume_name(&claim).unwrap_or_default();
        let volume = self.0.persistent_volumes.get(&Key::new("", name));
        Ok(volume.map(|v| reconcile(&claim, &v)).unwrap_or_default())
    }
}

fn reconcile(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Vec<Action> {
    let csi = volume
        .spec
        .as_ref()
        .and_then(|s| s.csi.as_ref())
        .map(|csi| csi.driver.as_str());
    let resizer = csi.or_else(|| api::volume::annotation(&volume.metadata, api::volume::PROVISIONED_BY));
    let Some(resizer) = resizer else {
        let message = "didn't find a plugin capable of expanding the volume; waiting for an external controller to \
                       process this PVC";
        return vec![Action::event(claim, NORMAL, "ExternalExpanding", message)];
    };
    if api::volume::annotation(&claim.metadata, RESIZER) == Some(resizer) {
        return Vec::new();
    }
    let message = format!("waiting for an external controller to expand this PVC: {resizer}");
    vec![
        Action::patch_as_seen(claim, json!({"metadata": {"annotations": {RESIZER: resizer}}})),
        Action::event(claim, NORMAL, "ExternalExpanding", message),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    #[test]
    fn growth_is_handed_over_once() {
        let mut claim: PersistentVolumeClaim = from_value(json!({
            "metadata": {"name": "c", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": "v", "resources": {"requests": {"storage": "2Gi"}}},
            "status": {"capacity": {"storage": "1Gi"}}}))
        .unwrap();
        let volume: PersistentVolume = from_value(
            json!({"metadata": {"name": "v"}, "spec": {"csi": {"driver": "d.io", "volumeHandle": "h"}}}),
        )
        .unwrap();
        assert!(wants_more(&claim));
        assert_eq!(reconcile(&claim, &volume).len(), 2);
        let annotations = claim.metadata.annotations.get_or_insert_default();
        annotations.insert(RESIZER.into(), "d.io".into());
        assert!(reconcile(&claim, &volume).is_empty());
    }
}
