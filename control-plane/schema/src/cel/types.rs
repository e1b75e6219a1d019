//! Types of expressions, with how large their values can be at most: read off schemas of custom resources and off
//! built-in types (upstream: `k8s.io/apiserver/pkg/cel/common/schemas.go`).

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::catalog::Kind;
use crate::types::{FieldType, TypeId, Types};

/// A request is no larger, so no value is.
pub const LARGEST_REQUEST: u64 = 3 * 1024 * 1024;

#[derive(Clone, Debug)]
pub enum Type {
    Dyn,
    Bool,
    Int,
    Uint,
    Double,
    Null,
    Timestamp,
    Duration,
    String(u64),
    Bytes(u64),
    List(Box<Type>, u64),
    Map(Box<Type>, Box<Type>, u64),
    Object(Shape),
    Optional(Box<Type>),
    /// Of a function library.
    Opaque(&'static str),
}

/// Where the fields of an object are found.
#[derive(Clone, Debug)]
pub enum Shape {
    /// And whether it is of a resource.
    Schema(Arc<Value>, bool),
    Typed(Arc<Types>, TypeId),
    Fixed(Arc<Vec<(String, Type)>>),
}

impl Type {
    pub const TEXT: Self = Self::String(LARGEST_REQUEST);

    /// `is_root`: of a resource, which has metadata. None for what expressions cannot see.
    pub fn of_schema(schema: &Value, is_root: bool) -> Option<Self> {
        let flag = |name: &str| schema[name] == true;
        if flag("x-kubernetes-int-or-string") {
            return Some(Self::Dyn);
        }
        let limit = |name: &str, least: u64| schema[name].as_u64().unwrap_or(least);
        let ty = schema["type"]
            .as_str()
            .unwrap_or(if is_root { "object" } else { "" });
        Some(match ty {
            "array" => {
                let items = Self::of_schema(&schema["items"], flag("x-kubernetes-embedded-resource"))?;
                let most = most_of(least_size(&schema["items"]) + 1);
                Self::List(Box::new(items), limit("maxItems", most))
            }
            "object" if schema["additionalProperties"].is_object() => {
                let values = &schema["additionalProperties"];
                let most = most_of(least_size(values) + 6);
                let values = Self::of_schema(values, false)?;
                Self::Map(
                    Box::new(Self::TEXT),
                    Box::new(values),
                    limit("maxProperties", most),
                )
            }
            "object" => Self::Object(Shape::Schema(
                Arc::new(schema.clone()),
                is_root || flag("x-kubernetes-embedded-resource"),
            )),
            "string" => {
                let length = schema["maxLength"].as_u64();
                let longest = schema["enum"].as_array().and_then(|values| {
                    let lengths = values
                        .iter()
                        .filter_map(|value| Some(value.as_str()?.len() as u64));
                    lengths.max()
                });
                let most = length.or(longest).unwrap_or(LARGEST_REQUEST - 2);
                match schema["format"].as_str() {
                    Some("byte") => Self::Bytes(most),
                    Some("duration") => Self::Duration,
                    Some("date" | "date-time") => Self::Timestamp,
                    _ => Self::String(most),
                }
            }
            "boolean" => Self::Bool,
            "number" => Self::Double,
            "integer" => Self::Int,
            _ => return None,
        })
    }

    /// Of objects of a kind.
    pub fn of_kind(kind: &Kind) -> Option<Self> {
        match &kind.custom {
            Some(custom) => Self::of_schema(&custom.schema, true),
            None => Some(Self::Object(Shape::Typed(kind.types.clone(), kind.root))),
        }
    }

    fn of_field(types: &Arc<Types>, ty: &FieldType) -> Self {
        let most = most_of(1);
        match ty {
            FieldType::String | FieldType::Quantity | FieldType::Duration => Self::TEXT,
            FieldType::Bytes => Self::Bytes(LARGEST_REQUEST),
            FieldType::Bool => Self::Bool,
            FieldType::Int32 | FieldType::Int64 => Self::Int,
            FieldType::Double => Self::Double,
            FieldType::Time | FieldType::MicroTime => Self::Timestamp,
            FieldType::IntOrString | FieldType::RawExtension | FieldType::FieldsV1 | FieldType::Json(_) => {
                Self::Dyn
            }
            FieldType::Object(id) => Self::Object(Shape::Typed(types.clone(), *id)),
            FieldType::List(item) | FieldType::WrappedList(item) => {
                Self::List(Box::new(Self::of_field(types, item)), most)
            }
            FieldType::Map(value) => {
                Self::Map(Box::new(Self::TEXT), Box::new(Self::of_field(types, value)), most)
            }
        }
    }

