//! What a volume needs: the right phase, and to be reclaimed when its claim is gone.

use super::World;
use crate::action::Action;
use crate::key::Key;
use api::event::WARNING;
use api::volume::{self, BOUND_BY_CONTROLLER, PROVISIONED_BY};
use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::json;

pub fn reconcile(found: &PersistentVolume, world: &World) -> Vec<Action> {
    let reference = found.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let Some(reference) = reference.filter(|r| r.uid.as_ref().is_some_and(|uid| !uid.is_empty())) else {
        return phase(found, "Available", None).into_iter().collect();
    };
    let key = Key::new(
        reference.namespace.as_deref().unwrap_or_default(),
        reference.name.as_deref().unwrap_or_default(),
    );
    let claim = (world.claim)(&key).filter(|c| c.metadata.uid == reference.uid);
    let name = found.metadata.name.as_deref();
    match claim {
        None => reclaim(found),
        Some(claim) => match volume::volume_name(&claim) {
            // The claim's turn: it takes the volume that is promised to it.
            None => Vec::new(),
            Some(its) if Some(its) == name => phase(found, "Bound", None).into_iter().collect(),
            Some(_)
                if volume::annotation(&found.metadata, PROVISIONED_BY).is_some()
                    && policy(found) == "Delete" =>
            {
                reclaim(found)
            }
            Some(_) => release(found),
        },
    }
}

fn policy(found: &PersistentVolume) -> &str {
    let spec = found.spec.as_ref();
    spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref())
        .unwrap_or("Retain")
}

/// The claim is gone. Whoever provisioned the volume deletes it; there is no plug-in in this process that could.
fn reclaim(found: &PersistentVolume) -> Vec<Action> {
    let current = found.status.as_ref().and_then(|s| s.phase.as_deref());
    if current == Some("Failed") {
        return Vec::new();
    }
    if policy(found) == "Retain" || volume::annotation(&found.metadata, PROVISIONED_BY).is_some() {
        return phase(found, "Released", None).into_iter().collect();
    }
    let name = found.metadata.name.as_deref().unwrap_or_default();
    let (reason, message) = match policy(found) {
        "Delete" => (
            "VolumeFailedDelete",
            format!("error getting deleter volume plugin for volume {name:?}: no volume plugin matched"),
        ),
        _ => (
            "VolumeFailedRecycle",
            "No recycler plugin found for the volume!".to_owned(),
        ),
    };
    let event = Action::event(found, WARNING, reason, message.clone());
    phase(found, "Failed", Some(&message))
        .into_iter()
        .chain([event])
        .collect()
}

/// The claim took another volume: this one is free again, or waits for its claim as its creator wished.
fn release(found: &PersistentVolume) -> Vec<Action> {
    let ours = volume::annotation(&found.metadata, BOUND_BY_CONTROLLER).is_some();
    let patch = if ours {
        json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": null}})
    } else {
        json!({"spec": {"claimRef": {"uid": null}}})
    };
    let mut plan = vec![Action::patch_as_seen(found, patch)];
    plan.extend(phase(found, "Available", None));
    plan
}

pub fn phase(found: &PersistentVolume, phase: &str, message: Option<&str>) -> Option<Action> {
    let old = found.status.clone().unwrap_or_default();
    if old.phase.as_deref() == Some(phase)
        && old.message.as_deref().unwrap_or_default() == message.unwrap_or_default()
    {
        return None;
    }
    let mut new = old.clone();
    new.phase = Some(phase.into());
    new.message = message.map(str::to_owned);
    Some(Action::patch_status(found, &old, &new))
}
