//! MutatingAdmissionPolicy: expressions make apply configurations or JSON patches, in the order of policies and bindings.

use std::sync::Arc;

use async_trait::async_trait;
use auth::Authorizer;
use schema::apply::Writer;
use schema::cel;
use schema::patch::PatchType;
use serde_json::{Value, json};

use super::super::dynamic::Request;
use super::compiled::{Mutation, Policies};
use super::{Evaluation, applicable, validating};
use crate::object;
use crate::pipeline::{Admission, AdmissionContext};
use crate::status::ApiError;

pub struct MutatingAdmissionPolicy {
    policies: Policies,
    authorizer: Arc<Authorizer>,
}

impl MutatingAdmissionPolicy {
    pub fn new(authorizer: Arc<Authorizer>) -> Self {
        Self {
            policies: Policies::new("mutatingadmissionpolicies", "mutatingadmissionpolicybindings"),
            authorizer,
        }
    }

    /// All mutations of a policy, each on what the one before made; true when the object is another now.
    async fn mutated(
        &self,
        evaluation: &Evaluation<'_>,
        request: &Request<'_>,
        object: &mut Value,
    ) -> Result<bool, String> {
        let mut changed = false;
        for mutation in &evaluation.policy.mutations {
            let Some(bindings) = evaluation
                .bindings(request, Some(object), &self.authorizer)
                .await?
            else {
                return Ok(changed);
            };
            let expression = mutation
                .expression
                .as_ref()
                .map_err(|why| format!("compilation error: {why}"))?;
            let told = expression
                .evaluate(&bindings)
                .map_err(|why| format!("expression '{}' resulted in error: {why}", expression.text()))?;
            let told = cel::to_json(&told).ok_or("unexpected type returned by an expression")?;
            let shown = request
                .shown(&evaluation.matched, Some(object))
                .map_err(|error| error.message)?;
            let patched = patched(mutation, evaluation, &shown, &told)?;
            changed |= request
                .take(&evaluation.matched, object, &shown, patched)
                .map_err(|error| error.message)?;
        }
        Ok(changed)
    }
}

fn patched(
    mutation: &Mutation,
    evaluation: &Evaluation<'_>,
    shown: &Value,
    told: &Value,
) -> Result<Value, String> {
    let kind = &evaluation.matched.kind;
    if mutation.is_json_patch {
        return schema::patch::apply(kind, PatchType::Json, shown, told)
            .map_err(|error| format!("JSON Patch: {}", error.message));
    }
    let mut config = told.clone();
    if !config.is_object() {
        return Err("invalid ApplyConfiguration: must be an object".into());
    }
    for field in ["apiVersion", "kind"] {
        config[field] = shown[field].clone();
    }
    let now = object::time(jiff::Timestamp::now());
    let writer = Writer {
        manager: "mutating-admission-policy",
        subresource: "",
        now: &now,
        reset: &[],
    };
    // Merged as a configuration that nobody else owns anything of; who owns what is told later.
    let mut merged = schema::apply::apply(kind, Some(shown), &config, writer, true)
        .map_err(|error| format!("invalid ApplyConfiguration: {error}"))?;
    let metadata = object::metadata(&mut merged);
    metadata.remove("managedFields");
    if let Some(managed) = shown["metadata"].get("managedFields") {
        metadata.insert("managedFields".into(), json!(managed));
    }
    Ok(merged)
}

#[async_trait]
impl Admission for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, object: &mut Value) -> Result<(), ApiError> {
        let policies = self.policies.current(context.reader).await?;
        if policies.is_empty() {
            return Ok(());
        }
        let Some(request) = Request::new(context, Some(object)) else {
            return Ok(());
        };
        for policy in policies.iter() {
            for found in applicable(policy, &request, Some(object)).await? {
                let (binding, result) = match found {
                    Ok(evaluation) => {
                        let id = format!(
                            "{}/{}/{}",
                            policy.name, evaluation.binding.name, evaluation.params["metadata"]["name"]
                        );
                        {
                            let round = context.reinvocation();
                            if round.is_second_round && !round.again.contains(&id) {
                                continue;
                            }
                        }
                        let result = self.mutated(&evaluation, &request, object).await;
                        let mut round = context.reinvocation();
                        if matches!(result, Ok(true)) {
                            round.object_changed();
                        }
                        if policy.is_reinvocable && !round.is_second_round {
                            round.reinvocable.insert(id);
                        }
                        (evaluation.binding, result.map(drop))
                    }
                    Err((binding, why)) => (binding, Err(why)),
                };
                if let Err(why) = result
                    && policy.fails_closed
                {
                    let message = format!(
                        "policy '{}' with binding '{}' denied request: {why}",
                        policy.name, binding.name
                    );
                    return Err(validating::denied(context, Some(object), "Invalid", message));
                }
            }
        }
        Ok(())
    }
}
