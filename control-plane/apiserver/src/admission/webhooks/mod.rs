//! Mutating and validating admission webhooks: configurations compiled when they change, called in upstream's order.

mod review;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use auth::Authorizer;
use futures::future::join_all;
use schema::Resource;
use schema::patch::PatchType;
use serde_json::{Value, json};
use store::Revision;

use self::review::Answer;
use super::dynamic::{CONDITION_VARIABLES, Conditions, Request};
use super::matching::Matching;
use super::{forbidden, items, text};
use crate::audit::{self, Level};
use crate::object;
use crate::pipeline::{Admission, AdmissionContext, ObjectReader, Operation};
use crate::registry::names;
use crate::status::ApiError;
use crate::warnings;
use crate::webhook::WebhookClient;

const GROUP: &str = "admissionregistration.k8s.io";

struct Webhook {
    name: String,
    configuration: String,
    /// Told apart from others of the same name by their configuration.
    id: String,
    client: WebhookClient,
    matching: Matching,
    conditions: Conditions,
    fails_closed: bool,
    is_reinvocable: bool,
    has_side_effects: bool,
    patience: Duration,
}

impl Webhook {
    fn new(configuration: &str, index: usize, webhook: &Value) -> Self {
        Self {
            name: text(&webhook["name"]).to_owned(),
            configuration: configuration.to_owned(),
            id: format!("{configuration}/{}/{index}", text(&webhook["name"])),
            client: WebhookClient::new(&webhook["clientConfig"]),
            matching: Matching::of_webhook(webhook),
            conditions: Conditions::compile(&webhook["matchConditions"], &CONDITION_VARIABLES),
            fails_closed: webhook["failurePolicy"] != "Ignore",
            is_reinvocable: webhook["reinvocationPolicy"] == "IfNeeded",
            has_side_effects: !matches!(text(&webhook["sideEffects"]), "None" | "NoneOnDryRun"),
            patience: Duration::from_secs(webhook["timeoutSeconds"].as_u64().unwrap_or(10)),
        }
    }
}

/// The webhooks of one kind of configuration, as of a revision of their cache.
struct Webhooks {
    plural: &'static str,
    authorizer: Arc<Authorizer>,
    compiled: Mutex<Option<(Revision, Arc<Vec<Webhook>>)>>,
}

impl Webhooks {
    fn new(plural: &'static str, authorizer: Arc<Authorizer>) -> Self {
        Self {
            plural,
            authorizer,
            compiled: Mutex::default(),
        }
    }

