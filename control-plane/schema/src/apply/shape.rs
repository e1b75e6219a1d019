//! How each part of an object merges: the table of facts as structured-merge-diff sees it.

use serde_json::{Map, Value};

use super::set::{FieldSet, PathElement};
use crate::types::{Field, FieldType, ListType, TypeId, Types};

#[derive(Clone, Copy, Debug)]
pub(super) enum Shape<'a> {
    /// Owned and replaced as a whole.
    Leaf,
    Struct(TypeId),
    Map(&'a FieldType),
    Set,
    /// A list whose items are known by these fields.
    ListMap(&'a FieldType, &'a [String]),
    /// Free-form JSON: objects merge, all else is a leaf.
    Deduced,
}

impl<'a> Shape<'a> {
    fn of_field(types: &'a Types, field: &'a Field) -> Self {
        match (&field.ty, field.list_type) {
            (FieldType::List(_) | FieldType::WrappedList(_), Some(ListType::Set)) => Self::Set,
            (FieldType::List(item) | FieldType::WrappedList(item), Some(ListType::Map)) => {
                Self::ListMap(item, &field.list_map_keys)
            }
            (FieldType::Object(_) | FieldType::Map(_), _) if field.map_type == "atomic" => Self::Leaf,
            (FieldType::Object(id), _) if field.map_type == "granular" => Self::Struct(*id),
            (ty, _) => Self::of_type(types, ty),
        }
    }

    fn of_type(types: &'a Types, ty: &'a FieldType) -> Self {
        match ty {
            FieldType::Object(id) if types.get(*id).map_atomic => Self::Leaf,
            FieldType::Object(id) => Self::Struct(*id),
            FieldType::Map(value) => Self::Map(value),
            FieldType::RawExtension | FieldType::FieldsV1 | FieldType::Json(_) => Self::Deduced,
            _ => Self::Leaf,
        }
    }

    /// Below an object; `None` for a field that the schema does not know.
    pub fn child(self, types: &'a Types, name: &str) -> Option<Self> {
        match self {
            Self::Struct(id) => match types.field(id, name) {
                Some(field) => Some(Self::of_field(types, field)),
                None => types.get(id).open.then_some(Self::Deduced),
            },
            Self::Map(value) => Some(Self::of_type(types, value)),
            Self::Deduced => Some(Self::Deduced),
            Self::Leaf | Self::Set | Self::ListMap(..) => None,
        }
    }

    /// An item of a list.
    pub fn item(self, types: &'a Types) -> Self {
        match self {
            Self::ListMap(item, _) => Self::of_type(types, item),
            _ => Self::Leaf,
        }
    }

    /// What a value really is: free-form JSON shows its shape only now.
    pub fn resolve(self, value: &Value) -> Self {
        match self {
            Self::Deduced if !value.is_object() => Self::Leaf,
            other => other,
        }
    }

    /// A list or map that Go writes as null when nobody sets it: there, but empty.
    pub fn is_null_when_unset(self, types: &Types, name: &str) -> bool {
        let Self::Struct(id) = self else { return false };
        types.field(id, name).is_some_and(|field| {
            let collection = matches!(field.ty, FieldType::List(_) | FieldType::Map(_));
            collection && !field.omit_empty && !field.pointer && !field.omit_zero
        })
    }

    /// How an item of this list is told from its siblings.
    pub fn element(self, types: &Types, item: &Value) -> Result<PathElement, String> {
        let Self::ListMap(ty, keys) = self else {
            return match item {
                Value::Object(_) | Value::Array(_) => {
                    Err("associative list without keys has an element that's not a scalar".into())
                }
                scalar => Ok(PathElement::value(scalar)),
            };
        };
        let fields = item
            .as_object()
            .ok_or("associative list with keys may not have non-map elements")?;
        let mut found = Map::new();
        for key in keys {
            let default = || match ty {
                FieldType::Object(id) => types.field(*id, key)?.default.clone(),
                _ => None,
            };
            let value = fields.get(key).cloned().or_else(default).ok_or_else(|| {
                format!(
                    "associative list with keys has an element that omits key field {key:?} (and doesn't have default value)"
                )
            })?;
            found.insert(key.clone(), value);
        }
        Ok(PathElement::key(found))
    }
}

impl FieldSet {
    /// With the fields of structs that members lie in; sets name those only when they are empty.
    pub(super) fn with_structs(&self, types: &Types, shape: Shape<'_>) -> Self {
        let mut full = self.clone();
        for (element, node) in &mut full.0 {
            let below = match element.field_name() {
                Some(name) => {
                    if matches!(shape, Shape::Struct(_)) && !node.below.is_empty() {
                        node.member |= shape.child(types, name).is_some();
                    }
                    shape.child(types, name)
                }
                None => Some(shape.item(types)),
            };
            node.below = node.below.with_structs(types, below.unwrap_or(Shape::Deduced));
        }
        full
    }
}
