//! What differs from kind to kind when objects are written. Most kinds need only the generic rules here.

mod certificate_signing_request;
mod custom_resource_definition;
mod job;
mod namespace;
mod node;
mod pod;
mod service;
mod volume;

use auth::UserInfo;
use schema::Resource;
use serde_json::{Value, json};

use crate::object;
use crate::status::Cause;

/// A kind's own rules; every method has the generic behaviour.
pub trait Strategy: Sync {
    fn prepare_for_create(&self, _object: &mut Value, _user: &UserInfo) {}

    /// After the generic rules (status kept, system fields kept).
    fn prepare_for_update(&self, _object: &mut Value, _old: &Value) {}

    /// `object` is `old` with what the sub-resource may change taken from the request's `wanted`.
    fn prepare_for_subresource(
        &self,
        _subresource: &str,
        _object: &mut Value,
        _wanted: &Value,
        _old: &Value,
    ) {
    }

    fn validate(&self, _object: &Value, _old: Option<&Value>) -> Vec<Cause> {
        Vec::new()
    }

    /// Deletion waits for a grace period.
    fn is_graceful(&self) -> bool {
        false
    }

    /// A create may bring its status.
    fn keeps_status_on_create(&self) -> bool {
        false
    }
}

struct Generic;
impl Strategy for Generic {}

pub fn strategy(group: &str, plural: &str) -> &'static dyn Strategy {
    match (group, plural) {
        ("", "pods") => &pod::Pod,
        ("", "nodes") => &node::Node,
        ("", "namespaces") => &namespace::Namespace,
        ("", "services") => &service::Service,
        ("", "persistentvolumes") => &volume::Volume,
        ("", "persistentvolumeclaims") => &volume::Claim,
        ("batch", "jobs") => &job::Job,
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            &custom_resource_definition::CustomResourceDefinition
        }
        ("certificates.k8s.io", "certificatesigningrequests") => {
            &certificate_signing_request::CertificateSigningRequest
        }
        _ => &Generic,
    }
}

/// What `metadata.generation` counts changes of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generations {
    Nothing,
    /// All but metadata and status.
    Desired,
    /// All but metadata: custom kinds without a status sub-resource.
    Everything,
}

pub fn counts_generations(resource: &Resource) -> Generations {
    match &resource.kind.custom {
        Some(custom) if !custom.has_status => Generations::Everything,
        Some(_) => Generations::Desired,
        None if builtin_counts_generations(&resource.group, &resource.plural) => Generations::Desired,
        None => Generations::Nothing,
    }
}

fn builtin_counts_generations(group: &str, plural: &str) -> bool {
    match group {
        "" => matches!(plural, "pods" | "replicationcontrollers"),
        "apps" => plural != "controllerrevisions",
        "batch" | "policy" | "networking.k8s.io" => {
            matches!(
                plural,
                "jobs" | "cronjobs" | "poddisruptionbudgets" | "ingresses" | "networkpolicies"
            )
        }
        "admissionregistration.k8s.io" | "apiextensions.k8s.io" | "flowcontrol.apiserver.k8s.io" => true,
        "discovery.k8s.io" => plural == "endpointslices",
        "resource.k8s.io" => matches!(plural, "resourceslices"),
        _ => false,
    }
}

/// A PUT on a missing object creates it.
pub fn creates_on_update(group: &str, plural: &str) -> bool {
    match group {
        "" => matches!(plural, "endpoints" | "events" | "limitranges" | "services"),
        "events.k8s.io" | "coordination.k8s.io" | "rbac.authorization.k8s.io" => true,
        _ => false,
    }
}

/// An update must say which state it changes (upstream's `AllowUnconditionalUpdate` is false).
pub fn needs_revision(resource: &Resource) -> bool {
    let plural = resource.plural.as_str();
    match resource.group.as_str() {
        "admissionregistration.k8s.io"
        | "apiextensions.k8s.io"
        | "apiregistration.k8s.io"
        | "coordination.k8s.io"
        | "node.k8s.io" => true,
        "policy" => plural == "poddisruptionbudgets",
        "storage.k8s.io" => !matches!(plural, "storageclasses" | "volumeattributesclasses"),
        _ => resource.kind.custom.is_some(),
    }
}

