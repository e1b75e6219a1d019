//! A pod's claims must be bound to volumes that the node reaches, or be bindable there.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{EventKind, Plugin, Prepared, Rejection, reject_for_good};
use crate::pod_info::PodInfo;
use crate::volumes::{Obstacle, Volumes};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use std::sync::Arc;

pub struct VolumeBinding;

struct Claims<'a> {
    bound: Vec<Option<&'a Arc<PersistentVolume>>>,
    waiting: Vec<Arc<PersistentVolumeClaim>>,
    volumes: &'a Volumes,
}

/// The pod's claims that wait for a node.
pub fn waiting(pod: &PodInfo, volumes: &Volumes) -> Vec<Arc<PersistentVolumeClaim>> {
    let claims = pod
        .claims
        .iter()
        .filter_map(|c| volumes.claim(pod.namespace(), &c.name));
    claims.filter(|c| !api::volume::is_bound(c)).cloned().collect()
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        matches!(
            kind,
            EventKind::Storage | EventKind::NodeAdded | EventKind::NodeLabels
        )
    }

    fn admit(&self, pod: &PodInfo, cluster: &Cluster) -> Result<(), Rejection> {
        let mut immediate = false;
        for wanted in &pod.claims {
            let name = &wanted.name;
            let Some(claim) = cluster.volumes.claim(pod.namespace(), name) else {
                return reject_for_good(if wanted.ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                    )
                } else {
                    format!("persistentvolumeclaim {name:?} not found")
                });
            };
            let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
            if phase == Some("Lost") {
                let volume = api::volume::volume_name(claim).unwrap_or_default();
                return reject_for_good(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return reject_for_good(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if wanted.ephemeral && !api::owner::is_controlled_by(&claim.metadata, pod.uid()) {
                let namespace = pod.namespace();
                return reject_for_good(format!(
                    "PVC \"{namespace}/{name}\" was not created for pod \"{namespace}/{}\" (pod is not owner)",
                    pod.name()
                ));
            }
            let class = cluster.volumes.classes.get(api::volume::claim_class(claim));
            let delayed = class.is_some_and(|c| api::volume::waits_for_consumer(c));
            // A claim that names its volume waits for the binder, whatever its class says.
            immediate |=
                !api::volume::is_bound(claim) && (!delayed || api::volume::volume_name(claim).is_some());
        }
        if immediate {
            return reject_for_good("pod has unbound immediate PersistentVolumeClaims");
        }
        Ok(())
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        if pod.claims.is_empty() {
            return None;
        }
        let volumes = &cluster.volumes;
        let claims = pod
            .claims
            .iter()
            .filter_map(|c| volumes.claim(pod.namespace(), &c.name));
        let bound = claims.filter(|c| api::volume::is_bound(c));
        let bound = bound.map(|c| {
            volumes
                .volumes
                .get(api::volume::volume_name(c).unwrap_or_default())
        });
        Some(Box::new(Claims {
            bound: bound.collect(),
            waiting: waiting(pod, volumes),
            volumes,
        }))
    }
}

impl Prepared for Claims<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for volume in &self.bound {
            match volume {
                None => {
                    return reject_for_good(
                        "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
                    );
                }
                Some(volume) if !api::volume::reaches(volume, &node.node) => {
                    return reject_for_good("node(s) didn't match PersistentVolume's node affinity");
                }
                Some(_) => {}
            }
        }
        match self.volumes.plan(&self.waiting, &node.node) {
            Ok(_) => Ok(()),
            Err(Obstacle::NoVolume) => {
                reject_for_good("node(s) didn't find available persistent volumes to bind")
            }
            Err(Obstacle::NoSpace) => reject_for_good("node(s) did not have enough free storage"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use crate::volumes::{Step, claim_key};
    use serde_json::{Value, from_value, json};

    fn add_claim(cluster: &mut Cluster, body: Value) {
        let claim: Arc<PersistentVolumeClaim> = Arc::new(from_value(body).unwrap());
        cluster.volumes.claims.insert(claim_key(&claim), claim);
    }

    fn claim(class: &str) -> Value {
        json!({"metadata": {"name": "c", "namespace": "default", "uid": "u"}, "spec": {"storageClassName": class,
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    }

    #[test]
    fn claims_are_bound_or_bindable() {
        let host = |n: &str| {
            (
                n.to_owned(),
                json!({"metadata": {"labels": {"kubernetes.io/hostname": n}}}),
            )
        };
        let (a, b) = (host("a"), host("b"));
        let mut world = cluster(&[(&a.0, a.1), (&b.0, b.1)], &[]);
        let pod = pod(
            "p",
            json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}),
        );
        let admitted = |world: &Cluster| {
            VolumeBinding
                .admit(&pod, world)
                .map_err(|r| r.reasons[0].to_string())
        };
        assert_eq!(
            admitted(&world),
            Err("persistentvolumeclaim \"c\" not found".into())
        );
        add_claim(&mut world, claim("late"));
        assert_eq!(
            admitted(&world),
            Err("pod has unbound immediate PersistentVolumeClaims".into())
        );
        let class = json!({"metadata": {"name": "late"}, "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer"});
        world
            .volumes
            .classes
            .insert("late".into(), Arc::new(from_value(class).unwrap()));
        assert_eq!(admitted(&world), Ok(()));
        let fits = |world: &Cluster| -> Vec<String> {
            let prepared = VolumeBinding.prepare(&pod, world).unwrap();
            let nodes = world.nodes().iter().filter(|n| prepared.filter(n).is_ok());
            nodes.map(|n| n.name().to_owned()).collect()
        };
        assert!(fits(&world).is_empty());
        let volume = json!({"metadata": {"name": "pv"}, "status": {"phase": "Available"}, "spec": {
            "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "late",
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}]}}}});
        world
            .volumes
            .volumes
            .insert("pv".into(), Arc::new(from_value(volume).unwrap()));
        assert_eq!(fits(&world), ["b"]);
        let steps = world
            .volumes
            .plan(&waiting(&pod, &world.volumes), &world.node("b").unwrap().node)
            .unwrap();
        assert!(
            matches!(&steps[..], [Step::Bind { volume, .. }] if volume.metadata.name.as_deref() == Some("pv"))
        );
        world
            .volumes
            .reserved
            .insert("pv".into(), ("default".into(), "other".into()));
        assert!(fits(&world).is_empty(), "promised to another claim");
    }
}
