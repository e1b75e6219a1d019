//! Field types: the shape every other module walks. Owned, so that custom resources can bring their own.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

/// Index of an object type within its [`Types`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub(crate) u32);

/// What a field (or list item, or map value) holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldType {
    String,
    /// Base64 text in JSON.
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
    IntOrString,
    Quantity,
    Time,
    MicroTime,
    /// Go duration text ("1m30s") in JSON.
    Duration,
    /// Any JSON, kept as it is; `runtime.RawExtension` on the wire.
    RawExtension,
    /// `metav1.FieldsV1`: any JSON object, raw bytes on the wire.
    FieldsV1,
    /// Any JSON (`apiextensions.v1.JSON` and its relatives), with its protobuf shape.
    Json(JsonShape),
    Object(TypeId),
    List(Box<FieldType>),
    Map(Box<FieldType>),
}

/// The union-like JSON types of apiextensions, which share JSON freedom but differ on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonShape {
    Raw,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStringArray,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    pub number: u32,
    pub ty: FieldType,
    /// A Go pointer: absent and zero differ.
    pub pointer: bool,
    /// `omitempty`: a zero value is not written to JSON.
    pub omit_empty: bool,
    pub required: bool,
    pub default: Option<Value>,
    pub enumeration: Vec<String>,
    pub list_type: Option<ListType>,
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type: atomic` on this field.
    pub map_atomic: bool,
    pub patch_merge: bool,
    pub patch_retain_keys: bool,
    pub patch_merge_key: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectType {
    /// Upstream's OpenAPI name, e.g. `io.k8s.api.core.v1.Container`.
    pub name: String,
    /// Sorted by name.
    pub fields: Vec<Field>,
    pub map_atomic: bool,
}

/// A set of object types that refer to each other by [`TypeId`].
#[derive(Debug, Default)]
pub struct Types {
    names: HashMap<String, TypeId>,
    slots: Vec<OnceLock<Arc<ObjectType>>>,
}

impl Types {
    pub fn get(&self, id: TypeId) -> &ObjectType {
        self.slots[id.0 as usize].get_or_init(Arc::default)
    }

    pub fn by_name(&self, name: &str) -> Option<TypeId> {
        self.names.get(name).copied()
    }
}
