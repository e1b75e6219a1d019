//! `componentstatuses`: made when asked for, never stored (upstream: `pkg/registry/core/componentstatus`).

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Response;
use schema::Resource;
use serde_json::{Value, json};

use super::{ResourceRequest, read, respond::Viewer};
use crate::connect::Body;
use crate::options::ListOptions;
use crate::state::ApiServer;
use crate::status::ApiError;

pub fn is_about(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "componentstatuses"
}

pub async fn answer(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let mut known: Vec<Value> = Vec::new();
    for companion in &server.config.companions {
        let is_running = companion.is_running.load(Ordering::Relaxed);
        known.push(status(
            companion.name,
            is_running.then_some(()).ok_or("not running".into()),
        ));
    }
    let store = server.store.revision().await;
    known.push(status(
        "etcd-0",
        store.map(drop).map_err(|error| error.to_string()),
    ));
    known.sort_by_cached_key(|object| object["metadata"]["name"].as_str().map(str::to_owned));

    let catalog = server.registry.catalog();
    let viewer = Viewer::new(&catalog, &request.resource, request.wanted, &request.query)?;
    let bytes = |object: &Value| Bytes::from(object.to_string());
    if request.info.verb == "list" {
        let options = ListOptions::parse(&request.query)?;
        let selection = read::selection(request, &options)?;
        let selected = known.iter().filter(|object| {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let field = |path: &str| if path == "metadata.name" { name } else { "" };
            selection.labels.matches(|_| None) && selection.fields.matches(field)
        });
        let items: Vec<Bytes> = selected.map(bytes).collect();
        return viewer.list(&items, &json!({}));
    }
    let name = request.info.name.as_str();
    let found = known.iter().find(|object| object["metadata"]["name"] == name);
    viewer.bytes(bytes(
        found.ok_or_else(|| ApiError::not_found(&request.qualified(), name))?,
    ))
}

fn status(name: &str, health: Result<(), String>) -> Value {
    let condition = match health {
        Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(error) => json!({"type": "Healthy", "status": "False", "error": error}),
    };
    json!({"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name}, "conditions": [condition]})
}
