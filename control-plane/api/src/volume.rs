//! Which volume may serve a claim: the rules that the volume binder and the scheduler share.

use crate::quantity::Quantity;
use crate::selector;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::sync::Arc;

/// The binder has finished with this claim.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The binder, not the user, chose the other side.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Where the scheduler wants the volume to be.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Who shall provision the volume; the second is what older provisioners look at.
pub const PROVISIONER: [&str; 2] = [
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
];
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Empty for a claim that wants no class; upstream's `GetPersistentVolumeClaimClass`.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    annotation(&claim.metadata, OLD_CLASS)
        .or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

pub fn volume_class(volume: &PersistentVolume) -> &str {
    annotation(&volume.metadata, OLD_CLASS)
        .or_else(|| volume.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

/// The volume's name, when the claim names one.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    let name = claim.spec.as_ref()?.volume_name.as_deref();
    name.filter(|name| !name.is_empty())
}

/// Bound for good.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    volume_name(claim).is_some() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// The class waits for the first pod.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// Is the volume's claimRef this claim?
pub fn is_claimed_by(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return false;
    };
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && reference
            .uid
            .as_ref()
            .is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
}

/// Can pods on this node reach the volume?
pub fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    affinity
        .and_then(|a| a.required.as_ref())
        .is_none_or(|required| selector::matches_node(required, node))
}

pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim
        .spec
        .as_ref()
        .and_then(|s| s.resources.as_ref()?.requests.as_ref());
    requests
        .and_then(|r| r.get("storage"))
        .map(Quantity::of)
        .unwrap_or_default()
}

pub fn capacity(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|s| s.capacity.as_ref());
    capacity
        .and_then(|c| c.get("storage"))
        .map(Quantity::of)
        .unwrap_or_default()
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

pub fn same_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().and_then(|s| s.volume_mode.as_ref());
    let of_claim = claim.spec.as_ref().and_then(|s| s.volume_mode.as_ref());
    mode(of_volume) == mode(of_claim)
}

pub fn has_access_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref());
    let wanted = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref());
    let offered = offered.unwrap_or_default();
    wanted
        .unwrap_or_default()
        .iter()
        .all(|mode| offered.contains(mode))
}

fn attributes_class(name: Option<&String>) -> &str {
    name.map(String::as_str).unwrap_or_default()
}

/// The smallest volume that serves the claim, or the one that is promised to it. With a `node`, one that the node
/// reaches; without one, and while the claim waits for its first consumer (`delayed`), only a promised one.
pub fn find<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a Arc<PersistentVolume>>,
    node: Option<&Node>,
    delayed: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let wanted = requested(claim);
    let mut best: Option<(Quantity, &Arc<PersistentVolume>)> = None;
    for volume in volumes {
        let Some(offer) = &volume.spec else { continue };
        let promised = is_claimed_by(volume, claim);
        let size = capacity(volume);
        let unfit = offer.claim_ref.is_some() && !promised
            || size < wanted
            || !same_mode(volume, claim)
            || attributes_class(offer.volume_attributes_class_name.as_ref())
                != attributes_class(spec.volume_attributes_class_name.as_ref())
            || volume.metadata.deletion_timestamp.is_some();
        if unfit {
            continue;
        }
        let reached = node.is_none_or(|node| reaches(volume, node));
        if promised {
            return reached.then_some(volume);
        }
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        let labels = volume.metadata.labels.as_ref();
        if node.is_none() && delayed
            || !reached
            || phase != Some("Available")
            || spec
                .selector
                .as_ref()
                .is_some_and(|s| !selector::matches(s, labels))
            || volume_class(volume) != claim_class(claim)
            || !has_access_modes(volume, claim)
        {
            continue;
        }
        if best.is_none_or(|(smallest, _)| size < smallest) {
            best = Some((size, volume));
        }
    }
    best.map(|(_, volume)| volume)
}

/// A claim that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodClaim {
    pub name: String,
    /// Made for this pod from its template.
    pub ephemeral: bool,
}

pub fn pod_claims(pod: &Pod) -> Vec<PodClaim> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    volumes
        .into_iter()
        .flatten()
        .filter_map(
            |volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(source), _) => Some(PodClaim {
                    name: source.claim_name.clone(),
                    ephemeral: false,
                }),
                (None, Some(_)) => Some(PodClaim {
                    name: format!("{pod_name}-{}", volume.name),
                    ephemeral: true,
                }),
                (None, None) => None,
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn volume(name: &str, size: &str, extra: Value) -> Arc<PersistentVolume> {
        let mut body = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "c"}});
        for (key, value) in extra.as_object().into_iter().flatten() {
            body["spec"][key] = value.clone();
        }
        Arc::new(from_value(body).unwrap())
    }

    fn claim(extra: Value) -> PersistentVolumeClaim {
        let mut body = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "c", "resources": {"requests": {"storage": "2Gi"}}}});
        for (key, value) in extra.as_object().into_iter().flatten() {
            body["spec"][key] = value.clone();
        }
        from_value(body).unwrap()
    }

    #[test]
    fn the_smallest_that_fits() {
        let here = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}]}});
        let volumes = [
            volume("small", "1Gi", json!({})),
            volume("big", "9Gi", json!({})),
            volume("right", "3Gi", json!({})),
            volume(
                "taken",
                "2Gi",
                json!({"claimRef": {"name": "x", "namespace": "n"}}),
            ),
            volume("block", "2Gi", json!({"volumeMode": "Block"})),
            volume("other", "2Gi", json!({"storageClassName": "d"})),
            volume("far", "2Gi", json!({"nodeAffinity": here})),
        ];
        let node: Node =
            from_value(json!({"metadata": {"name": "b", "labels": {"kubernetes.io/hostname": "b"}}}))
                .unwrap();
        let name = |claim: &PersistentVolumeClaim, node: Option<&Node>, delayed| {
            find(claim, volumes.iter(), node, delayed).and_then(|v| v.metadata.name.clone())
        };
        assert_eq!(
            name(&claim(json!({})), Some(&node), true).as_deref(),
            Some("right")
        );
        assert_eq!(name(&claim(json!({})), None, false).as_deref(), Some("far"));
        assert_eq!(
            name(&claim(json!({})), None, true),
            None,
            "the first consumer decides"
        );
        assert_eq!(
            name(&claim(json!({"accessModes": ["ReadWriteMany"]})), None, false),
            None
        );
        assert_eq!(
            name(&claim(json!({"storageClassName": "none"})), None, false),
            None
        );
    }

    #[test]
    fn a_promised_volume_comes_first() {
        let promise = json!({"claimRef": {"name": "c", "namespace": "n", "uid": "u"}});
        let volumes = [volume("a", "2Gi", json!({})), volume("mine", "9Gi", promise)];
        let found = find(&claim(json!({})), volumes.iter(), None, true);
        assert_eq!(found.and_then(|v| v.metadata.name.as_deref()), Some("mine"));
    }
}
