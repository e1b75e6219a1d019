//! JSON text with the keys of Go's structs in Go's order, where upstream's own tests compare text.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Map, Value};

const OBJECT: &[&str] = &["kind", "apiVersion", "groupVersion", "metadata"];
const STATUS: &[&str] = &[
    "kind",
    "apiVersion",
    "metadata",
    "status",
    "message",
    "reason",
    "details",
    "code",
];
const GROUP: &[&str] = &["kind", "apiVersion", "name", "versions", "preferredVersion"];
const RESOURCE: &[&str] = &[
    "name",
    "singularName",
    "namespaced",
    "group",
    "version",
    "kind",
    "verbs",
    "shortNames",
    "categories",
    "storageVersionHash",
];
const VERSION: &[&str] = &[
    "major",
    "minor",
    "emulationMajor",
    "emulationMinor",
    "minCompatibilityMajor",
    "minCompatibilityMinor",
    "gitVersion",
    "gitCommit",
    "gitTreeState",
    "buildDate",
    "goVersion",
    "compiler",
    "platform",
];

/// An object, a list, a document of discovery or a `Status`.
pub fn text(value: &Value) -> String {
    let kind = value["kind"].as_str().unwrap_or_default();
    let (first, items) = match kind {
        "Status" => (STATUS, OBJECT),
        "APIGroup" => (GROUP, OBJECT),
        "APIGroupList" => (OBJECT, GROUP),
        "APIResourceList" => (OBJECT, RESOURCE),
        _ => (OBJECT, OBJECT),
    };
    match value {
        Value::Object(fields) => string(&Fields { fields, first, items }),
        other => other.to_string(),
    }
}

/// `/version` is one of the few documents that upstream indents.
pub fn version(value: &Value) -> String {
    let Value::Object(fields) = value else {
        return value.to_string();
    };
    let ordered = Fields {
        fields,
        first: VERSION,
        items: OBJECT,
    };
    serde_json::to_string_pretty(&ordered).unwrap_or_default()
}

fn string(fields: &Fields) -> String {
    serde_json::to_string(fields).unwrap_or_default()
}

struct Fields<'a> {
    fields: &'a Map<String, Value>,
    /// These keys come first; the others are sorted.
    first: &'a [&'a str],
    /// The first keys of the objects in top-level arrays of this name.
    items: &'a [&'a str],
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len()))?;
        let known = self
            .first
            .iter()
            .filter_map(|key| self.fields.get_key_value(*key));
        let others = self
            .fields
            .iter()
            .filter(|(key, _)| !self.first.contains(&key.as_str()));
        for (key, value) in known.chain(others) {
            match value {
                Value::Array(items) if matches!(key.as_str(), "items" | "groups" | "resources") => {
                    map.serialize_entry(key, &Items(items, self.items))?;
                }
                _ => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

struct Items<'a>(&'a [Value], &'a [&'a str]);

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for item in self.0 {
            match item {
                Value::Object(fields) => list.serialize_element(&Fields {
                    fields,
                    first: self.1,
                    items: OBJECT,
                })?,
                other => list.serialize_element(other)?,
            }
        }
        list.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn first_keys_are_upstreams() {
        let cases = [
            (
                json!({"apiVersion": "v1", "data": {"kind": "k", "a": "b"}, "kind": "ConfigMap", "metadata": {}}),
                r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{},"data":{"a":"b","kind":"k"}}"#,
            ),
            (
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "m", "reason": "r", "code": 404}),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"m","reason":"r","code":404}"#,
            ),
            (
                json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [{"kind": "Pod", "name": "pods", "namespaced": true, "singularName": "pod", "shortNames": ["po"], "verbs": ["get"]}]}),
                r#"{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"pods","singularName":"pod","namespaced":true,"kind":"Pod","verbs":["get"],"shortNames":["po"]}]}"#,
            ),
            (
                json!({"kind": "PodList", "apiVersion": "v1", "items": [{"apiVersion": "v1", "kind": "Pod"}]}),
                r#"{"kind":"PodList","apiVersion":"v1","items":[{"kind":"Pod","apiVersion":"v1"}]}"#,
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(text(&value), expected);
        }
        assert_eq!(
            version(&json!({"gitVersion": "v", "major": "1"})),
            "{\n  \"major\": \"1\",\n  \"gitVersion\": \"v\"\n}"
        );
    }
}
