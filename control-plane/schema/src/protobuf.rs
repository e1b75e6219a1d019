//! Values ⇄ protobuf messages, driven by the field table.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value, json};
use thiserror::Error;

use crate::time;
use crate::types::{Field, FieldType, JSON_SCHEMA, JsonShape, TypeId, Types};
use crate::wire::{Reader, Wire, put_bytes, put_double, put_varint};

/// Deeper messages are refused (custom resource schemas nest far, attackers farther).
const MAX_DEPTH: usize = 200;

#[derive(Debug, Error, PartialEq, Eq)]
#[error("{path}: {problem}")]
pub struct ProtobufError {
    /// Message names and field numbers down to the fault.
    pub path: String,
    pub problem: String,
}

impl ProtobufError {
    fn new(problem: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            problem: problem.into(),
        }
    }

    fn within(mut self, step: &str) -> Self {
        self.path = if self.path.is_empty() {
            step.to_owned()
        } else {
            format!("{step}.{}", self.path)
        };
        self
    }
}

type Result<T> = std::result::Result<T, ProtobufError>;

pub(crate) fn decode(types: &Types, root: TypeId, bytes: &[u8]) -> Result<Value> {
    let mut object = Map::new();
    decode_object(types, root, bytes, &mut object, 0)
        .map_err(|error| error.within(types.get(root).short_name()))?;
    Ok(Value::Object(object))
}

fn decode_object(
    types: &Types,
    id: TypeId,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::new("nested too deeply"));
    }
    let ty = types.get(id);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next().map_err(ProtobufError::new)? {
        if let Some(field) = ty.fields.iter().find(|field| field.number == number) {
            decode_field(types, field, wire, object, depth).map_err(|error| error.within(&field.name))?;
        } else if let Some(inline) = ty.inlines.iter().find(|inline| inline.number == number) {
            decode_object(
                types,
                inline.ty,
                wire.bytes().map_err(ProtobufError::new)?,
                object,
                depth + 1,
            )?;
        }
    }
    Ok(())
}

