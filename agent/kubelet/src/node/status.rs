//! What a Node object says: pure, from facts about machine, runtime and configuration.

use std::collections::{BTreeMap, BTreeSet};

use api::quantity::{Format, Quantity};
use cri_api::v1::{Image, StatusResponse};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Map, Value, json};

use super::machine::Machine;
use crate::cgroups::Limits;
use crate::eviction;
use crate::{Config, KUBELET_VERSION, Settings};

/// Upstream's `nodeStatusMaxImages`.
const MAX_IMAGES: usize = 50;
const MAX_NAMES_PER_IMAGE: usize = 5;
/// The condition that is ours: whether the kernel parameters are in effect as given.
const PARAMETERS: &str = "IronletParameters";

pub struct Facts<'a> {
    pub machine: &'a Machine,
    pub config: &'a Config,
    pub images: &'a [Image],
    pub not_ready: Option<String>,
    /// What the runtime says of itself.
    pub runtime: &'a StatusResponse,
    pub allocatable: &'a BTreeMap<String, Wire>,
    pub disk_pressure: bool,
    pub memory_pressure: bool,
    pub pid_pressure: bool,
    pub volumes_in_use: std::collections::BTreeSet<String>,
    /// Capacity and allocatable by resource of device plugins.
    pub devices: &'a BTreeMap<String, (Wire, Wire)>,
    /// One error a line; none where nobody checked kernel parameters.
    pub parameter_errors: Option<&'a str>,
}

fn units(value: u64, format: Format) -> Wire {
    Quantity::from_units(i64::try_from(value).unwrap_or(i64::MAX), format).to_wire()
}

fn capacity(machine: &Machine, settings: &Settings) -> BTreeMap<String, Wire> {
    let kibibytes = |bytes: u64| Wire(format!("{}Ki", bytes / 1024));
    let mut all = BTreeMap::from([
        ("cpu".to_owned(), units(machine.cpus, Format::DecimalSI)),
        ("memory".to_owned(), kibibytes(machine.memory_bytes)),
        ("ephemeral-storage".to_owned(), kibibytes(machine.storage_bytes)),
        ("hugepages-1Gi".to_owned(), Wire("0".into())),
        ("hugepages-2Mi".to_owned(), Wire("0".into())),
        ("pods".to_owned(), Wire(settings.max_pods.to_string())),
    ]);
    for (kilobytes, bytes) in &machine.huge_pages {
        let size = units(kilobytes * 1024, Format::BinarySI);
        all.insert(format!("hugepages-{}", size.0), units(*bytes, Format::BinarySI));
    }
    all
}

/// Capacity less what the node keeps for itself and what eviction keeps free.
pub fn allocatable(machine: &Machine, settings: &Settings) -> BTreeMap<String, Wire> {
    let mut resources = capacity(machine, settings);
    for (name, signal) in [
        ("cpu", ""),
        ("memory", "memory.available"),
        ("ephemeral-storage", "nodefs.available"),
    ] {
        let Some(whole) = resources.get(name).map(Quantity::of) else {
            continue;
        };
        let threshold = settings.eviction_hard.get(signal);
        let kept =
            threshold.and_then(|text| eviction::threshold(text, u64::try_from(whole.value()).unwrap_or(0)));
        let kept = Quantity::from_units(i64::try_from(kept.unwrap_or(0)).unwrap_or(0), Format::DecimalSI);
        let left = whole - settings.reserved(name) - kept;
        let left = if left.is_negative() { Quantity::ZERO } else { left };
        let wire = match name {
            "memory" => Wire(format!("{}Ki", left.value() / 1024)),
            "cpu" => left.to_wire(),
            _ => units(u64::try_from(left.value()).unwrap_or(0), Format::DecimalSI),
        };
        resources.insert(name.to_owned(), wire);
    }
    resources
}