    /// In the order of their configurations' names.
    async fn current(&self, reader: &dyn ObjectReader) -> Result<Arc<Vec<Webhook>>, ApiError> {
        let revision = reader.revision(GROUP, self.plural);
        let known = || self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, webhooks)) = known().as_ref()
            && *of == revision
            && revision > 0
        {
            return Ok(webhooks.clone());
        }
        let mut configurations = reader.list(GROUP, self.plural, "").await?;
        configurations.sort_by_cached_key(|configuration| object::name(configuration).to_owned());
        let webhooks = configurations.iter().flat_map(|configuration| {
            let name = object::name(configuration);
            let webhooks = items(&configuration["webhooks"]).iter().enumerate();
            webhooks.map(move |(index, webhook)| Webhook::new(name, index, webhook))
        });
        let webhooks = Arc::new(webhooks.collect::<Vec<_>>());
        *known() = Some((revision, webhooks.clone()));
        Ok(webhooks)
    }

    /// The version in which the webhook wants the object; None when it is not asked.
    async fn wants(
        &self,
        webhook: &Webhook,
        request: &Request<'_>,
        object: Option<&Value>,
    ) -> Result<Option<Arc<Resource>>, ApiError> {
        let Some(matched) = webhook.matching.find(request, object).await? else {
            return Ok(None);
        };
        if !webhook.conditions.is_empty() {
            let bindings = request.bindings(&matched, object, &self.authorizer)?;
            match webhook.conditions.hold(&bindings) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(why) if webhook.fails_closed => return Err(forbidden(request.context, object, why)),
                Err(why) => {
                    tracing::warn!(
                        webhook = webhook.name,
                        why,
                        "failed evaluating match conditions, failing open"
                    );
                    return Ok(None);
                }
            }
        }
        if request.context.dry_run && webhook.has_side_effects {
            return Err(ApiError::bad_request(format!(
                "admission webhook {:?} does not support dry run because it can have side effects",
                webhook.name
            )));
        }
        Ok(Some(matched))
    }

    /// None when the webhook could not be asked and does not mind.
    async fn ask(
        &self,
        webhook: &Webhook,
        request: &Request<'_>,
        matched: &Resource,
        object: Option<&Value>,
        turn: Turn,
    ) -> Result<Option<Answer>, ApiError> {
        let uid = names::uid();
        let shown = request.shown(matched, object)?;
        let old = request.shown(matched, request.context.old)?;
        let question = review::question(&uid, request.describe(matched), shown, old);
        let reader = request.context.reader;
        let answer = match webhook.client.post(reader, &question, webhook.patience).await {
            Ok(answer) => review::read(&uid, turn.may_patch, &answer)
                .map_err(|why| format!("received invalid webhook response: {why}")),
            Err(why) => Err(format!("failed to call webhook: {why}")),
        };
        match answer {
            Ok(answer) => {
                for warning in &answer.warnings {
                    warnings::add(warning.as_str());
                }
                for (key, value) in &answer.annotations {
                    audit::annotate(format!("{}/{key}", webhook.name), value.as_str());
                }
                match &answer.refusal {
                    Some(status) => Err(review::denied(&webhook.name, status)),
                    None => Ok(Some(answer)),
                }
            }
            Err(why) => {
                let why = format!("failed calling webhook {:?}: {why}", webhook.name);
                if webhook.fails_closed {
                    return Err(ApiError::internal(why));
                }
                tracing::warn!(webhook = webhook.name, why, "failing open");
                let kind = if turn.may_patch { "mutating" } else { "validating" };
                let key = turn.annotation(&format!("failed-open.{kind}.webhook.admission.k8s.io"));
                audit::annotate(key, webhook.name.as_str());
                Ok(None)
            }
        }
    }
}

/// Which call of a webhook it is, for the audit log.
#[derive(Clone, Copy)]
struct Turn {
    may_patch: bool,
    round: usize,
    index: usize,
}

impl Turn {
    fn annotation(self, prefix: &str) -> String {
        format!("{prefix}/round_{}_index_{}", self.round, self.index)
    }

    fn told(self, webhook: &Webhook, mutated: bool, patch: Option<&Value>) {
        let mut told = json!({"configuration": webhook.configuration, "webhook": webhook.name});
        let of_patch = || {
            let mut told = told.clone();
            told["patch"] = patch.cloned().unwrap_or_default();
            told["patchType"] = json!("JSONPatch");
            told.to_string()
        };
        if mutated {
            let key = self.annotation("patch.webhook.admission.k8s.io");
            audit::annotate_from(Level::Request, key, of_patch);
        }
        told["mutated"] = json!(mutated);
        let key = self.annotation("mutation.webhook.admission.k8s.io");
        audit::annotate(key, told.to_string());
    }
}

pub struct MutatingAdmissionWebhook(Webhooks);

impl MutatingAdmissionWebhook {
    pub fn new(authorizer: Arc<Authorizer>) -> Self {
        Self(Webhooks::new("mutatingwebhookconfigurations", authorizer))
    }

