//! Which cells a kind's row has, in the order of its columns.

use jiff::Timestamp;
use serde_json::Value;

use super::age::since;
use super::text::{containers, int, labels, list, plain, selector, text, text_or};
use super::{network, pods, storage, workloads};
use crate::catalog::Resource;

/// How one cell comes out of an object.
enum Cell {
    Name,
    Age,
    /// RFC 3339 text of the creation time.
    Created,
    Text(&'static str),
    Or(&'static str, &'static str),
    Int(&'static str),
    /// An integer in a column of strings.
    Digits(&'static str),
    Bool(&'static str),
    /// The number of entries of lists or maps.
    Count(&'static [&'static str]),
    Labels(&'static str),
    Selector(&'static str),
    /// Names and images of a pod template's containers.
    Names(&'static str),
    Images(&'static str),
    With(fn(&Value, Timestamp) -> Value),
}

use Cell::{Age, Bool, Count, Created, Digits, Images, Int, Labels, Name, Names, Or, Selector, Text, With};

const TEMPLATE: &str = "/spec/template/spec/containers";
const JOB_TEMPLATE: &str = "/spec/jobTemplate/spec/template/spec/containers";

pub(super) fn of(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    if resource.kind.custom.is_some() {
        return crate::custom::table::cells(resource, object, now);
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pods::cells(object, now),
        ("" | "events.k8s.io", "events") => workloads::event(object, now),
        (group, plural) => plan(group, &resource.version, plural)
            .iter()
            .map(|cell| cell.of(object, now))
            .collect(),
    }
}

pub(super) fn of_scale(scale: &Value, now: Timestamp) -> Vec<Value> {
    [Name, Int("/spec/replicas"), Int("/status/replicas"), Age]
        .iter()
        .map(|cell| cell.of(scale, now))
        .collect()
}

impl Cell {
    fn of(&self, object: &Value, now: Timestamp) -> Value {
        match self {
            Name => text(object, "/metadata/name").into(),
            Age => since(object.pointer("/metadata/creationTimestamp"), now).into(),
            Created => text(object, "/metadata/creationTimestamp").into(),
            Text(pointer) => object.pointer(pointer).map_or_else(String::new, plain).into(),
            Or(pointer, absent) => match object.pointer(pointer) {
                Some(Value::String(_)) => text_or(object, pointer, absent).into(),
                Some(value) => plain(value).into(),
                None => (*absent).into(),
            },
            Int(pointer) => int(object, pointer).into(),
            Digits(pointer) => int(object, pointer).to_string().into(),
            Bool(pointer) => object
                .pointer(pointer)
                .and_then(Value::as_bool)
                .unwrap_or(false)
                .into(),
            Count(pointers) => {
                let size = |value: &Value| {
                    value
                        .as_array()
                        .map(Vec::len)
                        .or_else(|| Some(value.as_object()?.len()))
                        .unwrap_or(0)
                };
                pointers
                    .iter()
                    .filter_map(|pointer| object.pointer(pointer))
                    .map(size)
                    .sum::<usize>()
                    .into()
            }
            Labels(pointer) => labels(object, pointer).into(),
            Selector(pointer) => selector(object, pointer).into(),
            Names(pointer) => containers(object, pointer, "name").into(),
            Images(pointer) => containers(object, pointer, "image").into(),
            With(cell) => cell(object, now),
        }
    }
}

fn plan(group: &str, version: &str, plural: &str) -> &'static [Cell] {
    match group {
        "" => core(plural),
        "apps" => apps(plural),
        "batch"
        | "autoscaling"
        | "policy"
        | "scheduling.k8s.io"
        | "coordination.k8s.io"
        | "node.k8s.io"
        | "certificates.k8s.io" => work(version, plural),
        "networking.k8s.io" | "discovery.k8s.io" => networking(plural),
        _ => others(plural),
    }
}

fn core(plural: &str) -> &'static [Cell] {
    match plural {
        "componentstatuses" => &[
            Name,
            With(storage::component_health),
            Text("/conditions/0/message"),
            Text("/conditions/0/error"),
        ],
        "configmaps" => &[Name, Count(&["/data", "/binaryData"]), Age],
        "endpoints" => &[Name, With(network::endpoints), Age],
        "limitranges" => &[Name, Created],
        "namespaces" => &[Name, Text("/status/phase"), Age],
        "nodes" => &[
            Name,
            With(workloads::node_status),
            With(workloads::node_roles),
            Age,
            Text("/status/nodeInfo/kubeletVersion"),
            With(|node, _| workloads::node_address(node, "InternalIP")),
            With(|node, _| workloads::node_address(node, "ExternalIP")),
            Or("/status/nodeInfo/osImage", "<unknown>"),
            Or("/status/nodeInfo/kernelVersion", "<unknown>"),
            Or("/status/nodeInfo/containerRuntimeVersion", "<unknown>"),
        ],
        "persistentvolumeclaims" => &[
            Name,
            With(storage::phase),
            Text("/spec/volumeName"),
            With(storage::claim_capacity),
            With(storage::claim_modes),
            Text("/spec/storageClassName"),
            Or("/spec/volumeAttributesClassName", "<unset>"),
            Age,
            Or("/spec/volumeMode", "<unset>"),
        ],
        "persistentvolumes" => &[
            Name,
            Text("/spec/capacity/storage"),
            With(|volume, _| storage::access_modes(list(volume, "/spec/accessModes"))),
            Text("/spec/persistentVolumeReclaimPolicy"),
            With(storage::phase),
            With(storage::volume_claim),
            Text("/spec/storageClassName"),
            Or("/spec/volumeAttributesClassName", "<unset>"),
            Text("/status/reason"),
            Age,
            Or("/spec/volumeMode", "<unset>"),
        ],
        "podtemplates" => &[
            Name,
            Names("/template/spec/containers"),
            Images("/template/spec/containers"),
            Labels("/template/metadata/labels"),
        ],
        "replicationcontrollers" => &[
            Name,
            Int("/spec/replicas"),
            Int("/status/replicas"),
            Int("/status/readyReplicas"),
            Age,
            Names(TEMPLATE),
            Images(TEMPLATE),
            Labels("/spec/selector"),
        ],
        "resourcequotas" => &[
            Name,
            With(|quota, _| storage::quota(quota, false)),
            With(|quota, _| storage::quota(quota, true)),
            Age,
        ],
        "secrets" => &[Name, Text("/type"), Count(&["/data"]), Age],
        "services" => &[
            Name,
            Text("/spec/type"),
            With(network::cluster_ip),
            With(network::external_ip),
            With(network::service_ports),
            Age,
            Labels("/spec/selector"),
        ],
        _ => &[Name, Age],
    }
}

fn apps(plural: &str) -> &'static [Cell] {
    match plural {
        "controllerrevisions" => &[Name, With(workloads::controller), Digits("/revision"), Age],
        "daemonsets" => &[
            Name,
            Int("/status/desiredNumberScheduled"),
            Int("/status/currentNumberScheduled"),
            Int("/status/numberReady"),
            Int("/status/updatedNumberScheduled"),
            Int("/status/numberAvailable"),
            Labels("/spec/template/spec/nodeSelector"),
            Age,
            Names(TEMPLATE),
            Images(TEMPLATE),
            Selector("/spec/selector"),
        ],
        "deployments" => &[
            Name,
            With(workloads::ready_of_desired),
            Int("/status/updatedReplicas"),
            Int("/status/availableReplicas"),
            Age,
            Names(TEMPLATE),
            Images(TEMPLATE),
            Selector("/spec/selector"),
        ],
        "replicasets" => &[
            Name,
            Int("/spec/replicas"),
            Int("/status/replicas"),
            Int("/status/readyReplicas"),
            Age,
            Names(TEMPLATE),
            Images(TEMPLATE),
            Selector("/spec/selector"),
        ],
        "statefulsets" => &[
            Name,
            With(workloads::ready_of_desired),
            Age,
            Names(TEMPLATE),
            Images(TEMPLATE),
        ],
        _ => &[Name, Age],
    }
}

fn work(version: &str, plural: &str) -> &'static [Cell] {
    match (plural, version) {
        ("cronjobs", _) => &[
            Name,
            Text("/spec/schedule"),
            Or("/spec/timeZone", "<none>"),
            Bool("/spec/suspend"),
            Count(&["/status/active"]),
            With(workloads::last_schedule),
            Age,
            Names(JOB_TEMPLATE),
            Images(JOB_TEMPLATE),
            Selector("/spec/jobTemplate/spec/selector"),
        ],
        ("jobs", _) => &[
            Name,
            With(workloads::job_status),
            With(workloads::job_completions),
            With(workloads::job_duration),
            Age,
            Names(TEMPLATE),
            Images(TEMPLATE),
            Selector("/spec/selector"),
        ],
        ("horizontalpodautoscalers", "v1") => &[
            Name,
            With(workloads::scale_target),
            With(workloads::cpu_target),
            Or("/spec/minReplicas", "<unset>"),
            Digits("/spec/maxReplicas"),
            Digits("/status/currentReplicas"),
            Age,
        ],
        ("horizontalpodautoscalers", _) => &[
            Name,
            With(workloads::scale_target),
            With(workloads::autoscaler_targets),
            Or("/spec/minReplicas", "<unset>"),
            Digits("/spec/maxReplicas"),
            Digits("/status/currentReplicas"),
            Age,
        ],
        ("poddisruptionbudgets", _) => &[
            Name,
            Or("/spec/minAvailable", "N/A"),
            Or("/spec/maxUnavailable", "N/A"),
            Int("/status/disruptionsAllowed"),
            Age,
        ],
        ("priorityclasses", _) => &[
            Name,
            Int("/value"),
            Bool("/globalDefault"),
            Age,
            Text("/preemptionPolicy"),
        ],
        ("leases", _) => &[Name, Text("/spec/holderIdentity"), Age],
        ("runtimeclasses", _) => &[Name, Text("/handler"), Age],
        ("certificatesigningrequests", _) => &[
            Name,
            Age,
            Or("/spec/signerName", "<none>"),
            Text("/spec/username"),
            With(storage::requested_duration),
            With(storage::request_status),
        ],
        _ => &[Name, Age],
    }
}

fn networking(plural: &str) -> &'static [Cell] {
    match plural {
        "endpointslices" => &[
            Name,
            Text("/addressType"),
            With(network::slice_ports),
            With(network::slice_endpoints),
            Age,
        ],
        "ingressclasses" => &[
            Name,
            Text("/spec/controller"),
            With(network::class_parameters),
            Age,
        ],
        "ingresses" => &[
            Name,
            Or("/spec/ingressClassName", "<none>"),
            With(network::ingress_hosts),
            With(network::ingress_address),
            With(network::ingress_ports),
            Age,
        ],
        "ipaddresses" => &[Name, With(network::parent_reference)],
        "networkpolicies" => &[Name, Selector("/spec/podSelector"), Age],
        "servicecidrs" => &[
            Name,
            With(|cidr, _| {
                super::text::joined(list(cidr, "/spec/cidrs").iter().filter_map(Value::as_str), ",").into()
            }),
            Age,
        ],
        _ => &[Name, Age],
    }
}

fn others(plural: &str) -> &'static [Cell] {
    match plural {
        "apiservices" => &[
            Name,
            With(storage::api_service),
            With(storage::api_available),
            Age,
        ],
        "clusterrolebindings" | "rolebindings" => &[
            Name,
            With(storage::role_reference),
            Age,
            With(|binding, _| storage::subjects(binding, "User")),
            With(|binding, _| storage::subjects(binding, "Group")),
            With(|binding, _| storage::subjects(binding, "ServiceAccount")),
        ],
        "clusterroles" | "roles" | "csistoragecapacities" | "customresourcedefinitions" => &[Name, Created],
        "csidrivers" => &[
            Name,
            Bool("/spec/attachRequired"),
            Bool("/spec/podInfoOnMount"),
            Bool("/spec/storageCapacity"),
            With(storage::token_requests),
            Bool("/spec/requiresRepublish"),
            With(storage::modes),
            Age,
        ],
        "csinodes" => &[Name, Count(&["/spec/drivers"]), Age],
        "storageclasses" => &[
            With(storage::class_name),
            Text("/provisioner"),
            Or("/reclaimPolicy", "Delete"),
            Or("/volumeBindingMode", "Immediate"),
            Bool("/allowVolumeExpansion"),
            Age,
        ],
        "volumeattachments" => &[
            Name,
            Text("/spec/attacher"),
            Text("/spec/source/persistentVolumeName"),
            Text("/spec/nodeName"),
            Bool("/status/attached"),
            Age,
        ],
        "volumeattributesclasses" => &[Name, Text("/driverName"), Age],
        "mutatingadmissionpolicies" => &[Name, Count(&["/spec/mutations"]), With(storage::param_kind), Age],
        "validatingadmissionpolicies" => &[
            Name,
            Count(&["/spec/validations"]),
            With(storage::param_kind),
            Age,
        ],
        "mutatingadmissionpolicybindings" | "validatingadmissionpolicybindings" => {
            &[Name, Text("/spec/policyName"), With(storage::param_ref), Age]
        }
        "mutatingwebhookconfigurations" | "validatingwebhookconfigurations" => {
            &[Name, Count(&["/webhooks"]), Age]
        }
        "resourceclaims" => &[Name, With(storage::claim_state), Age],
        "resourceslices" => &[
            Name,
            Or("/spec/nodeName", "<unset>"),
            Text("/spec/driver"),
            Text("/spec/pool/name"),
            Age,
        ],
        "flowschemas" => &[
            Name,
            Or("/spec/priorityLevelConfiguration/name", "<none>"),
            Digits("/spec/matchingPrecedence"),
            Or("/spec/distinguisherMethod/type", "<none>"),
            Age,
            With(storage::missing_level),
        ],
        "prioritylevelconfigurations" => &[
            Name,
            Text("/spec/type"),
            With(storage::concurrency_shares),
            With(|level, _| storage::queuing(level, "queues")),
            With(|level, _| storage::queuing(level, "handSize")),
            With(|level, _| storage::queuing(level, "queueLengthLimit")),
            Age,
        ],
        _ => &[Name, Age],
    }
}