/// The metadata that a write through a sub-resource may change (upstream's strategies reset the rest).
pub fn metadata_through(resource: &Resource, subresource: &str) -> &'static [&'static str] {
    let all = &["labels", "annotations", "finalizers", "ownerReferences"];
    match (subresource, resource.group.as_str(), resource.plural.as_str()) {
        ("status", ..) if resource.kind.custom.is_some() => &[],
        ("status", "", "pods") => &["labels", "annotations", "finalizers"],
        ("status", "apps", "deployments") => &["annotations", "finalizers", "ownerReferences"],
        (
            "status",
            "admissionregistration.k8s.io"
            | "apiextensions.k8s.io"
            | "apiregistration.k8s.io"
            | "flowcontrol.apiserver.k8s.io"
            | "resource.k8s.io"
            | "storage.k8s.io",
            _,
        ) => &[],
        ("status" | "approval" | "finalize", ..) => all,
        _ => &[],
    }
}

/// A delete answers with the object instead of a Status.
pub fn returns_deleted(group: &str, plural: &str) -> bool {
    match group {
        "" => matches!(
            plural,
            "pods"
                | "services"
                | "serviceaccounts"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "podtemplates"
                | "resourcequotas"
        ),
        "storage.k8s.io" => plural != "csistoragecapacities",
        "resource.k8s.io" => true,
        _ => false,
    }
}

/// What differs in `object` from `old` besides metadata and status.
fn spec_changed(object: &Value, old: &Value, with_status: bool) -> bool {
    let keys = |value: &Value| {
        value
            .as_object()
            .map(|map| map.keys().cloned().collect::<Vec<_>>())
            .unwrap_or_default()
    };
    let mut names = keys(object);
    names.extend(keys(old));
    names
        .iter()
        .filter(|name| !matches!(name.as_str(), "metadata" | "apiVersion" | "kind"))
        .filter(|name| with_status || *name != "status")
        .any(|name| object.get(name) != old.get(name))
}

/// The generic rules of a write to the main resource.
pub fn count_generation(object: &mut Value, old: Option<&Value>, counts: Generations) {
    let Some(old) = old else {
        let metadata = object::metadata(object);
        if counts != Generations::Nothing {
            metadata.insert("generation".into(), json!(1));
        } else {
            metadata.remove("generation");
        }
        return;
    };
    object::copy_metadata(object, old, "generation");
    if counts != Generations::Nothing && spec_changed(object, old, counts == Generations::Everything) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        object::metadata(object).insert("generation".into(), json!(generation + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_count_spec_changes_only() {
        let old = json!({"metadata": {"generation": 3}, "spec": {"a": 1}, "status": {}});
        for (new, counts, expected) in [
            (
                json!({"metadata": {"labels": {"a": "b"}}, "spec": {"a": 1}, "status": {"x": 1}}),
                Generations::Desired,
                json!(3),
            ),
            (
                json!({"metadata": {"generation": 99}, "spec": {"a": 2}}),
                Generations::Desired,
                json!(4),
            ),
            (
                json!({"metadata": {}, "spec": {"a": 2}}),
                Generations::Nothing,
                json!(3),
            ),
            (
                json!({"metadata": {}, "spec": {"a": 1}, "status": {"x": 1}}),
                Generations::Everything,
                json!(4),
            ),
            (json!({"metadata": {}}), Generations::Desired, json!(4)),
        ] {
            let mut object = new.clone();
            count_generation(&mut object, Some(&old), counts);
            assert_eq!(object["metadata"]["generation"], expected, "{new}");
        }
        let mut created = json!({"metadata": {"generation": 7}});
        count_generation(&mut created, None, Generations::Nothing);
        assert_eq!(created, json!({"metadata": {}}));
        count_generation(&mut created, None, Generations::Desired);
        assert_eq!(created["metadata"]["generation"], 1);
    }
}
