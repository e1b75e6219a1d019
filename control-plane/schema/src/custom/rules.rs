//! CEL rules (`x-kubernetes-validations`) of a schema: compiled with the definition, asked about each object.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kube_cel::{CompilationError, CompiledSchema, ErrorKind, ValidationError, Validator, compile_schema};
use serde_json::{Value, json};

use crate::cel::types::{self, Type};
use crate::cel::{self, Expression};
use crate::validate::{Cause, CauseReason};

const RULES: &str = "x-kubernetes-validations";
/// Upstream's parser stops here, too.
const MAX_NESTING: usize = 250;
const REASONS: &[&str] = &[
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];
/// Told when rules were not asked because the object's shape is wrong already.
const UNCHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

#[derive(Clone, Debug)]
pub(super) struct Rules(Arc<CompiledSchema>);

impl Rules {
    /// None for a schema without rules.
    pub fn of(schema: &Value) -> Option<Self> {
        mentions_rules(schema).then(|| Self(Arc::new(compile_schema(schema))))
    }

    /// `shape` is what the schema itself refuses.
    pub fn check(&self, object: &Value, old: Option<&Value>, shape: &[Cause]) -> Vec<Cause> {
        let blocks = |cause: &Cause| {
            matches!(
                cause.reason,
                CauseReason::Required
                    | CauseReason::TooLong
                    | CauseReason::TooMany
                    | CauseReason::TypeInvalid
            )
        };
        if shape.iter().any(blocks) {
            return vec![Cause::invalid("<nil>", &json!("null"), UNCHECKED)];
        }
        // The evaluator panics on message literals, which upstream refuses, too.
        let verdict = catch_unwind(AssertUnwindSafe(|| {
            Validator::new().validate_compiled(&self.0, object, old)
        }));
        match verdict {
            Ok(Ok(())) => Vec::new(),
            Ok(Err(errors)) => errors
                .into_vec()
                .iter()
                .filter(|error| !is_unchanged(error, object, old))
                .map(|error| cause(error, object))
                .collect(),
            Err(_) => vec![Cause::invalid(
                "<nil>",
                &json!("object"),
                "a validation rule cannot be evaluated",
            )],
        }
    }
}

fn mentions_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => fields.contains_key(RULES) || fields.values().any(mentions_rules),
        Value::Array(items) => items.iter().any(mentions_rules),
        _ => false,
    }
}

/// What an update leaves as it was is not judged again, except by rules about the change itself.
fn is_unchanged(error: &ValidationError, object: &Value, old: Option<&Value>) -> bool {
    let now = at(object, &error.field_path);
    now.is_some() && now == old.and_then(|old| at(old, &error.field_path)) && !error.rule.contains("oldSelf")
}

fn cause(error: &ValidationError, object: &Value) -> Cause {
    let field = if error.field_path.is_empty() {
        "<nil>"
    } else {
        &error.field_path
    };
    let ty = at(object, &error.field_path).map_or("object", super::values::type_of);
    let detail = match error.kind {
        ErrorKind::ValidationFailure => error.message.clone(),
        _ => format!("{} evaluating rule: {}", error.message, error.rule),
    };
    match error.reason.as_deref() {
        Some("FieldValueForbidden") => Cause::forbidden(field, &detail),
        Some("FieldValueRequired") => Cause::required(field, &detail),
        Some("FieldValueDuplicate") => Cause::duplicate(field, &json!(ty)),
        _ => Cause::invalid(field, &json!(ty), &detail),
    }
}

/// The value at `spec.list[0].name`.
fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let names = path.split(['.', '[']).filter(|name| !name.is_empty());
    names
        .map(|name| name.trim_end_matches(']'))
        .try_fold(object, |value, name| match value {
            Value::Array(items) => items.get(name.parse::<usize>().ok()?),
            other => other.get(name),
        })
}

