//! How running containers get from the resources they have to those the pod was promised.

use std::collections::HashSet;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use serde_json::{Value, json};

use crate::allocation::{POD, Resources, desired};
use crate::pod_actions::is_sidecar;
use crate::runtime_pod::RuntimePod;

/// What must happen to running containers, by id.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub in_place: Vec<(String, String)>,
    pub restart: HashSet<String>,
    /// Containers that run with what they were given when nobody took notes.
    pub unknown: Vec<String>,
    /// The pod's own limits differ.
    pub pod: bool,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.in_place.is_empty() && self.restart.is_empty() && !self.pod
    }
}

fn amount(resources: &ResourceRequirements, limits: bool, name: &str) -> Option<Quantity> {
    let list = if limits {
        &resources.limits
    } else {
        &resources.requests
    };
    list.as_ref()?.get(name).map(Quantity::of)
}

/// Whether requests and limits are the same amounts, however they are written.
fn is_same(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    ["cpu", "memory"].iter().all(|name| {
        [true, false]
            .iter()
            .all(|limits| amount(a, *limits, name) == amount(b, *limits, name))
    })
}

pub fn are_same(a: &Resources, b: &Resources) -> bool {
    a.len() == b.len()
        && a.iter()
            .all(|(name, one)| b.get(name).is_some_and(|other| is_same(one, other)))
}

fn restarts(container: &Container, wanted: &ResourceRequirements, has: &ResourceRequirements) -> bool {
    let mut policies = container.resize_policy.iter().flatten();
    policies.any(|policy| {
        let differs = |limits| {
            amount(wanted, limits, &policy.resource_name) != amount(has, limits, &policy.resource_name)
        };
        policy.restart_policy == "RestartContainer" && (differs(true) || differs(false))
    })
}

/// Compares what the pod was promised with what was last put into effect.
pub fn plan(pod: &Pod, actuated: &Resources, observed: &RuntimePod) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &pod.spec else { return plan };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container));
    for container in sidecars.chain(&spec.containers) {
        let Some(running) = observed
            .running_containers()
            .find(|running| running.name == container.name)
        else {
            continue;
        };
        let wanted = container.resources.clone().unwrap_or_default();
        match actuated.get(&container.name) {
            None => plan.unknown.push(container.name.clone()),
            Some(has) if is_same(&wanted, has) => {}
            Some(has) if restarts(container, &wanted, has) => drop(plan.restart.insert(running.id.clone())),
            Some(_) => plan.in_place.push((running.id.clone(), container.name.clone())),
        }
    }
    if let (Some(wanted), Some(has)) = (&spec.resources, actuated.get(POD)) {
        plan.pod = !is_same(wanted, has);
    }
    plan
}

/// A limit that must not fall below what the container uses.
pub fn lowered_memory(wanted: &ResourceRequirements, has: &ResourceRequirements) -> Option<i64> {
    let (new, old) = (amount(wanted, true, "memory")?, amount(has, true, "memory"));
    old.is_none_or(|old| new < old).then(|| new.value())
}

/// Upstream's event text: the sizes as JSON.
pub fn message(prefix: &str, pod: &Pod, error: Option<&str>) -> String {
    let all = desired(pod);
    let listed = |containers: Option<&Vec<Container>>| -> Vec<Value> {
        let one = |c: &Container| json!({ "name": c.name, "resources": all.get(&c.name) });
        containers.into_iter().flatten().map(one).collect()
    };
    let spec = pod.spec.as_ref();
    let mut summary = json!({ "containers": listed(spec.map(|spec| &spec.containers)),
        "generation": pod.metadata.generation });
    let init = listed(spec.and_then(|spec| spec.init_containers.as_ref()));
    if !init.is_empty() {
        summary["initContainers"] = init.into();
    }
    if let Some(error) = error {
        summary["error"] = error.into();
    }
    format!("{prefix}: {summary}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime_pod::{ContainerState, ObservedContainer};

    fn resources(cpu: &str, memory: &str) -> Value {
        json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "cpu": cpu, "memory": memory } })
    }

    #[test]
    fn policies_decide() {
        let observed = RuntimePod {
            containers: vec![ObservedContainer {
                id: "id".into(),
                name: "c".into(),
                state: ContainerState::Running,
                ..Default::default()
            }],
            ..Default::default()
        };
        let memory = json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" },
            { "resourceName": "cpu", "restartPolicy": "NotRequired" }]);
        for (has, wanted, policy, expected) in [
            (("1", "1Gi"), ("1000m", "1024Mi"), json!([]), ""),
            (("1", "1Gi"), ("2", "1Gi"), json!([]), "in place"),
            (("1", "1Gi"), ("2", "1Gi"), memory.clone(), "in place"),
            (("1", "1Gi"), ("2", "2Gi"), memory, "restart"),
        ] {
            let pod: Pod = serde_json::from_value(json!({ "spec": { "containers": [
                { "name": "c", "resources": resources(wanted.0, wanted.1), "resizePolicy": policy }] } }))
            .unwrap();
            let has: ResourceRequirements = serde_json::from_value(resources(has.0, has.1)).unwrap();
            let plan = plan(&pod, &[("c".to_owned(), has)].into(), &observed);
            let told = match (plan.in_place.len(), plan.restart.len()) {
                (1, 0) => "in place",
                (0, 1) => "restart",
                _ => "",
            };
            assert_eq!(told, expected, "{wanted:?}");
        }
    }

    #[test]
    fn shrinking_memory_is_noticed() {
        let of = |memory: &str| serde_json::from_value(resources("1", memory)).unwrap();
        assert_eq!(lowered_memory(&of("1Mi"), &of("2Mi")), Some(1 << 20));
        assert_eq!(lowered_memory(&of("2Mi"), &of("1Mi")), None);
    }
}
