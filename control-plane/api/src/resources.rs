//! What a pod asks of its node: requests summed as upstream's `resourcehelper.PodRequests`.

use crate::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use std::collections::BTreeMap;

pub const CPU: &str = "cpu";
pub const MEMORY: &str = "memory";
pub const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
pub const PODS: &str = "pods";
/// What the scoring plugins assume for containers that request nothing.
pub const DEFAULT_MILLI_CPU_REQUEST: i64 = 100;
pub const DEFAULT_MEMORY_REQUEST: i64 = 200 * 1024 * 1024;

/// Resource name to amount.
pub type ResourceList = BTreeMap<String, Quantity>;

pub fn parse(list: Option<&BTreeMap<String, Wire>>) -> ResourceList {
    list.into_iter()
        .flatten()
        .map(|(k, v)| (k.clone(), Quantity::of(v)))
        .collect()
}

pub fn add(total: &mut ResourceList, more: &ResourceList) {
    for (name, quantity) in more {
        *total.entry(name.clone()).or_default() += *quantity;
    }
}

fn raise(total: &mut ResourceList, floor: &ResourceList) {
    for (name, quantity) in floor {
        let entry = total.entry(name.clone()).or_default();
        if *quantity > *entry {
            *entry = *quantity;
        }
    }
}

/// Is this an init container that keeps running (KEP-753)?
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The pod's requests: containers and sidecars together, or the hungriest moment of initialisation if that is more;
/// pod-level requests replace both; overhead comes on top.
pub fn pod_requests(pod: &Pod) -> ResourceList {
    pod.spec
        .as_ref()
        .map(|spec| sum(spec, requests_of))
        .unwrap_or_default()
}

/// Likewise for limits.
pub fn pod_limits(pod: &Pod) -> ResourceList {
    pod.spec
        .as_ref()
        .map(|spec| sum(spec, limits_of))
        .unwrap_or_default()
}

/// Requests with upstream's small defaults for containers that ask for nothing, so that scoring sees them.
pub fn pod_requests_for_scoring(pod: &Pod) -> ResourceList {
    let with_defaults = |resources: Option<&ResourceRequirements>| {
        let mut list = requests_of(resources);
        let default = |list: &mut ResourceList, name: &str, quantity| {
            list.entry(name.to_owned()).or_insert(quantity);
        };
        default(
            &mut list,
            CPU,
            Quantity::from_millis(DEFAULT_MILLI_CPU_REQUEST, Default::default()),
        );
        default(
            &mut list,
            MEMORY,
            Quantity::from_units(DEFAULT_MEMORY_REQUEST, Default::default()),
        );
        list
    };
    pod.spec
        .as_ref()
        .map(|spec| sum(spec, with_defaults))
        .unwrap_or_default()
}

fn requests_of(resources: Option<&ResourceRequirements>) -> ResourceList {
    parse(resources.and_then(|r| r.requests.as_ref()))
}

fn limits_of(resources: Option<&ResourceRequirements>) -> ResourceList {
    parse(resources.and_then(|r| r.limits.as_ref()))
}

fn sum(spec: &PodSpec, of: impl Fn(Option<&ResourceRequirements>) -> ResourceList) -> ResourceList {
    let mut total = ResourceList::new();
    for container in &spec.containers {
        add(&mut total, &of(container.resources.as_ref()));
    }
    let mut peak = ResourceList::new();
    let mut sidecars = ResourceList::new();
    for container in spec.init_containers.iter().flatten() {
        let wants = of(container.resources.as_ref());
        let mut moment = sidecars.clone();
        add(&mut moment, &wants);
        if is_sidecar(container) {
            add(&mut sidecars, &wants);
            add(&mut total, &wants);
        }
        raise(&mut peak, &moment);
    }
    raise(&mut total, &peak);
    if let Some(resources) = &spec.resources {
        for (name, quantity) in of(Some(resources)) {
            total.insert(name, quantity);
        }
    }
    add(&mut total, &parse(spec.overhead.as_ref()));
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn requests(spec: Value) -> BTreeMap<String, String> {
        let pod: Pod = from_value(json!({"spec": spec})).unwrap();
        pod_requests(&pod)
            .into_iter()
            .map(|(k, v)| (k, v.to_string()))
            .collect()
    }

    fn container(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn pod_requests_follow_upstream() {
        let sidecar = |cpu: &str| {
            let mut c = container(cpu);
            c["restartPolicy"] = json!("Always");
            c
        };
        for (what, spec, cpu) in [
            (
                "sum",
                json!({"containers": [container("1"), container("500m")]}),
                "1500m",
            ),
            (
                "init is a peak",
                json!({"containers": [container("1")], "initContainers": [container("3"), container("2")]}),
                "3",
            ),
            (
                "init below the sum",
                json!({"containers": [container("4")], "initContainers": [container("3")]}),
                "4",
            ),
            (
                "sidecars add",
                json!({"containers": [container("1")], "initContainers": [sidecar("1")]}),
                "2",
            ),
            (
                "init after sidecar",
                json!({"containers": [container("1")], "initContainers": [sidecar("1"), container("5")]}),
                "6",
            ),
            (
                "init before sidecar",
                json!({"containers": [container("1")], "initContainers": [container("5"), sidecar("1")]}),
                "5",
            ),
            (
                "overhead",
                json!({"containers": [container("1")], "overhead": {"cpu": "100m"}}),
                "1100m",
            ),
            (
                "pod level",
                json!({"containers": [container("1")], "resources": {"requests": {"cpu": "3"}}}),
                "3",
            ),
        ] {
            assert_eq!(requests(spec)["cpu"], cpu, "{what}");
        }
    }

    #[test]
    fn scoring_gives_silent_containers_a_little() {
        let pod: Pod = from_value(json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}})).unwrap();
        assert_eq!(pod_requests_for_scoring(&pod)[CPU].milli_value(), 200);
        assert!(pod_requests(&pod).is_empty());
    }
}
