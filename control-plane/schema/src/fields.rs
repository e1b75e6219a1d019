//! Strict field checking: types, unknown fields (pruned and reported), and the form upstream's typed round trip would give:
//! zero values of `omitempty` fields go, structs by value and other zero values appear.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::catalog::Kind;
use crate::quantity::{self, Quantity};
use crate::time;
use crate::types::{Field, FieldType, JSON_SCHEMA, JsonShape, TypeId, Types};

/// Upstream stops collecting strict problems here.
const MAX_PROBLEMS: usize = 100;

/// Brings `object` into canonical form. `Ok` lists strict problems (`unknown field "spec.foo"`);
/// `Err` is the decoder's text for a value of the wrong type, without the `… cannot be handled as a …` prefix.
pub fn check(kind: &Kind, object: &mut Value) -> Result<Vec<String>, String> {
    if let Some(custom) = &kind.custom {
        return custom.check(object);
    }
    let mut walk = Walk {
        types: &kind.types,
        path: String::new(),
        go_path: String::new(),
        problems: Vec::new(),
    };
    let Value::Object(fields) = object else {
        let name = go_name(&kind.types, &FieldType::Object(kind.root));
        return Err(format!(
            "json: cannot unmarshal {} into Go value of type {name}",
            json_kind(object)
        ));
    };
    walk.object(kind.root, fields)?;
    Ok(walk.problems)
}

struct Walk<'a> {
    types: &'a Types,
    /// With list indices, for strict problems.
    path: String,
    /// Without, as Go's decoder tells it.
    go_path: String,
    problems: Vec<String>,
}

impl Walk<'_> {
    fn object(&mut self, id: TypeId, object: &mut Map<String, Value>) -> Result<(), String> {
        let types = self.types;
        let struct_name = types.get(id).short_name();
        let mut gone: Vec<String> = Vec::new();
        for (name, value) in object.iter_mut() {
            let Some(field) = types.field(id, name) else {
                if self.problems.len() < MAX_PROBLEMS {
                    let path = joined(&self.path, name);
                    self.problems.push(format!("unknown field \"{path}\""));
                }
                gone.push(name.clone());
                continue;
            };
            if !value.is_null() {
                let (path, go_path) = (self.path.len(), self.go_path.len());
                step(&mut self.path, name);
                step(&mut self.go_path, name);
                self.value(&field.ty, value, struct_name)?;
                self.path.truncate(path);
                self.go_path.truncate(go_path);
            }
            if value.is_null() || (field.omit_empty && is_zero(field, value)) {
                gone.push(name.clone());
            }
        }
        for name in gone {
            object.remove(&name);
        }
        for field in types.fields(id) {
            if let Some(zero) = zero_value(field).filter(|_| !object.contains_key(&field.name)) {
                let mut zero = zero;
                if let (FieldType::Object(id), Value::Object(fields)) = (&field.ty, &mut zero) {
                    self.object(*id, fields)?;
                }
                object.insert(field.name.clone(), zero);
            }
        }
        Ok(())
    }

    /// A schema, a list of them, or something else that needs no look.
    fn schemas(&mut self, value: &mut Value) -> Result<(), String> {
        let Some(id) = self.types.by_name(JSON_SCHEMA) else {
            return Ok(());
        };
        match value {
            Value::Object(fields) => self.object(id, fields),
            Value::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    let path = self.path.len();
                    self.path.push_str(&format!("[{index}]"));
                    self.schemas(item)?;
                    self.path.truncate(path);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn value(&mut self, ty: &FieldType, value: &mut Value, owner: &str) -> Result<(), String> {
        match (ty, &mut *value) {
            (FieldType::String, Value::String(_))
            | (FieldType::Bool, Value::Bool(_))
            | (FieldType::IntOrString, Value::String(_))
            | (FieldType::Double, Value::Number(_))
            | (FieldType::RawExtension | FieldType::Json(JsonShape::Raw), _)
            | (FieldType::FieldsV1, Value::Object(_))
            | (_, Value::Null) => Ok(()),
            (FieldType::Int64, Value::Number(number)) if number.is_i64() => Ok(()),
            (FieldType::Int32 | FieldType::IntOrString, Value::Number(number))
                if number
                    .as_i64()
                    .is_some_and(|number| i32::try_from(number).is_ok()) =>
            {
                Ok(())
            }
            (FieldType::Bytes, Value::String(text)) => {
                // Line breaks are no part of the encoding.
                text.retain(|c| !matches!(c, '\r' | '\n'));
                STANDARD
                    .decode(text.as_bytes())
                    .map(drop)
                    .map_err(|_| format!("illegal base64 data at input byte {}", base64_offset(text)))
            }
            (FieldType::Quantity, Value::String(_) | Value::Number(_)) => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let quantity = Quantity::parse(text.trim()).ok_or(quantity::MALFORMED)?;
                *value = Value::String(quantity.canonical());
                Ok(())
            }
            (FieldType::Time, Value::String(text)) => {
                *text = time::canonical(text)?;
                Ok(())
            }
            (FieldType::MicroTime, Value::String(text)) => {
                *text = time::canonical_micro(text)?;
                Ok(())
            }
            (FieldType::Duration, Value::String(text)) => {
                *text = time::format_duration(time::parse_duration(text)?);
                Ok(())
            }
            (FieldType::Object(id), Value::Object(fields)) => self.object(*id, fields),
            (FieldType::Json(shape), free) if *shape != JsonShape::Raw => self.schemas(free),
            (FieldType::List(item) | FieldType::WrappedList(item), Value::Array(items)) => {
                for (index, entry) in items.iter_mut().enumerate() {
                    let path = self.path.len();
                    self.path.push_str(&format!("[{index}]"));
                    if entry.is_null() {
                        *entry = null_item(item);
                    }
                    self.value(item, entry, owner)?;
                    self.path.truncate(path);
                }
                Ok(())
            }
            (FieldType::Map(item), Value::Object(entries)) => {
                for (key, entry) in entries.iter_mut() {
                    let path = self.path.len();
                    step(&mut self.path, key);
                    if entry.is_null() {
                        *entry = null_item(item);
                    }
                    self.value(item, entry, owner)?;
                    self.path.truncate(path);
                }
                Ok(())
            }
            (_, wrong) => Err(mismatch(self.types, ty, wrong, owner, &self.go_path)),
        }
    }
}

