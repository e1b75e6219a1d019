//! Admission policies, their bindings, and the match conditions of webhooks: expressions must compile.

use std::collections::HashSet;

use serde_json::Value;

use super::cause::Cause;
use super::cluster::{self, items, text};
use super::names;
use crate::cel::Expression;

const MOST_CONDITIONS: usize = 64;
const VARIABLES: [&str; 6] = [
    "object",
    "oldObject",
    "request",
    "authorizer",
    "namespaceObject",
    "variables",
];

/// Upstream's `validateMatchConditions`.
pub(super) fn match_conditions(list: &Value, path: &str, variables: &[&str]) -> Vec<Cause> {
    let (mut causes, mut seen) = (Vec::new(), HashSet::new());
    let conditions = list.as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.len() > MOST_CONDITIONS {
        causes.push(Cause::too_many(path, conditions.len(), MOST_CONDITIONS));
    }
    for (index, condition) in conditions.iter().enumerate() {
        let field = |name: &str| format!("{path}[{index}].{name}");
        causes.extend(expression(
            &condition["expression"],
            &field("expression"),
            "",
            variables,
        ));
        let name = text(condition, "name");
        if name.is_empty() {
            causes.push(Cause::required(&field("name"), ""));
        } else {
            let problem = names::qualified_name_problem(name);
            causes
                .extend(problem.map(|problem| Cause::invalid(&field("name"), &condition["name"], &problem)));
            if !seen.insert(name) {
                causes.push(Cause::duplicate(&field("name"), &condition["name"]));
            }
        }
    }
    causes
}

fn expression(value: &Value, field: &str, missing: &str, variables: &[&str]) -> Option<Cause> {
    let given = value.as_str().unwrap_or_default().trim();
    if given.is_empty() {
        return Some(Cause::required(field, missing));
    }
    let problem = Expression::compile(given, variables).err()?;
    Some(Cause::invalid(field, &given.into(), &problem))
}

/// ValidatingAdmissionPolicy and MutatingAdmissionPolicy.
pub(super) fn policy(policy: &Value) -> Vec<Cause> {
    let spec = &policy["spec"];
    let mut causes = Vec::new();
    let mut known = VARIABLES.to_vec();
    if spec["paramKind"].is_object() {
        known.push("params");
        for name in ["apiVersion", "kind"] {
            if text(&spec["paramKind"], name).is_empty() {
                causes.push(Cause::required(&format!("spec.paramKind.{name}"), ""));
            }
        }
    }
    if spec["matchConstraints"].is_object() {
        let rules = items(&spec["matchConstraints"], "resourceRules");
        if rules.is_empty() {
            causes.push(Cause::required("spec.matchConstraints.resourceRules", ""));
        }
        for (index, rule) in rules.iter().enumerate() {
            let path = format!("spec.matchConstraints.resourceRules[{index}]");
            causes.extend(cluster::admission_rule(rule, &path));
        }
    } else {
        causes.push(Cause::required("spec.matchConstraints", ""));
    }
    let conditions: Vec<&str> = known
        .iter()
        .copied()
        .filter(|name| *name != "variables")
        .collect();
    causes.extend(match_conditions(
        &spec["matchConditions"],
        "spec.matchConditions",
        &conditions,
    ));
    let mut seen = HashSet::new();
    for (index, variable) in items(spec, "variables").iter().enumerate() {
        let field = |name: &str| format!("spec.variables[{index}].{name}");
        let name = text(variable, "name");
        let is_identifier = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        if name.trim().is_empty() {
            causes.push(Cause::required(&field("name"), "name is not specified"));
        } else if !name.chars().all(is_identifier) || name.starts_with(|first: char| first.is_ascii_digit()) {
            let detail = "name is not a valid CEL identifier";
            causes.push(Cause::invalid(&field("name"), &variable["name"], detail));
        } else if !seen.insert(name) {
            causes.push(Cause::duplicate(&field("name"), &variable["name"]));
        }
        let missing = "expression is not specified";
        causes.extend(expression(
            &variable["expression"],
            &field("expression"),
            missing,
            &known,
        ));
    }
    if policy["kind"] == "MutatingAdmissionPolicy" {
        causes.extend(mutations(spec, &known));
    } else {
        causes.extend(validations(spec, &known));
    }
    causes
}

