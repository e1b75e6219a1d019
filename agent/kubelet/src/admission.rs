//! Whether this node takes a pod, or a new size of one it has (upstream's admit handlers).

use api::pod::HostPort;
use api::resources::{self, ResourceList};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};

use crate::allocation::Others;
use crate::pod_status::{EVICTED, Waiting};
use crate::resources::{QosClass, qos_class};

/// Sysctls that touch nothing outside the pod (upstream's `SafeSysctlAllowlist`).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
/// What the kernel keeps once a namespace, with the host's namespace that rules it out.
const NAMESPACED: [(&str, &str); 5] = [
    ("kernel.shm", "ipc"),
    ("kernel.msg", "ipc"),
    ("kernel.sem", "ipc"),
    ("fs.mqueue.", "ipc"),
    ("net.", "net"),
];

/// What a node is like, seen from a pod that wants to come.
pub struct House<'a> {
    pub node: &'a Node,
    pub allocatable: &'a ResourceList,
    pub allowed_unsafe_sysctls: &'a [String],
    pub memory_pressure: bool,
    pub other_pressures: Vec<&'static str>,
}

fn refusal(reason: &str, message: String) -> Waiting {
    Waiting {
        reason: reason.to_owned(),
        message,
    }
}

fn predicate(name: &str, description: &str) -> Waiting {
    refusal(name, format!("Predicate {name} failed: {description}"))
}

/// The pod's refusal, if the node cannot have it; `others` is what all other pods were promised.
pub fn admit(pod: &Pod, house: &House, others: &Others, is_static: bool) -> Result<(), Waiting> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    pressure(pod, house)?;
    sysctls(spec, house.allowed_unsafe_sysctls)?;
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(refusal("PodOSNotSupported", message.into()));
    }
    if let Some((name, asked, used, capacity)) = lacking(pod, house.allocatable, &others.requests) {
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
        );
        return Err(refusal(&format!("OutOf{name}"), message));
    }
    selection(spec, house.node)?;
    let wanted = api::pod::host_ports(pod);
    let taken = |port: &HostPort| wanted.iter().any(|wanted| wanted.conflicts(port));
    if others.host_ports.iter().any(taken) {
        let message = "node(s) didn't have free ports for the requested pod ports";
        return Err(predicate("NodePorts", message));
    }
    taints(spec, house.node, is_static)
}

fn selection(spec: &PodSpec, node: &Node) -> Result<(), Waiting> {
    let selected = spec
        .node_selector
        .as_ref()
        .is_none_or(|wanted| api::selector::matches_map(wanted, node.metadata.labels.as_ref()));
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    if !selected || !required.is_none_or(|required| api::selector::matches_node(required, node)) {
        return Err(predicate(
            "NodeAffinity",
            "node(s) didn't match Pod's node affinity/selector",
        ));
    }
    Ok(())
}

fn taints(spec: &PodSpec, node: &Node, is_static: bool) -> Result<(), Waiting> {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let mut ending = api::node::taints(node)
        .iter()
        .filter(|taint| taint.effect == "NoExecute");
    let tolerated = |taint| {
        tolerations
            .iter()
            .any(|toleration| api::taint::tolerates(toleration, taint))
    };
    if !is_static && !ending.all(tolerated) {
        return Err(predicate(
            "TaintToleration",
            "node(s) had taints that the pod didn't tolerate",
        ));
    }
    Ok(())
}

/// A node that runs short takes only what it cannot do without, or what asked for its share of memory.
fn pressure(pod: &Pod, house: &House) -> Result<(), Waiting> {
    let mut conditions = house.other_pressures.clone();
    let tolerates = |toleration: &k8s_openapi::api::core::v1::Toleration| {
        toleration
            .key
            .as_deref()
            .is_none_or(|key| key == "node.kubernetes.io/memory-pressure")
    };
    let spared = qos_class(pod) != QosClass::BestEffort
        || pod
            .spec
            .iter()
            .flat_map(|s| s.tolerations.iter().flatten())
            .any(tolerates);
    if house.memory_pressure && !spared {
        conditions.push("MemoryPressure");
    }
    if conditions.is_empty() || api::pod::priority(pod) >= 2_000_000_000 {
        return Ok(());
    }
    let message = format!("The node had condition: [{}]. ", conditions.join(" "));
    Err(refusal(EVICTED, message))
}

