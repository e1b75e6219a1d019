//! The audit log: who asked for what, and what became of it (upstream: `k8s.io/apiserver/pkg/audit`). Whoever works on
//! a request may add to its record; outside of requests there is none.

mod log;
mod policy;
mod webhook;

use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use auth::UserInfo;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use self::log::Log;
use self::policy::Verdict;
use crate::connect::{Body, BoxError};
use crate::request_info::RequestInfo;

pub use self::log::LogOptions;
pub use self::policy::{Level, Stage};
pub use self::webhook::WebhookOptions;

/// Longer user agents are cut.
const LONGEST_USER_AGENT: usize = 1024;
const LONGEST_ID: usize = 64;

tokio::task_local! {
    static CURRENT: Arc<Record>;
}

/// `--audit-*`.
#[derive(Debug, Clone, Default)]
pub struct AuditOptions {
    pub policy_file: Option<PathBuf>,
    pub log: Option<LogOptions>,
    pub webhook: Option<WebhookOptions>,
}

/// What is told of, and where to.
pub struct Auditor {
    policy: policy::Policy,
    log: Option<Log>,
    webhook: Option<webhook::Sender>,
}

impl Auditor {
    /// None when nothing is to be told; the error names the flag.
    pub fn new(options: &AuditOptions, shutdown: &CancellationToken) -> Result<Option<Arc<Self>>, String> {
        let Some(path) = &options.policy_file else {
            if options.log.is_some() || options.webhook.is_some() {
                tracing::warn!("nothing is audited: there is no --audit-policy-file");
            }
            return Ok(None);
        };
        let named = |why: String| format!("--audit-policy-file {}: {why}", path.display());
        let policy = policy::FILE
            .read(path)
            .and_then(|policy| policy::Policy::parse(&policy))
            .map_err(named)?;
        let log = options.log.clone().map(|options| {
            let path = options.path.clone();
            Log::open(options).map_err(|error| format!("--audit-log-path {}: {error}", path.display()))
        });
        let webhook = options.webhook.clone().map(|options| {
            let path = options.config_file.clone();
            webhook::Sender::start(options, shutdown.clone())
                .map_err(|error| format!("--audit-webhook-config-file {}: {error}", path.display()))
        });
        let (log, webhook) = (log.transpose()?, webhook.transpose()?);
        let is_heard = log.is_some() || webhook.is_some();
        Ok(is_heard.then(|| Arc::new(Self { policy, log, webhook })))
    }

    fn tell(&self, event: Value) {
        if let Some(log) = &self.log {
            let mut line = event.to_string();
            line.push('\n');
            if let Err(error) = log.write(line.as_bytes()) {
                tracing::error!(%error, "cannot write the audit log");
            }
        }
        if let Some(webhook) = &self.webhook {
            webhook.send(event);
        }
    }
}

/// What is known of one request so far.
pub struct Record {
    pub id: String,
    auditor: Option<Arc<Auditor>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    verdict: Verdict,
    event: Map<String, Value>,
}

impl Record {
    pub fn new(
        auditor: Option<Arc<Auditor>>,
        request: &Request<impl Sized>,
        peer: Option<IpAddr>,
    ) -> Arc<Self> {
        let headers = request.headers();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let id = header("audit-id").filter(|id| !id.is_empty());
        let id = id.map_or_else(crate::registry::names::uid, str::to_owned);
        let mut event = Map::new();
        if auditor.is_some() {
            let mut agent = header("user-agent").unwrap_or_default().to_owned();
            if agent.len() > LONGEST_USER_AGENT {
                agent.truncate(agent.floor_char_boundary(LONGEST_USER_AGENT));
                agent.push_str("...TRUNCATED");
            }
            let uri = request.uri().path_and_query().map_or("/", |uri| uri.as_str());
            event = [
                ("kind", json!("Event")),
                ("apiVersion", json!("audit.k8s.io/v1")),
                ("auditID", json!(id)),
                ("requestURI", json!(uri)),
                ("userAgent", json!(agent)),
                ("sourceIPs", json!(source_ips(headers, peer))),
                ("requestReceivedTimestamp", json!(now())),
            ]
            .map(|(field, value)| (field.to_owned(), value))
            .into_iter()
            .collect();
        }
        let state = State {
            event,
            ..State::default()
        };
        Arc::new(Self {
            id,
            auditor,
            state: Mutex::new(state),
        })
    }

