//! AuthorizationConfiguration and `--authorization-mode`; the webhook authorizer: SubjectAccessReview v1
//! (upstream: `plugin/pkg/authorizer/webhook`).

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use auth::{Attributes, Decision, Member, RemoteAuthorizer, Verdict};
use schema::cel::{self, Bindings};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Handle, RuntimeFlavor};

use super::duration;
use crate::admission::Conditions;
use crate::cached::Cached;
use crate::object::{items, string};
use crate::selectors::{FieldSelector, LabelSelector};
use crate::webhook::WebhookClient;

const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);
/// Of upstream's defaults.
const AUTHORIZED_TTL: Duration = Duration::from_secs(5 * 60);
const UNAUTHORIZED_TTL: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
    Webhook,
}

/// `--authorization-webhook-*`.
#[derive(Debug, Clone)]
pub struct AuthorizationWebhook {
    /// A kubeconfig.
    pub config_file: PathBuf,
    pub authorized_ttl: Duration,
    pub unauthorized_ttl: Duration,
}

pub fn of_modes(modes: &[Mode], webhook: Option<&AuthorizationWebhook>) -> Result<Vec<Member>, String> {
    const FLAG: &str = "--authorization-webhook-config-file";
    if webhook.is_some() && !modes.contains(&Mode::Webhook) {
        return Err(format!(
            "cannot specify {FLAG} without mode Webhook in --authorization-mode"
        ));
    }
    let members = modes.iter().map(|mode| match mode {
        Mode::AlwaysAllow => Ok(Member::AlwaysAllow),
        Mode::AlwaysDeny => Ok(Member::AlwaysDeny),
        Mode::Node => Ok(Member::Node),
        Mode::Rbac => Ok(Member::Rbac),
        Mode::Webhook => {
            let missing = || format!("--authorization-mode Webhook needs {FLAG}");
            let given = webhook.ok_or_else(missing)?;
            let path = given.config_file.display();
            Ok(Member::Remote(Arc::new(Webhook {
                name: "default".into(),
                client: WebhookClient::from_kubeconfig(&given.config_file)
                    .map_err(|why| format!("{FLAG} {path}: {why}"))?,
                patience: PATIENCE,
                authorized_ttl: given.authorized_ttl,
                unauthorized_ttl: given.unauthorized_ttl,
                on_failure: Decision::NoOpinion,
                conditions: Conditions::compile(&Value::Null, &[]),
                known: Cached::default(),
            })))
        }
    });
    members.collect()
}

/// The error names the field; `directory` is what paths in it are relative to.
pub fn configured(config: &Value, directory: &Path) -> Result<Vec<Member>, String> {
    let authorizers = items(config, "authorizers");
    if authorizers.is_empty() {
        return Err("authorizers: Required value: at least one authorization mode must be defined".into());
    }
    let (mut names, mut types) = (HashSet::new(), HashSet::new());
    let mut members = Vec::new();
    for (index, authorizer) in authorizers.iter().enumerate() {
        let path = format!("authorizers[{index}]");
        let (kind, name) = (string(authorizer, "type"), string(authorizer, "name"));
        if name.is_empty() {
            return Err(format!("{path}.name: Required value"));
        }
        if !names.insert(name) {
            return Err(format!("{path}.name: Duplicate value: {name:?}"));
        }
        if kind != "Webhook" && !types.insert(kind) {
            return Err(format!("{path}.type: Duplicate value: {kind:?}"));
        }
        members.push(match kind {
            "Node" => Member::Node,
            "RBAC" => Member::Rbac,
            "AlwaysAllow" => Member::AlwaysAllow,
            "AlwaysDeny" => Member::AlwaysDeny,
            "Webhook" => {
                let path = format!("{path}.webhook");
                Member::Remote(Arc::new(Webhook::new(name, &authorizer["webhook"], &path, directory)?))
            }
            "" => return Err(format!("{path}.type: Required value")),
            other => {
                return Err(format!(
                    "{path}.type: Unsupported value: {other:?}: supported values: \"AlwaysAllow\", \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\""
                ));
            }
        });
    }
    Ok(members)
}

struct Webhook {
    name: String,
    client: WebhookClient,
    patience: Duration,
    authorized_ttl: Duration,
    unauthorized_ttl: Duration,
    on_failure: Decision,
    conditions: Conditions,
    known: Cached<Verdict>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Webhook({})", self.name)
    }
}

