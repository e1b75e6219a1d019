//! What upstream refuses, as causes with its reasons and texts.
//!
//! `structure` walks any object by its types (enumerations, the checks of `facts/checks.facts`), `metadata` looks at names,
//! labels and annotations, and one module a family of kinds adds what takes more than one field to judge.

mod admission;
mod cause;
mod certificates;
mod cluster;
mod immutable;
mod metadata;
pub(crate) mod names;
mod net;
mod pods;
mod rbac;
mod resize;
mod rules;
mod services;
mod settings;
mod storage;
mod structure;
mod workloads;

use serde_json::Value;

use crate::catalog::Resource;
use crate::custom::definition;

pub use cause::{Cause, CauseReason, aggregate};
pub(crate) use names::dns_1035_problem;
pub use names::{dns_label_problem, dns_subdomain_problem, label_value_problem, qualified_name_problem};
pub use resize::qos_class;

const DEFINITIONS: (&str, &str) = ("apiextensions.k8s.io", "customresourcedefinitions");

/// A new object, defaulted.
pub fn create(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = metadata::create(resource, object);
    if let Some(custom) = &resource.kind.custom {
        causes.extend(custom.validate(object, None));
        return causes;
    }
    causes.extend(contents(resource, object));
    if key(resource) == ("", "pods") {
        causes.extend(pods::create_only(object));
    }
    causes
}

/// A changed object, defaulted; `old` is what is stored.
pub fn update(resource: &Resource, object: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = metadata::update(resource, object, old);
    if let Some(custom) = &resource.kind.custom {
        causes.extend(custom.validate(object, Some(old)));
        return causes;
    }
    causes.extend(immutable::check(resource, object, old));
    causes.extend(match key(resource) {
        ("", "pods") => pods::update(object, old),
        ("", "configmaps" | "secrets") => settings::update(object, old),
        ("", "nodes") => settings::node_update(object, old),
        ("", "services") => services::update(object, old),
        ("", "persistentvolumeclaims") => settings::claim_update(object, old),
        ("", "persistentvolumes") => storage::volume_update(object, old),
        ("", "resourcequotas") => cluster::quota_update(object, old),
        ("storage.k8s.io", "storageclasses") => storage::class_update(object, old),
        ("storage.k8s.io", "csinodes") => storage::node_update(object, old),
        ("scheduling.k8s.io", "priorityclasses") => cluster::priority_class_update(object, old),
        ("apps", "statefulsets") => workloads::stateful_set_update(object, old),
        ("batch", "jobs") => workloads::job_update(object, old),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            rbac::binding_update(object, old)
        }
        DEFINITIONS => definition::check_update(object),
        _ => Vec::new(),
    });
    // What was there before a rule existed may stay: only new problems count, as upstream's ratcheting has it for pods.
    if key(resource) == ("", "pods") && object.get("spec") == old.get("spec") {
        return causes;
    }
    causes.extend(contents(resource, object));
    causes
}

/// A change through a subresource: only what that subresource may touch has changed, and metadata.
pub fn update_subresource(resource: &Resource, subresource: &str, object: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = metadata::update(resource, object, old);
    if let Some(custom) = &resource.kind.custom {
        causes.extend(custom.validate(object, Some(old)));
    }
    if key(resource) == DEFINITIONS {
        causes.extend(definition::check_update(object));
    }
    match (key(resource), subresource) {
        (("", "pods"), "ephemeralcontainers") => causes.extend(pods::ephemeral_update(object, old)),
        (("", "pods"), "resize") => {
            causes.extend(resize::check(object, old));
            causes.extend(contents(resource, object));
        }
        (("certificates.k8s.io", "certificatesigningrequests"), part) => {
            causes.extend(certificates::signing_request_update(object, old, part));
        }
        _ => {}
    }
    causes
}

fn contents(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = structure::check(&resource.kind, object);
    causes.extend(match key(resource) {
        ("", "pods") => pods::spec(&object["spec"], "spec"),
        ("", "podtemplates") => workloads::template(&object["template"], "template"),
        ("", "services") => services::check(object),
        ("", "configmaps") => settings::config_map(object),
        ("", "secrets") => settings::secret(object),
        ("", "limitranges") => cluster::limit_range(object),
        ("", "resourcequotas") => cluster::quota(object),
        ("", "persistentvolumes") => storage::volume(object),
        ("", "persistentvolumeclaims") => storage::claim_spec(&object["spec"], "spec"),
        ("storage.k8s.io", "csidrivers") => storage::driver(object),
        ("storage.k8s.io", "csinodes") => storage::node(object),
        ("storage.k8s.io", "volumeattachments") => storage::attachment(object),
        ("scheduling.k8s.io", "priorityclasses") => cluster::priority_class(object),
        ("certificates.k8s.io", "certificatesigningrequests") => certificates::signing_request(object),
        ("discovery.k8s.io", "endpointslices") => cluster::endpoint_slice(object),
        ("networking.k8s.io", "ingresses") => cluster::ingress(object),
        ("networking.k8s.io", "ingressclasses") => cluster::ingress_class(object),
        ("networking.k8s.io", "ipaddresses") => cluster::ip_address(object),
        ("networking.k8s.io", "servicecidrs") => cluster::service_cidr(object),
        (
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations" | "mutatingwebhookconfigurations",
        ) => cluster::webhooks(object),
        ("admissionregistration.k8s.io", "validatingadmissionpolicies" | "mutatingadmissionpolicies") => {
            admission::policy(object)
        }
        (
            "admissionregistration.k8s.io",
            "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings",
        ) => admission::binding(object),
        ("apps", "deployments" | "replicasets" | "daemonsets" | "statefulsets") => {
            workloads::controller(&resource.plural, object)
        }
        ("", "replicationcontrollers") => workloads::replication_controller(object),
        ("batch", "jobs") => workloads::job(&object["spec"], "spec"),
        ("batch", "cronjobs") => workloads::cron_job(object),
        ("autoscaling", "horizontalpodautoscalers") => workloads::autoscaler(object),
        ("policy", "poddisruptionbudgets") => workloads::disruption_budget(object),
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") => rbac::role(resource, object),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            rbac::binding(resource, object)
        }
        DEFINITIONS => definition::check(object),
        _ => Vec::new(),
    });
    causes
}

