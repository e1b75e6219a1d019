//! What webhooks and policies see of a request: its AdmissionRequest, the object in the version they want, its CEL variables.

use std::sync::{Arc, OnceLock};

use auth::{Attributes, Authorizer, UserInfo};
use schema::cel::{self, Bindings, Question, Verdict};
use schema::{Kind, Resource};
use serde_json::{Value, json};

use super::{matching, text};
use crate::object;
use crate::pipeline::{AdmissionContext, Operation};
use crate::registry::conversion;
use crate::request_info::query_values;
use crate::status::ApiError;

/// Objects that say how admission works are never subject to it (upstream: `IsExemptAdmissionConfigurationResource`).
const EXEMPT: [&str; 6] = [
    "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
];

pub struct Request<'a> {
    pub context: &'a AdmissionContext<'a>,
    pub resource: Arc<Resource>,
    pub name: String,
    equivalents: OnceLock<Vec<Arc<Resource>>>,
}

impl<'a> Request<'a> {
    /// None for what is exempt.
    pub fn new(context: &'a AdmissionContext<'a>, object: Option<&Value>) -> Option<Self> {
        let info = context.info;
        if info.group == "admissionregistration.k8s.io" && EXEMPT.contains(&info.resource.as_str()) {
            return None;
        }
        let catalog = context.reader.catalog();
        let resource = catalog
            .resource(&info.group, &info.version, &info.resource)?
            .clone();
        let given = object
            .filter(|object| text(&object["metadata"]["generateName"]).is_empty())
            .map(object::name)
            .unwrap_or_default();
        let name = if info.name.is_empty() { given } else { &info.name };
        Some(Self {
            context,
            resource,
            name: name.to_owned(),
            equivalents: OnceLock::new(),
        })
    }

    pub fn is_namespace(&self) -> bool {
        self.resource.group.is_empty() && self.resource.plural == "namespaces"
    }

    pub fn equivalents(&self) -> &[Arc<Resource>] {
        self.equivalents
            .get_or_init(|| matching::equivalents(&self.context.reader.catalog(), &self.resource))
    }

    /// The namespace that the object is in; None for what is in none.
    pub async fn namespace_object(&self) -> Result<Option<Value>, ApiError> {
        let name = &self.context.info.namespace;
        if name.is_empty() || self.is_namespace() || !self.resource.namespaced() {
            return Ok(None);
        }
        let found = self.context.reader.get("", "namespaces", "", name).await?;
        found.map_or_else(
            || Err(ApiError::not_found("namespaces", name)),
            |found| Ok(Some(found)),
        )
    }