impl Webhook {
    fn new(name: &str, config: &Value, path: &str, directory: &Path) -> Result<Self, String> {
        if !config.is_object() {
            return Err(format!("{path}: Required value: required when type=Webhook"));
        }
        let one_of = |field: &str, allowed: &[&str]| match string(config, field) {
            "" => Err(format!("{path}.{field}: Required value")),
            given if !allowed.contains(&given) => {
                let allowed: Vec<String> = allowed.iter().map(|value| format!("{value:?}")).collect();
                Err(format!(
                    "{path}.{field}: Unsupported value: {given:?}: supported values: {}",
                    allowed.join(", ")
                ))
            }
            given => Ok(given),
        };
        one_of("subjectAccessReviewVersion", &["v1"])?;
        let on_failure = match one_of("failurePolicy", &["Deny", "NoOpinion"])? {
            "Deny" => Decision::Deny,
            _ => Decision::NoOpinion,
        };
        if string(config, "timeout").is_empty() {
            return Err(format!("{path}.timeout: Required value"));
        }
        let patience = duration(config, "timeout", path, PATIENCE)?;
        if patience.is_zero() || patience > LONGEST_PATIENCE {
            return Err(format!(
                "{path}.timeout: Invalid value: {:?}: must be > 0s and <= 30s",
                string(config, "timeout")
            ));
        }
        let connection = &config["connectionInfo"];
        let file = match string(connection, "type") {
            "KubeConfigFile" => string(connection, "kubeConfigFile"),
            "" => return Err(format!("{path}.connectionInfo.type: Required value")),
            other => {
                return Err(format!(
                    "{path}.connectionInfo.type: Unsupported value: {other:?}: supported values: \"KubeConfigFile\""
                ));
            }
        };
        if file.is_empty() {
            return Err(format!("{path}.connectionInfo.kubeConfigFile: Required value"));
        }
        let client = WebhookClient::from_kubeconfig(&directory.join(file))
            .map_err(|why| format!("{path}.connectionInfo.kubeConfigFile: Invalid value: {file:?}: {why}"))?;
        let conditions = Conditions::compile(&config["matchConditions"], &["request"]);
        if let Some((index, why)) = conditions.first_mistake() {
            let written = string(&config["matchConditions"][index], "expression");
            return Err(format!(
                "{path}.matchConditions[{index}].expression: Invalid value: {written:?}: {why}"
            ));
        }
        let ttl = |field: &str, is_cached: &str, default| match config[is_cached] == false {
            true => Ok(Duration::ZERO),
            false => duration(config, field, path, default),
        };
        Ok(Self {
            name: name.to_owned(),
            client,
            patience,
            authorized_ttl: ttl("authorizedTTL", "cacheAuthorizedRequests", AUTHORIZED_TTL)?,
            unauthorized_ttl: ttl("unauthorizedTTL", "cacheUnauthorizedRequests", UNAUTHORIZED_TTL)?,
            on_failure,
            conditions,
            known: Cached::default(),
        })
    }

    async fn decide(&self, spec: Value) -> Verdict {
        let request: Bindings = vec![("request", cel::from_json(&spec))];
        match self.conditions.hold(&request) {
            Ok(true) => {}
            Ok(false) => return Verdict::no_opinion(""),
            Err(why) => return self.failed(&why),
        }
        let question = spec.to_string();
        if let Some(verdict) = self.known.get(&question) {
            return verdict;
        }
        let review = json!({
            "kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
            "spec": spec, "status": {"allowed": false},
        });
        let answer = match self.client.send(&review, self.patience).await {
            Ok(answer) => answer,
            Err(why) => return self.failed(&why),
        };
        let status = &answer["status"];
        let (allowed, denied) = (status["allowed"] == true, status["denied"] == true);
        let decision = match (allowed, denied) {
            (true, true) => {
                return self.failed("webhook subject access review returned both allow and deny response");
            }
            (_, true) => Decision::Deny,
            (true, _) => Decision::Allow,
            _ => Decision::NoOpinion,
        };
        let verdict = Verdict {
            decision,
            reason: string(status, "reason").to_owned(),
        };
        let ttl = if allowed {
            self.authorized_ttl
        } else {
            self.unauthorized_ttl
        };
        self.known.put(&question, verdict.clone(), ttl);
        verdict
    }

    fn failed(&self, why: &str) -> Verdict {
        tracing::warn!(webhook = self.name, why, "authorization webhook failed");
        Verdict {
            decision: self.on_failure,
            reason: why.to_owned(),
        }
    }
}

#[async_trait]
impl RemoteAuthorizer for Webhook {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Verdict {
        self.decide(spec(attributes)).await
    }

    fn authorize_blocking(&self, attributes: &Attributes<'_>) -> Verdict {
        let spec = spec(attributes);
        match Handle::try_current() {
            Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(|| runtime.block_on(self.decide(spec)))
            }
            // A runtime of one thread cannot wait for itself.
            _ => std::thread::scope(|scope| {
                let asking = scope.spawn(|| {
                    let runtime = Builder::new_current_thread().enable_all().build();
                    runtime.map(|runtime| runtime.block_on(self.decide(spec)))
                });
                match asking.join() {
                    Ok(Ok(verdict)) => verdict,
                    Ok(Err(error)) => self.failed(&error.to_string()),
                    Err(_) => self.failed("the authorizer panicked"),
                }
            }),
        }
    }
}

