//! Whether a schema is structural: every field typed outside of the junctors, nothing that contradicts pruning.

use regex::Regex;
use serde_json::{Value, json};

use super::prune::{embeds, flag, preserves};
use crate::validate::Cause;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Keywords that OpenAPI v3 has and custom resources may not use.
const UNSUPPORTED: &[&str] = &[
    "id",
    "additionalItems",
    "patternProperties",
    "definitions",
    "dependencies",
    "$ref",
];
/// What a schema within a junctor may not say.
const FORBIDDEN_WITHIN: &[(&str, &str)] = &[
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("externalDocs", "must be undefined to be structural"),
    (
        "x-kubernetes-preserve-unknown-fields",
        "must be false to be structural",
    ),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
    ("x-kubernetes-validations", "must be empty to be structural"),
];
const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

pub(super) fn check(schema: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    structure(schema, Level::Root, path, &mut causes);
    complete(schema, schema, path, &mut causes);
    if causes.is_empty() {
        super::rules::judge(schema, path, &mut causes);
    }
    causes.sort_by(|left, right| (&left.field, &left.message).cmp(&(&right.field, &right.message)));
    causes.dedup();
    causes
}

fn has(schema: &Value, name: &str) -> bool {
    match schema.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}

fn members<'a>(schema: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    schema.get(name).and_then(Value::as_object).into_iter().flatten()
}

fn structure(schema: &Value, level: Level, path: &str, causes: &mut Vec<Cause>) {
    let ty = schema["type"].as_str().unwrap_or_default();
    let at = |name: &str| format!("{path}.{name}");
    for name in UNSUPPORTED.iter().filter(|name| has(schema, name)) {
        causes.push(Cause::forbidden(&at(name), &format!("{name} is not supported")));
    }
    if flag(schema, "uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        causes.push(Cause::forbidden(&at("uniqueItems"), why));
    }
    if ty == "null" {
        causes.push(Cause::forbidden(&at("type"), "type cannot be set to null"));
    } else if !ty.is_empty() && !TYPES.contains(&ty) {
        causes.push(Cause::not_supported(&at("type"), &json!(ty), TYPES));
    }
    match schema.get("items") {
        Some(Value::Array(_)) => {
            causes.push(Cause::forbidden(
                &at("items"),
                "items must be a schema object and not an array",
            ));
        }
        Some(items) => structure(items, Level::Item, &at("items"), causes),
        None if ty == "array" => causes.push(Cause::required(&at("items"), "must be specified")),
        None => {}
    }
    for (name, inner) in members(schema, "properties") {
        structure(inner, Level::Field, &format!("{path}.properties[{name}]"), causes);
    }
    if let Some(additional) = schema.get("additionalProperties") {
        let field = at("additionalProperties");
        if level == Level::Root {
            causes.push(Cause::forbidden(&field, "must not be used at the root"));
        }
        if has(schema, "properties") && *additional != json!(true) {
            let why = "additionalProperties and properties are mutual exclusive";
            causes.push(Cause::forbidden(&field, why));
        }
        if embeds(schema) {
            let why = "must not be used if x-kubernetes-embedded-resource is set";
            causes.push(Cause::forbidden(&field, why));
        }
        if additional.is_object() {
            structure(additional, Level::Field, &field, causes);
        }
    }
    let either = flag(schema, "x-kubernetes-int-or-string");
    for (name, set) in [
        ("x-kubernetes-preserve-unknown-fields", preserves(schema)),
        ("x-kubernetes-embedded-resource", embeds(schema)),
    ] {
        if either && set {
            let why = "must be false if x-kubernetes-int-or-string is true";
            causes.push(Cause::invalid(&at(name), &json!(true), why));
        }
    }
    let must_be_object = "must be object if x-kubernetes-embedded-resource is true";
    if embeds(schema) && ty.is_empty() {
        causes.push(Cause::required(&at("type"), must_be_object));
    } else if embeds(schema) && ty != "object" {
        causes.push(Cause::invalid(&at("type"), &json!(ty), must_be_object));
    } else if ty.is_empty() && !either && !preserves(schema) {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        causes.push(Cause::required(&at("type"), why));
    } else if level == Level::Root && !ty.is_empty() && ty != "object" {
        causes.push(Cause::invalid(
            &at("type"),
            &json!(ty),
            "must be object at the root",
        ));
    }
    if embeds(schema) && !preserves(schema) && !has(schema, "properties") {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        causes.push(Cause::required(&at("properties"), why));
    }
    if level == Level::Root || embeds(schema) {
        resource_fields(schema, level, path, causes);
    }
    lists(schema, ty, path, causes);
    pattern(schema, path, causes);
    super::rules::check(schema, path, causes);
    junctors(schema, path, causes);
}

