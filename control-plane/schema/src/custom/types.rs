//! A structural schema as field types: what server-side apply walks.

use std::sync::Arc;

use serde_json::Value;

use super::prune::{embeds, flag, preserves};
use super::texts;
use crate::types::{Field, FieldType, ListType, ObjectType, TypeId, Types};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The types of a schema, on top of the built-in ones, and its root.
pub(super) fn of_schema(builtin: &Arc<Types>, schema: &Value, name: &str) -> (Arc<Types>, TypeId) {
    let mut builder = Builder {
        metadata: builtin.by_name(OBJECT_META),
        first: builtin.count(),
        objects: Vec::new(),
    };
    let root = builder.object(schema, true, name);
    (Arc::new(Types::extending(builtin.clone(), builder.objects)), root)
}

struct Builder {
    metadata: Option<TypeId>,
    first: u32,
    objects: Vec<ObjectType>,
}

impl Builder {
    fn object(&mut self, schema: &Value, is_resource: bool, name: &str) -> TypeId {
        let place = self.objects.len();
        self.objects.push(ObjectType {
            name: name.to_owned(),
            map_atomic: schema["x-kubernetes-map-type"] == "atomic",
            open: preserves(schema),
            ..ObjectType::default()
        });
        let mut fields = Vec::new();
        let properties = schema["properties"].as_object();
        for (field, inner) in properties.into_iter().flatten() {
            if !(is_resource && matches!(field.as_str(), "apiVersion" | "kind" | "metadata")) {
                let ty = self.ty(inner, &format!("{name}.{field}"));
                fields.push(of_field(field, ty, inner));
            }
        }
        if is_resource {
            for field in ["apiVersion", "kind"] {
                fields.push(of_field(field, FieldType::String, &Value::Null));
            }
            let metadata = self.metadata.map_or(FieldType::RawExtension, FieldType::Object);
            fields.push(of_field("metadata", metadata, &Value::Null));
        }
        fields.sort_by(|left, right| left.name.cmp(&right.name));
        self.objects[place].fields = fields;
        TypeId(self.first + place as u32)
    }

    fn ty(&mut self, schema: &Value, name: &str) -> FieldType {
        if flag(schema, "x-kubernetes-int-or-string") {
            return FieldType::IntOrString;
        }
        if preserves(schema) && !schema["properties"].is_object() && !embeds(schema) {
            return FieldType::RawExtension;
        }
        match schema["type"].as_str().unwrap_or_default() {
            "string" => FieldType::String,
            "integer" => FieldType::Int64,
            "number" => FieldType::Double,
            "boolean" => FieldType::Bool,
            "array" => FieldType::List(Box::new(self.ty(&schema["items"], name))),
            "object" if schema["properties"].is_object() || embeds(schema) => {
                FieldType::Object(self.object(schema, embeds(schema), name))
            }
            "object" => match schema.get("additionalProperties") {
                Some(inner @ Value::Object(_)) => FieldType::Map(Box::new(self.ty(inner, name))),
                _ => FieldType::Map(Box::new(FieldType::RawExtension)),
            },
            _ => FieldType::RawExtension,
        }
    }
}

fn of_field(name: &str, ty: FieldType, schema: &Value) -> Field {
    let text = |name: &str| schema[name].as_str().unwrap_or_default();
    Field {
        name: name.to_owned(),
        number: 0,
        ty,
        pointer: true,
        omit_empty: false,
        omit_zero: false,
        required: false,
        default: schema.get("default").cloned(),
        enumeration: Vec::new(),
        item_enumeration: Vec::new(),
        list_type: match text("x-kubernetes-list-type") {
            "set" => Some(ListType::Set),
            "map" => Some(ListType::Map),
            "atomic" => Some(ListType::Atomic),
            _ => None,
        },
        list_map_keys: texts(&schema["x-kubernetes-list-map-keys"]),
        map_type: text("x-kubernetes-map-type").to_owned(),
        patch_strategy: String::new(),
        patch_merge_key: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_maps_and_metadata_have_their_shapes() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}, "port": {"x-kubernetes-int-or-string": true}}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "half": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}});
        let builtin = Types::builtin();
        let (types, root) = of_schema(&builtin, &schema, "com.example.v1.Widget");
        let Some(FieldType::Object(spec)) = types.descend(root, "spec") else {
            panic!("spec is an object");
        };
        let ports = types.field(*spec, "ports").expect("ports");
        assert_eq!(
            (ports.list_type, ports.list_map_keys.as_slice()),
            (Some(ListType::Map), &["name".to_owned()][..])
        );
        assert_eq!(
            types.descend(root, "spec.ports.port"),
            Some(&FieldType::IntOrString)
        );
        assert_eq!(
            types.descend(root, "spec.labels"),
            Some(&FieldType::Map(Box::new(FieldType::String)))
        );
        assert_eq!(types.descend(root, "spec.free"), Some(&FieldType::RawExtension));
        let Some(FieldType::Object(half)) = types.descend(root, "spec.half") else {
            panic!("what is known of it has a shape");
        };
        assert!(types.get(*half).open && !types.get(root).open);
        assert_eq!(
            types.descend(root, "metadata.labels"),
            Some(&FieldType::Map(Box::new(FieldType::String))),
            "from the built-in types"
        );
    }
}
