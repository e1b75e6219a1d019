//! What the registry does for custom resources: how a definition ends, and where a Scale is found.

use jiff::Timestamp;
use schema::Resource;
use schema::custom::{naming, pointer};
use serde_json::{Value, json};

use crate::object;

pub const GROUP: &str = "apiextensions.k8s.io";
pub const DEFINITIONS: &str = "customresourcedefinitions";
/// Holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// A definition whose deletion begins waits for its objects; nothing for other kinds.
pub fn held_for_cleanup(current: &Value, now: Timestamp) -> Option<Value> {
    if current["kind"] != "CustomResourceDefinition"
        || current["apiVersion"] != "apiextensions.k8s.io/v1"
        || object::is_terminating(current)
    {
        return None;
    }
    let mut held = current.clone();
    let mut finalizers = object::finalizers(current);
    if !finalizers.iter().any(|finalizer| finalizer == CLEANUP) {
        finalizers.push(CLEANUP.into());
    }
    object::set_finalizers(&mut held, &finalizers);
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will be in progress";
    naming::set_condition(
        &mut held,
        ["Terminating", "True", "InstanceDeletionPending", message],
        &object::time(now),
    );
    Some(held)
}

/// JSON pointers to what a Scale shows.
#[derive(Debug, PartialEq, Eq)]
pub struct ScalePointers {
    pub replicas: String,
    pub status_replicas: String,
    /// Text of a selector; None where `spec.selector` is a LabelSelector or a map, as built-in kinds have it.
    pub selector: Option<String>,
}

pub fn scale_pointers(resource: &Resource) -> ScalePointers {
    let custom = resource.kind.custom.as_ref();
    match custom.and_then(|custom| custom.scale.as_ref()) {
        Some(paths) => ScalePointers {
            replicas: pointer(&paths.spec_replicas),
            status_replicas: pointer(&paths.status_replicas),
            selector: Some(paths.selector.as_deref().map(pointer).unwrap_or_default()),
        },
        None => ScalePointers {
            replicas: "/spec/replicas".into(),
            status_replicas: "/status/replicas".into(),
            selector: None,
        },
    }
}

/// Sets the value at a pointer of object fields, making the objects on the way.
pub fn set_at(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for name in pointer.split('/').skip(1) {
        let name = name.replace("~1", "/").replace("~0", "~");
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[name.as_str()];
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_waits_for_its_objects() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "a"}});
        let held = held_for_cleanup(&definition, now).unwrap();
        assert_eq!(held["metadata"]["finalizers"], json!([CLEANUP]));
        assert_eq!(
            held["status"]["conditions"][0]["reason"],
            "InstanceDeletionPending"
        );
        let mut dying = held;
        dying["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(held_for_cleanup(&dying, now), None);
        assert_eq!(
            held_for_cleanup(&json!({"kind": "Pod", "apiVersion": "v1"}), now),
            None
        );
    }

    #[test]
    fn values_are_set_deep_inside() {
        let mut object = json!({"spec": {"a": 1}});
        set_at(&mut object, "/spec/pool/size", json!(3));
        assert_eq!(object, json!({"spec": {"a": 1, "pool": {"size": 3}}}));
    }
}
