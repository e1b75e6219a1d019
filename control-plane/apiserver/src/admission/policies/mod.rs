//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: which apply to a request, with which parameters.

mod compiled;
mod mutating;
mod validating;

use std::sync::Arc;

use auth::Authorizer;
use schema::cel::{self, Bindings};
use schema::{GroupVersionKind, Resource};
use serde_json::Value;

use self::compiled::{Binding, Policy};
use super::dynamic::Request;
use super::text;
use crate::selectors::LabelSelector;
use crate::status::ApiError;

pub use mutating::MutatingAdmissionPolicy;
pub use validating::ValidatingAdmissionPolicy;

/// A policy's expressions over one set of parameters, or why they cannot be asked.
struct Evaluation<'a> {
    policy: &'a Policy,
    binding: &'a Binding,
    matched: Arc<Resource>,
    params: Value,
}

/// What applies of a policy to a request; an error is for the failure policy to judge.
async fn applicable<'a>(
    policy: &'a Policy,
    request: &Request<'_>,
    object: Option<&Value>,
) -> Result<Vec<Result<Evaluation<'a>, (&'a Binding, String)>>, ApiError> {
    let Some(matched) = policy.matching.find(request, object).await? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for binding in &policy.bindings {
        if binding.matching.find(request, object).await?.is_none() {
            continue;
        }
        match params(policy.param_kind.as_ref(), &binding.param_ref, request).await {
            Ok(params) => found.extend(params.into_iter().map(|params| {
                Ok(Evaluation {
                    policy,
                    binding,
                    matched: matched.clone(),
                    params,
                })
            })),
            Err(why) => found.push(Err((binding, format!("failed to configure binding: {why}")))),
        }
    }
    Ok(found)
}

/// Upstream's `CollectParams`.
async fn params(
    kind: Option<&GroupVersionKind>,
    reference: &Value,
    request: &Request<'_>,
) -> Result<Vec<Value>, String> {
    let Some(kind) = kind.filter(|_| reference.is_object()) else {
        return Ok(vec![Value::Null]);
    };
    let reader = request.context.reader;
    let catalog = reader.catalog();
    let unknown = || format!("paramKind kind `{kind}` not known");
    let resource = catalog.resource_for_kind(kind).ok_or_else(unknown)?;
    let mut namespace = text(&reference["namespace"]);
    if !resource.namespaced() && !namespace.is_empty() {
        return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
    }
    if resource.namespaced() && namespace.is_empty() {
        namespace = &request.context.info.namespace;
        if namespace.is_empty() {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
    }
    let (group, plural, name) = (&resource.group, &resource.plural, text(&reference["name"]));
    let found: Vec<Value> = if name.is_empty() {
        let selector = LabelSelector::from_object(&reference["selector"]);
        let all = reader
            .list(group, plural, namespace)
            .await
            .map_err(|error| error.message)?;
        let matches = |param: &Value| selector.matches(|label| param["metadata"]["labels"][label].as_str());
        all.into_iter().filter(matches).collect()
    } else {
        let found = reader.get(group, plural, namespace, name).await;
        found.map_err(|error| error.message)?.into_iter().collect()
    };
    if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    found
        .iter()
        .map(|param| {
            request
                .shown(resource, Some(param))
                .map_err(|error| error.message)
        })
        .collect()
}

impl Evaluation<'_> {
    /// None when the match conditions do not hold.
    async fn bindings(
        &self,
        request: &Request<'_>,
        object: Option<&Value>,
        authorizer: &Arc<Authorizer>,
    ) -> Result<Option<Bindings>, String> {
        let mut bindings = request
            .bindings(&self.matched, object, authorizer)
            .map_err(|error| error.message)?;
        let namespace = request.namespace_object().await.map_err(|error| error.message)?;
        bindings.push(("namespaceObject", cel::from_json(&namespace.unwrap_or_default())));
        bindings.push(("params", cel::from_json(&self.params)));
        if !self.policy.conditions.hold(&bindings)? {
            return Ok(None);
        }
        // One that fails is missed only by whoever asks for it.
        let mut variables = Vec::new();
        for (name, expression) in &self.policy.variables {
            let mut scope = bindings.clone();
            scope.push(("variables", cel::map(variables.iter().cloned())));
            let value = expression.as_ref().map_err(Clone::clone);
            match value.and_then(|expression| expression.evaluate(&scope)) {
                Ok(value) => variables.push((name.clone(), value)),
                Err(why) => tracing::debug!(
                    policy = self.policy.name,
                    variable = name,
                    why,
                    "cannot be evaluated"
                ),
            }
        }
        bindings.push(("variables", cel::map(variables)));
        Ok(Some(bindings))
    }
}