fn sysctls(spec: &PodSpec, allowed: &[String]) -> Result<(), Waiting> {
    let context = spec.security_context.as_ref();
    for sysctl in context
        .and_then(|context| context.sysctls.as_ref())
        .into_iter()
        .flatten()
    {
        let name = sysctl.name.replace('/', ".");
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        };
        let known = SAFE_SYSCTLS.contains(&name.as_str()) || allowed.iter().any(matches);
        let of_host = NAMESPACED.iter().find(|(prefix, _)| name.starts_with(prefix));
        let of_host = of_host.filter(|(_, namespace)| match *namespace {
            "net" => spec.host_network == Some(true),
            _ => spec.host_ipc == Some(true),
        });
        if !known {
            let message = format!("forbidden sysctl: {name:?} not allowlisted");
            return Err(refusal("SysctlForbidden", message));
        }
        if let Some((_, namespace)) = of_host {
            let message = format!("forbidden sysctl: {name:?} not allowed with host {namespace} enabled");
            return Err(refusal("SysctlForbidden", message));
        }
    }
    Ok(())
}

/// The amount in the unit that upstream prints: milli-CPUs, else whole units.
fn amount(list: &ResourceList, name: &str) -> i64 {
    let Some(quantity) = list.get(name) else { return 0 };
    if name == resources::CPU {
        quantity.milli_value()
    } else {
        quantity.value()
    }
}

/// The first resource there is too little of: name, requested, used, capacity.
fn lacking(pod: &Pod, allocatable: &ResourceList, others: &ResourceList) -> Option<(String, i64, i64, i64)> {
    let (pods, room) = (
        amount(others, resources::PODS),
        amount(allocatable, resources::PODS),
    );
    if pods + 1 > room {
        return Some((resources::PODS.to_owned(), 1, pods, room));
    }
    let requests = resources::pod_requests(pod);
    let first = [resources::CPU, resources::MEMORY, resources::EPHEMERAL_STORAGE];
    let rest = requests
        .keys()
        .map(String::as_str)
        .filter(|name| !first.contains(name));
    // Resources that the node does not know may be the cluster's.
    let mut names = first
        .into_iter()
        .chain(rest)
        .filter(|name| allocatable.contains_key(*name));
    names.find_map(|name| {
        let asked = amount(&requests, name);
        let (used, capacity) = (amount(others, name), amount(allocatable, name));
        (asked > 0 && asked > capacity - used).then(|| (name.to_owned(), asked, used, capacity))
    })
}