fn key(resource: &Resource) -> (&str, &str) {
    (&resource.group, &resource.plural)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::Catalog;
    use crate::{defaults, fields};

    fn prepared(
        group: &str,
        version: &str,
        plural: &str,
        mut object: Value,
    ) -> (std::sync::Arc<Resource>, Value) {
        let resource = Catalog::builtin()
            .resource(group, version, plural)
            .expect(plural)
            .clone();
        if object["metadata"]["name"].is_null() {
            object["metadata"]["name"] = json!("x");
        }
        if resource.namespaced() {
            object["metadata"]["namespace"] = json!("default");
        }
        assert_eq!(fields::check(&resource.kind, &mut object), Ok(vec![]));
        defaults::apply(&resource.kind, &mut object);
        (resource, object)
    }

    /// What `kubectl` would print after `is invalid: `; empty for a good object.
    pub(super) fn refusals(group: &str, version: &str, plural: &str, object: Value) -> Vec<String> {
        let (resource, object) = prepared(group, version, plural, object);
        create(&resource, &object)
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    pub(super) fn update_refusals(
        group: &str,
        version: &str,
        plural: &str,
        old: Value,
        new: Value,
    ) -> Vec<String> {
        let (resource, mut old) = prepared(group, version, plural, old);
        let (_, mut new) = prepared(group, version, plural, new);
        for object in [&mut old, &mut new] {
            object["metadata"]["uid"] = json!("u");
            object["metadata"]["resourceVersion"] = json!("1");
        }
        update(&resource, &new, &old)
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn causes_join_like_upstreams() {
        let one = Cause::required("spec.a", "");
        let two = Cause::invalid("spec.b", &json!(-1), "must be greater than or equal to 0");
        assert_eq!(aggregate(std::slice::from_ref(&one)), "spec.a: Required value");
        assert_eq!(
            aggregate(&[one, two]),
            "[spec.a: Required value, spec.b: Invalid value: -1: must be greater than or equal to 0]"
        );
    }

    /// Minimal objects of the kinds this system itself writes must pass.
    #[test]
    fn plain_objects_are_welcome() {
        for (group, version, plural, object) in [
            ("", "v1", "namespaces", json!({})),
            (
                "",
                "v1",
                "nodes",
                json!({"spec": {"podCIDR": "10.0.0.0/24", "taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]}}),
            ),
            ("", "v1", "configmaps", json!({"data": {"a.b_c": "1"}})),
            (
                "",
                "v1",
                "secrets",
                json!({"type": "bootstrap.kubernetes.io/token", "data": {"token-id": "YQ=="}}),
            ),
            ("", "v1", "serviceaccounts", json!({})),
            (
                "",
                "v1",
                "endpoints",
                json!({"subsets": [{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 6443, "name": "https"}]}]}),
            ),
            ("", "v1", "events", json!({"involvedObject": {"kind": "Pod"}})),
            (
                "coordination.k8s.io",
                "v1",
                "leases",
                json!({"spec": {"holderIdentity": "a", "leaseDurationSeconds": 40}}),
            ),
            (
                "discovery.k8s.io",
                "v1",
                "endpointslices",
                json!({"addressType": "IPv4", "endpoints": [{"addresses": ["1.2.3.4"]}], "ports": [{"port": 80}]}),
            ),
            (
                "rbac.authorization.k8s.io",
                "v1",
                "clusterroles",
                json!({"metadata": {"name": "system:node"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
            ),
            (
                "rbac.authorization.k8s.io",
                "v1",
                "clusterroles",
                json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]}),
            ),
            (
                "rbac.authorization.k8s.io",
                "v1",
                "clusterrolebindings",
                json!({"metadata": {"name": "kubeadm:x"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "Group", "name": "system:masters"}]}),
            ),
            (
                "certificates.k8s.io",
                "v1",
                "certificatesigningrequests",
                json!({"spec": {"request": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K", "signerName": "kubernetes.io/kubelet-serving", "usages": ["digital signature"]}}),
            ),
            (
                "apps",
                "v1",
                "daemonsets",
                json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
            ),
            (
                "batch",
                "v1",
                "jobs",
                json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}),
            ),
        ] {
            assert_eq!(
                refusals(group, version, plural, object.clone()),
                [] as [&str; 0],
                "{plural} {object}"
            );
        }
    }
}
