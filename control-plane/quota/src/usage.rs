//! What one object of a kind costs, and which of a quota's resources are about that kind.

use jiff::{SignedDuration, Timestamp};
use schema::quantity::Quantity;
use serde_json::Value;

use crate::resources::{ResourceList, pod_limits, pod_requests, quantity};

const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const CLAIMS: &str = "persistentvolumeclaims";
const STORAGE: &str = "requests.storage";
/// Kinds with a resource name of their own besides `count/…`.
const COUNTED_BY_NAME: &[&str] = &[
    "configmaps",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
];
const OF_PODS: &[&str] = &[
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "pods",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// Quotas on these demand that every container names them.
const DEMANDED: &[&str] = &[
    "cpu",
    "limits.cpu",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.memory",
];

/// `count/pods`, `count/deployments.apps`
fn count_name(group: &str, resource: &str) -> String {
    if group.is_empty() {
        format!("count/{resource}")
    } else {
        format!("count/{resource}.{group}")
    }
}

/// Does the quota's resource `name` count objects of this kind?
pub(crate) fn is_about(name: &str, group: &str, resource: &str) -> bool {
    if name == count_name(group, resource) {
        return true;
    }
    match (group, resource) {
        ("", "pods") => {
            let asked = name.strip_prefix("requests.").unwrap_or_default();
            OF_PODS.contains(&name)
                || name.starts_with("hugepages-")
                || asked.starts_with("hugepages-")
                || is_extended(asked)
        }
        ("", "services") => matches!(name, "services" | "services.loadbalancers" | "services.nodeports"),
        ("", CLAIMS) => {
            matches!(name, CLAIMS | STORAGE)
                || name
                    .split_once(STORAGE_CLASS)
                    .is_some_and(|(_, what)| matches!(what, CLAIMS | STORAGE))
        }
        ("", other) => COUNTED_BY_NAME.contains(&other) && name == other,
        _ => false,
    }
}

fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

pub(crate) fn of(group: &str, resource: &str, object: &Value, now: Timestamp) -> ResourceList {
    let mut usage = ResourceList::from([(count_name(group, resource), Quantity::whole(1))]);
    match (group, resource) {
        ("", "pods") if is_charged(object, now) => {
            usage.extend(compute(&pod_requests(object), &pod_limits(object)));
        }
        ("", "services") => usage.extend(service(&object["spec"])),
        ("", CLAIMS) => usage.extend(claim(object)),
        ("", other) if COUNTED_BY_NAME.contains(&other) => {
            usage.insert(other.to_owned(), Quantity::whole(1));
        }
        _ => {}
    }
    usage
}

/// Pods that have ended, or should have by now, use nothing.
fn is_charged(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded")) {
        return false;
    }
    let metadata = &pod["metadata"];
    let deleted = metadata["deletionTimestamp"]
        .as_str()
        .and_then(|at| at.parse::<Timestamp>().ok());
    match (deleted, metadata["deletionGracePeriodSeconds"].as_i64()) {
        (Some(at), Some(grace)) => now <= at.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(at),
        _ => true,
    }
}

fn compute(requests: &ResourceList, limits: &ResourceList) -> ResourceList {
    let mut usage = ResourceList::from([("pods".to_owned(), Quantity::whole(1))]);
    for (name, amount) in requests {
        let native = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        let pages = name.starts_with("hugepages-");
        if native || pages {
            usage.insert(name.clone(), *amount);
        }
        if native || pages || is_extended(name) {
            usage.insert(format!("requests.{name}"), *amount);
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), *amount);
        }
    }
    usage
}

fn service(spec: &Value) -> ResourceList {
    let ports = || spec["ports"].as_array().into_iter().flatten();
    let (balancers, node_ports) = match spec["type"].as_str() {
        Some("NodePort") => (0, ports().count()),
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => {
            let given = |port: &&Value| port["nodePort"].as_i64().unwrap_or(0) != 0;
            (1, ports().filter(given).count())
        }
        Some("LoadBalancer") => (1, ports().count()),
        _ => (0, 0),
    };
    [
        ("services", 1),
        ("services.loadbalancers", balancers),
        ("services.nodeports", node_ports),
    ]
    .map(|(name, count)| (name.to_owned(), Quantity::whole(count as i64)))
    .into()
}