fn decode_field(
    types: &Types,
    field: &Field,
    wire: Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<()> {
    match &field.ty {
        FieldType::List(item) => {
            let value = decode_value(types, item, wire, depth)?;
            if let Value::Array(items) = object.entry(&field.name).or_insert_with(|| json!([])) {
                items.push(value);
            }
        }
        FieldType::Map(item) => {
            let mut key = String::new();
            let mut value = None;
            let mut entry = Reader(wire.bytes().map_err(ProtobufError::new)?);
            while let Some((number, wire)) = entry.next().map_err(ProtobufError::new)? {
                match number {
                    1 => key = text(wire)?,
                    2 => value = Some(decode_value(types, item, wire, depth)?),
                    _ => {}
                }
            }
            let value = match value {
                Some(value) => value,
                None => decode_value(types, item, Wire::Bytes(&[]), depth)?,
            };
            if let Value::Object(entries) = object.entry(&field.name).or_insert_with(|| json!({})) {
                entries.insert(key, value);
            }
        }
        // A message that comes in two parts is merged, as protobuf wants it.
        FieldType::Object(id) => {
            if let Value::Object(inner) = object.entry(&field.name).or_insert_with(|| json!({})) {
                decode_object(
                    types,
                    *id,
                    wire.bytes().map_err(ProtobufError::new)?,
                    inner,
                    depth + 1,
                )?;
            }
        }
        ty => {
            let value = decode_value(types, ty, wire, depth)?;
            object.insert(field.name.clone(), value);
        }
    }
    Ok(())
}

fn decode_value(types: &Types, ty: &FieldType, wire: Wire<'_>, depth: usize) -> Result<Value> {
    let bytes = || wire.bytes().map_err(ProtobufError::new);
    let varint = || wire.varint().map_err(ProtobufError::new);
    Ok(match ty {
        FieldType::String => text(wire)?.into(),
        FieldType::Bytes => STANDARD.encode(bytes()?).into(),
        FieldType::Bool => (varint()? != 0).into(),
        FieldType::Int32 => (varint()? as i32).into(),
        FieldType::Int64 => (varint()? as i64).into(),
        FieldType::Double => match wire {
            Wire::Fixed64(bits) => Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number),
            _ => return Err(ProtobufError::new("wrong wire type: expected a 64-bit field")),
        },
        FieldType::IntOrString => {
            let message = Scalars::read(bytes()?)?;
            if message.varints[0] == 0 {
                (message.varints[1] as i32).into()
            } else {
                utf8(message.bytes[2])?.into()
            }
        }
        FieldType::Quantity => utf8(Scalars::read(bytes()?)?.bytes[0])?.into(),
        FieldType::Time | FieldType::MicroTime => {
            let bytes = bytes()?;
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            let message = Scalars::read(bytes)?;
            let (seconds, nanos) = (message.varints[0] as i64, message.varints[1] as i32);
            let time = jiff::Timestamp::new(seconds, nanos)
                .map_err(|error| ProtobufError::new(error.to_string()))?;
            if *ty == FieldType::Time {
                time::format_seconds(seconds).into()
            } else {
                time::format_micro(time).into()
            }
        }
        FieldType::Duration => time::format_duration(Scalars::read(bytes()?)?.varints[0] as i64).into(),
        FieldType::RawExtension | FieldType::FieldsV1 | FieldType::Json(JsonShape::Raw) => {
            let raw = Scalars::read(bytes()?)?.bytes[0];
            if raw.is_empty() {
                return Ok(Value::Null);
            }
            serde_json::from_slice(raw).map_err(|error| ProtobufError::new(format!("raw JSON: {error}")))?
        }
        FieldType::Json(shape) => decode_schema_or(types, *shape, bytes()?, depth)?,
        FieldType::Object(id) => {
            let mut object = Map::new();
            decode_object(types, *id, bytes()?, &mut object, depth + 1)?;
            Value::Object(object)
        }
        FieldType::WrappedList(item) => {
            let mut items = Vec::new();
            let mut reader = Reader(bytes()?);
            while let Some((number, wire)) = reader.next().map_err(ProtobufError::new)? {
                if number == 1 {
                    items.push(decode_value(types, item, wire, depth)?);
                }
            }
            items.into()
        }
        FieldType::List(_) | FieldType::Map(_) => {
            return Err(ProtobufError::new("a list of lists has no protobuf form"));
        }
    })
}

fn decode_schema_or(types: &Types, shape: JsonShape, bytes: &[u8], depth: usize) -> Result<Value> {
    let schema = FieldType::Object(
        types
            .by_name(JSON_SCHEMA)
            .ok_or_else(|| ProtobufError::new("no JSONSchemaProps"))?,
    );
    let mut result = Value::Null;
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next().map_err(ProtobufError::new)? {
        match (shape, number) {
            (JsonShape::SchemaOrBool, 1) if !result.is_object() => {
                result = (wire.varint().map_err(ProtobufError::new)? != 0).into();
            }
            (JsonShape::SchemaOrBool, 2) | (JsonShape::SchemaOrArray | JsonShape::SchemaOrStringArray, 1) => {
                result = decode_value(types, &schema, wire, depth + 1)?;
            }
            (_, 2) => {
                let item = if shape == JsonShape::SchemaOrArray {
                    decode_value(types, &schema, wire, depth + 1)?
                } else {
                    text(wire)?.into()
                };
                match &mut result {
                    Value::Array(items) => items.push(item),
                    _ => result = json!([item]),
                }
            }
            _ => {}
        }
    }
    Ok(result)
}

/// The first fields of the small fixed messages (Time, Quantity, IntOrString, RawExtension, …).
#[derive(Default)]
struct Scalars<'a> {
    varints: [u64; 3],
    bytes: [&'a [u8]; 3],
}