    async fn run(&self, context: &AdmissionContext<'_>, object: &mut Value) -> Result<(), ApiError> {
        let webhooks = self.0.current(context.reader).await?;
        if webhooks.is_empty() {
            return Ok(());
        }
        let Some(request) = Request::new(context, Some(object)) else {
            return Ok(());
        };
        for (index, webhook) in webhooks.iter().enumerate() {
            let round = {
                let round = context.reinvocation();
                if round.is_second_round && !round.again.contains(&webhook.id) {
                    continue;
                }
                usize::from(round.is_second_round)
            };
            let turn = Turn {
                may_patch: true,
                round,
                index,
            };
            let Some(matched) = self.0.wants(webhook, &request, Some(object)).await? else {
                continue;
            };
            let answer = self
                .0
                .ask(webhook, &request, &matched, Some(object), turn)
                .await?;
            let is_answered = answer.is_some();
            let patch = answer.and_then(|answer| answer.patch);
            let changed = match &patch {
                Some(patch) => apply(&request, &matched, object, patch)?,
                None => false,
            };
            if is_answered {
                turn.told(webhook, changed, patch.as_ref());
            }
            let mut round = context.reinvocation();
            if changed {
                round.object_changed();
            }
            if webhook.is_reinvocable && !round.is_second_round {
                round.reinvocable.insert(webhook.id.clone());
            }
        }
        Ok(())
    }
}

/// Patches the object as the webhook saw it; true when that made a difference.
fn apply(
    request: &Request<'_>,
    matched: &Resource,
    object: &mut Value,
    patch: &Value,
) -> Result<bool, ApiError> {
    let shown = request.shown(matched, Some(object))?;
    let patched = schema::patch::apply(&matched.kind, PatchType::Json, &shown, patch)
        .map_err(|error| ApiError::internal(error.message))?;
    request.take(matched, object, &shown, patched)
}

#[async_trait]
impl Admission for MutatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, object: &mut Value) -> Result<(), ApiError> {
        self.run(context, object).await
    }

    /// Deletions and streams have nothing to change; webhooks are asked about them all the same.
    async fn validate(&self, context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
        if !matches!(context.operation, Operation::Delete | Operation::Connect) {
            return Ok(());
        }
        let webhooks = self.0.current(context.reader).await?;
        if webhooks.is_empty() {
            return Ok(());
        }
        let Some(request) = Request::new(context, object) else {
            return Ok(());
        };
        for (index, webhook) in webhooks.iter().enumerate() {
            let Some(matched) = self.0.wants(webhook, &request, object).await? else {
                continue;
            };
            let turn = Turn {
                may_patch: true,
                round: 0,
                index,
            };
            let answer = self.0.ask(webhook, &request, &matched, object, turn).await?;
            if answer.is_some_and(|answer| answer.patch.is_some()) && context.operation == Operation::Delete {
                return Err(ApiError::internal(format!(
                    "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                    webhook.name
                )));
            }
        }
        Ok(())
    }
}

pub struct ValidatingAdmissionWebhook(Webhooks);

impl ValidatingAdmissionWebhook {
    pub fn new(authorizer: Arc<Authorizer>) -> Self {
        Self(Webhooks::new("validatingwebhookconfigurations", authorizer))
    }
}

#[async_trait]
impl Admission for ValidatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    /// All at once; the first in order that refuses is told.
    async fn validate(&self, context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
        let webhooks = self.0.current(context.reader).await?;
        if webhooks.is_empty() {
            return Ok(());
        }
        let Some(request) = Request::new(context, object) else {
            return Ok(());
        };
        let mut asked = Vec::new();
        for webhook in webhooks.iter() {
            if let Some(matched) = self.0.wants(webhook, &request, object).await? {
                asked.push((webhook, matched));
            }
        }
        let asking = asked.iter().enumerate().map(|(index, (webhook, matched))| {
            let turn = Turn {
                may_patch: false,
                round: 0,
                index,
            };
            self.0.ask(webhook, &request, matched, object, turn)
        });
        let refused = join_all(asking).await.into_iter().find_map(Result::err);
        refused.map_or(Ok(()), Err)
    }
}
