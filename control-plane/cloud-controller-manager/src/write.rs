//! Carries out what the controllers decide: one request each, and the events that go with its success.

use api::event::Notice;
use api_client::Recorder;
use http::{Method, Request};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Client, Resource};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashSet;

pub const SOURCE: &str = "cloud-controller-manager";

#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub method: Method,
    pub url: String,
    /// A merge patch, an object, or nothing when there is only something to say.
    pub body: Option<Value>,
    /// Said when the request has succeeded; without a request, said once.
    pub events: Vec<Notice>,
}

fn url<K: Resource<DynamicType = ()>>(object: &K) -> String {
    let meta = object.meta();
    let collection = K::url_path(&(), meta.namespace.as_deref());
    format!("{collection}/{}", meta.name.as_deref().unwrap_or_default())
}

impl Write {
    /// Holds only while the object is as we saw it.
    pub fn patch<K: Resource<DynamicType = ()>>(object: &K, mut patch: Value) -> Self {
        patch["metadata"]["resourceVersion"] = json!(object.meta().resource_version);
        patch["metadata"]["uid"] = json!(object.meta().uid);
        Self {
            method: Method::PATCH,
            url: url(object),
            body: Some(patch),
            events: Vec::new(),
        }
    }

    pub fn patch_status<K: Resource<DynamicType = ()>>(object: &K, status: Value) -> Self {
        let mut write = Self::patch(object, json!({"status": status}));
        write.url.push_str("/status");
        write
    }

    pub fn create<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        let mut body = json!(object);
        body["apiVersion"] = json!(K::api_version(&()));
        body["kind"] = json!(K::kind(&()));
        Self {
            method: Method::POST,
            url: K::url_path(&(), object.meta().namespace.as_deref()),
            body: Some(body),
            events: Vec::new(),
        }
    }

    pub fn delete<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let preconditions = json!({"uid": object.meta().uid});
        Self {
            method: Method::DELETE,
            url: url(object),
            body: Some(json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions})),
            events: Vec::new(),
        }
    }

    /// Nothing but words.
    pub fn say<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self {
            method: Method::GET,
            url: url(object),
            body: None,
            events: Vec::new(),
        }
    }

    pub fn event<K: Resource<DynamicType = ()>>(
        mut self,
        about: &K,
        kind: &'static str,
        reason: &str,
        message: impl Into<String>,
    ) -> Self {
        let meta = about.meta();
        self.events.push(Notice {
            about: ObjectReference {
                api_version: Some(K::api_version(&()).into_owned()),
                kind: Some(K::kind(&()).into_owned()),
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
                field_path: None,
            },
            kind,
            reason: reason.into(),
            message: message.into(),
            source: SOURCE,
        });
        self
    }
}

pub struct Writer {
    client: Client,
    recorder: Recorder,
    /// UID, reason and message of what was said without a request.
    said: HashSet<(Option<String>, String, String)>,
}

impl Writer {
    pub fn new(client: Client, recorder: Recorder) -> Self {
        Self {
            client,
            recorder,
            said: HashSet::new(),
        }
    }

    /// False when it should be tried again soon.
    pub async fn write(&mut self, write: Write) -> bool {
        let Some(body) = &write.body else {
            for notice in write.events {
                let key = (
                    notice.about.uid.clone(),
                    notice.reason.clone(),
                    notice.message.clone(),
                );
                if self.said.insert(key) {
                    self.recorder.record(notice);
                }
            }
            return true;
        };
        let media_type = if write.method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = Request::builder()
            .method(write.method.clone())
            .uri(&write.url)
            .header(http::header::CONTENT_TYPE, media_type)
            .body(body.to_string().into_bytes());
        let result = match request {
            Ok(request) => self.client.request::<Value>(request).await.map(|_| ()),
            Err(error) => Err(kube::Error::HttpError(error)),
        };
        match result {
            Ok(()) => {
                tracing::info!(method = %write.method, url = %write.url, "written");
                write
                    .events
                    .into_iter()
                    .for_each(|notice| self.recorder.record(notice));
                true
            }
            // Gone, changed since, or made already: the watch will say so.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => true,
            Err(error) => {
                tracing::warn!(method = %write.method, url = %write.url, %error, "write failed, trying again");
                false
            }
        }
    }
}
