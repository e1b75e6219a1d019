//! Custom objects against their schema, with the causes and texts of upstream's OpenAPI validator.
//! What an update leaves as it was is not judged again.

use std::collections::{HashMap, HashSet};

use regex::Regex;
use serde_json::{Value, json};

use super::format;
use super::prune::{embeds, flag, preserves, property};
use crate::validate::{Cause, CauseReason};

/// The patterns of a schema, compiled.
pub(super) type Patterns = HashMap<String, Regex>;

pub(super) fn collect_patterns(schema: &Value, patterns: &mut Patterns) {
    match schema {
        Value::Object(fields) => {
            if let Some(text) = fields.get("pattern").and_then(Value::as_str)
                && let Ok(regex) = Regex::new(text)
            {
                patterns.insert(text.to_owned(), regex);
            }
            fields
                .values()
                .for_each(|inner| collect_patterns(inner, patterns));
        }
        Value::Array(items) => items.iter().for_each(|inner| collect_patterns(inner, patterns)),
        _ => {}
    }
}

pub(super) fn validate(
    schema: &Value,
    patterns: &Patterns,
    object: &Value,
    old: Option<&Value>,
) -> Vec<Cause> {
    let mut walk = Walk {
        patterns,
        causes: Vec::new(),
    };
    walk.value(schema, object, old, "", true);
    walk.causes
}

struct Walk<'a> {
    patterns: &'a Patterns,
    causes: Vec<Cause>,
}

