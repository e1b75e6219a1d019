//! Pods that use more of the node's disk than they said they would (upstream's local storage isolation).

use std::collections::HashMap;

use api::quantity::Quantity;
use cri_api::v1::ContainerStats;
use k8s_openapi::api::core::v1::Pod;

use crate::context::{Context, uid};
use crate::disk_usage::{self, Usage};
use crate::runtime::{CONTAINER_NAME, identity};

/// What a pod uses of the disk.
#[derive(Debug, Default)]
pub struct Used {
    /// emptyDir volumes on disk, by name.
    pub volumes: HashMap<String, u64>,
    /// Writable layers and logs, by container.
    pub containers: HashMap<String, u64>,
}

fn has_limits(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let volumes = spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.empty_dir.as_ref());
    let mut containers = spec
        .containers
        .iter()
        .filter_map(|container| container.resources.as_ref()?.limits.as_ref());
    volumes.into_iter().any(|source| source.size_limit.is_some())
        || containers.any(|limits| limits.contains_key("ephemeral-storage"))
}

/// Measures a pod; none when it has no limits to exceed.
pub fn measure(context: &Context, pod: &Pod, stats: &[ContainerStats]) -> Option<Used> {
    if !has_limits(pod) {
        return None;
    }
    let mut used = Used::default();
    let base = context.pod_dir(uid(pod)).join("volumes/kubernetes.io~empty-dir");
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let on_disk = volume
            .empty_dir
            .as_ref()
            .filter(|source| source.medium.as_deref().unwrap_or_default().is_empty());
        if on_disk.is_some() {
            used.volumes.insert(
                volume.name.clone(),
                disk_usage::of(&base.join(&volume.name)).bytes,
            );
        }
    }
    for one in stats {
        let Some(labels) = one.attributes.as_ref().map(|attributes| &attributes.labels) else {
            continue;
        };
        if identity(labels).is_some_and(|owner| owner.uid == uid(pod)) {
            let layer = one
                .writable_layer
                .as_ref()
                .and_then(|layer| layer.used_bytes.as_ref());
            let name = labels.get(CONTAINER_NAME).cloned().unwrap_or_default();
            let Usage { bytes, .. } = disk_usage::of(&context.pod_log_dir(pod).join(&name));
            *used.containers.entry(name).or_default() += layer.map_or(0, |bytes| bytes.value) + bytes;
        }
    }
    Some(used)
}

/// Upstream's words for the first limit that is exceeded.
pub fn excess(pod: &Pod, used: &Used) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let above = |used: u64, limit: &Quantity| i64::try_from(used).unwrap_or(i64::MAX) > limit.value();
    for volume in spec.volumes.iter().flatten() {
        let limit = volume
            .empty_dir
            .as_ref()
            .and_then(|source| source.size_limit.as_ref());
        let limit = limit
            .map(|wire| (Quantity::of(wire), &wire.0))
            .filter(|(limit, _)| !limit.is_zero());
        if let (Some((limit, text)), Some(used)) = (limit, used.volumes.get(&volume.name))
            && above(*used, &limit)
        {
            return Some(format!(
                "Usage of EmptyDir volume \"{}\" exceeds the limit \"{text}\". ",
                volume.name
            ));
        }
    }
    let mut total = Quantity::ZERO;
    let mut all_limited = !spec.containers.is_empty();
    for container in &spec.containers {
        let limits = container
            .resources
            .as_ref()
            .and_then(|resources| resources.limits.as_ref());
        let Some(wire) = limits.and_then(|limits| limits.get("ephemeral-storage")) else {
            all_limited = false;
            continue;
        };
        let limit = Quantity::of(wire);
        total += limit;
        if above(used.containers.get(&container.name).copied().unwrap_or(0), &limit) {
            let name = &container.name;
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit \"{}\". ",
                wire.0
            ));
        }
    }
    let sum = used.containers.values().sum::<u64>() + used.volumes.values().sum::<u64>();
    (all_limited && above(sum, &total)).then(|| {
        let limit = total.to_wire().0;
        format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limits_are_told() {
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "volumes": [{ "name": "v", "emptyDir": { "sizeLimit": "1Mi" } }, { "name": "w", "emptyDir": {} }],
            "containers": [{ "name": "c", "resources": { "limits": { "ephemeral-storage": "2Mi" } } }],
        } }))
        .unwrap();
        let mib = 1 << 20;
        for (v, w, c, expected) in [
            (mib, 0, 0, None),
            (
                mib + 1,
                0,
                0,
                Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "),
            ),
            (
                0,
                0,
                2 * mib + 1,
                Some("Container c exceeded its local ephemeral storage limit \"2Mi\". "),
            ),
            (
                0,
                3 * mib,
                0,
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "),
            ),
        ] {
            let used = Used {
                volumes: [("v".to_owned(), v), ("w".to_owned(), w)].into(),
                containers: [("c".to_owned(), c)].into(),
            };
            assert_eq!(excess(&pod, &used).as_deref(), expected, "{v} {w} {c}");
        }
    }
}
