//! Attaches CSI volumes to the nodes whose pods use them, by way of VolumeAttachments that the driver's attacher serves.

mod reconcile;

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Observed, Wanted, reconcile};
use std::sync::Arc;

/// Keys are nodes.
struct AttachDetach(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    let to = queue.clone();
    caches.nodes.on(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches.pods.on(move |change| {
        for pod in change.sides().filter(|p| !api::volume::pod_claims(p).is_empty()) {
            if let Some(node) = api::pod::node_name(pod) {
                to.add(Key::new("", node));
            }
        }
    });
    let to = queue.clone();
    caches.volume_attachments.on(move |change| {
        change
            .sides()
            .for_each(|a| to.add(Key::new("", &a.spec.node_name)));
    });
    let (to, pods) = (queue.clone(), caches.pods.clone());
    caches.persistent_volume_claims.on(move |change| {
        let bound = |c: &_| api::volume::is_bound(c);
        if change.new.is_some_and(bound) && !change.old.is_some_and(bound) {
            for pod in pods.list_in(&change.key.namespace) {
                let uses = api::volume::pod_claims(&pod)
                    .iter()
                    .any(|c| c.name == change.key.name);
                if let Some(node) = api::pod::node_name(&pod).filter(|_| uses) {
                    to.add(Key::new("", node));
                }
            }
        }
    });
    Ok(super::spawn(context, AttachDetach(caches.clone()), queue))
}

impl AttachDetach {
    /// The CSI volumes that pods on this node use and that must be attached.
    fn wanted(&self, node: &str) -> Vec<Wanted> {
        let caches = &self.0;
        let here = |p: &&Arc<Pod>| api::pod::node_name(p) == Some(node) && !api::pod::is_terminal(p);
        let mut wanted: Vec<Wanted> = Vec::new();
        for pod in caches.pods.list().iter().filter(here) {
            for used in api::volume::pod_claims(pod) {
                let key = Key::new(pod.metadata.namespace.as_deref().unwrap_or_default(), &used.name);
                let claim = caches
                    .persistent_volume_claims
                    .get(&key)
                    .filter(|c| api::volume::is_bound(c));
                let name = claim.as_deref().and_then(api::volume::volume_name);
                let Some(volume) = name.and_then(|n| caches.persistent_volumes.get(&Key::new("", n))) else {
                    continue;
                };
                let Some(csi) = volume.spec.as_ref().and_then(|s| s.csi.as_ref()) else {
                    continue;
                };
                let driver = caches.csi_drivers.get(&Key::new("", &csi.driver));
                if driver.is_some_and(|d| d.spec.attach_required == Some(false)) {
                    continue;
                }
                match wanted
                    .iter_mut()
                    .find(|w| w.volume.metadata.name == volume.metadata.name)
                {
                    Some(known) => known.pods.push(pod.clone()),
                    None => wanted.push(Wanted {
                        volume: volume.clone(),
                        pods: vec![pod.clone()],
                    }),
                }
            }
        }
        wanted
    }
}

impl Controller for AttachDetach {
    const NAME: &'static str = "persistentvolume-attach-detach-controller";
    const SOURCE: &'static str = "attachdetach-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let caches = &self.0;
        let attachments = caches.volume_attachments.list();
        let node = caches.nodes.get(key);
        let wanted = if node.is_some() {
            self.wanted(&key.name)
        } else {
            Vec::new()
        };
        let observed = Observed {
            name: &key.name,
            node: node.as_deref(),
            wanted: &wanted,
            attachments: &attachments,
            volume: &|name| caches.persistent_volumes.get(&Key::new("", name)),
        };
        Ok(reconcile(&observed))
    }
}