impl<'a> Scalars<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut found = Self::default();
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.next().map_err(ProtobufError::new)? {
            let index = number as usize - 1;
            match wire {
                Wire::Varint(value) if index < 3 => found.varints[index] = value,
                Wire::Bytes(value) if index < 3 => found.bytes[index] = value,
                _ => {}
            }
        }
        Ok(found)
    }
}

fn text(wire: Wire<'_>) -> Result<String> {
    utf8(wire.bytes().map_err(ProtobufError::new)?).map(str::to_owned)
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|error| ProtobufError::new(error.to_string()))
}

pub(crate) fn encode(types: &Types, root: TypeId, object: &Value) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    encode_object(types, root, fields, &mut out)
        .map_err(|error| error.within(types.get(root).short_name()))?;
    Ok(out)
}

fn encode_object(types: &Types, id: TypeId, object: &Map<String, Value>, out: &mut Vec<u8>) -> Result<()> {
    let ty = types.get(id);
    let own = ty
        .fields
        .iter()
        .filter(|field| field.number > 0)
        .map(|field| (field.number, Some(field), None));
    let inlined = ty
        .inlines
        .iter()
        .map(|inline| (inline.number, None, Some(inline.ty)));
    let mut parts: Vec<_> = own.chain(inlined).collect();
    parts.sort_by_key(|(number, ..)| *number);
    for (number, field, inline) in parts {
        if let Some(inline) = inline {
            let mut inner = Vec::new();
            encode_object(types, inline, object, &mut inner)?;
            put_bytes(out, number, &inner);
        }
        if let Some(field) = field {
            encode_field(types, field, object.get(&field.name).unwrap_or(&Value::Null), out)
                .map_err(|error| error.within(&field.name))?;
        }
    }
    Ok(())
}

fn encode_field(types: &Types, field: &Field, value: &Value, out: &mut Vec<u8>) -> Result<()> {
    match (&field.ty, value) {
        (
            FieldType::List(_) | FieldType::Map(_) | FieldType::WrappedList(_) | FieldType::Bytes,
            Value::Null,
        ) => Ok(()),
        (_, Value::Null) if field.pointer => Ok(()),
        (ty, Value::Null) => encode_zero(types, ty, field.number, out),
        (FieldType::List(item), Value::Array(items)) => items
            .iter()
            .try_for_each(|entry| encode_value(types, item, field.number, entry, out)),
        (FieldType::Map(item), Value::Object(entries)) => entries.iter().try_for_each(|(key, entry)| {
            let mut message = Vec::new();
            put_bytes(&mut message, 1, key.as_bytes());
            encode_value(types, item, 2, entry, &mut message)?;
            put_bytes(out, field.number, &message);
            Ok(())
        }),
        (ty, value) => encode_value(types, ty, field.number, value, out),
    }
}

/// A field that Go holds by value is on the wire even when it was never set.
fn encode_zero(types: &Types, ty: &FieldType, number: u32, out: &mut Vec<u8>) -> Result<()> {
    match ty {
        FieldType::String
        | FieldType::Time
        | FieldType::MicroTime
        | FieldType::RawExtension
        | FieldType::FieldsV1
        | FieldType::Json(_) => {
            put_bytes(out, number, &[]);
            Ok(())
        }
        FieldType::Bool | FieldType::Int32 | FieldType::Int64 => {
            put_varint(out, number, 0);
            Ok(())
        }
        FieldType::Double => {
            put_double(out, number, 0.0);
            Ok(())
        }
        FieldType::Object(_) => encode_value(types, ty, number, &json!({}), out),
        FieldType::Quantity => encode_value(types, ty, number, &json!("0"), out),
        FieldType::IntOrString => encode_value(types, ty, number, &json!(0), out),
        FieldType::Duration => encode_value(types, ty, number, &json!("0s"), out),
        FieldType::Bytes | FieldType::List(_) | FieldType::WrappedList(_) | FieldType::Map(_) => Ok(()),
    }
}

