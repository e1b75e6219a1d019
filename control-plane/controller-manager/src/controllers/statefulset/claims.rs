//! Whose the claims are, and so with whom they go (persistentVolumeClaimRetentionPolicy).

use super::identity::claims;
use crate::action::{Action, owner_references_patch};
use api::owner::controller_ref;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// By name.
pub type Claims = BTreeMap<String, Arc<PersistentVolumeClaim>>;

/// Changes the owners of a pod's claims to what the policy says; `leaving` means that the set is scaled below the pod.
pub fn retention(set: &StatefulSet, known: &Claims, ordinal: i32, pod: &Pod, leaving: bool) -> Vec<Action> {
    let policy = set
        .spec
        .as_ref()
        .and_then(|s| s.persistent_volume_claim_retention_policy.clone())
        .unwrap_or_default();
    let deletes = |policy: Option<String>| policy.as_deref() == Some("Delete");
    let (deleted, scaled) = (deletes(policy.when_deleted), deletes(policy.when_scaled));
    let owner = match (deleted, scaled, leaving) {
        (_, true, true) => Some(controller_ref("v1", "Pod", &pod.metadata)),
        (true, false, _) | (true, true, false) => {
            Some(controller_ref("apps/v1", "StatefulSet", &set.metadata))
        }
        (false, false, _) | (false, true, false) => None,
    };
    let ours = |r: &OwnerReference| {
        Some(&r.uid) == set.metadata.uid.as_ref()
            || Some(&r.uid) == pod.metadata.uid.as_ref()
            || r.kind == "Pod" && r.api_version == "v1" && Some(&r.name) == pod.metadata.name.as_ref()
    };
    let names = claims(set, ordinal)
        .into_iter()
        .filter_map(|(_, c)| c.metadata.name);
    let found = names.filter_map(|name| known.get(&name));
    let change = |claim: &Arc<PersistentVolumeClaim>| {
        let refs = claim.metadata.owner_references.as_deref().unwrap_or_default();
        let (mine, others): (Vec<_>, Vec<_>) = refs.iter().partition(|r| ours(r));
        // Another controller's claim is left to it.
        let owner = owner
            .as_ref()
            .filter(|_| others.iter().all(|r| r.controller != Some(true)));
        let is_so = mine.iter().map(|r| &r.uid).eq(owner.iter().map(|r| &r.uid));
        (!is_so).then(|| {
            let patch = owner_references_patch(&claim.metadata, |list| {
                *list = others.iter().copied().chain(owner).map(|r| json!(r)).collect();
            });
            Action::patch_as_seen(&**claim, patch)
        })
    };
    found.filter_map(change).collect()
}