fn validations(spec: &Value, known: &[&str]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (validations, annotations) = (items(spec, "validations"), items(spec, "auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        causes.push(Cause::required("spec.validations", detail));
        causes.push(Cause::required("spec.auditAnnotations", detail));
    }
    for (index, validation) in validations.iter().enumerate() {
        let field = |name: &str| format!("spec.validations[{index}].{name}");
        let missing = "expression is not specified";
        causes.extend(expression(
            &validation["expression"],
            &field("expression"),
            missing,
            known,
        ));
        if validation["message"]
            .as_str()
            .is_some_and(|message| message.contains('\n'))
        {
            let detail = "message must not contain line breaks";
            causes.push(Cause::invalid(&field("message"), &validation["message"], detail));
        }
        if !text(validation, "messageExpression").is_empty() {
            causes.extend(expression(
                &validation["messageExpression"],
                &field("messageExpression"),
                "",
                known,
            ));
        }
        let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
        let reason = text(validation, "reason");
        if !reason.is_empty() && !reasons.contains(&reason) {
            causes.push(Cause::not_supported(
                &field("reason"),
                &validation["reason"],
                &reasons,
            ));
        }
    }
    for (index, annotation) in annotations.iter().enumerate() {
        let field = |name: &str| format!("spec.auditAnnotations[{index}].{name}");
        if text(annotation, "key").is_empty() {
            causes.push(Cause::required(&field("key"), ""));
        }
        let missing = "valueExpression is not specified";
        causes.extend(expression(
            &annotation["valueExpression"],
            &field("valueExpression"),
            missing,
            known,
        ));
    }
    causes
}

fn mutations(spec: &Value, known: &[&str]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mutations = items(spec, "mutations");
    if mutations.is_empty() {
        causes.push(Cause::required(
            "spec.mutations",
            "mutations must contain at least one item",
        ));
    }
    for (index, mutation) in mutations.iter().enumerate() {
        let field = |name: &str| format!("spec.mutations[{index}].{name}");
        let (own, other) = match text(mutation, "patchType") {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            "" => {
                causes.push(Cause::required(&field("patchType"), ""));
                continue;
            }
            _ => {
                let types = ["ApplyConfiguration", "JSONPatch"];
                causes.push(Cause::not_supported(
                    &field("patchType"),
                    &mutation["patchType"],
                    &types,
                ));
                continue;
            }
        };
        if mutation[other].is_object() {
            let detail = format!("must be unset when patchType is {}", text(mutation, "patchType"));
            causes.push(Cause::invalid(&field(other), &mutation[other], &detail));
        }
        let missing = "expression is not specified";
        let path = field(own) + ".expression";
        causes.extend(expression(&mutation[own]["expression"], &path, missing, known));
    }
    match text(spec, "reinvocationPolicy") {
        "Never" | "IfNeeded" => {}
        "" => causes.push(Cause::required("spec.reinvocationPolicy", "")),
        _ => causes.push(Cause::not_supported(
            "spec.reinvocationPolicy",
            &spec["reinvocationPolicy"],
            &["IfNeeded", "Never"],
        )),
    }
    causes
}

pub(super) fn binding(binding: &Value) -> Vec<Cause> {
    let spec = &binding["spec"];
    let mut causes = Vec::new();
    if text(spec, "policyName").is_empty() {
        causes.push(Cause::required("spec.policyName", ""));
    }
    let reference = &spec["paramRef"];
    if reference.is_object() {
        let (named, selected) = (
            !text(reference, "name").is_empty(),
            reference["selector"].is_object(),
        );
        if named && selected {
            let detail = "name and selector are mutually exclusive";
            causes.push(Cause::forbidden("spec.paramRef.name", detail));
        }
        if !named && !selected {
            causes.push(Cause::required(
                "spec.paramRef",
                "one of name or selector must be specified",
            ));
        }
        if text(reference, "parameterNotFoundAction").is_empty() {
            causes.push(Cause::required("spec.paramRef.parameterNotFoundAction", ""));
        }
    }
    if binding["kind"] != "ValidatingAdmissionPolicyBinding" {
        return causes;
    }
    let actions = items(spec, "validationActions");
    if actions.is_empty() {
        causes.push(Cause::required(
            "spec.validationActions",
            "at least one validation action is required",
        ));
    }
    let known = ["Audit", "Deny", "Warn"];
    let mut seen = HashSet::new();
    for (index, action) in actions.iter().enumerate() {
        let field = format!("spec.validationActions[{index}]");
        let name = action.as_str().unwrap_or_default();
        if !known.contains(&name) {
            causes.push(Cause::not_supported(&field, action, &known));
        }
        if !seen.insert(name) {
            causes.push(Cause::duplicate(&field, action));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let shown = Value::from(actions.to_vec());
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        causes.push(Cause::invalid("spec.validationActions", &shown, detail));
    }
    causes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(causes: &[Cause]) -> Vec<String> {
        let brief = |cause: &Cause| {
            let message = cause.message.split(" ERROR").next().unwrap_or_default();
            format!("{}: {message}", cause.field)
        };
        causes.iter().map(brief).collect()
    }

    #[test]
    fn conditions_must_compile() {
        let list = json!([{"name": "a", "expression": "... [] bad"}, {"name": "a", "expression": " "}, {"expression": "params == 1"}]);
        assert_eq!(
            told(&match_conditions(
                &list,
                "webhooks[0].matchConditions",
                &["object"]
            )),
            [
                r#"webhooks[0].matchConditions[0].expression: Invalid value: "... [] bad": compilation failed:"#,
                "webhooks[0].matchConditions[1].expression: Required value",
                r#"webhooks[0].matchConditions[1].name: Duplicate value: "a""#,
                r#"webhooks[0].matchConditions[2].expression: Invalid value: "params == 1": compilation failed:"#,
                "webhooks[0].matchConditions[2].name: Required value",
            ]
        );
    }

    #[test]
    fn policies_say_what_they_lack() {
        let rules = json!([{"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]);
        let of = |kind: &str, rest: Value| {
            let mut spec = json!({"matchConstraints": {"resourceRules": rules}});
            for (name, value) in rest.as_object().expect("fields") {
                spec[name] = value.clone();
            }
            told(&policy(&json!({"kind": kind, "spec": spec})))
        };
        let validating = |rest: Value| of("ValidatingAdmissionPolicy", rest);
        assert!(validating(json!({"validations": [{"expression": "object.spec.replicas > 1", "messageExpression": "'a' + object.b"}]})).is_empty());
        assert_eq!(
            validating(
                json!({"validations": [{"expression": "params.a"}], "variables": [{"name": "a b", "expression": "1"}]})
            ),
            [
                r#"spec.variables[0].name: Invalid value: "a b": name is not a valid CEL identifier"#,
                r#"spec.validations[0].expression: Invalid value: "params.a": compilation failed:"#,
            ]
        );
        let mutating = |rest: Value| of("MutatingAdmissionPolicy", rest);
        let apply = json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'a': 'b'}}}"}}]);
        assert!(mutating(json!({"mutations": apply, "reinvocationPolicy": "Never"})).is_empty());
        assert_eq!(
            mutating(json!({"mutations": [{"patchType": "JSONPatch"}]})),
            [
                "spec.mutations[0].jsonPatch.expression: Required value: expression is not specified",
                "spec.reinvocationPolicy: Required value",
            ]
        );
    }

    #[test]
    fn bindings_say_what_follows() {
        let of = |spec: Value| {
            told(&binding(
                &json!({"kind": "ValidatingAdmissionPolicyBinding", "spec": spec}),
            ))
        };
        assert!(of(json!({"policyName": "p", "validationActions": ["Deny", "Audit"]})).is_empty());
        assert_eq!(
            of(json!({"validationActions": ["Nothing"]})),
            [
                "spec.policyName: Required value",
                r#"spec.validationActions[0]: Unsupported value: "Nothing": supported values: "Audit", "Deny", "Warn""#,
            ]
        );
    }
}