/// A resource's own fields can hardly be restricted.
fn resource_fields(schema: &Value, level: Level, path: &str, causes: &mut Vec<Cause>) {
    for (name, wanted) in [
        ("kind", "string"),
        ("apiVersion", "string"),
        ("metadata", "object"),
    ] {
        if let Some(inner) = schema["properties"].get(name)
            && inner["type"] != wanted
        {
            let field = format!("{path}.properties[{name}].type");
            causes.push(Cause::invalid(
                &field,
                &inner["type"],
                &format!("must be {wanted}"),
            ));
        }
    }
    let silent = |(key, inner): (&String, &Value)| match key.as_str() {
        "type" => true,
        "properties" => inner.as_object().is_some_and(|names| {
            names
                .keys()
                .all(|name| matches!(name.as_str(), "name" | "generateName"))
        }),
        _ => false,
    };
    if level == Level::Root
        && let Some(metadata) = schema["properties"].get("metadata").and_then(Value::as_object)
        && !metadata.iter().all(silent)
    {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        causes.push(Cause::forbidden(&format!("{path}.properties[metadata]"), why));
    }
}

fn lists(schema: &Value, ty: &str, path: &str, causes: &mut Vec<Cause>) {
    let list_type = schema["x-kubernetes-list-type"].as_str();
    let field = format!("{path}.x-kubernetes-list-type");
    match list_type {
        Some(known @ ("atomic" | "set" | "map")) => {
            if ty != "array" {
                let why = "must be array if x-kubernetes-list-type is specified";
                let field = format!("{path}.type");
                causes.push(if ty.is_empty() {
                    Cause::required(&field, why)
                } else {
                    Cause::invalid(&field, &json!(ty), why)
                });
            }
            let keys = format!("{path}.x-kubernetes-list-map-keys");
            if known == "map" && !has(schema, "x-kubernetes-list-map-keys") {
                let why = "must not be empty if x-kubernetes-list-type is map";
                causes.push(Cause::required(&keys, why));
            }
            for (index, key) in schema["x-kubernetes-list-map-keys"]
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
            {
                let name = key.as_str().unwrap_or_default();
                if known == "map" && schema["items"]["properties"].get(name).is_none() {
                    let why = "entries must all be names of item properties";
                    causes.push(Cause::invalid(&format!("{keys}[{index}]"), key, why));
                }
            }
        }
        Some(other) => causes.push(Cause::not_supported(
            &field,
            &json!(other),
            &["atomic", "set", "map"],
        )),
        None if has(schema, "x-kubernetes-list-map-keys") => {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            causes.push(Cause::required(&field, why));
        }
        None => {}
    }
}

fn pattern(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(error) = Regex::new(pattern)
    {
        let why = format!("must be a valid regular expression, but isn't: {error}");
        causes.push(Cause::invalid(&format!("{path}.pattern"), &json!(pattern), &why));
    }
}

/// The one use of `type` within a junctor: telling an integer from a string.
fn is_int_or_string(alternatives: &Value) -> bool {
    *alternatives == json!([{"type": "integer"}, {"type": "string"}])
}

fn junctors(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    for name in ["anyOf", "allOf", "oneOf"] {
        if name == "anyOf" && is_int_or_string(&schema[name]) {
            continue;
        }
        for (index, inner) in schema[name].as_array().into_iter().flatten().enumerate() {
            let excused = name == "allOf" && index == 0 && is_int_or_string(&inner["anyOf"]);
            if !excused {
                within(inner, &format!("{path}.{name}[{index}]"), causes);
            }
        }
    }
    if let Some(inner) = schema.get("not") {
        within(inner, &format!("{path}.not"), causes);
    }
}