    fn kind<'r>(&self, resource: &'r Resource) -> &'r Kind {
        let subresource = resource.subresource(&self.context.info.subresource);
        subresource.map_or(&resource.kind, |subresource| &subresource.kind)
    }

    /// A stored object in the version `resource` serves. What a stream or a sub-resource of another kind asks for has
    /// one version only.
    pub fn shown(&self, resource: &Resource, stored: Option<&Value>) -> Result<Value, ApiError> {
        Ok(match stored {
            None => Value::Null,
            Some(stored) if self.context.operation == Operation::Connect => stored.clone(),
            Some(stored) => {
                let gvk = &self.kind(resource).gvk;
                let mut shown = match *gvk == resource.kind.gvk {
                    true => conversion::to_served(resource, stored.clone())?,
                    false => stored.clone(),
                };
                shown["apiVersion"] = json!(gvk.api_version());
                shown["kind"] = json!(gvk.kind);
                shown
            }
        })
    }

    /// Puts what became of the `shown` object in its place, with defaults; true when that makes a difference.
    pub fn take(
        &self,
        resource: &Resource,
        object: &mut Value,
        shown: &Value,
        patched: Value,
    ) -> Result<bool, ApiError> {
        if patched == *shown {
            return Ok(false);
        }
        let mut patched = patched;
        let kind = self.kind(resource);
        schema::fields::check(kind, &mut patched).map_err(ApiError::internal)?;
        schema::defaults::apply(kind, &mut patched);
        *object = match kind.gvk == resource.kind.gvk {
            true => conversion::to_stored(resource, patched)?,
            false => patched,
        };
        Ok(true)
    }

    /// The AdmissionRequest but for `uid`, `object` and `oldObject`.
    pub fn describe(&self, matched: &Resource) -> Value {
        let info = self.context.info;
        let kind = |resource: &Resource| {
            let gvk = &self.kind(resource).gvk;
            json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
        };
        let place = |resource: &Resource| json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
        let mut request = json!({
            "kind": kind(matched),
            "resource": place(matched),
            "requestKind": kind(&self.resource),
            "requestResource": place(&self.resource),
            "operation": matching::operation(self.context.operation),
            "userInfo": self.context.user.to_json(),
            "dryRun": self.context.dry_run,
            "options": self.options(),
        });
        for (field, value) in [
            ("subResource", &info.subresource),
            ("requestSubResource", &info.subresource),
            ("name", &self.name),
            ("namespace", &info.namespace),
        ] {
            if !value.is_empty() {
                request[field] = json!(value);
            }
        }
        request
    }

    fn options(&self) -> Value {
        let kind = match (self.context.operation, self.context.info.verb.as_str()) {
            (Operation::Connect, _) => return Value::Null,
            (Operation::Delete, _) => "DeleteOptions",
            (_, "patch") => "PatchOptions",
            (Operation::Create, _) => "CreateOptions",
            (Operation::Update, _) => "UpdateOptions",
        };
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.context.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        for field in ["fieldManager", "fieldValidation"] {
            if let Some(value) = query_values(self.context.query, field).next() {
                options[field] = json!(value);
            }
        }
        options
    }

    /// `object`, `oldObject`, `request`, `authorizer` and `authorizer.requestResource`.
    pub fn bindings(
        &self,
        matched: &Resource,
        object: Option<&Value>,
        authorizer: &Arc<Authorizer>,
    ) -> Result<Bindings, ApiError> {
        let info = self.context.info;
        let own = Question {
            group: info.group.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            namespace: info.namespace.clone(),
            name: self.name.clone(),
            ..Question::default()
        };
        let asker: Arc<dyn cel::Authorize> = Arc::new(Asker {
            authorizer: authorizer.clone(),
            user: self.context.user.clone(),
        });
        Ok(vec![
            ("object", cel::from_json(&self.shown(matched, object)?)),
            (
                "oldObject",
                cel::from_json(&self.shown(matched, self.context.old)?),
            ),
            ("request", cel::from_json(&self.describe(matched))),
            ("authorizer", cel::authorizer(asker, own)),
        ])
    }
}

/// What match conditions may name.
pub const CONDITION_VARIABLES: [&str; 4] = ["object", "oldObject", "request", "authorizer"];

struct Asker {
    authorizer: Arc<Authorizer>,
    user: UserInfo,
}

impl cel::Authorize for Asker {
    fn authorize(&self, question: &Question) -> Verdict {
        let account = question
            .service_account
            .as_ref()
            .map(|(namespace, name)| UserInfo::service_account(namespace, name, ""));
        let verdict = self.authorizer.authorize(&Attributes {
            user: account.as_ref().unwrap_or(&self.user),
            verb: &question.verb,
            group: &question.group,
            version: "*",
            resource: &question.resource,
            subresource: &question.subresource,
            namespace: &question.namespace,
            name: &question.name,
            path: &question.path,
            is_resource: question.path.is_empty(),
            field_selector: &question.field_selector,
            label_selector: &question.label_selector,
        });
        Verdict {
            allowed: verdict.is_allowed(),
            reason: verdict.reason,
        }
    }
}

/// Conditions of a webhook or policy: all must hold.
#[derive(Debug)]
pub struct Conditions(Vec<Result<cel::Expression, String>>);

impl Conditions {
    pub fn compile(list: &Value, variables: &[&str]) -> Self {
        let expressions = super::items(list)
            .iter()
            .map(|condition| text(&condition["expression"]).trim());
        Self(
            expressions
                .map(|text| cel::Expression::compile(text, variables))
                .collect(),
        )
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which cannot be compiled, and why.
    pub fn first_mistake(&self) -> Option<(usize, &str)> {
        let mut mistakes = self.0.iter().enumerate();
        mistakes.find_map(|(index, condition)| Some((index, condition.as_ref().err()?.as_str())))
    }

    /// One that does not hold settles it, whatever is wrong with the others.
    pub fn hold(&self, bindings: &Bindings) -> Result<bool, String> {
        let mut problems = Vec::new();
        for condition in &self.0 {
            let held = condition.as_ref().map_err(Clone::clone).and_then(|condition| {
                condition
                    .evaluate_bool(bindings)
                    .map_err(|why| format!("expression '{}' resulted in error: {why}", condition.text()))
            });
            match held {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(why) => problems.push(why),
            }
        }
        match problems.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}
