//! Expressions of ValidatingAdmissionPolicies are checked against the types that they are about; what is found stands in
//! the policy's status (upstream: the controller `validatingadmissionpolicy-status`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use schema::cel::types::{Shape, Type};
use schema::cel::{self, Expression};
use schema::{Catalog, GroupVersionKind, Kind};
use serde_json::{Value, json};

use super::own_request;
use crate::cache::Selection;
use crate::endpoints::{Intent, update_object};
use crate::object::{self, items, string};
use crate::state::ApiServer;
use crate::status::ApiError;

const GROUP: &str = "admissionregistration.k8s.io";
const POLICIES: &str = "validatingadmissionpolicies";
/// Failed writes wait for another look.
const AGAIN: Duration = Duration::from_secs(1);
/// More kinds of one rule are not looked at.
const MOST_KINDS: usize = 10;

pub async fn keep(server: &Arc<ApiServer>) {
    let cache = server.cache(GROUP, POLICIES);
    let mut revisions = cache.revisions();
    loop {
        revisions.mark_unchanged();
        let mut settled = true;
        for entry in cache.list(&Selection::default(), 0).entries {
            let Ok(policy) = serde_json::from_slice::<Value>(&entry.bytes) else {
                continue;
            };
            if policy["status"]["observedGeneration"] == policy["metadata"]["generation"] {
                continue;
            }
            if let Err(error) = settle(server, &policy).await
                && !error.is_not_found()
            {
                let name = object::name(&policy);
                tracing::warn!(name, error = error.message, "a policy has no status yet");
                settled = false;
            }
        }
        let is_over = if settled {
            revisions.changed().await.is_err()
        } else {
            matches!(tokio::time::timeout(AGAIN, revisions.changed()).await, Ok(Err(_)))
        };
        if is_over {
            return;
        }
    }
}

async fn settle(server: &Arc<ApiServer>, policy: &Value) -> Result<(), ApiError> {
    let mut request = own_request(server, GROUP, POLICIES, "", object::name(policy))?;
    request.info.verb = "update".into();
    request.info.subresource = "status".into();
    let intent = Intent {
        request: &request,
        dry_run: false,
    };
    let catalog = server.registry.catalog();
    update_object(server, intent, |current| {
        let mut current = current.clone();
        let warnings = warnings(&catalog, &current["spec"]);
        current["status"]["observedGeneration"] = current["metadata"]["generation"].clone();
        current["status"]["typeChecking"] = match warnings.is_empty() {
            true => json!({}),
            false => json!({"expressionWarnings": warnings}),
        };
        Ok(current)
    })
    .await
    .map(drop)
}

/// The kinds that a policy is about, as far as it names them.
fn kinds(catalog: &Catalog, spec: &Value) -> Vec<Arc<Kind>> {
    let mut found: BTreeMap<(String, String, String), Arc<Kind>> = BTreeMap::new();
    let is_pattern = |list: &[Value]| {
        list.iter()
            .any(|item| item.as_str().is_none_or(|item| item.contains('*')))
    };
    for rule in items(&spec["matchConstraints"], "resourceRules") {
        let (groups, versions) = (items(rule, "apiGroups"), items(rule, "apiVersions"));
        if is_pattern(groups) || is_pattern(versions) {
            continue;
        }
        let mut of_rule = 0;
        for (group, version) in groups
            .iter()
            .flat_map(|group| versions.iter().map(move |version| (group, version)))
        {
            for plural in items(rule, "resources").iter().filter_map(Value::as_str) {
                let (group, version) = (
                    group.as_str().unwrap_or_default(),
                    version.as_str().unwrap_or_default(),
                );
                if let Some(resource) = catalog.resource(group, version, plural)
                    && of_rule < MOST_KINDS
                {
                    let gvk = &resource.kind.gvk;
                    let key = (gvk.group.clone(), gvk.version.clone(), gvk.kind.clone());
                    found.insert(key, resource.kind.clone());
                    of_rule += 1;
                }
            }
        }
    }
    found.into_values().collect()
}