    /// How many characters, items or entries there can be.
    pub fn size(&self) -> u64 {
        match self {
            Self::String(size) | Self::Bytes(size) | Self::List(_, size) | Self::Map(_, _, size) => *size,
            Self::Dyn | Self::Opaque(_) => LARGEST_REQUEST,
            _ => 1,
        }
    }

    /// Whether a value of the one may stand where the other is wanted.
    pub fn fits(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::List(left, _), Self::List(right, _)) | (Self::Optional(left), Self::Optional(right)) => {
                left.fits(right)
            }
            (Self::Map(left, one, _), Self::Map(right, other, _)) => left.fits(right) && one.fits(other),
            // Maps and objects are written alike, and null is what is not there.
            (Self::Object(_) | Self::Map(..), Self::Object(_) | Self::Map(..)) => true,
            (
                Self::Null,
                Self::Object(_)
                | Self::Timestamp
                | Self::Duration
                | Self::Opaque(_)
                | Self::List(..)
                | Self::Map(..),
            )
            | (
                Self::Object(_)
                | Self::Timestamp
                | Self::Duration
                | Self::Opaque(_)
                | Self::List(..)
                | Self::Map(..),
                Self::Null,
            ) => true,
            (Self::Opaque(left), Self::Opaque(right)) => left == right,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    pub fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }
}

impl Shape {
    /// None when there is no such field; `name` is as expressions write it.
    pub fn field(&self, name: &str) -> Option<Type> {
        let name = unescaped(name);
        match self {
            Self::Schema(schema, is_resource) => match (is_resource, name.as_str()) {
                (true, "apiVersion" | "kind") => Some(Type::TEXT),
                (true, "metadata") => {
                    let text = serde_json::json!({"type": "string"});
                    let metadata = serde_json::json!({"type": "object", "properties": {"name": text, "generateName": text}});
                    Type::of_schema(&metadata, false)
                }
                _ => Type::of_schema(schema["properties"].get(&name)?, false),
            },
            Self::Fixed(fields) => {
                let (_, ty) = fields.iter().find(|(field, _)| *field == name)?;
                Some(ty.clone())
            }
            Self::Typed(types, id) => {
                let field = types.field(*id, &name)?;
                Some(Type::of_field(types, &field.ty))
            }
        }
    }
}

impl fmt::Display for Type {
    /// As cel-go prints types.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => out.write_str("dyn"),
            Self::Bool => out.write_str("bool"),
            Self::Int => out.write_str("int"),
            Self::Uint => out.write_str("uint"),
            Self::Double => out.write_str("double"),
            Self::Null => out.write_str("null"),
            Self::Timestamp => out.write_str("timestamp"),
            Self::Duration => out.write_str("duration"),
            Self::String(_) => out.write_str("string"),
            Self::Bytes(_) => out.write_str("bytes"),
            Self::List(item, _) => write!(out, "list({item})"),
            Self::Map(key, value, _) => write!(out, "map({key}, {value})"),
            Self::Object(Shape::Schema(..) | Shape::Fixed(_)) => out.write_str("object"),
            Self::Object(Shape::Typed(types, id)) => out.write_str(types.get(*id).short_name()),
            Self::Optional(inner) => write!(out, "optional_type({inner})"),
            Self::Opaque(name) => out.write_str(name),
        }
    }
}

/// How many of this size a request can hold.
pub fn most_of(size: u64) -> u64 {
    (LARGEST_REQUEST - 2) / size.max(1)
}

/// Characters that any value of the schema needs at least.
pub fn least_size(schema: &Value) -> u64 {
    match schema["type"].as_str() {
        Some("boolean") => 4,
        Some("integer" | "number") => 1,
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten();
            let fields = required.filter_map(|name| {
                let name = name.as_str()?;
                let field = schema["properties"].get(name)?;
                // Defaults need not be sent.
                field
                    .get("default")
                    .is_none()
                    .then(|| name.len() as u64 + 4 + least_size(field))
            });
            2 + fields.sum::<u64>()
        }
        _ => 2,
    }
}

/// `__dash__` and the like stand for what CEL does not allow in names.
fn unescaped(name: &str) -> String {
    const RESERVED: [&str; 22] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
        "__",
    ];
    let inner = name.strip_prefix("__").and_then(|name| name.strip_suffix("__"));
    if let Some(inner) = inner.filter(|inner| RESERVED.contains(inner)) {
        return inner.to_owned();
    }
    name.replace("__dot__", ".")
        .replace("__dash__", "-")
        .replace("__slash__", "/")
        .replace("__underscores__", "__")
}
