//! ValidatingAdmissionPolicy: each validation must hold, or the binding's actions say what follows.

use std::sync::Arc;

use async_trait::async_trait;
use auth::Authorizer;
use http::StatusCode;
use schema::cel::{self, Bindings};
use serde_json::{Value, json};

use super::super::dynamic::Request;
use super::super::forbidden;
use super::compiled::{Policies, Policy, Validation};
use super::{Evaluation, applicable};
use crate::pipeline::{Admission, AdmissionContext};
use crate::status::ApiError;
use crate::warnings;

const LONGEST_MESSAGE: usize = 5 << 10;

pub struct ValidatingAdmissionPolicy {
    policies: Policies,
    authorizer: Arc<Authorizer>,
}

impl ValidatingAdmissionPolicy {
    pub fn new(authorizer: Arc<Authorizer>) -> Self {
        Self {
            policies: Policies::new("validatingadmissionpolicies", "validatingadmissionpolicybindings"),
            authorizer,
        }
    }

    /// Reason and message of each validation that does not hold.
    async fn judge(
        &self,
        evaluation: &Evaluation<'_>,
        request: &Request<'_>,
        object: Option<&Value>,
    ) -> Vec<(&'static str, String)> {
        let policy = evaluation.policy;
        let failed = |why: String| policy.fails_closed.then_some(("Invalid", why));
        let bindings = match evaluation.bindings(request, object, &self.authorizer).await {
            Ok(Some(bindings)) => bindings,
            Ok(None) => return Vec::new(),
            Err(why) => return failed(why).into_iter().collect(),
        };
        let judged = policy.validations.iter().filter_map(|validation| {
            let holds = validation
                .expression
                .as_ref()
                .map_err(|why| format!("compilation error: {why}"));
            let holds = holds.and_then(|expression| {
                expression
                    .evaluate_bool(&bindings)
                    .map_err(|why| format!("expression '{}' resulted in error: {why}", validation.text))
            });
            match holds {
                Ok(true) => None,
                Ok(false) => Some((validation.reason, message(validation, &bindings))),
                Err(why) => failed(why),
            }
        });
        judged.collect()
    }
}

/// The message expression's, if it is one line of fair length; else the message; else the expression.
fn message(validation: &Validation, bindings: &Bindings) -> String {
    let told = validation.message_expression.as_ref().and_then(|expression| {
        let value = expression.as_ref().ok()?.evaluate(bindings).ok()?;
        let told = cel::text(&value)?.trim().to_owned();
        (!told.is_empty() && told.len() <= LONGEST_MESSAGE && !told.contains('\n')).then_some(told)
    });
    told.unwrap_or_else(|| match validation.message.as_str() {
        "" => format!("failed expression: {}", validation.text),
        message => message.to_owned(),
    })
}

/// A refusal with the reason that the policy gives.
pub(super) fn denied(
    context: &AdmissionContext<'_>,
    object: Option<&Value>,
    reason: &'static str,
    message: String,
) -> ApiError {
    let mut error = forbidden(context, object, message.as_str());
    error.reason = reason;
    error.code = match reason {
        "Unauthorized" => StatusCode::UNAUTHORIZED,
        "Forbidden" => StatusCode::FORBIDDEN,
        "RequestEntityTooLarge" => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    error.details["causes"] = json!([{"message": message}]);
    error
}

fn refusal(policy: &Policy, binding: &str, why: &str) -> String {
    format!(
        "ValidatingAdmissionPolicy '{}' with binding '{binding}' denied request: {why}",
        policy.name
    )
}

#[async_trait]
impl Admission for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    async fn validate(&self, context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
        let policies = self.policies.current(context.reader).await?;
        if policies.is_empty() {
            return Ok(());
        }
        let Some(request) = Request::new(context, object) else {
            return Ok(());
        };
        let mut denials = Vec::new();
        for policy in policies.iter() {
            for found in applicable(policy, &request, object).await? {
                match found {
                    Ok(evaluation) => {
                        let binding = evaluation.binding;
                        for (reason, why) in self.judge(&evaluation, &request, object).await {
                            for action in &binding.actions {
                                match action.as_str() {
                                    "Deny" => denials.push((reason, refusal(policy, &binding.name, &why))),
                                    "Warn" => warnings::add(format!(
                                        "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {why}",
                                        policy.name, binding.name
                                    )),
                                    _ => {}
                                }
                            }
                        }
                    }
                    Err((binding, why)) if policy.fails_closed => {
                        denials.push(("Invalid", refusal(policy, &binding.name, &why)));
                    }
                    Err(_) => {}
                }
            }
        }
        match denials.into_iter().next() {
            Some((reason, message)) => Err(denied(context, object, reason, message)),
            None => Ok(()),
        }
    }
}