fn claim(claim: &Value) -> ResourceList {
    let requested = quantity(&claim["spec"]["resources"]["requests"]["storage"]);
    let allocated = quantity(&claim["status"]["allocatedResources"]["storage"]);
    let storage =
        requested.map(|requested| allocated.map_or(requested, |allocated| allocated.max(requested)));
    let mut usage = ResourceList::from([(CLAIMS.to_owned(), Quantity::whole(1))]);
    usage.extend(storage.map(|amount| (STORAGE.to_owned(), amount)));
    let class = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"]
        .as_str()
        .or(claim["spec"]["storageClassName"].as_str())
        .unwrap_or_default();
    if !class.is_empty() {
        let of_class: Vec<_> = usage
            .iter()
            .map(|(name, amount)| (format!("{class}{STORAGE_CLASS}{name}"), *amount))
            .collect();
        usage.extend(of_class);
    }
    usage
}

/// Upstream's complaint when containers leave out what the quota counts.
pub(crate) fn unspecified(resource: &str, object: &Value, counted: &[&str]) -> Option<String> {
    if resource != "pods" {
        return None;
    }
    let demanded = counted.iter().filter(|name| DEMANDED.contains(name));
    let lacking: Vec<String> = demanded
        .filter_map(|name| {
            let mut lacking: Vec<&str> = ["containers", "initContainers"]
                .into_iter()
                .flat_map(|list| crate::resources::containers(&object["spec"], list))
                .filter(|container| {
                    let part = |which: &str| crate::resources::parse(&container["resources"][which]);
                    !compute(&part("requests"), &part("limits")).contains_key(*name)
                })
                .filter_map(|container| container["name"].as_str())
                .collect();
            lacking.sort_unstable();
            (!lacking.is_empty()).then(|| format!("{name} for: {}", lacking.join(",")))
        })
        .collect();
    (!lacking.is_empty()).then(|| format!("must specify {}", lacking.join("; ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::to_value;

    fn cost(group: &str, resource: &str, object: Value) -> Value {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        to_value(&of(group, resource, &object, now))
    }

    #[test]
    fn every_kind_has_its_price() {
        let resources = json!({"requests": {"cpu": "1", "acme.com/x": "2"}, "limits": {"memory": "1Gi"}});
        let pod = json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(
            cost("", "pods", pod.clone()),
            json!({"count/pods": "1", "pods": "1", "cpu": "1", "requests.cpu": "1", "requests.acme.com/x": "2", "limits.memory": "1Gi"})
        );
        let mut done = pod.clone();
        done["status"] = json!({"phase": "Succeeded"});
        assert_eq!(cost("", "pods", done), json!({"count/pods": "1"}));
        let mut overdue = pod;
        overdue["metadata"] =
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30});
        assert_eq!(cost("", "pods", overdue), json!({"count/pods": "1"}));
        let service = json!({"spec": {"type": "NodePort", "ports": [{}, {}]}});
        assert_eq!(
            cost("", "services", service),
            json!({"count/services": "1", "services": "1", "services.loadbalancers": "0", "services.nodeports": "2"})
        );
        let claim =
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            cost("", CLAIMS, claim),
            json!({
                "count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "1Gi",
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
                "gold.storageclass.storage.k8s.io/requests.storage": "1Gi",
            })
        );
        assert_eq!(
            cost("", "secrets", json!({})),
            json!({"count/secrets": "1", "secrets": "1"})
        );
        assert_eq!(
            cost("apps", "deployments", json!({})),
            json!({"count/deployments.apps": "1"})
        );
    }

    #[test]
    fn resource_names_belong_to_kinds() {
        for (name, resource, about) in [
            ("pods", "pods", true),
            ("requests.acme.com/gpu", "pods", true),
            ("requests.storage", "pods", false),
            ("hugepages-2Mi", "pods", true),
            ("count/pods", "pods", true),
            ("count/pods", "services", false),
            ("gold.storageclass.storage.k8s.io/requests.storage", CLAIMS, true),
            ("configmaps", "configmaps", true),
            ("endpoints", "endpoints", false),
        ] {
            assert_eq!(is_about(name, "", resource), about, "{name} {resource}");
        }
    }
}