fn within(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    for (name, why) in FORBIDDEN_WITHIN.iter().filter(|(name, _)| has(schema, name)) {
        causes.push(Cause::forbidden(&format!("{path}.{name}"), why));
    }
    for (name, inner) in members(schema, "properties") {
        let field = format!("{path}.properties[{name}]");
        if name == "metadata" {
            causes.push(Cause::forbidden(
                &field,
                "must not be specified in a nested context",
            ));
        }
        within(inner, &field, causes);
    }
    if let Some(items) = schema.get("items") {
        within(items, &format!("{path}.items"), causes);
    }
    pattern(schema, path, causes);
    junctors(schema, path, causes);
}

/// Fields that a junctor speaks about must be known outside of it.
fn complete(schema: &Value, known: &Value, path: &str, causes: &mut Vec<Cause>) {
    for name in ["anyOf", "allOf", "oneOf"] {
        for inner in schema[name].as_array().into_iter().flatten() {
            mentioned(inner, known, path, causes);
        }
    }
    if let Some(inner) = schema.get("not") {
        mentioned(inner, known, path, causes);
    }
    for (name, inner) in members(schema, "properties") {
        complete(inner, inner, &format!("{path}.properties[{name}]"), causes);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(name).filter(|inner| inner.is_object()) {
            complete(inner, inner, &format!("{path}.{name}"), causes);
        }
    }
}

fn mentioned(schema: &Value, known: &Value, path: &str, causes: &mut Vec<Cause>) {
    let why = |path: &str| format!("because it is defined in {path}");
    for (name, inner) in members(schema, "properties") {
        let field = format!("{path}.properties[{name}]");
        match known["properties"]
            .get(name)
            .or_else(|| known.get("additionalProperties"))
        {
            Some(deeper) => mentioned(inner, deeper, &field, causes),
            None => causes.push(Cause::required(&field, &why(path))),
        }
    }
    if let Some(inner) = schema.get("items") {
        let field = format!("{path}.items");
        match known.get("items") {
            Some(deeper) => mentioned(inner, deeper, &field, causes),
            None => causes.push(Cause::required(&field, &why(path))),
        }
    }
    for name in ["anyOf", "allOf", "oneOf"] {
        for inner in schema[name].as_array().into_iter().flatten() {
            mentioned(inner, known, path, causes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(schema: Value) -> Vec<String> {
        check(&schema, "s")
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn structural_schemas_pass() {
        for schema in [
            json!({"type": "object"}),
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
                "spec": {"type": "object", "properties": {"port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "any": {"x-kubernetes-preserve-unknown-fields": true}},
                    "oneOf": [{"required": ["port"]}, {"properties": {"any": {"enum": [1]}}}]}}}),
        ] {
            assert_eq!(refusals(schema.clone()), Vec::<String>::new(), "{schema}");
        }
    }

    #[test]
    fn others_are_told_why() {
        for (schema, expected) in [
            (json!({}), "s.type: Required value: must not be empty at the root"),
            (
                json!({"type": "string"}),
                r#"s.type: Invalid value: "string": must be object at the root"#,
            ),
            (
                json!({"type": "object", "properties": {"a": {}}}),
                "s.properties[a].type: Required value: must not be empty for specified object fields",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array"}}}),
                "s.properties[a].items: Required value: must be specified",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "items": {}}}}),
                "s.properties[a].items.type: Required value: must not be empty for specified array items",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                "s.additionalProperties: Forbidden: must not be used at the root",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
                "s.properties[a].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: ",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string", "anyOf": [{"type": "string"}]}}}),
                "s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
            ),
            (
                json!({"type": "object", "not": {"properties": {"b": {"enum": [1]}}}}),
                "s.properties[b]: Required value: because it is defined in s",
            ),
            (
                json!({"type": "object", "properties": {"a": {"$ref": "x", "type": "string"}}}),
                "s.properties[a].$ref: Forbidden: $ref is not supported",
            ),
        ] {
            let found = refusals(schema.clone());
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{schema}: {found:?}"
            );
        }
    }
}