/// Rules that cannot be compiled are refused with their definition.
pub(super) fn check(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    for (index, rule) in schema[RULES].as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}.{RULES}[{index}]");
        let text = rule["rule"].as_str().unwrap_or_default();
        if text.trim().is_empty() {
            causes.push(Cause::required(&format!("{path}.rule"), "rule is not specified"));
            continue;
        }
        if let Some(reason) = rule["reason"].as_str().filter(|reason| !REASONS.contains(reason)) {
            causes.push(Cause::not_supported(
                &format!("{path}.reason"),
                &json!(reason),
                REASONS,
            ));
        }
        for field in ["rule", "messageExpression"] {
            if nesting(rule[field].as_str().unwrap_or_default()) > MAX_NESTING {
                let why = format!("compilation failed: expression recursion limit exceeded: {MAX_NESTING}");
                causes.push(Cause::invalid(&format!("{path}.{field}"), &rule[field], &why));
                return;
            }
        }
        let compiled = catch_unwind(AssertUnwindSafe(|| {
            compile_schema(&json!({"type": "object", RULES: [rule]}))
        }));
        let Ok(compiled) = compiled else {
            let why = "compilation failed: the expression is not supported";
            causes.push(Cause::invalid(&format!("{path}.rule"), &json!(text), why));
            continue;
        };
        for error in compiled.compilation_errors() {
            causes.push(match error {
                CompilationError::Parse { source, .. } => {
                    let why = format!("compilation failed: {source}");
                    Cause::invalid(&format!("{path}.rule"), &json!(text), &why)
                }
                CompilationError::MessageExpressionParse {
                    message_expression,
                    source,
                    ..
                } => {
                    let why = format!("messageExpression compilation failed: {source}");
                    Cause::invalid(
                        &format!("{path}.messageExpression"),
                        &json!(message_expression),
                        &why,
                    )
                }
                other => Cause::invalid(&path, rule, &other.to_string()),
            });
        }
    }
}

/// Costs of a rule and of all rules together that are too much (upstream: `StaticEstimatedCostLimit`).
const MOST_COST: u64 = 10_000_000;
const MOST_COST_OF_ALL: u64 = 100_000_000;

/// Rules must be about what the schema has, and may not be able to take too long.
pub(super) fn judge(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let mut total = 0;
    walk(schema, path, true, Some(1), &mut total, causes);
    if total > MOST_COST_OF_ALL {
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        causes.push(Cause::forbidden(path, &too_dear(what, total, MOST_COST_OF_ALL)));
    }
}

/// `times`: how often the schema applies in an object; None: as often as a request has room.
fn walk(
    schema: &Value,
    path: &str,
    is_root: bool,
    times: Option<u64>,
    total: &mut u64,
    causes: &mut Vec<Cause>,
) {
    let is_resource = is_root || schema["x-kubernetes-embedded-resource"] == true;
    let own = Type::of_schema(schema, is_resource).unwrap_or(Type::Dyn);
    let often = times.unwrap_or_else(|| types::most_of(types::least_size(schema) + 1));
    for (index, rule) in schema[RULES].as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}.{RULES}[{index}]");
        let old = match rule["optionalOldSelf"] == true {
            true => Type::Optional(Box::new(own.clone())),
            false => own.clone(),
        };
        let scope = [("self", own.clone()), ("oldSelf", old)];
        for (field, is_wanted, wrong, what) in [
            (
                "rule",
                (|ty| matches!(ty, Type::Bool | Type::Dyn)) as fn(&Type) -> bool,
                "cel expression must evaluate to a bool",
                "estimated rule cost",
            ),
            (
                "messageExpression",
                |ty| matches!(ty, Type::String(_) | Type::Dyn),
                "messageExpression must evaluate to a string",
                "estimated messageExpression cost",
            ),
        ] {
            let text = rule[field].as_str().unwrap_or_default();
            if text.trim().is_empty() {
                continue;
            }
            let at = format!("{path}.{field}");
            let outcome = Expression::compile(text, &["self", "oldSelf"]).and_then(|expression| {
                cel::check(&expression, &scope).map_err(|why| format!("compilation failed: {why}"))
            });
            match outcome {
                Err(why) => causes.push(Cause::invalid(&at, &json!(text), &why)),
                Ok(checked) if !is_wanted(&checked.ty) => {
                    causes.push(Cause::invalid(&at, &json!(text), wrong))
                }
                Ok(checked) => {
                    let cost = checked.cost.saturating_mul(often);
                    *total = total.saturating_add(cost);
                    if cost > MOST_COST {
                        causes.push(Cause::forbidden(&at, &too_dear(what, cost, MOST_COST)));
                    }
                }
            }
        }
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(
            field,
            &format!("{path}.properties[{name}]"),
            false,
            times,
            total,
            causes,
        );
    }
    for (list, limit) in [("items", "maxItems"), ("additionalProperties", "maxProperties")] {
        if schema[list].is_object() {
            let most = schema[limit].as_u64();
            let times = times.zip(most).map(|(times, most)| times.saturating_mul(most));
            walk(
                &schema[list],
                &format!("{path}.{list}"),
                false,
                times,
                total,
                causes,
            );
        }
    }
}

