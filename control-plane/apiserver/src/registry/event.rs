//! Events are one kind with two faces: stored as core/v1, also served as events.k8s.io/v1.

use serde_json::{Map, Value, json};

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

pub fn to_events_group(event: Value) -> Value {
    rename(event, "events.k8s.io/v1", |field| {
        RENAMED
            .iter()
            .find(|(core, _)| *core == field)
            .map(|(_, new)| *new)
    })
}

pub fn to_core_group(event: Value) -> Value {
    rename(event, "v1", |field| {
        RENAMED
            .iter()
            .find(|(_, new)| *new == field)
            .map(|(core, _)| *core)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_faces_hold_the_same() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"}, "message": "m", "count": 2, "reason": "r"});
        let new = to_events_group(core.clone());
        assert_eq!(new["regarding"]["kind"], "Pod");
        assert_eq!(new["note"], "m");
        assert_eq!(new["apiVersion"], "events.k8s.io/v1");
        assert_eq!(to_core_group(new), core);
    }
}