fn mismatch(types: &Types, ty: &FieldType, value: &Value, owner: &str, path: &str) -> String {
    let what = match (ty, value) {
        (FieldType::Int32 | FieldType::Int64 | FieldType::IntOrString, Value::Number(number)) => {
            format!("number {number}")
        }
        (_, value) => json_kind(value).to_owned(),
    };
    format!(
        "json: cannot unmarshal {what} into Go struct field {owner}.{path} of type {}",
        go_name(types, ty)
    )
}

fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The Go type, as Go's decoder prints it.
fn go_name(types: &Types, ty: &FieldType) -> String {
    match ty {
        FieldType::String => "string".into(),
        FieldType::Bytes => "[]uint8".into(),
        FieldType::Bool => "bool".into(),
        FieldType::Int32 => "int32".into(),
        FieldType::Int64 => "int64".into(),
        FieldType::Double => "float64".into(),
        FieldType::IntOrString => "intstr.IntOrString".into(),
        FieldType::Quantity => "resource.Quantity".into(),
        FieldType::Time => "v1.Time".into(),
        FieldType::MicroTime => "v1.MicroTime".into(),
        FieldType::Duration => "v1.Duration".into(),
        FieldType::RawExtension => "runtime.RawExtension".into(),
        FieldType::FieldsV1 => "v1.FieldsV1".into(),
        FieldType::Json(_) => "v1.JSON".into(),
        FieldType::Object(id) => {
            let name = &types.get(*id).name;
            name.rsplitn(3, '.')
                .take(2)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect::<Vec<_>>()
                .join(".")
        }
        FieldType::List(item) | FieldType::WrappedList(item) => format!("[]{}", go_name(types, item)),
        FieldType::Map(item) => format!("map[string]{}", go_name(types, item)),
    }
}

