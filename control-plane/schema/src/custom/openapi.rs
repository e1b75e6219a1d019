//! Custom resources in OpenAPI documents: the structural schema, with metadata as every object has it.

use serde_json::{Value, json};

use crate::catalog::{GroupVersionKind, Resource};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// `com.example.v1.Widget`
pub(crate) fn definition_name(gvk: &GroupVersionKind) -> String {
    let mut parts: Vec<&str> = gvk.group.split('.').rev().collect();
    parts.extend([gvk.version.as_str(), gvk.kind.as_str()]);
    parts.join(".")
}

/// Schemas of a custom kind and of its list.
pub(crate) fn schemas(
    resource: &Resource,
    schema: &Value,
    reference: &dyn Fn(&str) -> Value,
    v2: bool,
) -> [(String, Value); 2] {
    let gvk = &resource.kind.gvk;
    let name = definition_name(gvk);
    let open = schema["x-kubernetes-preserve-unknown-fields"] == json!(true);
    let mut own = if v2 && open {
        // Any property named here would have kubectl refuse all others.
        json!({"type": "object"})
    } else {
        let mut own = schema.clone();
        if v2 {
            for_v2(&mut own);
        }
        embedded(&mut own, reference, v2);
        envelope(&mut own, reference, "ObjectMeta", v2);
        own
    };
    let tag = |kind: &str| json!([{"group": gvk.group, "kind": kind, "version": gvk.version}]);
    own["x-kubernetes-group-version-kind"] = tag(&gvk.kind);
    let mut list = json!({
        "description": format!("{} is a list of {}", resource.list_kind, gvk.kind),
        "type": "object",
        "required": ["items"],
        "properties": {"items": {
            "description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", resource.plural),
            "type": "array",
            "items": reference(&name),
        }},
        "x-kubernetes-group-version-kind": tag(&resource.list_kind),
    });
    envelope(&mut list, reference, "ListMeta", v2);
    [(name.clone(), own), (format!("{name}List"), list)]
}

fn envelope(schema: &mut Value, reference: &dyn Fn(&str) -> Value, metadata: &str, v2: bool) {
    const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object.";
    const KIND: &str = "Kind is a string value representing the REST resource this object represents.";
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    let properties = &mut schema["properties"];
    properties["apiVersion"] = json!({"type": "string", "description": API_VERSION});
    properties["kind"] = json!({"type": "string", "description": KIND});
    let referred = reference(&format!("{META}.{metadata}"));
    // A reference tolerates no siblings in v3.
    properties["metadata"] = if v2 {
        referred
    } else {
        json!({"allOf": [referred]})
    };
    properties["metadata"]["description"] = "Standard object's metadata.".into();
}

/// What version 2 and its kubectl can read of a structural schema (upstream's `ToStructuralOpenAPIV2`).
fn for_v2(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    for junctor in ["allOf", "anyOf", "oneOf", "not"] {
        fields.remove(junctor);
    }
    let nullable = fields.remove("nullable") == Some(json!(true));
    let open = fields.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true));
    if nullable || open {
        fields.remove("items");
        fields.remove("properties");
    }
    let untyped = match fields.get("type").and_then(Value::as_str) {
        Some("array") => !fields.contains_key("items"),
        Some("object") => open,
        _ => false,
    };
    if nullable || untyped {
        fields.remove("type");
    }
    let is_null = |schema: Option<&Value>| schema.is_some_and(|s| s["nullable"] == json!(true));
    if is_null(fields.get("additionalProperties")) {
        fields.remove("required");
    } else if let Some(Value::Array(mut required)) = fields.remove("required") {
        required.retain(|name| !is_null(name.as_str().and_then(|name| fields.get("properties")?.get(name))));
        if !required.is_empty() {
            fields.insert("required".into(), required.into());
        }
    }
    subschemas(schema).for_each(for_v2);
}

/// Objects inside that are Kubernetes objects themselves.
fn embedded(schema: &mut Value, reference: &dyn Fn(&str) -> Value, v2: bool) {
    subschemas(schema).for_each(|inner| embedded(inner, reference, v2));
    let is = |extension: &str| schema[extension] == json!(true);
    if !is("x-kubernetes-embedded-resource") || (v2 && is("x-kubernetes-preserve-unknown-fields")) {
        return;
    }
    envelope(schema, reference, "ObjectMeta", v2);
    let mut required = schema["required"].as_array().cloned().unwrap_or_default();
    for name in ["kind", "apiVersion"] {
        if !required.contains(&json!(name)) {
            required.push(json!(name));
        }
    }
    schema["required"] = required.into();
}

fn subschemas(schema: &mut Value) -> impl Iterator<Item = &mut Value> {
    let fields = schema.as_object_mut().into_iter().flatten();
    fields.flat_map(|(name, value)| match (name.as_str(), value) {
        ("properties", Value::Object(properties)) => properties.values_mut().collect(),
        ("items" | "additionalProperties", value @ Value::Object(_)) => vec![value],
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_says_only_what_its_kubectl_understands() {
        for (schema, expected) in [
            (json!({"type": "string", "nullable": true}), json!({})),
            (
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {}}}),
                json!({"x-kubernetes-preserve-unknown-fields": true}),
            ),
            (json!({"type": "array"}), json!({})),
            (
                json!({"type": "object", "required": ["a", "not"], "properties": {
                    "a": {"type": "string", "nullable": true}, "not": {"type": "object", "anyOf": [{}]}}}),
                json!({"type": "object", "required": ["not"], "properties": {"a": {}, "not": {"type": "object"}}}),
            ),
            (
                json!({"type": "array", "items": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}]}}),
                json!({"type": "array", "items": {"x-kubernetes-int-or-string": true}}),
            ),
        ] {
            let mut converted = schema.clone();
            for_v2(&mut converted);
            assert_eq!(converted, expected, "{schema}");
        }
    }

    #[test]
    fn embedded_resources_have_an_envelope() {
        let mut schema =
            json!({"properties": {"pod": {"type": "object", "x-kubernetes-embedded-resource": true}}});
        embedded(&mut schema, &|name| json!({"$ref": name}), false);
        let pod = &schema["properties"]["pod"];
        assert_eq!(pod["required"], json!(["kind", "apiVersion"]));
        assert_eq!(pod["properties"]["kind"]["type"], "string");
    }
}
