//! Admission policies with their bindings, compiled when one of either changes.

use std::sync::{Arc, Mutex, PoisonError};

use schema::GroupVersionKind;
use schema::cel::Expression;
use serde_json::Value;
use store::Revision;

use super::super::dynamic::{CONDITION_VARIABLES, Conditions};
use super::super::matching::Matching;
use super::super::{items, text};
use crate::object;
use crate::pipeline::ObjectReader;
use crate::status::ApiError;

pub const GROUP: &str = "admissionregistration.k8s.io";

pub type Compiled = Result<Expression, String>;

pub struct Policy {
    pub name: String,
    pub fails_closed: bool,
    pub is_reinvocable: bool,
    pub matching: Matching,
    pub conditions: Conditions,
    pub variables: Vec<(String, Compiled)>,
    pub validations: Vec<Validation>,
    pub mutations: Vec<Mutation>,
    pub audit_annotations: Vec<(String, Compiled)>,
    pub param_kind: Option<GroupVersionKind>,
    pub bindings: Vec<Binding>,
}

pub struct Validation {
    pub expression: Compiled,
    pub text: String,
    pub message: String,
    pub message_expression: Option<Compiled>,
    pub reason: &'static str,
}

pub struct Mutation {
    pub is_json_patch: bool,
    pub expression: Compiled,
}

pub struct Binding {
    pub name: String,
    pub matching: Matching,
    pub actions: Vec<String>,
    /// Null when the binding names no parameters.
    pub param_ref: Value,
}

/// Reasons a validation may give; anything else means the default.
fn reason(text: &str) -> &'static str {
    let known = ["Unauthorized", "Forbidden", "RequestEntityTooLarge"];
    known
        .into_iter()
        .find(|known| *known == text)
        .unwrap_or("Invalid")
}

impl Policy {
    fn new(policy: &Value, bindings: &[Value]) -> Self {
        let (name, spec) = (object::name(policy), &policy["spec"]);
        let param_kind = spec["paramKind"].is_object().then(|| {
            let kind = &spec["paramKind"];
            GroupVersionKind::from_api_version(text(&kind["apiVersion"]), text(&kind["kind"]))
        });
        let mut names = CONDITION_VARIABLES.to_vec();
        names.push("namespaceObject");
        if param_kind.is_some() {
            names.push("params");
        }
        let conditions = Conditions::compile(&spec["matchConditions"], &names);
        names.push("variables");
        let compile = |value: &Value| Expression::compile(text(value).trim(), &names);
        let variable = |variable: &Value| {
            (
                text(&variable["name"]).to_owned(),
                compile(&variable["expression"]),
            )
        };
        let validation = |validation: &Value| Validation {
            expression: compile(&validation["expression"]),
            text: text(&validation["expression"]).trim().to_owned(),
            message: text(&validation["message"]).trim().to_owned(),
            message_expression: validation.get("messageExpression").map(compile),
            reason: reason(text(&validation["reason"])),
        };
        let mutation = |mutation: &Value| {
            let is_json_patch = mutation["patchType"] == "JSONPatch";
            let part = if is_json_patch {
                "jsonPatch"
            } else {
                "applyConfiguration"
            };
            Mutation {
                is_json_patch,
                expression: compile(&mutation[part]["expression"]),
            }
        };
        let annotation = |annotation: &Value| {
            let key = text(&annotation["key"]).to_owned();
            (key, compile(&annotation["valueExpression"]))
        };
        let own = bindings
            .iter()
            .filter(|binding| binding["spec"]["policyName"] == name);
        Self {
            name: name.to_owned(),
            fails_closed: spec["failurePolicy"] != "Ignore",
            is_reinvocable: spec["reinvocationPolicy"] == "IfNeeded",
            matching: Matching::of_policy(&spec["matchConstraints"]),
            conditions,
            variables: items(&spec["variables"]).iter().map(variable).collect(),
            validations: items(&spec["validations"]).iter().map(validation).collect(),
            mutations: items(&spec["mutations"]).iter().map(mutation).collect(),
            audit_annotations: items(&spec["auditAnnotations"]).iter().map(annotation).collect(),
            param_kind,
            bindings: own.map(Binding::new).collect(),
        }
    }
}

impl Binding {
    fn new(binding: &Value) -> Self {
        let spec = &binding["spec"];
        let actions = items(&spec["validationActions"]).iter();
        Self {
            name: object::name(binding).to_owned(),
            matching: Matching::of_binding(&spec["matchResources"]),
            actions: actions.map(|action| text(action).to_owned()).collect(),
            param_ref: spec["paramRef"].clone(),
        }
    }
}

type Known = (Revision, Revision, Arc<Vec<Policy>>);

/// Policies of one kind, as of the revisions of their caches.
pub struct Policies {
    policies: &'static str,
    bindings: &'static str,
    known: Mutex<Option<Known>>,
}

impl Policies {
    pub fn new(policies: &'static str, bindings: &'static str) -> Self {
        Self {
            policies,
            bindings,
            known: Mutex::default(),
        }
    }

    /// Those that are bound, in the order of their names.
    pub async fn current(&self, reader: &dyn ObjectReader) -> Result<Arc<Vec<Policy>>, ApiError> {
        let of_policies = reader.revision(GROUP, self.policies);
        let of_bindings = reader.revision(GROUP, self.bindings);
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((policies, bindings, compiled)) = known().as_ref()
            && (*policies, *bindings) == (of_policies, of_bindings)
            && of_policies > 0
            && of_bindings > 0
        {
            return Ok(compiled.clone());
        }
        let by_name = |object: &Value| object::name(object).to_owned();
        let mut bindings = reader.list(GROUP, self.bindings, "").await?;
        let mut policies = reader.list(GROUP, self.policies, "").await?;
        bindings.sort_by_cached_key(by_name);
        policies.sort_by_cached_key(by_name);
        let compiled = policies.iter().map(|policy| Policy::new(policy, &bindings));
        let compiled: Arc<Vec<Policy>> =
            Arc::new(compiled.filter(|policy| !policy.bindings.is_empty()).collect());
        *known() = Some((of_policies, of_bindings, compiled.clone()));
        Ok(compiled)
    }
}
