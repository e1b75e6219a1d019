//! Field types: the shape every other module walks. Owned, so that custom resources can bring their own.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::facts;

/// What the union-like types of apiextensions hold.
pub(crate) const JSON_SCHEMA: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

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
    /// The free-form JSON types of apiextensions.
    Json(JsonShape),
    Object(TypeId),
    List(Box<FieldType>),
    /// A list in JSON, a message with one repeated field on the wire (`ExtraValue`, `Verbs`).
    WrappedList(Box<FieldType>),
    Map(Box<FieldType>),
}

/// The union-like JSON types of apiextensions, which differ on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonShape {
    Raw,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStringArray,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub name: String,
    /// Protobuf field number; 0 for `kind` and `apiVersion`, which travel in the envelope.
    pub number: u32,
    pub ty: FieldType,
    /// A Go pointer: absent and zero differ.
    pub pointer: bool,
    /// `omitempty`: a zero value is not written to JSON.
    pub omit_empty: bool,
    /// `omitzero`: nor is an empty struct.
    pub omit_zero: bool,
    pub required: bool,
    pub default: Option<Value>,
    pub enumeration: Vec<String>,
    pub item_enumeration: Vec<String>,
    pub list_type: Option<ListType>,
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type` on this field: `atomic`, `granular` or nothing.
    pub map_type: String,
    /// Upstream's text: `merge`, `retainKeys`, `merge,retainKeys`, `replace`.
    pub patch_strategy: String,
    pub patch_merge_key: Option<String>,
}

impl Field {
    pub fn patch_merges(&self) -> bool {
        self.patch_strategy.split(',').any(|strategy| strategy == "merge")
    }

    pub fn patch_retains_keys(&self) -> bool {
        self.patch_strategy
            .split(',')
            .any(|strategy| strategy == "retainKeys")
    }

    /// A struct by value: always written, even when empty.
    pub fn always_present(&self) -> bool {
        !self.pointer && !self.omit_zero && matches!(self.ty, FieldType::Object(_))
    }
}

/// A struct embedded in JSON but nested on the wire (`Volume.volumeSource`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inline {
    pub number: u32,
    pub ty: TypeId,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectType {
    /// Upstream's OpenAPI name, e.g. `io.k8s.api.core.v1.Container`.
    pub name: String,
    /// Sorted by name; the fields of inlined structs are in their own types.
    pub fields: Vec<Field>,
    pub inlines: Vec<Inline>,
    /// Fields are replaced as a whole by server-side apply.
    pub map_atomic: bool,
    /// Fields that the type does not name may be there, too.
    pub open: bool,
    /// `group/version/Kind`, `*` for kinds every group version accepts, empty for none.
    pub gvk: String,
    /// The `x-kubernetes-unions` value.
    pub unions: Option<Value>,
}

impl ObjectType {
    /// `Container`
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// A set of object types that refer to each other by [`TypeId`]. Built-in types are read from the table on first use.
#[derive(Debug, Default)]
pub struct Types {
    /// Types that come before those here.
    base: Option<Arc<Types>>,
    names: HashMap<String, TypeId>,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    source: &'static str,
    parsed: OnceLock<ObjectType>,
}

impl Types {
    /// The types of the table of facts; one set for the process.
    pub fn builtin() -> Arc<Self> {
        static BUILTIN: OnceLock<Arc<Types>> = OnceLock::new();
        BUILTIN
            .get_or_init(|| {
                let mut types = Self::default();
                for (name, source) in facts::type_sources() {
                    types
                        .names
                        .insert(facts::full_name(name), TypeId(types.slots.len() as u32));
                    types.slots.push(Slot {
                        source,
                        parsed: OnceLock::new(),
                    });
                }
                Arc::new(types)
            })
            .clone()
    }

    /// More types on top of others, whose identities they may use; the first new one is number `base.count()`.
    pub fn extending(base: Arc<Self>, objects: Vec<ObjectType>) -> Self {
        let first = base.count();
        let names = objects
            .iter()
            .zip(first..)
            .map(|(object, id)| (object.name.clone(), TypeId(id)))
            .collect();
        let slots = objects
            .into_iter()
            .map(|object| Slot {
                source: "",
                parsed: OnceLock::from(object),
            })
            .collect();
        Self {
            base: Some(base),
            names,
            slots,
        }
    }

    pub fn count(&self) -> u32 {
        self.below() + self.slots.len() as u32
    }

    fn below(&self) -> u32 {
        self.base.as_ref().map_or(0, |base| base.count())
    }

    pub fn get(&self, id: TypeId) -> &ObjectType {
        if let Some(base) = &self.base
            && id.0 < base.count()
        {
            return base.get(id);
        }
        let slot = &self.slots[(id.0 - self.below()) as usize];
        slot.parsed
            .get_or_init(|| facts::parse_type(slot.source, &|name| self.names.get(name).copied()))
    }

    pub fn by_name(&self, name: &str) -> Option<TypeId> {
        let inherited = || self.base.as_ref().and_then(|base| base.by_name(name));
        self.names.get(name).copied().or_else(inherited)
    }

    pub fn ids(&self) -> impl Iterator<Item = TypeId> + use<> {
        (0..self.count()).map(TypeId)
    }

    /// The field as JSON sees it, inlined structs included.
    pub fn field(&self, id: TypeId, name: &str) -> Option<&Field> {
        let object = self.get(id);
        match object
            .fields
            .binary_search_by(|field| field.name.as_str().cmp(name))
        {
            Ok(index) => Some(&object.fields[index]),
            Err(_) => object
                .inlines
                .iter()
                .find_map(|inline| self.field(inline.ty, name)),
        }
    }

    /// All fields as JSON sees them.
    pub fn fields(&self, id: TypeId) -> Vec<&Field> {
        let object = self.get(id);
        let inlined = object.inlines.iter().flat_map(|inline| self.fields(inline.ty));
        object.fields.iter().chain(inlined).collect()
    }

    /// The object type behind a dotted path such as `spec.template.spec`; lists and maps are stepped through.
    pub fn descend(&self, root: TypeId, path: &str) -> Option<&FieldType> {
        let mut segments = path.split('.');
        let mut current = &self.field(root, segments.next()?)?.ty;
        for segment in segments {
            let FieldType::Object(id) = current.element() else {
                return None;
            };
            current = &self.field(*id, segment)?.ty;
        }
        Some(current)
    }
}

impl FieldType {
    /// What lists and maps hold, at any depth.
    pub fn element(&self) -> &FieldType {
        match self {
            Self::List(item) | Self::WrappedList(item) | Self::Map(item) => item.element(),
            other => other,
        }
    }
}