/// Upstream's `getCostErrorMessage`.
fn too_dear(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        factor if factor > 100.0 => "more than 100x".to_owned(),
        factor if factor < 1.5 => format!("{factor:.6}x"),
        factor => format!("{factor:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for letter in text.chars() {
        match letter {
            '(' | '[' | '{' | '!' | '-' | '?' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(rules: Value) -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", RULES: rules, "properties": {
            "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string", RULES: [{"rule": "self == oldSelf", "message": "is immutable"}]}}}}})
    }

    fn refusals(rules: Value, spec: Value, old: Option<Value>) -> Vec<String> {
        let rules = Rules::of(&schema(rules)).expect("has rules");
        let old = old.map(|old| json!({"spec": old}));
        rules
            .check(&json!({"spec": spec}), old.as_ref(), &[])
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn rules_hold_or_say_why() {
        let order = json!([{"rule": "self.min <= self.max", "message": "min must not exceed max"}]);
        assert!(refusals(order.clone(), json!({"min": 1, "max": 2}), None).is_empty());
        let bad = json!({"min": 3, "max": 2});
        let told = [r#"spec: Invalid value: "object": min must not exceed max"#];
        assert_eq!(refusals(order.clone(), bad.clone(), None), told);
        assert!(
            refusals(order.clone(), bad.clone(), Some(bad)).is_empty(),
            "it was so before"
        );

        let silent = json!([{"rule": "self.min > 5", "reason": "FieldValueForbidden", "fieldPath": ".min"}]);
        assert_eq!(
            refusals(silent, json!({"min": 1}), None),
            ["spec.min: Forbidden: failed rule: self.min > 5"]
        );
        let telling =
            json!([{"rule": "self.min > 5", "messageExpression": "'at least 6, not ' + string(self.min)"}]);
        assert_eq!(
            refusals(telling, json!({"min": 1}), None),
            [r#"spec: Invalid value: "object": at least 6, not 1"#]
        );
        let absent = refusals(json!([{"rule": "self.nothing > 5"}]), json!({"min": 1}), None);
        assert!(
            absent[0].contains("evaluating rule: self.nothing > 5"),
            "{absent:?}"
        );
        assert_eq!(
            refusals(json!([{"rule": "Object{a: 1}.a == 1"}]), json!({"min": 1}), None).len(),
            1,
            "refused, whatever the evaluator makes of it"
        );
    }

    #[test]
    fn transitions_see_the_old_value() {
        let none = json!([]);
        assert!(refusals(none.clone(), json!({"name": "a"}), None).is_empty());
        assert!(refusals(none.clone(), json!({"name": "a"}), Some(json!({"name": "a"}))).is_empty());
        assert_eq!(
            refusals(none, json!({"name": "b"}), Some(json!({"name": "a"}))),
            [r#"spec.name: Invalid value: "string": is immutable"#]
        );
    }

    #[test]
    fn broken_shapes_are_not_asked() {
        let rules = Rules::of(&schema(json!([]))).expect("has rules");
        let shape = [Cause::required("spec.min", "")];
        let causes = rules.check(&json!({"spec": {}}), None, &shape);
        assert_eq!((causes[0].field.as_str(), causes.len()), ("<nil>", 1));
        assert!(
            causes[0]
                .message
                .starts_with(r#"Invalid value: "null": some validation rules were not checked"#)
        );
        assert!(Rules::of(&json!({"type": "object"})).is_none());
    }

    #[test]
    fn rules_that_do_not_compile_are_refused() {
        let deep = format!("{}true{}", "(".repeat(5000), ")".repeat(5000));
        for (rule, expected) in [
            (
                json!({"rule": "self.a ><"}),
                "s.x-kubernetes-validations[0].rule: Invalid value: \"self.a ><\": compilation failed: ",
            ),
            (
                json!({"rule": " "}),
                "s.x-kubernetes-validations[0].rule: Required value: rule is not specified",
            ),
            (
                json!({"rule": "true", "reason": "Because"}),
                "s.x-kubernetes-validations[0].reason: Unsupported value: \"Because\"",
            ),
            (
                json!({"rule": "true", "messageExpression": "'a' +"}),
                "s.x-kubernetes-validations[0].messageExpression: Invalid value: ",
            ),
            (
                json!({"rule": deep}),
                "s.x-kubernetes-validations[0].rule: Invalid value: ",
            ),
        ] {
            let mut causes = Vec::new();
            check(&json!({RULES: [rule]}), "s", &mut causes);
            let told: Vec<String> = causes
                .iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect();
            assert!(
                told.len() == 1 && told[0].starts_with(expected),
                "{expected}: {told:?}"
            );
        }
    }

    #[test]
    fn rules_are_about_what_the_schema_has_and_end_in_time() {
        let schema = |rule: Value, most: Option<u64>| {
            let mut list = json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}}});
            if let Some(most) = most {
                list["maxItems"] = json!(most);
                list["items"]["maxItems"] = json!(most);
                list["items"]["items"]["maxLength"] = json!(most);
            }
            json!({"type": "object", "properties": {"spec": {"type": "object", RULES: [rule], "properties": {"n": {"type": "integer"}, "x": list}}}})
        };
        let told = |rule: Value, most| {
            let mut causes = Vec::new();
            judge(&schema(rule, most), "s", &mut causes);
            let told = causes
                .iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message));
            told.collect::<Vec<_>>().join("; ")
        };
        let at = "s.properties[spec].x-kubernetes-validations[0]";
        assert_eq!(
            told(json!({"rule": "self.n > 0 && oldSelf.n < self.n"}), None),
            ""
        );
        assert_eq!(
            told(json!({"rule": "self.z == 1"}), None),
            format!(
                "{at}.rule: Invalid value: \"self.z == 1\": compilation failed: ERROR: <input>:1:5: undefined field 'z'\n | self.z == 1\n | ....^"
            )
        );
        assert_eq!(
            told(json!({"rule": "self.n + 1"}), None),
            format!("{at}.rule: Invalid value: \"self.n + 1\": cel expression must evaluate to a bool")
        );
        assert_eq!(
            told(json!({"rule": "true", "messageExpression": "self.n"}), None),
            format!(
                "{at}.messageExpression: Invalid value: \"self.n\": messageExpression must evaluate to a string"
            )
        );
        let dear = json!({"rule": "self.x.all(i, i.all(j, j.contains('x')))"});
        assert_eq!(
            told(dear.clone(), None),
            format!(
                "{at}.rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared); s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
            )
        );
        assert_eq!(told(dear, Some(10)), "");
    }
}