fn encode_value(types: &Types, ty: &FieldType, number: u32, value: &Value, out: &mut Vec<u8>) -> Result<()> {
    let wrong = || ProtobufError::new(format!("{value} is not a {ty:?}"));
    let string = || value.as_str().ok_or_else(wrong);
    let mut message = Vec::new();
    match ty {
        FieldType::String => {
            put_bytes(out, number, string()?.as_bytes());
            return Ok(());
        }
        FieldType::Bytes => {
            let bytes = STANDARD
                .decode(string()?)
                .map_err(|error| ProtobufError::new(error.to_string()))?;
            put_bytes(out, number, &bytes);
            return Ok(());
        }
        FieldType::Bool => {
            put_varint(out, number, value.as_bool().ok_or_else(wrong)?.into());
            return Ok(());
        }
        FieldType::Int32 | FieldType::Int64 => {
            put_varint(out, number, value.as_i64().ok_or_else(wrong)? as u64);
            return Ok(());
        }
        FieldType::Double => {
            put_double(out, number, value.as_f64().ok_or_else(wrong)?);
            return Ok(());
        }
        FieldType::IntOrString => {
            let integer = value.as_i64();
            put_varint(&mut message, 1, u64::from(integer.is_none()));
            put_varint(&mut message, 2, integer.unwrap_or(0) as u64);
            put_bytes(&mut message, 3, value.as_str().unwrap_or_default().as_bytes());
        }
        FieldType::Quantity => match value {
            Value::Number(number) => put_bytes(&mut message, 1, number.to_string().as_bytes()),
            _ => put_bytes(&mut message, 1, string()?.as_bytes()),
        },
        FieldType::Time | FieldType::MicroTime => {
            if !value.is_null() {
                let (seconds, nanos) = time::split(string()?).map_err(ProtobufError::new)?;
                put_varint(&mut message, 1, seconds as u64);
                put_varint(
                    &mut message,
                    2,
                    if *ty == FieldType::Time { 0 } else { nanos as u64 },
                );
            }
        }
        FieldType::Duration => put_varint(
            &mut message,
            1,
            time::parse_duration(string()?).map_err(ProtobufError::new)? as u64,
        ),
        FieldType::RawExtension | FieldType::FieldsV1 | FieldType::Json(JsonShape::Raw) => {
            put_bytes(&mut message, 1, value.to_string().as_bytes())
        }
        FieldType::Json(shape) => encode_schema_or(types, *shape, value, &mut message)?,
        FieldType::Object(id) => {
            encode_object(types, *id, value.as_object().ok_or_else(wrong)?, &mut message)?
        }
        FieldType::WrappedList(item) => {
            for entry in value.as_array().into_iter().flatten() {
                encode_value(types, item, 1, entry, &mut message)?;
            }
        }
        FieldType::List(_) | FieldType::Map(_) => {
            return Err(ProtobufError::new("a list of lists has no protobuf form"));
        }
    }
    put_bytes(out, number, &message);
    Ok(())
}

fn encode_schema_or(types: &Types, shape: JsonShape, value: &Value, out: &mut Vec<u8>) -> Result<()> {
    let schema = FieldType::Object(
        types
            .by_name(JSON_SCHEMA)
            .ok_or_else(|| ProtobufError::new("no JSONSchemaProps"))?,
    );
    match (shape, value) {
        (JsonShape::SchemaOrBool, Value::Bool(allows)) => put_varint(out, 1, u64::from(*allows)),
        (JsonShape::SchemaOrBool, schema_value) => {
            put_varint(out, 1, 1);
            encode_value(types, &schema, 2, schema_value, out)?;
        }
        (JsonShape::SchemaOrArray, Value::Array(items)) => items
            .iter()
            .try_for_each(|item| encode_value(types, &schema, 2, item, out))?,
        (_, Value::Array(items)) => items
            .iter()
            .try_for_each(|item| encode_value(types, &FieldType::String, 2, item, out))?,
        (_, schema_value) => encode_value(types, &schema, 1, schema_value, out)?,
    }
    Ok(())
}