fn is_zero(field: &Field, value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        _ if field.pointer => false,
        Value::Object(entries) => {
            entries.is_empty() && (field.omit_zero || matches!(field.ty, FieldType::Map(_)))
        }
        Value::String(text) => text.is_empty() && !matches!(field.ty, FieldType::IntOrString),
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0) && !matches!(field.ty, FieldType::IntOrString),
        Value::Null => true,
    }
}

/// What Go writes for a field that was never set; `None` when it writes nothing.
fn zero_value(field: &Field) -> Option<Value> {
    if field.always_present() {
        return Some(Value::Object(Map::new()));
    }
    if field.pointer || field.omit_empty || field.omit_zero {
        return None;
    }
    match field.ty {
        FieldType::String => Some(Value::String(String::new())),
        FieldType::Bool => Some(Value::Bool(false)),
        FieldType::Int32 | FieldType::Int64 => Some(Value::from(0)),
        _ => None,
    }
}

fn null_item(ty: &FieldType) -> Value {
    match ty {
        FieldType::String | FieldType::Bytes => Value::String(String::new()),
        FieldType::Object(_) | FieldType::Map(_) => Value::Object(Map::new()),
        FieldType::List(_) | FieldType::WrappedList(_) => Value::Array(Vec::new()),
        FieldType::Bool => Value::Bool(false),
        FieldType::Int32 | FieldType::Int64 | FieldType::Double => Value::from(0),
        FieldType::Quantity => Value::String("0".into()),
        _ => Value::Null,
    }
}

fn base64_offset(text: &str) -> usize {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    text.bytes().position(|byte| !valid(byte)).unwrap_or(text.len())
}

fn step(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::{Catalog, GroupVersionKind};

    fn kind(api_version: &str, kind: &str) -> std::sync::Arc<Kind> {
        Catalog::builtin()
            .kind(&GroupVersionKind::from_api_version(api_version, kind))
            .expect(kind)
            .clone()
    }

    #[test]
    fn reports_and_prunes_unknown_fields() {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "foo": 1}, "bar": {},
            "spec": {"containers": [{"name": "a"}, {"name": "b", "imagee": "y"}]}});
        let problems = check(&kind("v1", "Pod"), &mut pod).expect("types are right");
        assert_eq!(
            problems,
            [
                r#"unknown field "bar""#,
                r#"unknown field "metadata.foo""#,
                r#"unknown field "spec.containers[1].imagee""#
            ]
        );
        assert_eq!(
            pod["spec"]["containers"][1],
            json!({"name": "b", "resources": {}})
        );
        assert_eq!(pod["metadata"], json!({"name": "x"}));
    }

    #[test]
    fn type_mismatches_read_like_upstreams() {
        for (api_version, name, object, expected) in [
            (
                "apps/v1",
                "Deployment",
                json!({"spec": {"replicas": "3"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "apps/v1",
                "Deployment",
                json!({"spec": {"replicas": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "v1",
                "Pod",
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                "v1",
                "Pod",
                json!({"spec": {"containers": {}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                "v1",
                "Pod",
                json!({"spec": {"containers": [{"image": true}]}}),
                "json: cannot unmarshal bool into Go struct field Container.spec.containers.image of type string",
            ),
            (
                "v1",
                "Secret",
                json!({"data": {"a": "?"}}),
                "illegal base64 data at input byte 0",
            ),
            (
                "v1",
                "Pod",
                json!([]),
                "json: cannot unmarshal array into Go value of type v1.Pod",
            ),
        ] {
            let mut object = object;
            assert_eq!(
                check(&kind(api_version, name), &mut object),
                Err(expected.to_owned())
            );
        }
    }

    #[test]
    fn canonical_form_is_the_typed_round_trip() {
        let mut pod = json!({"metadata": {"name": "x", "labels": {}, "creationTimestamp": null}, "spec": {
            "nodeName": "", "hostNetwork": false, "terminationGracePeriodSeconds": 0, "tolerations": [],
            "volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "c", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]}});
        check(&kind("v1", "Pod"), &mut pod).expect("types are right");
        assert_eq!(
            pod,
            json!({"metadata": {"name": "x"}, "spec": {"terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]},
            "status": {}})
        );
    }
}
