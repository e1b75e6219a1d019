//! The pods a job makes.

use super::TRACKING;
use super::indexes::COMPLETION_INDEX;
use super::per_index;
use crate::controllers::owned::pod_of;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodTemplateSpec};

const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Room for the random suffix the server adds.
const LONGEST_PREFIX: usize = 63 - 5;

/// `predecessor` is the failed pod of the same index, where indexes are limited one by one.
pub fn make(job: &Job, template: &PodTemplateSpec, index: Option<i32>, predecessor: Option<&Pod>) -> Pod {
    let mut pod = pod_of(job, template);
    pod.metadata
        .finalizers
        .get_or_insert_default()
        .push(TRACKING.into());
    let Some(index) = index else { return pod };
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let mut prefix = format!("{name}-{index}-");
    if prefix.len() > LONGEST_PREFIX {
        let tail = format!("-{index}-");
        prefix = format!("{}{tail}", &name[..LONGEST_PREFIX - tail.len()]);
    }
    pod.metadata.generate_name = Some(prefix);
    for map in [&mut pod.metadata.labels, &mut pod.metadata.annotations] {
        map.get_or_insert_default()
            .insert(COMPLETION_INDEX.into(), index.to_string());
    }
    per_index::carry_on(job, predecessor, &mut pod);
    let variable = EnvVar {
        name: INDEX_VARIABLE.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.labels['{COMPLETION_INDEX}']"),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let spec = pod.spec.get_or_insert_default();
    spec.hostname.get_or_insert_with(|| format!("{name}-{index}"));
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|e| e.name == INDEX_VARIABLE) {
            env.push(variable.clone());
        }
    }
    pod
}