/// What the node's pods may use together: all but what is reserved, where that is enforced.
pub fn limits(machine: &Machine, settings: &Settings) -> Limits {
    let all = capacity(machine, settings);
    let left = |name: &str| all.get(name).map_or(Quantity::ZERO, Quantity::of) - settings.reserved(name);
    let enforced = settings
        .enforce_node_allocatable
        .iter()
        .any(|what| what == "pods");
    let memory = left("memory").value();
    Limits {
        milli_cpus: left("cpu").milli_value(),
        memory: (enforced && memory > 0).then_some(memory),
        pod_pids: u64::try_from(settings.pod_pids_limit).ok(),
    }
}

fn with_devices(
    mut resources: BTreeMap<String, Wire>,
    devices: &BTreeMap<String, (Wire, Wire)>,
    of: fn(&(Wire, Wire)) -> &Wire,
) -> BTreeMap<String, Wire> {
    resources.extend(
        devices
            .iter()
            .map(|(name, both)| (name.clone(), of(both).clone())),
    );
    resources
}

/// Resources that others have told the API server of stay. Huge pages are the machine's alone.
fn with_extended(
    mut own: BTreeMap<String, Wire>,
    others: Option<&BTreeMap<String, Wire>>,
) -> BTreeMap<String, Wire> {
    for (name, amount) in others.into_iter().flatten() {
        if !name.starts_with("hugepages-") {
            own.entry(name.clone()).or_insert_with(|| amount.clone());
        }
    }
    own
}

/// What a patch says of resources: those that differ, and null for those that are gone.
fn changed_resources(
    old: Option<&BTreeMap<String, Wire>>,
    new: Option<&BTreeMap<String, Wire>>,
) -> Map<String, Value> {
    let of = |all: Option<&BTreeMap<String, Wire>>, name: &str| all.and_then(|all| all.get(name).cloned());
    let names: BTreeSet<&String> = old.into_iter().chain(new).flat_map(BTreeMap::keys).collect();
    let changed = names.into_iter().filter(|name| of(old, name) != of(new, name));
    changed.map(|name| (name.clone(), json!(of(new, name)))).collect()
}

/// The strategic merge patch from one status to the next. Resources that stay the same are left out, so that what
/// others do to them meanwhile holds.
pub fn patch(old: &NodeStatus, new: &NodeStatus) -> Value {
    let mut status = serde_json::to_value(new).unwrap_or_default();
    for (field, old, new) in [
        ("capacity", &old.capacity, &new.capacity),
        ("allocatable", &old.allocatable, &new.allocatable),
    ] {
        status[field] = Value::Object(changed_resources(old.as_ref(), new.as_ref()));
    }
    // The address list merges by type: old addresses must be named to go.
    let kinds = |status: &NodeStatus| -> Vec<String> {
        let addresses = status.addresses.iter().flatten();
        addresses.map(|address| address.type_.clone()).collect()
    };
    let now = kinds(new);
    let gone = kinds(old).into_iter().filter(|kind| !now.contains(kind));
    let gone = gone.map(|kind| json!({ "$patch": "delete", "type": kind }));
    if let Some(addresses) = status.get_mut("addresses").and_then(Value::as_array_mut) {
        addresses.extend(gone);
    }
    if new.volumes_in_use.is_none() && old.volumes_in_use.is_some() {
        status["volumesInUse"] = Value::Null;
    }
    json!({ "status": status })
}

/// The node as first registered. Its readiness taints are the node lifecycle controller's.
pub fn initial_node(config: &Config) -> Node {
    let machine_arch = Machine::read(&config.root_dir, String::new()).architecture;
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), config.node_name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), machine_arch.clone()),
        ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("beta.kubernetes.io/arch".to_owned(), machine_arch),
    ]);
    labels.extend(config.node_labels.clone());
    let taints = (!config.node_taints.is_empty()).then(|| config.node_taints.clone());
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            ..Default::default()
        },
        spec: Some(NodeSpec {
            taints,
            ..Default::default()
        }),
        status: None,
    }
}

