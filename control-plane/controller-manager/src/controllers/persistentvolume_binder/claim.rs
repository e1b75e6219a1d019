//! What a claim needs: a volume, a provisioner, or the truth about the volume it has lost.

use super::World;
use crate::action::Action;
use api::event::{NORMAL, WARNING};
use api::volume::{self, BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONER, SELECTED_NODE};
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
};
use serde_json::{Value, json};

pub fn reconcile(claim: &PersistentVolumeClaim, world: &World) -> Vec<Action> {
    if volume::annotation(&claim.metadata, BIND_COMPLETED).is_some() {
        bound(claim, world)
    } else {
        unbound(claim, world)
    }
}

fn unbound(claim: &PersistentVolumeClaim, world: &World) -> Vec<Action> {
    let mut plan = match volume::volume_name(claim) {
        None => return without_volume(claim, world),
        Some(name) => match world
            .volumes
            .iter()
            .find(|v| v.metadata.name.as_deref() == Some(name))
        {
            None => Vec::new(),
            Some(found) => {
                let unclaimed = found.spec.as_ref().is_some_and(|s| s.claim_ref.is_none());
                if !unclaimed && !volume::is_claimed_by(found, claim) {
                    Vec::new()
                } else if let Some(why) = mismatch(found, claim) {
                    let message = format!("Cannot bind to requested volume {name:?}: {why}");
                    vec![Action::event(claim, WARNING, "VolumeMismatch", message)]
                } else {
                    return bind(claim, found);
                }
            }
        },
    };
    plan.extend(phase(claim, "Pending"));
    plan
}

fn without_volume(claim: &PersistentVolumeClaim, world: &World) -> Vec<Action> {
    let class_name = volume::claim_class(claim);
    let class = world
        .classes
        .iter()
        .find(|c| c.metadata.name.as_deref() == Some(class_name));
    let selected = volume::annotation(&claim.metadata, SELECTED_NODE).is_some();
    let delayed = !selected && class.is_some_and(|c| volume::waits_for_consumer(c));
    if let Some(found) = volume::find(claim, world.volumes.iter(), None, delayed) {
        return bind(claim, found);
    }
    let mut plan = if delayed {
        let (reason, message) = match world.unscheduled_user(claim) {
            Some(pod) => (
                "WaitForPodScheduled",
                format!("waiting for pod {pod} to be scheduled"),
            ),
            None => (
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding".into(),
            ),
        };
        vec![Action::event(claim, NORMAL, reason, message)]
    } else if class_name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        vec![Action::event(claim, NORMAL, "FailedBinding", message)]
    } else if let Some(class) = class {
        provision(claim, &class.provisioner)
    } else {
        let message = format!("storageclass.storage.k8s.io {class_name:?} not found");
        vec![Action::event(claim, WARNING, "ProvisioningFailed", message)]
    };
    plan.extend(phase(claim, "Pending"));
    plan
}

/// Whoever provisions for this class looks for its name on the claim.
fn provision(claim: &PersistentVolumeClaim, provisioner: &str) -> Vec<Action> {
    let mut plan = Vec::new();
    if PROVISIONER
        .iter()
        .any(|key| volume::annotation(&claim.metadata, key) != Some(provisioner))
    {
        let annotations: Value = PROVISIONER
            .iter()
            .map(|key| ((*key).to_owned(), json!(provisioner)))
            .collect();
        plan.push(Action::patch_as_seen(
            claim,
            json!({"metadata": {"annotations": annotations}}),
        ));
    }
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
         system administrator. If volume creation is delayed, please verify that the provisioner is running and \
         correctly registered."
    );
    plan.push(Action::event(claim, NORMAL, "ExternalProvisioning", message));
    plan
}

fn bound(claim: &PersistentVolumeClaim, world: &World) -> Vec<Action> {
    let Some(name) = volume::volume_name(claim) else {
        let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return lost(claim, "ClaimLost", message);
    };
    match world
        .volumes
        .iter()
        .find(|v| v.metadata.name.as_deref() == Some(name))
    {
        None => {
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            lost(claim, "ClaimLost", message)
        }
        Some(found) => {
            let reference = found.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
            if reference.is_none_or(|r| r.uid == claim.metadata.uid) {
                return bind(claim, found);
            }
            let message = "Two claims are bound to the same volume, this one is bound incorrectly";
            lost(claim, "ClaimMisbound", message)
        }
    }
}

fn lost(claim: &PersistentVolumeClaim, reason: &str, message: &str) -> Vec<Action> {
    let change = phase(claim, "Lost");
    let event = change
        .is_some()
        .then(|| Action::event(claim, WARNING, reason, message));
    change.into_iter().chain(event).collect()
}

fn phase(claim: &PersistentVolumeClaim, phase: &str) -> Option<Action> {
    let old = claim.status.clone().unwrap_or_default();
    if old.phase.as_deref() == Some(phase) {
        return None;
    }
    let mut new = old.clone();
    new.phase = Some(phase.into());
    if phase == "Lost" {
        new.access_modes = None;
        new.capacity = None;
    }
    Some(Action::patch_status(claim, &old, &new))
}

/// Why a volume that was asked for by name doesn't do.
fn mismatch(found: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    if volume::capacity(found) < volume::requested(claim) {
        Some("requested PV is too small")
    } else if volume::volume_class(found) != volume::claim_class(claim) {
        Some("storageClassName does not match")
    } else if !volume::same_mode(found, claim) {
        Some("incompatible volumeMode")
    } else if !volume::has_access_modes(found, claim) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// Makes both sides name each other, and say so; what is so already is left alone.
fn bind(claim: &PersistentVolumeClaim, found: &PersistentVolume) -> Vec<Action> {
    let mut plan = Vec::new();
    let Some(spec) = &found.spec else { return plan };
    let reference = spec.claim_ref.as_ref();
    if reference.is_none_or(|r| r.uid != claim.metadata.uid) {
        let mut new = found.clone();
        if reference.is_none() {
            let annotations = new.metadata.annotations.get_or_insert_default();
            annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
        }
        new.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
            field_path: None,
            ..crate::action::reference(claim)
        });
        plan.push(Action::update(found, &new));
    }
    plan.extend(super::volume::phase(found, "Bound", None));
    let mut new = claim.clone();
    let annotations = new.metadata.annotations.get_or_insert_default();
    if volume::volume_name(claim).is_none() {
        annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    annotations
        .entry(BIND_COMPLETED.into())
        .or_insert_with(|| "yes".into());
    new.spec.get_or_insert_default().volume_name = found.metadata.name.clone();
    if new != *claim {
        plan.push(Action::update(claim, &new));
    }
    let old = claim.status.clone().unwrap_or_default();
    let fresh = old.phase.as_deref() != Some("Bound");
    let status = PersistentVolumeClaimStatus {
        phase: Some("Bound".into()),
        access_modes: spec.access_modes.clone(),
        // A grown volume is reported by whoever grows the file system on it.
        capacity: if fresh || old.capacity.is_none() {
            spec.capacity.clone()
        } else {
            old.capacity.clone()
        },
        current_volume_attributes_class_name: if fresh {
            spec.volume_attributes_class_name.clone()
        } else {
            old.current_volume_attributes_class_name.clone()
        },
        ..old.clone()
    };
    if status != old {
        plan.push(Action::patch_status(claim, &old, &status));
    }
    plan
}
