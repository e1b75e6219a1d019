//! Carries out actions, without choices of its own.

use crate::action::{Action, Announce, Path};
use crate::cache::Observers;
use api::event::{NORMAL, Notice, WARNING};
use api_client::Recorder;
use futures::StreamExt;
use http::{Method, Request};
use kube::Client;
use serde_json::Value;
use std::time::Duration;

const FIELD_MANAGER: &str = "fieldManager=kube-controller-manager";
/// Deletions of one plan in flight together.
const CONCURRENT_DELETES: usize = 16;

pub struct Executor {
    client: Client,
    observers: Observers,
    recorder: Recorder,
}

/// A write the server refused, or that didn't reach it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{method} {url}: {message}")]
    Request {
        method: Method,
        url: String,
        message: String,
        code: u16,
        reason: String,
        /// The first of the status' causes.
        cause: String,
    },
    #[error("{0}")]
    Observation(String),
}

impl Error {
    /// The server's words alone.
    pub fn message(&self) -> &str {
        match self {
            Self::Request { message, .. } | Self::Observation(message) => message,
        }
    }

    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Request { code: 409, reason, .. } if reason == "Conflict")
    }

    /// The namespace is on its way out; nothing can, or need, be put into it.
    pub fn is_namespace_terminating(&self) -> bool {
        matches!(self, Self::Request { cause, .. } if cause == "NamespaceTerminating")
    }

    /// A POST was refused.
    pub fn is_creation(&self) -> bool {
        matches!(self, Self::Request { method, .. } if method == Method::POST)
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Request { code: 404, .. })
    }
}

impl Executor {
    pub fn new(client: Client, observers: Observers, recorder: Recorder) -> Self {
        Self {
            client,
            observers,
            recorder,
        }
    }

    /// Runs a plan of the controller `source`. The first failure ends it; the answer is when to look again, if the plan says so.
    pub async fn run(&self, plan: Vec<Action>, source: &'static str) -> Result<Option<Duration>, Error> {
        let mut again: Option<Duration> = None;
        let mut plan = plan.into_iter().map(|action| action.said_by(source)).peekable();
        while let Some(action) = plan.next() {
            match action {
                Action::Create { at, body, announce } => {
                    let mut creates = vec![(at, body, announce)];
                    while let Some(Action::Create { at, body, announce }) =
                        plan.next_if(|a| matches!(a, Action::Create { .. }))
                    {
                        creates.push((at, body, announce));
                    }
                    self.create_all(creates).await?;
                }
                Action::Delete {
                    at,
                    options,
                    announce,
                } => {
                    let mut deletes = vec![(at, options, announce)];
                    while let Some(Action::Delete {
                        at,
                        options,
                        announce,
                    }) = plan.next_if(|a| matches!(a, Action::Delete { .. }))
                    {
                        deletes.push((at, options, announce));
                    }
                    self.delete_all(deletes).await?;
                }
                Action::Patch { at, patch } => {
                    self.write(Method::PATCH, &at, "application/merge-patch+json", &patch)
                        .await?;
                }
                Action::StrategicPatch { at, patch } => {
                    self.write(
                        Method::PATCH,
                        &at,
                        "application/strategic-merge-patch+json",
                        &patch,
                    )
                    .await?;
                }
                Action::Replace { at, body } => {
                    self.write(Method::PUT, &at, "application/json", &body).await?;
                }
                Action::Event(notice) => self.recorder.record(notice),
                Action::Requeue(delay) => again = Some(again.map_or(delay, |a| a.min(delay))),
            }
        }
        Ok(again)
    }

