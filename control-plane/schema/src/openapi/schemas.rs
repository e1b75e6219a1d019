//! Types as OpenAPI schemas.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::pack::Texts;
use crate::catalog::{Catalog, GroupVersionKind, Kind, Resource};
use crate::custom;
use crate::types::{Field, FieldType, JsonShape, ListType, ObjectType, TypeId, Types};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    pub fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// Kinds that every document mentions.
const SHARED: &[&str] = &["Status", "DeleteOptions", "WatchEvent", "APIResourceList"];

/// Where the closure of a document's schemas starts, and the group versions it is about.
#[derive(Debug, Default)]
pub(super) struct Roots {
    types: BTreeSet<TypeId>,
    group_versions: BTreeSet<(String, String)>,
    custom: Vec<Resource>,
}

impl Roots {
    pub fn add_resource(&mut self, catalog: &Catalog, resource: &Resource) {
        let list = GroupVersionKind {
            kind: resource.list_kind.clone(),
            ..resource.kind.gvk.clone()
        };
        let list = catalog.kind(&list).filter(|_| resource.supports("list"));
        let subresources = resource
            .subresources
            .iter()
            .filter(|subresource| !is_connect(&subresource.kind))
            .map(|subresource| &subresource.kind);
        self.group_versions
            .insert((resource.group.clone(), resource.version.clone()));
        if resource.kind.custom.is_some() {
            let metadata = ["ObjectMeta", "ListMeta"];
            self.types.extend(
                metadata
                    .iter()
                    .filter_map(|name| catalog.types().by_name(&format!("{META}.{name}"))),
            );
            self.types.extend(
                subresources
                    .filter(|kind| kind.custom.is_none())
                    .map(|kind| kind.root),
            );
            self.custom.push(resource.clone());
            return;
        }
        self.types.extend(
            std::iter::once(&resource.kind)
                .chain(list)
                .chain(subresources)
                .map(|kind| kind.root),
        );
    }

    pub fn add_shared(&mut self, catalog: &Catalog) {
        self.group_versions.insert((String::new(), "v1".to_owned()));
        self.types.extend(
            SHARED
                .iter()
                .filter_map(|name| catalog.types().by_name(&format!("{META}.{name}"))),
        );
    }
}

/// Kinds that are query parameters in kind's clothing (PodExecOptions, …).
pub(super) fn is_connect(kind: &Kind) -> bool {
    kind.gvk.kind.ends_with("Options")
}

/// The schemas of `roots` and of everything they mention.
pub(super) fn definitions(
    catalog: &Catalog,
    roots: &Roots,
    dialect: Dialect,
    texts: &Texts,
) -> Map<String, Value> {
    let types = catalog.types();
    let mut builder = Builder {
        types,
        dialect,
        texts,
        roots,
        pending: roots.types.iter().copied().collect(),
        seen: roots.types.clone(),
        out: Map::new(),
    };
    while let Some(id) = builder.pending.pop() {
        let schema = builder.object(id);
        builder.out.insert(types.get(id).name.clone(), schema);
    }
    for resource in &roots.custom {
        if let Some(custom) = &resource.kind.custom {
            let reference = |name: &str| dialect.reference(name);
            let v2 = dialect == Dialect::V2;
            builder
                .out
                .extend(custom::openapi::schemas(resource, &custom.schema, &reference, v2));
        }
    }
    builder.out.insert(
        format!("{META}.Patch"),
        described(json!({"type": "object"}), texts.ty(&format!("{META}.Patch"))),
    );
    builder.out
}

struct Builder<'a> {
    types: &'a Types,
    dialect: Dialect,
    texts: &'a Texts,
    roots: &'a Roots,
    pending: Vec<TypeId>,
    seen: BTreeSet<TypeId>,
    out: Map<String, Value>,
}

