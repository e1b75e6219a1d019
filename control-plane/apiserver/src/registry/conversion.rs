//! Kinds with more than one face: stored in one version, served in others.
//!
//! Events are stored as core/v1 and also served as events.k8s.io/v1; autoscalers are stored as
//! autoscaling/v2 and also served as v1, which keeps what it has no field for in annotations. Custom
//! resources are stored in their storage version and differ by name only.

use schema::Resource;
use serde_json::{Map, Value, json};

use crate::object;
use crate::status::ApiError;

/// Group and version of the stored form.
pub fn stored_as<'a>(group: &'a str, version: &'a str, plural: &str) -> (&'a str, &'a str) {
    match (group, plural) {
        ("events.k8s.io", "events") => ("", "v1"),
        ("autoscaling", "horizontalpodautoscalers") => ("autoscaling", "v2"),
        _ => (group, version),
    }
}

/// Whether this resource is served in another form than it is stored.
pub fn converts(resource: &Resource) -> bool {
    if let Some(custom) = &resource.kind.custom {
        return custom.converts;
    }
    let (group, version) = (resource.group.as_str(), resource.version.as_str());
    stored_as(group, version, &resource.plural) != (group, version)
}

pub fn to_served(resource: &Resource, stored: Value) -> Result<Value, ApiError> {
    Ok(all_to_served(resource, vec![stored])?.remove(0))
}

/// As many as there were; a webhook is asked about all of them at once.
pub fn all_to_served(resource: &Resource, stored: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    if let Some(custom) = resource.kind.custom.as_ref().filter(|custom| custom.converts) {
        return custom
            .to_served(&resource.kind.gvk, stored)
            .map_err(ApiError::internal);
    }
    Ok(match resource.plural.as_str() {
        _ if !converts(resource) => stored,
        "events" => stored.into_iter().map(event_to_events_group).collect(),
        _ => stored.into_iter().map(autoscaler_to_v1).collect(),
    })
}

pub fn to_stored(resource: &Resource, served: Value) -> Result<Value, ApiError> {
    if resource.kind.custom.is_some() {
        return to_current(resource, served);
    }
    Ok(match resource.plural.as_str() {
        _ if !converts(resource) => served,
        "events" => event_to_core_group(served),
        _ => autoscaler_to_v2(served),
    })
}

/// An object that was stored when another version was the one to store.
pub fn to_current(resource: &Resource, stored: Value) -> Result<Value, ApiError> {
    match &resource.kind.custom {
        Some(custom) => Ok(custom
            .to_stored(vec![stored])
            .map_err(ApiError::internal)?
            .remove(0)),
        None => Ok(stored),
    }
}

/// core field → events.k8s.io field.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn event_to_events_group(event: Value) -> Value {
    let name = |field: &str| {
        RENAMED
            .iter()
            .find(|(core, _)| *core == field)
            .map(|(_, new)| *new)
    };
    rename(event, "events.k8s.io/v1", name)
}

fn event_to_core_group(event: Value) -> Value {
    let name = |field: &str| {
        RENAMED
            .iter()
            .find(|(_, new)| *new == field)
            .map(|(core, _)| *core)
    };
    rename(event, "v1", name)
}

fn rename(event: Value, api_version: &str, name: impl Fn(&str) -> Option<&'static str>) -> Value {
    let Value::Object(fields) = event else {
        return event;
    };
    let mut renamed: Map<String, Value> = fields
        .into_iter()
        .map(|(field, value)| (name(&field).map_or(field, str::to_owned), value))
        .collect();
    renamed.insert("apiVersion".into(), json!(api_version));
    Value::Object(renamed)
}

/// v2 fields that v1 keeps as JSON in annotations: where they are, and the annotation's name.
const ANNOTATED: &[(&str, &str, &str)] = &[
    ("spec", "metrics", "autoscaling.alpha.kubernetes.io/metrics"),
    ("spec", "behavior", "autoscaling.alpha.kubernetes.io/behavior"),
    (
        "status",
        "currentMetrics",
        "autoscaling.alpha.kubernetes.io/current-metrics",
    ),
    (
        "status",
        "conditions",
        "autoscaling.alpha.kubernetes.io/conditions",
    ),
];
/// v1's only metric: which part of the object, its v1 field, its v2 list, and the value's name there.
const CPU: &[(&str, &str, &str, &str)] = &[
    ("spec", "targetCPUUtilizationPercentage", "metrics", "target"),
    (
        "status",
        "currentCPUUtilizationPercentage",
        "currentMetrics",
        "current",
    ),
];