    /// Slow start: one, then two, then four …, so that a plan that cannot succeed fails after few attempts.
    async fn create_all(&self, mut creates: Vec<(Path, Value, Option<Box<Announce>>)>) -> Result<(), Error> {
        let mut batch = 1;
        while !creates.is_empty() {
            let now: Vec<_> = creates.drain(..batch.min(creates.len())).collect();
            let results = futures::future::join_all(now.iter().map(|(at, body, announce)| async move {
                match self.write(Method::POST, at, "application/json", body).await {
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    result => {
                        self.announce(announce.as_deref(), result.as_ref());
                        result.map(|_| ())
                    }
                }
            }));
            for result in results.await {
                result?;
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn delete_all(&self, deletes: Vec<(Path, Value, Option<Box<Announce>>)>) -> Result<(), Error> {
        let results: Vec<Result<(), Error>> =
            futures::stream::iter(deletes)
                .map(|(at, options, announce)| async move {
                    self.delete(&at, &options, announce.as_deref()).await
                })
                .buffer_unordered(CONCURRENT_DELETES)
                .collect()
                .await;
        results.into_iter().collect()
    }

    async fn delete(&self, at: &Path, options: &Value, announce: Option<&Announce>) -> Result<(), Error> {
        let named = serde_json::json!({"metadata": {"name": at.key.name}});
        let result = self
            .request(Method::DELETE, at, "application/json", options)
            .await;
        match &result {
            Ok(answer) => {
                self.observe_deletion(at, options, answer);
                self.announce(announce, Ok(&named));
            }
            // Gone already, or a namesake has taken its place: what was wished is so.
            Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
            Err(error) => self.announce(announce, Err(error)),
        }
        result.map(|_| ())
    }

    fn observe_deletion(&self, at: &Path, options: &Value, answer: &Value) {
        let observers = at.kind.and_then(|k| self.observers.get(&k)).into_iter().flatten();
        let meta = &answer["metadata"];
        let finalizers = meta["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let grace = meta["deletionGracePeriodSeconds"].as_i64().unwrap_or_default() > 0;
        let lives =
            answer["kind"] != "Status" && meta["deletionTimestamp"].is_string() && (finalizers || grace);
        for observer in observers {
            if lives {
                observer.wrote(answer.clone());
            } else if let Some(uid) = options["preconditions"]["uid"].as_str() {
                observer.removed(&at.key, uid);
            }
        }
    }

    async fn write(&self, method: Method, at: &Path, media_type: &str, body: &Value) -> Result<Value, Error> {
        let patching = method == Method::PATCH;
        match self.request(method, at, media_type, body).await {
            Ok(answer) => {
                for observer in at.kind.and_then(|k| self.observers.get(&k)).into_iter().flatten() {
                    observer.wrote(answer.clone());
                }
                Ok(answer)
            }
            // The object is gone; its deletion will reach us through the watch.
            Err(error) if patching && error.is_not_found() => Ok(Value::Null),
            Err(error) => Err(error),
        }
    }

    async fn request(
        &self,
        method: Method,
        at: &Path,
        media_type: &str,
        body: &Value,
    ) -> Result<Value, Error> {
        let uri = if method == Method::DELETE {
            at.url.clone()
        } else {
            format!("{}?{FIELD_MANAGER}", at.url)
        };
        let failed = |message: String, code: u16, reason: String, cause: String| Error::Request {
            method: method.clone(),
            url: at.url.clone(),
            message,
            code,
            reason,
            cause,
        };
        let request = Request::builder()
            .method(method.clone())
            .uri(uri)
            .header(http::header::CONTENT_TYPE, media_type)
            .header(http::header::ACCEPT, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|error| failed(error.to_string(), 0, String::new(), String::new()))?;
        self.client
            .request::<Value>(request)
            .await
            .map_err(|error| match error {
                kube::Error::Api(status) => {
                    let causes = status.details.map(|d| d.causes).unwrap_or_default();
                    let cause = causes.into_iter().next().map(|c| c.reason).unwrap_or_default();
                    failed(status.message, status.code, status.reason, cause)
                }
                other => failed(other.to_string(), 0, String::new(), String::new()),
            })
    }

    fn announce(&self, announce: Option<&Announce>, result: Result<&Value, &Error>) {
        let Some(announce) = announce else { return };
        let (kind, reason, message) = match result {
            Ok(object) => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                (
                    NORMAL,
                    announce.success.0,
                    announce.success.1.replacen("{}", name, 1),
                )
            }
            Err(error) => (
                WARNING,
                announce.failure.0,
                announce.failure.1.replacen("{}", error.message(), 1),
            ),
        };
        self.recorder.record(Notice {
            about: announce.about.clone(),
            source: announce.source,
            kind,
            reason: reason.into(),
            message,
        });
    }
}