/// Whether a pod that is here can have another size: `Infeasible` will never be possible, `Deferred` may be later.
pub fn resize(
    pod: &Pod,
    is_static: bool,
    allocatable: &ResourceList,
    others: &Others,
) -> Result<(), Waiting> {
    if is_static {
        let message = "In-place resize of static-pods is not supported";
        return Err(refusal("Infeasible", message.into()));
    }
    if let Some((name, asked, _, capacity)) = lacking(pod, allocatable, &ResourceList::new()) {
        let message =
            format!("Node didn't have enough capacity: {name}, requested: {asked}, capacity: {capacity}");
        return Err(refusal("Infeasible", message));
    }
    let Some((name, asked, used, capacity)) = lacking(pod, allocatable, &others.requests) else {
        return Ok(());
    };
    let message = format!(
        "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
    );
    Err(refusal("Deferred", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::quantity::Quantity;
    use serde_json::{Value, json};

    fn list(entries: &[(&str, &str)]) -> ResourceList {
        let entries = entries.iter();
        entries
            .map(|(name, amount)| ((*name).to_owned(), amount.parse::<Quantity>().unwrap()))
            .collect()
    }

    fn pod(spec: Value) -> Pod {
        let mut whole =
            json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] });
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        serde_json::from_value(json!({ "spec": whole })).unwrap()
    }

    #[test]
    fn refusals() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "labels": { "zone": "a" } },
            "spec": { "taints": [{ "key": "k", "effect": "NoExecute" }] },
        }))
        .unwrap();
        let allocatable = list(&[("cpu", "2"), ("memory", "1Gi"), ("pods", "3")]);
        let allowed = ["kernel.msg*".to_owned()];
        let house = |memory_pressure| House {
            node: &node,
            allocatable: &allocatable,
            allowed_unsafe_sysctls: &allowed,
            memory_pressure,
            other_pressures: Vec::new(),
        };
        let tolerant = json!([{ "key": "k", "operator": "Exists" }]);
        let sysctl = |name: &str| {
            json!({ "tolerations": tolerant,
            "securityContext": { "sysctls": [{ "name": name, "value": "1" }] } })
        };
        let selector = |zone: &str| json!({ "tolerations": tolerant, "nodeSelector": { "zone": zone } });
        let port = |ip: &str| {
            json!({ "tolerations": tolerant, "containers": [{ "name": "c",
                "ports": [{ "containerPort": 8, "hostPort": 80, "hostIP": ip }] }] })
        };
        let best_effort = json!({ "tolerations": tolerant, "containers": [{ "name": "c" }] });
        for (spec, others, pressure, expected) in [
            (selector("a"), vec![], false, "ok"),
            (
                selector("b"),
                vec![],
                false,
                "NodeAffinity Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
            ),
            (
                json!({}),
                vec![],
                false,
                "TaintToleration Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
            ),
            (
                selector("a"),
                vec![("cpu", "1500m")],
                false,
                "OutOfcpu Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000",
            ),
            (
                selector("a"),
                vec![("pods", "3")],
                false,
                "OutOfpods Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3",
            ),
            (port("127.0.0.2"), vec![], false, "ok"),
            (
                port(""),
                vec![],
                false,
                "NodePorts Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
            ),
            (sysctl("kernel.shm_rmid_forced"), vec![], false, "ok"),
            (sysctl("kernel/msgmax"), vec![], false, "ok"),
            (
                sysctl("vm.swappiness"),
                vec![],
                false,
                "SysctlForbidden forbidden sysctl: \"vm.swappiness\" not allowlisted",
            ),
            (selector("a"), vec![], true, "ok"),
            (
                best_effort,
                vec![],
                true,
                "Evicted The node had condition: [MemoryPressure]. ",
            ),
        ] {
            let taken = HostPort {
                ip: "127.0.0.1".into(),
                protocol: "TCP".into(),
                port: 80,
            };
            let others = Others {
                requests: list(&others),
                host_ports: vec![taken],
            };
            let verdict = admit(&pod(spec.clone()), &house(pressure), &others, false);
            let told = verdict.map_or_else(|no| format!("{} {}", no.reason, no.message), |()| "ok".into());
            assert_eq!(told, expected, "{spec}");
        }
    }

    #[test]
    fn sizes() {
        let allocatable = list(&[("cpu", "2"), ("pods", "3")]);
        let sized = |cpu: &str| {
            pod(json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] }))
        };
        for (cpu, is_static, used, expected) in [
            ("2", false, "0", "ok"),
            (
                "3",
                false,
                "0",
                "Infeasible Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000",
            ),
            (
                "2",
                false,
                "1",
                "Deferred Node didn't have enough resource: cpu, requested: 2000, used: 1000, capacity: 2000",
            ),
            (
                "1",
                true,
                "0",
                "Infeasible In-place resize of static-pods is not supported",
            ),
        ] {
            let others = Others {
                requests: list(&[("cpu", used)]),
                ..Default::default()
            };
            let verdict = resize(&sized(cpu), is_static, &allocatable, &others);
            let told = verdict.map_or_else(|no| format!("{} {}", no.reason, no.message), |()| "ok".into());
            assert_eq!(told, expected);
        }
    }
}