    pub async fn scope<T>(self: &Arc<Self>, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self.clone(), work).await
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self, user: Option<&UserInfo>, info: &RequestInfo) {
        let Some(auditor) = &self.auditor else { return };
        self.with(|state| {
            state.verdict = auditor.policy.judge(user, info);
            let event = &mut state.event;
            event.insert("level".into(), json!(state.verdict.level));
            event.insert("verb".into(), json!(info.verb));
            event.insert("user".into(), user.map_or_else(|| json!({}), UserInfo::to_json));
            if info.is_resource {
                let mut about = Map::new();
                for (field, value) in [
                    ("resource", &info.resource),
                    ("namespace", &info.namespace),
                    ("name", &info.name),
                    ("apiGroup", &info.group),
                    ("apiVersion", &info.version),
                    ("subresource", &info.subresource),
                ] {
                    if !value.is_empty() {
                        about.insert(field.into(), json!(value));
                    }
                }
                event.insert("objectRef".into(), Value::Object(about));
            }
        });
    }

    fn stage(&self, stage: Stage) {
        let Some(auditor) = &self.auditor else { return };
        let event = self.with(|state| {
            let verdict = &state.verdict;
            (verdict.level > Level::None && !verdict.omit_stages.contains(&stage)).then(|| {
                let mut event = state.event.clone();
                event.insert("stage".into(), json!(stage));
                event.insert("stageTimestamp".into(), json!(now()));
                Value::Object(event)
            })
        });
        if let Some(event) = event {
            auditor.tell(event);
        }
    }

    fn status(&self, status: Value) {
        self.with(|state| state.event.insert("responseStatus".into(), status));
    }

    /// As it is told to the client.
    pub fn shown_id(&self) -> String {
        self.id.chars().take(LONGEST_ID).collect()
    }

    pub fn failed(&self, status: &Value) {
        self.status(told(status));
        self.with(|state| {
            if state.verdict.level == Level::RequestResponse {
                state.event.insert("responseObject".into(), status.clone());
            }
        });
    }

    /// The answer is ready; of a stream, its beginning. What is sent ends the record.
    pub fn answered(self: &Arc<Self>, response: Response<Body>, is_long_running: bool) -> Response<Body> {
        if self.auditor.is_none() {
            return response;
        }
        let is_silent = self.with(|state| {
            let status = state
                .event
                .entry("responseStatus")
                .or_insert_with(|| json!({"metadata": {}}));
            status["code"] = json!(response.status().as_u16());
            state.verdict.level == Level::None
        });
        if is_silent {
            return response;
        }
        if !is_long_running {
            self.stage(Stage::ResponseComplete);
            return response;
        }
        self.stage(Stage::ResponseStarted);
        response.map(|body| {
            Recorded {
                body,
                record: self.clone(),
            }
            .boxed_unsync()
        })
    }

    pub fn panicked(&self, what: &str) {
        let message = format!("APIServer panic'd: {what}");
        self.status(
            json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500}),
        );
        self.stage(Stage::Panic);
    }
}

/// A stream whose end is the end of its request.
struct Recorded {
    body: Body,
    record: Arc<Record>,
}

impl hyper::body::Body for Recorded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.record.stage(Stage::ResponseComplete);
    }
}

fn current(work: impl FnOnce(&Record)) {
    let _ = CURRENT.try_with(|record| {
        if record.auditor.is_some() {
            work(record);
        }
    });
}

/// The sender is known: the policy is asked.
pub fn begin(user: &UserInfo, info: &RequestInfo) {
    current(|record| {
        record.begin(Some(user), info);
        record.stage(Stage::RequestReceived);
    });
}