fn autoscaler_to_v1(mut autoscaler: Value) -> Value {
    for (part, field, list, value) in CPU {
        let metrics = autoscaler[part][list].as_array().cloned().unwrap_or_default();
        let is_cpu = |metric: &Value| {
            metric["type"] == "Resource"
                && metric["resource"]["name"] == "cpu"
                && metric["resource"][value]["averageUtilization"].is_i64()
        };
        let (cpu, others): (Vec<Value>, Vec<Value>) = metrics.into_iter().partition(is_cpu);
        let Some(object) = autoscaler.get_mut(part).and_then(Value::as_object_mut) else {
            continue;
        };
        if let Some(metric) = cpu.first() {
            object.insert(
                (*field).into(),
                metric["resource"][value]["averageUtilization"].clone(),
            );
        }
        object.remove(*list);
        if !others.is_empty() {
            object.insert((*list).into(), json!(others));
        }
    }
    for (part, field, annotation) in ANNOTATED {
        let moved = autoscaler[part]
            .as_object_mut()
            .and_then(|object| object.remove(*field));
        if let Some(moved) = moved.filter(|value| !value.is_null()) {
            autoscaler["metadata"]["annotations"][annotation] = json!(moved.to_string());
        }
    }
    finish(autoscaler, "autoscaling/v1")
}

fn autoscaler_to_v2(mut autoscaler: Value) -> Value {
    for (part, field, annotation) in ANNOTATED {
        let annotations = object::metadata(&mut autoscaler)
            .get_mut("annotations")
            .and_then(Value::as_object_mut);
        let text = annotations.and_then(|annotations| annotations.remove(*annotation));
        if let Some(value) = text.and_then(|text| serde_json::from_str::<Value>(text.as_str()?).ok()) {
            autoscaler[part][field] = value;
        }
    }
    for (part, field, list, value) in CPU {
        let percentage = autoscaler[part]
            .as_object_mut()
            .and_then(|object| object.remove(*field));
        if let Some(percentage) = percentage.filter(Value::is_i64) {
            let mut metric = json!({"type": "Resource", "resource": {"name": "cpu"}});
            metric["resource"][value] = json!({"averageUtilization": percentage});
            if *value == "target" {
                metric["resource"][value]["type"] = json!("Utilization");
            }
            let mut metrics = vec![metric];
            metrics.extend(autoscaler[part][list].as_array().cloned().unwrap_or_default());
            autoscaler[part][list] = json!(metrics);
        }
    }
    finish(autoscaler, "autoscaling/v2")
}

/// Indexing made nulls, and moving left empty maps.
fn finish(mut object: Value, api_version: &str) -> Value {
    object["apiVersion"] = json!(api_version);
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let metadata = object::metadata(&mut object);
    if metadata
        .get("annotations")
        .is_some_and(|value| value.as_object().is_none_or(Map::is_empty))
    {
        metadata.remove("annotations");
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_faces_of_an_event_hold_the_same() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"}, "message": "m", "count": 2, "reason": "r"});
        let new = event_to_events_group(core.clone());
        assert_eq!(new["regarding"]["kind"], "Pod");
        assert_eq!(new["note"], "m");
        assert_eq!(new["apiVersion"], "events.k8s.io/v1");
        assert_eq!(event_to_core_group(new), core);
    }

    #[test]
    fn both_faces_of_an_autoscaler_hold_the_same() {
        let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 50}}});
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        for metrics in [json!([cpu, memory]), json!([cpu]), json!([memory])] {
            let v2 = json!({
                "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
                "spec": {"maxReplicas": 3, "metrics": metrics, "behavior": {"scaleUp": {}}}, "status": {"desiredReplicas": 1},
            });
            let v1 = autoscaler_to_v1(v2.clone());
            assert_eq!(v1["apiVersion"], "autoscaling/v1");
            assert!(v1["spec"].get("metrics").is_none());
            assert_eq!(autoscaler_to_v2(v1), v2);
        }
        let old = json!({"apiVersion": "autoscaling/v1", "metadata": {}, "spec": {"targetCPUUtilizationPercentage": 70}});
        let new = autoscaler_to_v2(old.clone());
        assert_eq!(
            new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            70
        );
        assert_eq!(autoscaler_to_v1(new), old);
    }
}
