//! What happens to a custom object before it is judged: unknown fields go, nulls that may not be go, defaults come.

use serde_json::{Map, Value};

/// Removes what the structural schema does not know; each gone field's path is reported.
pub(super) fn prune(value: &mut Value, schema: &Value, is_resource: bool) -> Vec<String> {
    let mut pruner = Pruner {
        path: String::new(),
        gone: Vec::new(),
    };
    pruner.value(value, Some(schema), is_resource);
    pruner.gone
}

pub(super) fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

pub(super) fn preserves(schema: &Value) -> bool {
    flag(schema, "x-kubernetes-preserve-unknown-fields")
}

pub(super) fn embeds(schema: &Value) -> bool {
    flag(schema, "x-kubernetes-embedded-resource")
}

struct Pruner {
    path: String,
    gone: Vec<String>,
}

impl Pruner {
    fn within(&mut self, segment: &str, walk: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 && !segment.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(segment);
        walk(self);
        self.path.truncate(length);
    }

    fn value(&mut self, value: &mut Value, schema: Option<&Value>, is_resource: bool) {
        match value {
            Value::Object(fields) => self.object(fields, schema, is_resource),
            Value::Array(items) => {
                let inner = schema.and_then(|schema| schema.get("items"));
                if inner.is_none() && schema.is_some_and(preserves) {
                    return;
                }
                for (index, item) in items.iter_mut().enumerate() {
                    self.within(&format!("[{index}]"), |walk| {
                        walk.value(item, inner, inner.is_some_and(embeds));
                    });
                }
            }
            _ => {}
        }
    }

    fn object(&mut self, fields: &mut Map<String, Value>, schema: Option<&Value>, is_resource: bool) {
        let keeps = schema.is_some_and(preserves);
        let mut gone = Vec::new();
        for (name, value) in fields.iter_mut() {
            if is_resource && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            match schema.and_then(|schema| property(schema, name)) {
                Some(inner) => self.within(name, |walk| walk.value(value, inner, inner.is_some_and(embeds))),
                None if keeps => {}
                None => gone.push(name.clone()),
            }
        }
        for name in gone {
            fields.remove(&name);
            self.within(&name, |walk| walk.gone.push(walk.path.clone()));
        }
    }
}

/// The schema of a property; `Some(None)` for one that may be there and is not described.
pub(super) fn property<'a>(schema: &'a Value, name: &str) -> Option<Option<&'a Value>> {
    if let Some(inner) = schema
        .get("properties")
        .and_then(|properties| properties.get(name))
    {
        return Some(Some(inner));
    }
    match schema.get("additionalProperties") {
        Some(Value::Bool(true)) => Some(None),
        Some(inner @ Value::Object(_)) => Some(Some(inner)),
        _ => None,
    }
}

/// Shows `visit` every object that the schema calls a resource, with its path.
pub(super) fn embedded<E>(
    value: &mut Value,
    schema: &Value,
    path: &str,
    visit: &mut impl FnMut(&str, &mut Map<String, Value>) -> Result<(), E>,
) -> Result<(), E> {
    match value {
        Value::Object(fields) => {
            if embeds(schema) {
                visit(path, fields)?;
            }
            for (name, value) in fields.iter_mut() {
                let Some(inner) = property(schema, name).flatten() else {
                    continue;
                };
                let dot = if path.is_empty() { "" } else { "." };
                embedded(value, inner, &format!("{path}{dot}{name}"), visit)?;
            }
        }
        Value::Array(items) => {
            let Some(inner) = schema.get("items") else {
                return Ok(());
            };
            for (index, item) in items.iter_mut().enumerate() {
                embedded(item, inner, &format!("{path}[{index}]"), visit)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn is_stray_null(value: &Value, schema: &Value) -> bool {
    value.is_null() && !flag(schema, "nullable")
}

/// Nulls where null is no value go; then defaults fill what is absent.
pub(super) fn default(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| {
                property(schema, name)
                    .flatten()
                    .is_none_or(|inner| !is_stray_null(value, inner))
            });
            for (name, inner) in schema
                .get("properties")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                if let Some(filling) = inner.get("default").filter(|filling| !filling.is_null())
                    && !fields.contains_key(name)
                {
                    fields.insert(name.clone(), filling.clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                if let Some(inner) = property(schema, name).flatten() {
                    default(value, inner);
                }
            }
        }
        Value::Array(items) => {
            let Some(inner) = schema.get("items") else { return };
            for item in items {
                if let Some(filling) = inner.get("default")
                    && is_stray_null(item, inner)
                {
                    *item = filling.clone();
                }
                default(item, inner);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn embedded_resources_are_found_wherever_the_schema_has_them() {
        let resource = json!({"type": "object", "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true});
        let schema = json!({"properties": {"spec": {"properties": {"one": resource,
            "many": {"items": resource}, "by": {"additionalProperties": resource}}}}});
        let mut object =
            json!({"spec": {"one": {"metadata": {}}, "many": [{}, {}], "by": {"name": {}}, "none": {}}});
        let mut paths = Vec::new();
        let visited = embedded(&mut object, &schema, "", &mut |path, _| {
            paths.push(path.to_owned());
            Ok::<_, ()>(())
        });
        assert_eq!(visited, Ok(()));
        assert_eq!(
            paths,
            ["spec.by.name", "spec.many[0]", "spec.many[1]", "spec.one"]
        );
    }

    #[test]
    fn unknown_fields_go_unless_preserved() {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"known": {"type": "object", "properties": {"x": {"type": "string"}}}}},
                "list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"n": {"type": "integer"}}}},
                "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}}}}});
        let mut object = json!({"apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n"}, "other": 1, "spec": {
            "a": "x", "b": 1, "free": {"any": {"thing": 1}, "known": {"x": "1", "y": "2"}},
            "list": [{"n": 1, "m": 2}], "map": {"k": {"n": 1, "m": 2}},
            "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}, "status": {}}}});
        let gone = prune(&mut object, &schema, true);
        assert_eq!(
            gone,
            [
                "spec.free.known.y",
                "spec.list[0].m",
                "spec.map.k.m",
                "spec.template.status",
                "spec.b",
                "other"
            ]
        );
        assert_eq!(
            object["spec"],
            json!({"a": "x", "free": {"any": {"thing": 1}, "known": {"x": "1"}}, "list": [{"n": 1}], "map": {"k": {"n": 1}},
                "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}})
        );
    }

    #[test]
    fn defaults_fill_and_stray_nulls_go() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string", "default": "x"},
            "b": {"type": "string"},
            "c": {"type": "string", "nullable": true, "default": "y"},
            "d": {"type": "object", "default": {}, "properties": {"e": {"type": "integer", "default": 5}}},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"f": {"type": "boolean", "default": true}}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"g": {"type": "string", "default": "z"}}}}}});
        let mut object = json!({"a": null, "b": null, "c": null, "m": {"k": {}}, "l": [{}]});
        default(&mut object, &schema);
        assert_eq!(
            object,
            json!({"a": "x", "c": null, "d": {"e": 5}, "m": {"k": {"f": true}}, "l": [{"g": "z"}]})
        );
    }
}