pub fn node_status(facts: &Facts, old: &NodeStatus, now: Timestamp) -> NodeStatus {
    let machine = facts.machine;
    let capacity = with_extended(
        with_devices(capacity(machine, &facts.config.settings), facts.devices, |both| {
            &both.0
        }),
        old.capacity.as_ref(),
    );
    // Of what others told, all may be used.
    let allocatable = with_extended(
        with_devices(facts.allocatable.clone(), facts.devices, |both| &both.1),
        Some(&capacity),
    );
    let address = |kind: &str, address: String| NodeAddress {
        type_: kind.into(),
        address,
    };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", facts.config.node_ip.to_string()),
            address("Hostname", facts.config.node_name.clone()),
        ]),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(facts, old, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(facts.config.port),
            }),
        }),
        images: Some(images(facts.images)),
        runtime_handlers: Some(runtime_handlers(facts.runtime)).filter(|handlers| !handlers.is_empty()),
        features: facts.runtime.features.as_ref().map(|features| NodeFeatures {
            supplemental_groups_policy: Some(features.supplemental_groups_policy),
        }),
        volumes_in_use: Some(facts.volumes_in_use.iter().cloned().collect())
            .filter(|used: &Vec<String>| !used.is_empty()),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.clone(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: machine.runtime_version.clone(),
            kernel_version: machine.kernel_version.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.into(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn runtime_handlers(runtime: &StatusResponse) -> Vec<NodeRuntimeHandler> {
    let one = |handler: &cri_api::v1::RuntimeHandler| NodeRuntimeHandler {
        name: Some(handler.name.clone()),
        features: handler
            .features
            .as_ref()
            .map(|features| NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
                user_namespaces: Some(features.user_namespaces),
            }),
    };
    runtime.runtime_handlers.iter().map(one).collect()
}

fn conditions(facts: &Facts, old: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    let pressure =
        |kind: &'static str, under: bool, no: &'static str, yes: &'static str, words: [&'static str; 2]| {
            let (status, reason, message) = if under {
                ("True", yes, words[1])
            } else {
                ("False", no, words[0])
            };
            (kind, status, reason, message.to_owned())
        };
    let ready = match &facts.not_ready {
        None => (
            "Ready",
            "True",
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        Some(why) => ("Ready", "False", "KubeletNotReady", why.clone()),
    };
    let parameters = facts.parameter_errors.map(|errors| {
        let errors: Vec<&str> = errors.lines().filter(|line| !line.is_empty()).collect();
        if errors.is_empty() {
            let message = "every kernel parameter is in effect".to_owned();
            (PARAMETERS, "True", "ParametersInEffect", message)
        } else {
            (PARAMETERS, "False", "ParameterErrors", errors.join("; "))
        }
    });
    let wanted = [
        pressure(
            "MemoryPressure",
            facts.memory_pressure,
            "KubeletHasSufficientMemory",
            "KubeletHasInsufficientMemory",
            [
                "kubelet has sufficient memory available",
                "kubelet has insufficient memory available",
            ],
        ),
        pressure(
            "DiskPressure",
            facts.disk_pressure,
            "KubeletHasNoDiskPressure",
            "KubeletHasDiskPressure",
            ["kubelet has no disk pressure", "kubelet has disk pressure"],
        ),
        pressure(
            "PIDPressure",
            facts.pid_pressure,
            "KubeletHasSufficientPID",
            "KubeletHasInsufficientPID",
            [
                "kubelet has sufficient PID available",
                "kubelet has insufficient PID available",
            ],
        ),
        ready,
    ];
    wanted
        .into_iter()
        .chain(parameters)
        .map(|(kind, status, reason, message)| {
            let before = old
                .conditions
                .iter()
                .flatten()
                .find(|condition| condition.type_ == kind);
            let unchanged = before.filter(|condition| condition.status == status);
            NodeCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: unchanged
                    .and_then(|condition| condition.last_transition_time.clone())
                    .or(Some(Time(now))),
            }
        })
        .collect()
}

