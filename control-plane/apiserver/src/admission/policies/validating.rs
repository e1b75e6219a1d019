//! ValidatingAdmissionPolicy: each validation must hold, or the binding's actions say what follows.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use auth::Authorizer;
use http::StatusCode;
use schema::cel::{self, Bindings, CelValue};
use serde_json::{Value, json};

use super::super::dynamic::Request;
use super::super::forbidden;
use super::compiled::{Binding, Policies, Policy, Validation};
use super::{Evaluation, applicable};
use crate::audit;
use crate::pipeline::{Admission, AdmissionContext};
use crate::status::ApiError;
use crate::warnings;

const LONGEST_MESSAGE: usize = 5 << 10;
const LONGEST_ANNOTATION: usize = 10 << 10;

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

    /// The validations that do not hold.
    async fn judge(
        &self,
        evaluation: &Evaluation<'_>,
        request: &Request<'_>,
        object: Option<&Value>,
        annotations: &mut Annotations,
    ) -> Vec<Failure> {
        let policy = evaluation.policy;
        let failed = |index: usize, message: String| {
            policy.fails_closed.then_some(Failure {
                index,
                reason: "Invalid",
                message,
            })
        };
        let bindings = match evaluation.bindings(request, object, &self.authorizer).await {
            Ok(Some(bindings)) => bindings,
            Ok(None) => return Vec::new(),
            Err(why) => return failed(0, why).into_iter().collect(),
        };
        let judged = policy
            .validations
            .iter()
            .enumerate()
            .filter_map(|(index, validation)| {
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
                    Ok(false) => Some(Failure {
                        index,
                        reason: validation.reason,
                        message: message(validation, &bindings),
                    }),
                    Err(why) => failed(index, why),
                }
            });
        let mut failures: Vec<Failure> = judged.collect();
        for (index, (key, expression)) in policy.audit_annotations.iter().enumerate() {
            let value = expression.as_ref().map_err(Clone::clone);
            match value
                .and_then(|expression| expression.evaluate(&bindings))
                .map(annotation)
            {
                Ok(Ok(Some(value))) => annotations.add(&policy.name, key, &value),
                Ok(Ok(None)) => {}
                Ok(Err(why)) | Err(why) => failures.extend(failed(index, why)),
            }
        }
        failures
    }
}

struct Failure {
    /// Which of the policy's expressions it is.
    index: usize,
    reason: &'static str,
    message: String,
}

/// Annotations of the audit event that policies make; each value once.
#[derive(Default)]
struct Annotations(BTreeMap<String, Vec<String>>);

impl Annotations {
    fn add(&mut self, policy: &str, key: &str, value: &str) {
        let values = self.0.entry(format!("{policy}/{key}")).or_default();
        let end = value.floor_char_boundary(LONGEST_ANNOTATION);
        if !values.iter().any(|told| *told == value[..end]) {
            values.push(value[..end].to_owned());
        }
    }

    fn publish(self) {
        for (key, values) in self.0 {
            audit::annotate(key, values.join(", "));
        }
    }
}

/// None for nothing to say.
fn annotation(value: CelValue) -> Result<Option<String>, String> {
    match (&value, cel::text(&value)) {
        (_, Some(told)) => Ok(Some(told.trim().to_owned()).filter(|told| !told.is_empty())),
        (CelValue::Null, None) => Ok(None),
        _ => Err(format!(
            "valueExpression resulted in unsupported return type: {}. Return type must be either string or null.",
            value.type_of()
        )),
    }
}

fn audited(policy: &Policy, binding: &Binding, failure: &Failure) {
    let told = json!([{
        "message": failure.message,
        "policy": policy.name,
        "binding": binding.name,
        "expressionIndex": failure.index,
        "validationActions": binding.actions,
    }]);
    audit::annotate(
        "validation.policy.admission.k8s.io/validation_failure",
        told.to_string(),
    );
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
        let mut annotations = Annotations::default();
        for policy in policies.iter() {
            for found in applicable(policy, &request, object).await? {
                match found {
                    Ok(evaluation) => {
                        let binding = evaluation.binding;
                        for failure in self.judge(&evaluation, &request, object, &mut annotations).await {
                            let (reason, why) = (failure.reason, &failure.message);
                            for action in &binding.actions {
                                match action.as_str() {
                                    "Deny" => denials.push((reason, refusal(policy, &binding.name, why))),
                                    "Audit" => audited(policy, binding, &failure),
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
        annotations.publish();
        match denials.into_iter().next() {
            Some((reason, message)) => Err(denied(context, object, reason, message)),
            None => Ok(()),
        }
    }
}