/// The SubjectAccessReviewSpec.
fn spec(attributes: &Attributes<'_>) -> Value {
    let user = attributes.user;
    let mut spec = json!({"user": user.name});
    let mut set = |field: &str, value: Value, is_empty: bool| {
        if !is_empty {
            spec[field] = value;
        }
    };
    set("uid", json!(user.uid), user.uid.is_empty());
    set("groups", json!(user.groups), user.groups.is_empty());
    set("extra", json!(user.extra), user.extra.is_empty());
    let told = |fields: &[(&str, &str)]| {
        let fields = fields.iter().filter(|(_, value)| !value.is_empty());
        Value::Object(
            fields
                .map(|(field, value)| ((*field).to_owned(), json!(value)))
                .collect(),
        )
    };
    if !attributes.is_resource {
        let about = told(&[("path", attributes.path), ("verb", attributes.verb)]);
        set("nonResourceAttributes", about, false);
        return spec;
    }
    let mut about = told(&[
        ("namespace", attributes.namespace),
        ("verb", attributes.verb),
        ("group", attributes.group),
        ("version", attributes.version),
        ("resource", attributes.resource),
        ("subresource", attributes.subresource),
        ("name", attributes.name),
    ]);
    // A selector that nobody can read limits nothing.
    let fields = FieldSelector::parse(attributes.field_selector).unwrap_or_default();
    if !fields.is_empty() {
        about["fieldSelector"] = json!({"requirements": fields.requirements()});
    }
    let labels = LabelSelector::parse(attributes.label_selector).unwrap_or_default();
    if !labels.is_empty() {
        about["labelSelector"] = json!({"requirements": labels.requirements()});
    }
    set("resourceAttributes", about, false);
    spec
}

#[cfg(test)]
mod tests {
    use auth::UserInfo;

    use super::*;

    #[test]
    fn questions_say_all_that_is_known() {
        let user = UserInfo::new("bob", &["dev"]);
        let list = Attributes {
            namespace: "ns",
            version: "v1",
            field_selector: "spec.nodeName=n,status.phase!=Running",
            label_selector: "a=b,c notin (d,e),f,!g",
            ..Attributes::resource(&user, "list", "", "pods")
        };
        assert_eq!(
            spec(&list),
            json!({"user": "bob", "groups": ["dev"], "resourceAttributes": {
                "namespace": "ns", "verb": "list", "version": "v1", "resource": "pods",
                "fieldSelector": {"requirements": [
                    {"key": "spec.nodeName", "operator": "In", "values": ["n"]},
                    {"key": "status.phase", "operator": "NotIn", "values": ["Running"]},
                ]},
                "labelSelector": {"requirements": [
                    {"key": "a", "operator": "In", "values": ["b"]},
                    {"key": "c", "operator": "NotIn", "values": ["d", "e"]},
                    {"key": "f", "operator": "Exists"},
                    {"key": "g", "operator": "DoesNotExist"},
                ]},
            }})
        );
        assert_eq!(
            spec(&Attributes::non_resource(&user, "get", "/metrics")),
            json!({"user": "bob", "groups": ["dev"], "nonResourceAttributes": {"path": "/metrics", "verb": "get"}})
        );
    }

    #[test]
    fn mistakes_name_their_field() {
        let webhook = |change: &dyn Fn(&mut Value)| {
            let mut webhook = json!({"subjectAccessReviewVersion": "v1", "failurePolicy": "Deny", "timeout": "3s",
                "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "none"}});
            change(&mut webhook);
            json!([{"type": "Webhook", "name": "w", "webhook": webhook}])
        };
        for (authorizers, expected) in [
            (json!([]), "authorizers: Required value"),
            (json!([{"type": "Node"}]), "authorizers[0].name: Required value"),
            (
                json!([{"type": "X", "name": "x"}]),
                "authorizers[0].type: Unsupported value: \"X\"",
            ),
            (
                json!([{"type": "Node", "name": "x"}, {"type": "Node", "name": "y"}]),
                "authorizers[1].type: Duplicate value: \"Node\"",
            ),
            (
                webhook(&|webhook| webhook["failurePolicy"] = json!("Open")),
                "authorizers[0].webhook.failurePolicy: Unsupported value: \"Open\"",
            ),
            (
                webhook(&|webhook| webhook["timeout"] = json!("31s")),
                "authorizers[0].webhook.timeout: Invalid value: \"31s\": must be > 0s and <= 30s",
            ),
            (
                webhook(&|_| {}),
                "authorizers[0].webhook.connectionInfo.kubeConfigFile: Invalid value: \"none\"",
            ),
        ] {
            let told = configured(&json!({"authorizers": authorizers}), Path::new("/nowhere")).unwrap_err();
            assert!(told.starts_with(expected), "{told}");
        }
    }
}
