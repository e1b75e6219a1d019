//! What makes a StatefulSet's pod that pod: its name, labels, host name and volumes.

use crate::action::Action;
use crate::controllers::history::REVISION_HASH;
use crate::controllers::owned::pod_of;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use serde_json::{Map, Value, json};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in a pod's name, if the name is one of the set's.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let number = name
        .strip_prefix(set.metadata.name.as_deref()?)?
        .strip_prefix('-')?;
    number.parse().ok().filter(|n: &i32| n.to_string() == number)
}

pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default())
}

/// The labels that tell pods of a set apart.
fn labels(set: &StatefulSet, ordinal: i32) -> [(&'static str, String); 2] {
    [
        (POD_NAME, pod_name(set, ordinal)),
        (POD_INDEX, ordinal.to_string()),
    ]
}

/// Gives a pod back the labels somebody took.
pub fn repair(set: &StatefulSet, pod: &Pod, ordinal: i32) -> Option<Action> {
    let have = pod.metadata.labels.as_ref();
    let lost: Map<String, Value> = labels(set, ordinal)
        .into_iter()
        .filter(|(key, value)| have.and_then(|l| l.get(*key)) != Some(value))
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    (!lost.is_empty()).then(|| Action::patch_as_seen(pod, json!({"metadata": {"labels": lost}})))
}

/// The pod of an ordinal, of the revision called `revision`.
pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let name = pod_name(set, ordinal);
    let mut pod = pod_of(set, template);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let all = pod.metadata.labels.get_or_insert_default();
    all.extend(labels(set, ordinal).map(|(key, value)| (key.into(), value)));
    all.insert(REVISION_HASH.into(), revision.into());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone());
    let claims = claims(set, ordinal);
    if !claims.is_empty() {
        let volumes = spec.volumes.get_or_insert_default();
        for (template, claim) in claims {
            volumes.retain(|v| v.name != template);
            volumes.push(Volume {
                name: template,
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.metadata.name.unwrap_or_default(),
                    read_only: None,
                }),
                ..Volume::default()
            });
        }
    }
    pod
}

/// The claims of an ordinal, with the names of their templates.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<(String, PersistentVolumeClaim)> {
    let spec = set.spec.as_ref();
    let templates = spec
        .and_then(|s| s.volume_claim_templates.as_deref())
        .unwrap_or_default();
    let make = |template: &PersistentVolumeClaim| {
        let volume = template.metadata.name.clone().unwrap_or_default();
        let mut claim = template.clone();
        claim.status = None;
        claim.metadata.name = Some(format!("{volume}-{}", pod_name(set, ordinal)));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let labels = claim.metadata.labels.get_or_insert_default();
        let selector = spec.and_then(|s| s.selector.match_labels.clone());
        labels.extend(selector.unwrap_or_default());
        (volume, claim)
    };
    templates.iter().map(make).collect()
}