/// The sender could not be recognized by `methods`.
pub fn unauthenticated(info: &RequestInfo, headers: &HeaderMap) {
    current(|record| {
        record.begin(None, info);
        let method = headers
            .get("authorization")
            .and_then(|value| value.to_str().ok()?.split(' ').next())
            .filter(|method| !method.is_empty());
        let message = match method {
            Some(method) => format!("Authentication failed, attempted: {}", method.to_lowercase()),
            None => "Authentication failed, no credentials provided".to_owned(),
        };
        record.status(json!({"metadata": {}, "message": message, "code": 401}));
        record.stage(Stage::ResponseStarted);
        record.with(|state| state.verdict.level = Level::None);
    });
}

pub fn impersonated(user: &UserInfo) {
    current(|record| {
        record.with(|state| state.event.insert("impersonatedUser".into(), user.to_json()));
    });
}

/// The first word on a key stays.
pub fn annotate(key: impl Into<String>, value: impl Into<String>) {
    annotate_from(Level::Metadata, key, || value.into());
}

pub fn annotate_from(level: Level, key: impl Into<String>, value: impl FnOnce() -> String) {
    current(|record| {
        record.with(|state| {
            if state.verdict.level < level {
                return;
            }
            let annotations = state.event.entry("annotations").or_insert_with(|| json!({}));
            let annotations = annotations.as_object_mut();
            let key = key.into();
            if let Some(annotations) = annotations
                && !annotations.contains_key(&key)
            {
                annotations.insert(key, json!(value()));
            }
        });
    });
}

/// What was sent, decoded.
pub fn request_object(object: &Value) {
    current(|record| {
        record.with(|state| {
            let metadata = &object["metadata"];
            if let Some(about) = state.event.get_mut("objectRef") {
                for field in ["name", "namespace", "uid", "resourceVersion"] {
                    let told = about[field].as_str().is_some_and(|told| !told.is_empty());
                    if let Some(value) = metadata[field]
                        .as_str()
                        .filter(|value| !told && !value.is_empty())
                    {
                        about[field] = json!(value);
                    }
                }
            }
            if state.verdict.level >= Level::Request {
                let object = shown(object, &state.verdict);
                state.event.insert("requestObject".into(), object);
            }
        });
    });
}

/// What is answered; it is made only if somebody wants to know.
pub fn response_object(object: impl FnOnce() -> Option<Value>) {
    current(|record| {
        let level = record.with(|state| state.verdict.level);
        if level < Level::RequestResponse {
            return;
        }
        if let Some(object) = object() {
            record.with(|state| {
                let object = shown(&object, &state.verdict);
                state.event.insert("responseObject".into(), object);
            });
        }
    });
}

/// A Status is the answer.
pub fn response_status(status: &Value) {
    current(|record| {
        record.status(told(status));
        response_object(|| Some(status.clone()));
    });
}

fn told(status: &Value) -> Value {
    let mut told = json!({"metadata": {}});
    for field in ["status", "message", "reason", "details", "code"] {
        if let Some(value) = status.get(field) {
            told[field] = value.clone();
        }
    }
    told
}

fn shown(object: &Value, verdict: &Verdict) -> Value {
    let mut object = object.clone();
    if verdict.omit_managed_fields {
        let forget = |object: &mut Value| {
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
        };
        forget(&mut object);
        if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
            items.iter_mut().for_each(forget);
        }
    }
    object
}

fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
        .to_string()
}

/// Whom proxies name, then who is connected.
fn source_ips(headers: &HeaderMap, peer: Option<IpAddr>) -> Vec<String> {
    let mut found: Vec<IpAddr> = Vec::new();
    for name in ["x-forwarded-for", "x-real-ip"] {
        let values = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let addresses = values
            .flat_map(|value| value.split(','))
            .filter_map(|ip| ip.trim().parse().ok());
        for address in addresses {
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    if let Some(peer) = peer.filter(|peer| found.last() != Some(peer)) {
        found.push(peer);
    }
    found.iter().map(IpAddr::to_string).collect()
}