/// The largest images first, as upstream lists them.
fn images(images: &[Image]) -> Vec<ContainerImage> {
    let mut sorted: Vec<&Image> = images.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let listed = sorted.into_iter().take(MAX_IMAGES).map(|image| {
        let names = image
            .repo_digests
            .iter()
            .chain(&image.repo_tags)
            .take(MAX_NAMES_PER_IMAGE)
            .cloned()
            .collect();
        ContainerImage {
            names: Some(names),
            size_bytes: Some(i64::try_from(image.size).unwrap_or(i64::MAX)),
        }
    });
    listed.collect()
}

/// Whether anything but the heartbeat differs.
pub fn is_changed(old: &NodeStatus, new: &NodeStatus) -> bool {
    let comparable = |status: &NodeStatus| {
        let mut status = NodeStatus {
            addresses: status.addresses.clone(),
            capacity: status.capacity.clone(),
            allocatable: status.allocatable.clone(),
            conditions: status.conditions.clone(),
            daemon_endpoints: status.daemon_endpoints.clone(),
            images: status.images.clone(),
            volumes_in_use: status.volumes_in_use.clone(),
            runtime_handlers: status.runtime_handlers.clone(),
            features: status.features.clone(),
            node_info: status.node_info.clone(),
            ..Default::default()
        };
        status
            .conditions
            .iter_mut()
            .flatten()
            .for_each(|condition| condition.last_heartbeat_time = None);
        // Conditions of others are not ours to compare.
        let ours = [
            "MemoryPressure",
            "DiskPressure",
            "PIDPressure",
            "Ready",
            PARAMETERS,
        ];
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|condition| ours.contains(&condition.type_.as_str()));
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        if let Some(addresses) = &mut status.addresses {
            addresses.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        status.images = status.images.filter(|images| !images.is_empty());
        status
    };
    comparable(old) != comparable(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(not_ready: Option<&str>, old: &NodeStatus, second: i64) -> NodeStatus {
        status_with(not_ready, None, old, second)
    }

    fn status_with(
        not_ready: Option<&str>,
        parameter_errors: Option<&str>,
        old: &NodeStatus,
        second: i64,
    ) -> NodeStatus {
        let machine = Machine {
            cpus: 2,
            memory_bytes: 512 << 20,
            storage_bytes: 10 << 30,
            ..Default::default()
        };
        let config = crate::start_up::testing::config();
        let facts = Facts {
            machine: &machine,
            config: &config,
            images: &[],
            not_ready: not_ready.map(Into::into),
            runtime: &StatusResponse::default(),
            allocatable: &allocatable(&machine, &config.settings),
            disk_pressure: false,
            memory_pressure: false,
            pid_pressure: false,
            devices: &BTreeMap::new(),
            volumes_in_use: Default::default(),
            parameter_errors,
        };
        node_status(&facts, old, Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn heartbeats_alone_are_no_change() {
        let first = status(None, &NodeStatus::default(), 0);
        let second = status(None, &first, 10);
        assert_ne!(first, second);
        assert!(!is_changed(&first, &second));
        let third = status(Some("container runtime is down"), &second, 20);
        assert!(is_changed(&second, &third));
        let ready = third
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "Ready")
            .unwrap();
        assert_eq!(ready.reason.as_deref(), Some("KubeletNotReady"));
        assert_eq!(
            ready.last_transition_time,
            Some(Time(Timestamp::from_second(20).unwrap()))
        );
    }

    #[test]
    fn wrong_parameters_are_told() {
        let condition = |errors: Option<&str>| {
            let status = status_with(None, errors, &NodeStatus::default(), 0);
            let found = status
                .conditions
                .into_iter()
                .flatten()
                .find(|c| c.type_ == PARAMETERS)?;
            Some(format!("{} {} {}", found.status, found.reason?, found.message?))
        };
        for (errors, expected) in [
            (None, None),
            (
                Some(""),
                Some("True ParametersInEffect every kernel parameter is in effect"),
            ),
            (
                Some("ip=: no\nironlet.x=: unknown\n"),
                Some("False ParameterErrors ip=: no; ironlet.x=: unknown"),
            ),
        ] {
            assert_eq!(condition(errors).as_deref(), expected);
        }
        let good = status_with(None, Some(""), &NodeStatus::default(), 0);
        let bad = status_with(None, Some("ip=: no"), &good, 10);
        assert!(is_changed(&good, &bad));
    }

    #[test]
    fn eviction_thresholds_are_not_allocatable() {
        let status = status(None, &NodeStatus::default(), 0);
        assert_eq!(status.capacity.unwrap()["memory"].0, "524288Ki");
        assert_eq!(status.allocatable.unwrap()["memory"].0, "421888Ki");
    }

    #[test]
    fn resources_of_others_are_kept_and_may_be_used() {
        let first = status(None, &NodeStatus::default(), 0);
        let amount = |all: &Option<BTreeMap<String, Wire>>, name: &str| all.as_ref()?.get(name).cloned();
        let own = amount(&first.allocatable, "cpu");
        for (name, told) in [("example.com/fpga", "5"), ("kubernetes.io/batch", "3")] {
            let mut old = first.clone();
            old.capacity
                .get_or_insert_default()
                .insert(name.into(), Wire(told.into()));
            let new = status(None, &old, 10);
            assert_eq!(amount(&new.capacity, name), Some(Wire(told.into())));
            assert_eq!(amount(&new.allocatable, name), Some(Wire(told.into())));
            assert_eq!(amount(&new.allocatable, "cpu"), own);
            assert!(is_changed(&old, &new));
            let patched = patch(&old, &new)["status"].clone();
            assert_eq!(patched["allocatable"], json!({name: told}), "only what differs");
            assert_eq!(patched["capacity"], json!({}));

            let mut more = new.clone();
            more.capacity
                .get_or_insert_default()
                .insert(name.into(), Wire("9".into()));
            let raised = status(None, &more, 20);
            assert_eq!(amount(&raised.allocatable, name), Some(Wire("9".into())));

            let mut less = new.clone();
            less.capacity.get_or_insert_default().remove(name);
            let without = status(None, &less, 30);
            assert_eq!(amount(&without.allocatable, name), None);
            assert_eq!(
                patch(&less, &without)["status"]["allocatable"],
                json!({name: null})
            );
        }
    }

    #[test]
    fn huge_pages_that_the_machine_lacks_go() {
        let mut old = status(None, &NodeStatus::default(), 0);
        old.capacity
            .get_or_insert_default()
            .insert("hugepages-64Ki".into(), Wire("0".into()));
        let new = status(None, &old, 10);
        assert_eq!(
            patch(&old, &new)["status"]["capacity"],
            json!({"hugepages-64Ki": null})
        );
    }

    #[test]
    fn addresses_that_are_gone_are_named() {
        let new = status(None, &NodeStatus::default(), 0);
        let mut old = new.clone();
        old.addresses.get_or_insert_default().push(NodeAddress {
            type_: "ExternalIP".into(),
            address: "192.0.2.1".into(),
        });
        let patched = patch(&old, &new)["status"]["addresses"].clone();
        let patched = patched.as_array().unwrap();
        assert_eq!(patched.len(), 3);
        assert_eq!(patched[2], json!({"$patch": "delete", "type": "ExternalIP"}));
    }

    #[test]
    fn labels_given_by_the_user_are_registered() {
        let mut config = crate::start_up::testing::config();
        config.node_labels.insert("zone".into(), "a".into());
        let labels = initial_node(&config).metadata.labels.unwrap();
        assert_eq!(labels["zone"], "a");
        assert_eq!(labels["kubernetes.io/hostname"], config.node_name);
    }
}