/// ExpressionWarnings.
fn warnings(catalog: &Catalog, spec: &Value) -> Vec<Value> {
    let kinds = kinds(catalog, spec);
    let mut warnings = Vec::new();
    for (index, validation) in items(spec, "validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let expression = string(validation, field).trim();
            if expression.is_empty() {
                continue;
            }
            let told = kinds.iter().filter_map(|kind| {
                let why = mistake(catalog, spec, kind, expression)?;
                let gvk = &kind.gvk;
                Some(format!("{}, Kind={}: {why}\n", gvk.api_version(), gvk.kind))
            });
            let told: Vec<String> = told.collect();
            if !told.is_empty() {
                let place = format!("spec.validations[{index}].{field}");
                warnings.push(json!({"fieldRef": place, "warning": told.join("\n")}));
            }
        }
    }
    warnings
}

/// What is wrong with an expression about objects of the kind.
fn mistake(catalog: &Catalog, spec: &Value, kind: &Kind, expression: &str) -> Option<String> {
    let object = Type::of_kind(kind)?;
    let mut scope = vec![
        ("object", object.clone()),
        ("oldObject", object),
        ("request", Type::Dyn),
        ("namespaceObject", namespace(catalog)),
        ("authorizer", Type::Opaque("kubernetes.authorization.Authorizer")),
    ];
    if spec["paramKind"].is_object() {
        let of = &spec["paramKind"];
        let gvk = GroupVersionKind::from_api_version(string(of, "apiVersion"), string(of, "kind"));
        let params = catalog.kind(&gvk).and_then(|kind| Type::of_kind(kind));
        scope.push(("params", params.unwrap_or(Type::Dyn)));
    }
    let mut variables: Vec<(String, Type)> = Vec::new();
    for variable in items(spec, "variables") {
        let known = Type::Object(Shape::Fixed(Arc::new(variables.clone())));
        scope.push(("variables", known));
        let ty = typed(string(variable, "expression"), &scope).unwrap_or(Type::Dyn);
        scope.pop();
        variables.push((string(variable, "name").to_owned(), ty));
    }
    scope.push(("variables", Type::Object(Shape::Fixed(Arc::new(variables)))));
    typed(expression, &scope).err()
}

fn typed(expression: &str, scope: &[(&str, Type)]) -> Result<Type, String> {
    let names: Vec<&str> = scope.iter().map(|(name, _)| *name).collect();
    let expression = Expression::compile(expression.trim(), &names)?;
    cel::check(&expression, scope).map(|checked| checked.ty)
}

fn namespace(catalog: &Catalog) -> Type {
    let kind = catalog.kind(&GroupVersionKind::new("", "v1", "Namespace"));
    kind.and_then(|kind| Type::of_kind(kind)).unwrap_or(Type::Dyn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confusions_are_told_and_correct_expressions_are_not() {
        let catalog = Catalog::builtin();
        let spec = |resources: Value, expression: &str, message: &str| {
            json!({
                "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": resources}]},
                "variables": [{"name": "n", "expression": "object.spec.replicas"}],
                "validations": [{"expression": expression, "messageExpression": message}],
            })
        };
        let good = spec(
            json!(["deployments"]),
            "variables.n > 1 && request.operation == 'CREATE'",
            "'wants replicas > 1, got ' + string(variables.n)",
        );
        assert_eq!(warnings(&catalog, &good), Vec::<Value>::new());
        let bad = spec(
            json!(["deployments"]),
            "object.spec.replicas > '1'",
            "'wants replicas > 1, got ' + variables.n",
        );
        let told = warnings(&catalog, &bad);
        assert_eq!(told[0]["fieldRef"], "spec.validations[0].expression");
        assert_eq!(
            told[0]["warning"],
            "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n"
        );
        assert_eq!(told[1]["fieldRef"], "spec.validations[0].messageExpression");
        let second = told[1]["warning"].as_str().unwrap();
        assert!(
            second.contains("found no matching overload for '_+_' applied to '(string, int)'"),
            "{second}"
        );
        assert_eq!(told.len(), 2);
        let any = spec(json!(["*"]), "object.nothing", "'x'");
        assert!(warnings(&catalog, &any).is_empty(), "patterns name no kinds");
    }
}
