//! Custom resources in OpenAPI documents: the structural schema, with metadata as every object has it.

use serde_json::{Map, Value, json};

use crate::catalog::{GroupVersionKind, Resource};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// What version 2 cannot say.
const NOT_IN_V2: &[&str] = &["oneOf", "anyOf", "not", "nullable"];

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
    let mut own = if v2 { for_v2(schema) } else { schema.clone() };
    envelope(&mut own, reference, "ObjectMeta", v2);
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

fn for_v2(schema: &Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let either = fields.get("x-kubernetes-int-or-string") == Some(&json!(true));
            let mut kept: Map<String, Value> = fields
                .iter()
                .filter(|(name, value)| {
                    !(NOT_IN_V2.contains(&name.as_str())
                        && (value.is_array() || value.is_object() || value.is_boolean()))
                })
                .map(|(name, value)| (name.clone(), for_v2(value)))
                .collect();
            let nullable = fields.get("nullable") == Some(&json!(true));
            if nullable || either {
                kept.remove("type");
            }
            Value::Object(kept)
        }
        Value::Array(items) => items.iter().map(for_v2).collect(),
        other => other.clone(),
    }
}