impl Builder<'_> {
    fn object(&mut self, id: TypeId) -> Value {
        let types = self.types;
        let ty = types.get(id);
        let fields = types.fields(id);
        let mut schema = json!({"type": "object"});
        if !fields.is_empty() {
            let properties = fields
                .iter()
                .map(|field| (field.name.clone(), self.property(ty, field)))
                .collect::<Map<_, _>>();
            schema["properties"] = Value::Object(properties);
        }
        let mut required: Vec<&str> = fields
            .iter()
            .filter(|field| field.required)
            .map(|field| field.name.as_str())
            .collect();
        required.sort_unstable();
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if ty.map_atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some(unions) = &ty.unions {
            schema["x-kubernetes-unions"] = unions.clone();
        }
        let kinds = self.group_version_kinds(ty);
        if !kinds.is_empty() {
            schema["x-kubernetes-group-version-kind"] = json!(kinds);
        }
        described(schema, self.texts.ty(&ty.name))
    }

    fn group_version_kinds(&self, ty: &ObjectType) -> Vec<Value> {
        let entry = |group: &str, version: &str, kind: &str| json!({"group": group, "kind": kind, "version": version});
        match ty.gvk.split('/').collect::<Vec<_>>()[..] {
            [group, version, kind] => vec![entry(group, version, kind)],
            ["*"] => self
                .roots
                .group_versions
                .iter()
                .map(|(group, version)| entry(group, version, ty.short_name()))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn property(&mut self, owner: &ObjectType, field: &Field) -> Value {
        let mut schema = self.schema(&field.ty);
        let text = self.texts.field(&owner.name, &field.name);
        // A reference tolerates no siblings in v3.
        if self.dialect == Dialect::V3 && schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        if let Some(default) = &field.default {
            schema["default"] = default.clone();
        }
        let list_type = field.list_type.map(|list_type| match list_type {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        });
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        for (key, value) in [
            ("x-kubernetes-list-type", list_type.map(str::to_owned)),
            ("x-kubernetes-patch-strategy", some(&field.patch_strategy)),
            ("x-kubernetes-patch-merge-key", field.patch_merge_key.clone()),
            ("x-kubernetes-map-type", some(&field.map_type)),
        ] {
            if let Some(value) = value {
                schema[key] = value.into();
            }
        }
        if !field.list_map_keys.is_empty() {
            schema["x-kubernetes-list-map-keys"] = json!(field.list_map_keys);
        }
        if !field.enumeration.is_empty() {
            schema["enum"] = json!(field.enumeration);
        }
        if !field.item_enumeration.is_empty() {
            let inner = if schema.get("items").is_some() {
                "items"
            } else {
                "additionalProperties"
            };
            schema[inner]["enum"] = json!(field.item_enumeration);
        }
        described(schema, text)
    }

    fn schema(&mut self, ty: &FieldType) -> Value {
        match ty {
            FieldType::String => json!({"type": "string"}),
            FieldType::Bytes => json!({"type": "string", "format": "byte"}),
            FieldType::Bool => json!({"type": "boolean"}),
            FieldType::Int32 => json!({"type": "integer", "format": "int32"}),
            FieldType::Int64 => json!({"type": "integer", "format": "int64"}),
            FieldType::Double => json!({"type": "number", "format": "double"}),
            FieldType::List(item) | FieldType::WrappedList(item) => {
                json!({"type": "array", "items": self.schema(item)})
            }
            FieldType::Map(item) => json!({"type": "object", "additionalProperties": self.schema(item)}),
            FieldType::Object(id) => {
                if self.seen.insert(*id) {
                    self.pending.push(*id);
                }
                self.dialect.reference(&self.types.get(*id).name)
            }
            FieldType::IntOrString => self.named(
                "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
                json!({"type": "string", "format": "int-or-string"}),
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            FieldType::Quantity => self.named(
                "io.k8s.apimachinery.pkg.api.resource.Quantity",
                json!({"type": "string"}),
                json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            ),
            FieldType::Time => self.same(
                &format!("{META}.Time"),
                json!({"type": "string", "format": "date-time"}),
            ),
            FieldType::MicroTime => self.same(
                &format!("{META}.MicroTime"),
                json!({"type": "string", "format": "date-time"}),
            ),
            FieldType::Duration => self.same(&format!("{META}.Duration"), json!({"type": "string"})),
            FieldType::FieldsV1 => self.same(&format!("{META}.FieldsV1"), json!({"type": "object"})),
            FieldType::RawExtension => self.same(
                "io.k8s.apimachinery.pkg.runtime.RawExtension",
                json!({"type": "object"}),
            ),
            FieldType::Json(JsonShape::Raw) => self.same(&format!("{EXTENSIONS}.JSON"), json!({})),
            FieldType::Json(JsonShape::SchemaOrArray) => {
                self.same(&format!("{EXTENSIONS}.JSONSchemaPropsOrArray"), json!({}))
            }
            FieldType::Json(JsonShape::SchemaOrBool) => {
                self.same(&format!("{EXTENSIONS}.JSONSchemaPropsOrBool"), json!({}))
            }
            FieldType::Json(JsonShape::SchemaOrStringArray) => {
                self.same(&format!("{EXTENSIONS}.JSONSchemaPropsOrStringArray"), json!({}))
            }
        }
    }

    fn same(&mut self, name: &str, schema: Value) -> Value {
        self.named(name, schema.clone(), schema)
    }

    /// A reference to a scalar with a schema of its own.
    fn named(&mut self, name: &str, v2: Value, v3: Value) -> Value {
        if !self.out.contains_key(name) {
            let schema = if self.dialect == Dialect::V2 { v2 } else { v3 };
            self.out
                .insert(name.to_owned(), described(schema, self.texts.ty(name)));
        }
        self.dialect.reference(name)
    }
}

fn described(mut schema: Value, text: Option<&str>) -> Value {
    if let Some(text) = text {
        schema["description"] = text.into();
    }
    schema
}