impl Walk<'_> {
    fn value(&mut self, schema: &Value, value: &Value, old: Option<&Value>, path: &str, is_root: bool) {
        if old == Some(value) {
            return;
        }
        let before = self.causes.len();
        self.own(schema, value, path);
        // A value of the wrong type has nothing further to tell.
        if self.causes[before..]
            .iter()
            .any(|cause| cause.reason == CauseReason::TypeInvalid && cause.field == path)
        {
            return;
        }
        if embeds(schema) && !is_root {
            for field in ["apiVersion", "kind"] {
                if value[field].as_str().unwrap_or_default().is_empty() {
                    self.causes
                        .push(Cause::required(&child(path, field), "must not be empty"));
                }
            }
        }
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if is_root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                        continue;
                    }
                    if let Some(inner) = property(schema, name).flatten() {
                        let old = old.and_then(|old| old.get(name));
                        self.value(inner, value, old, &child(path, name), false);
                    }
                }
            }
            Value::Array(items) => self.items(schema, items, old, path),
            _ => {}
        }
        self.junctors(schema, value, path);
    }

    fn items(&mut self, schema: &Value, items: &[Value], old: Option<&Value>, path: &str) {
        let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let identity = |item: &Value| -> Value {
            keys.iter()
                .filter_map(|key| Some(((*key).to_owned(), item.get(*key)?.clone())))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let list_type = schema["x-kubernetes-list-type"].as_str().unwrap_or("atomic");
        let mut seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let field = format!("{path}[{index}]");
            let known = match list_type {
                "map" => Some(identity(item)),
                "set" => Some(item.clone()),
                _ => None,
            };
            if let Some(known) = known
                && !seen.insert(known.to_string())
            {
                self.causes.push(Cause::duplicate(&field, &known));
            }
            if let Some(inner) = schema.get("items") {
                let same = old
                    .filter(|_| list_type == "map")
                    .and_then(Value::as_array)
                    .and_then(|olds| olds.iter().find(|old| identity(old) == identity(item)));
                self.value(inner, item, same, &field, false);
            }
        }
    }

    /// What a schema says about a value itself.
    fn own(&mut self, schema: &Value, value: &Value, path: &str) {
        if value.is_null() && flag(schema, "nullable") {
            return;
        }
        let actual = type_of(value);
        let wanted = if flag(schema, "x-kubernetes-int-or-string") {
            "integer,string"
        } else {
            schema["type"].as_str().unwrap_or_default()
        };
        let fits = wanted.is_empty()
            || wanted.split(',').any(|wanted| wanted == actual)
            || (wanted == "number" && actual == "integer");
        let is_kept_null = value.is_null() && preserves(schema);
        if !fits && !is_kept_null {
            let text = format!("{path} in body must be of type {wanted}: \"{actual}\"");
            self.causes.push(Cause::type_invalid(path, &json!(actual), &text));
            return;
        }
        match value {
            Value::String(text) => self.text(schema, text, value, path),
            Value::Number(_) => self.number(schema, value, path),
            Value::Array(items) => self.array(schema, items, value, path),
            Value::Object(fields) => {
                for name in schema["required"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                {
                    if !fields.contains_key(name) {
                        self.causes.push(Cause::required(&child(path, name), ""));
                    }
                }
                let count = fields.len();
                if let Some(limit) = limit(schema, "maxProperties").filter(|limit| count > *limit) {
                    self.causes.push(Cause::too_many(path, count, limit));
                }
                if let Some(limit) = limit(schema, "minProperties").filter(|limit| count < *limit) {
                    self.refuse(path, value, &format!("should have at least {limit} properties"));
                }
            }
            _ => {}
        }
        if let Some(known) = schema["enum"].as_array()
            && !known.contains(value)
        {
            let names: Vec<String> = known
                .iter()
                .map(|known| known.as_str().map_or_else(|| known.to_string(), str::to_owned))
                .collect();
            self.causes.push(Cause::not_supported(path, value, &names));
        }
    }

    fn refuse(&mut self, path: &str, value: &Value, what: &str) {
        self.causes
            .push(Cause::invalid(path, value, &format!("{path} in body {what}")));
    }

    fn text(&mut self, schema: &Value, text: &str, value: &Value, path: &str) {
        let length = text.chars().count();
        if let Some(limit) = limit(schema, "maxLength").filter(|limit| length > *limit) {
            self.causes.push(Cause::too_long(path, limit));
        }
        if let Some(limit) = limit(schema, "minLength").filter(|limit| length < *limit) {
            self.refuse(path, value, &format!("should be at least {limit} chars long"));
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && self
                .patterns
                .get(pattern)
                .is_some_and(|regex| !regex.is_match(text))
        {
            self.refuse(path, value, &format!("should match '{pattern}'"));
        }
        if let Some(format) = schema["format"].as_str()
            && format::holds(format, text) == Some(false)
        {
            let detail = format!("{path} in body must be of type {format}: {value}");
            self.causes.push(Cause::type_invalid(path, value, &detail));
        }
    }

    fn number(&mut self, schema: &Value, value: &Value, path: &str) {
        let number = value.as_f64().unwrap_or(0.0);
        let bound = |name: &str| schema[name].as_f64();
        let shown = |bound: f64| json_number(bound);
        if let Some(maximum) = bound("maximum") {
            if flag(schema, "exclusiveMaximum") {
                if number >= maximum {
                    self.refuse(path, value, &format!("should be less than {}", shown(maximum)));
                }
            } else if number > maximum {
                self.refuse(
                    path,
                    value,
                    &format!("should be less than or equal to {}", shown(maximum)),
                );
            }
        }
        if let Some(minimum) = bound("minimum") {
            if flag(schema, "exclusiveMinimum") {
                if number <= minimum {
                    self.refuse(path, value, &format!("should be greater than {}", shown(minimum)));
                }
            } else if number < minimum {
                self.refuse(
                    path,
                    value,
                    &format!("should be greater than or equal to {}", shown(minimum)),
                );
            }
        }
        if let Some(factor) = bound("multipleOf").filter(|factor| *factor > 0.0) {
            let quotient = number / factor;
            if (quotient - quotient.round()).abs() > 1e-9 {
                self.refuse(path, value, &format!("should be a multiple of {}", shown(factor)));
            }
        }
        if let Some(format) = schema["format"].as_str()
            && !format::fits(format, number)
        {
            self.refuse(
                path,
                value,
                &format!("must be of type {format}: \"{}\"", json_number(number)),
            );
        }
    }

    fn array(&mut self, schema: &Value, items: &[Value], value: &Value, path: &str) {
        let count = items.len();
        if let Some(limit) = limit(schema, "maxItems").filter(|limit| count > *limit) {
            self.causes.push(Cause::too_many(path, count, limit));
        }
        if let Some(limit) = limit(schema, "minItems").filter(|limit| count < *limit) {
            self.refuse(path, value, &format!("should have at least {limit} items"));
        }
        if flag(schema, "uniqueItems") {
            let distinct: HashSet<String> = items.iter().map(Value::to_string).collect();
            if distinct.len() < count {
                self.refuse(path, value, "shouldn't contain duplicates");
            }
        }
    }

    /// `allOf`, `anyOf`, `oneOf`, `not`: their failures name no field, as upstream's.
    fn junctors(&mut self, schema: &Value, value: &Value, path: &str) {
        let alternatives = |name: &str| -> Vec<Vec<Cause>> {
            let schemas = schema[name].as_array().into_iter().flatten();
            schemas
                .map(|inner| self.alternative(inner, value, path))
                .collect()
        };
        let (all, any, one) = (
            alternatives("allOf"),
            alternatives("anyOf"),
            alternatives("oneOf"),
        );
        let not = schema
            .get("not")
            .map(|inner| self.alternative(inner, value, path));
        let whole = |text: String| Cause::invalid("<nil>", &json!(""), &text);
        let fewest = |results: Vec<Vec<Cause>>| results.into_iter().min_by_key(Vec::len).unwrap_or_default();
        if !any.is_empty() && any.iter().all(|causes| !causes.is_empty()) {
            self.causes.push(whole(format!(
                "\"{path}\" must validate at least one schema (anyOf)"
            )));
            self.causes.extend(fewest(any));
        }
        let matching = one.iter().filter(|causes| causes.is_empty()).count();
        if !one.is_empty() && matching != 1 {
            let found = match matching {
                0 => "Found none valid".to_owned(),
                more => format!("Found {more} valid alternatives"),
            };
            self.causes.push(whole(format!(
                "\"{path}\" must validate one and only one schema (oneOf). {found}"
            )));
            if matching == 0 {
                self.causes.extend(fewest(one));
            }
        }
        if all.iter().any(|causes| !causes.is_empty()) {
            let none = all.iter().all(|causes| !causes.is_empty());
            let none = if none { ". None validated" } else { "" };
            self.causes.push(whole(format!(
                "\"{path}\" must validate all the schemas (allOf){none}"
            )));
            self.causes.extend(all.into_iter().flatten());
        }
        if not.is_some_and(|causes| causes.is_empty()) {
            self.causes
                .push(whole(format!("\"{path}\" must not validate the schema (not)")));
        }
    }

    fn alternative(&self, schema: &Value, value: &Value, path: &str) -> Vec<Cause> {
        let mut walk = Walk {
            patterns: self.patterns,
            causes: Vec::new(),
        };
        walk.value(schema, value, None, path, path.is_empty());
        walk.causes
    }
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn limit(schema: &Value, name: &str) -> Option<usize> {
    schema[name]
        .as_u64()
        .and_then(|limit| usize::try_from(limit).ok())
}

fn json_number(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e15 {
        format!("{number:.0}")
    } else {
        number.to_string()
    }
}

pub(super) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(schema: Value, spec: Value, old: Option<Value>) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"spec": schema}});
        let mut patterns = Patterns::new();
        collect_patterns(&schema, &mut patterns);
        let old = old.map(|old| json!({"spec": old}));
        validate(&schema, &patterns, &json!({"spec": spec}), old.as_ref())
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn values_are_refused_in_upstreams_words() {
        let fields = |fields: Value| json!({"type": "object", "properties": fields});
        for (schema, spec, expected) in [
            (
                fields(json!({"n": {"type": "integer"}})),
                json!({"n": "x"}),
                r#"spec.n: Invalid value: "string": spec.n in body must be of type integer: "string""#,
            ),
            (
                fields(json!({"n": {"type": "string"}})),
                json!({"n": null}),
                r#"spec.n: Invalid value: "null": spec.n in body must be of type string: "null""#,
            ),
            (
                fields(json!({"n": {"x-kubernetes-int-or-string": true}})),
                json!({"n": true}),
                r#"spec.n: Invalid value: "boolean": spec.n in body must be of type integer,string: "boolean""#,
            ),
            (
                fields(json!({"n": {"type": "integer", "minimum": 1}})),
                json!({"n": 0}),
                "spec.n: Invalid value: 0: spec.n in body should be greater than or equal to 1",
            ),
            (
                fields(json!({"n": {"type": "number", "maximum": 1.5, "exclusiveMaximum": true}})),
                json!({"n": 1.5}),
                "spec.n: Invalid value: 1.5: spec.n in body should be less than 1.5",
            ),
            (
                fields(json!({"n": {"type": "string", "pattern": "^a+$"}})),
                json!({"n": "b"}),
                r#"spec.n: Invalid value: "b": spec.n in body should match '^a+$'"#,
            ),
            (
                fields(json!({"n": {"type": "string", "maxLength": 2}})),
                json!({"n": "abc"}),
                "spec.n: Too long: may not be more than 2 bytes",
            ),
            (
                fields(json!({"n": {"type": "string", "minLength": 2}})),
                json!({"n": "a"}),
                r#"spec.n: Invalid value: "a": spec.n in body should be at least 2 chars long"#,
            ),
            (
                fields(json!({"n": {"type": "string", "enum": ["a", "b"]}})),
                json!({"n": "c"}),
                r#"spec.n: Unsupported value: "c": supported values: "a", "b""#,
            ),
            (
                fields(json!({"n": {"type": "string", "format": "date-time"}})),
                json!({"n": "c"}),
                r#"spec.n: Invalid value: "c": spec.n in body must be of type date-time: "c""#,
            ),
            (
                fields(json!({"n": {"type": "array", "maxItems": 1, "items": {"type": "string"}}})),
                json!({"n": ["a", "b"]}),
                "spec.n: Too many: 2: must have at most 1 items",
            ),
            (
                fields(json!({"n": {"type": "array", "items": {"type": "object", "required": ["a"]}}})),
                json!({"n": [{}]}),
                "spec.n[0].a: Required value",
            ),
            (
                fields(
                    json!({"n": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}),
                ),
                json!({"n": ["a", "a"]}),
                r#"spec.n[1]: Duplicate value: "a""#,
            ),
            (
                fields(json!({"n": {"type": "object", "additionalProperties": {"type": "string"}}})),
                json!({"n": {"k": 1}}),
                r#"spec.n.k: Invalid value: "integer": spec.n.k in body must be of type string: "integer""#,
            ),
            (
                json!({"type": "object", "not": {"required": ["a"]}}),
                json!({"a": 1}),
                r#"<nil>: Invalid value: "": "spec" must not validate the schema (not)"#,
            ),
            (
                json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
                json!({"a": 1, "b": 1}),
                r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
            ),
        ] {
            assert_eq!(refusals(schema.clone(), spec, None), [expected], "{schema}");
        }
        let none = refusals(
            json!({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            json!({}),
            None,
        );
        assert_eq!(
            none,
            [
                r#"<nil>: Invalid value: "": "spec" must validate at least one schema (anyOf)"#,
                "spec.a: Required value"
            ]
        );
        let nullable = json!({"type": "object", "nullable": true});
        assert!(refusals(nullable, Value::Null, None).is_empty());
    }

    #[test]
    fn what_was_there_may_stay() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1}}});
        let old = Some(json!({"a": "long"}));
        assert!(refusals(schema.clone(), json!({"a": "long", "b": "x"}), old.clone()).is_empty());
        assert_eq!(refusals(schema, json!({"a": "longer"}), old).len(), 1);
    }
}
