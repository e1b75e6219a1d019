//! What differs from kind to kind when objects are written. Most kinds need only the generic rules here.

mod certificate_signing_request;
mod job;
mod namespace;
mod node;
mod pod;
mod service;

use auth::UserInfo;
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
        ("batch", "jobs") => &job::Job,
        ("certificates.k8s.io", "certificatesigningrequests") => {
            &certificate_signing_request::CertificateSigningRequest
        }
        _ => &Generic,
    }
}

/// Kinds whose `metadata.generation` counts changes of the desired state.
pub fn counts_generations(group: &str, plural: &str) -> bool {
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
        _ => !group.ends_with("k8s.io") && group.contains('.'),
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

/// A delete answers with the object instead of a Status.
pub fn returns_deleted(group: &str, plural: &str) -> bool {
    group.is_empty()
        && matches!(
            plural,
            "pods"
                | "services"
                | "serviceaccounts"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "podtemplates"
                | "resourcequotas"
        )
}

/// What differs in `object` from `old` besides metadata and status.
pub fn spec_changed(object: &Value, old: &Value) -> bool {
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
        .filter(|name| !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
        .any(|name| object.get(name) != old.get(name))
}

/// The generic rules of a write to the main resource.
pub fn count_generation(object: &mut Value, old: Option<&Value>, counts: bool) {
    let Some(old) = old else {
        let metadata = object::metadata(object);
        if counts {
            metadata.insert("generation".into(), json!(1));
        } else {
            metadata.remove("generation");
        }
        return;
    };
    object::copy_metadata(object, old, "generation");
    if counts && spec_changed(object, old) {
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
                true,
                json!(3),
            ),
            (
                json!({"metadata": {"generation": 99}, "spec": {"a": 2}}),
                true,
                json!(4),
            ),
            (json!({"metadata": {}, "spec": {"a": 2}}), false, json!(3)),
            (json!({"metadata": {}}), true, json!(4)),
        ] {
            let mut object = new.clone();
            count_generation(&mut object, Some(&old), counts);
            assert_eq!(object["metadata"]["generation"], expected, "{new}");
        }
        let mut created = json!({"metadata": {"generation": 7}});
        count_generation(&mut created, None, false);
        assert_eq!(created, json!({"metadata": {}}));
        count_generation(&mut created, None, true);
        assert_eq!(created["metadata"]["generation"], 1);
    }
}
