//! Tells extension API servers how to know us and our clients: `kube-system/extension-apiserver-authentication`.

use serde_json::{Value, json};

use super::{RETRY, ensure_object, own_request};
use crate::config::Config;
use crate::endpoints::{Intent, update_object};
use crate::object;
use crate::state::ApiServer;
use crate::status::ApiError;

const NAME: &str = "extension-apiserver-authentication";

/// Returns when the ConfigMap says what this server does.
pub async fn publish(server: &ApiServer) {
    while let Err(error) = publish_once(server).await {
        tracing::warn!(error = error.message, "cannot publish {NAME}");
        tokio::time::sleep(RETRY).await;
    }
}

async fn publish_once(server: &ApiServer) -> Result<(), ApiError> {
    let data = data(&server.config);
    let request = own_request(server, "", "configmaps", "kube-system", NAME)?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": "kube-system"}, "data": data});
    if ensure_object(server, &request, map).await? {
        return Ok(());
    }
    let intent = Intent {
        request: &request,
        dry_run: false,
    };
    let make = |current: &Value| {
        let mut next = current.clone();
        for (key, value) in data.as_object().into_iter().flatten() {
            object::field(&mut next, "data").insert(key.clone(), value.clone());
        }
        Ok(next)
    };
    update_object(server, intent, make).await.map(drop)
}

fn data(config: &Config) -> Value {
    let list = |names: &[String]| json!(names).to_string();
    let mut data = json!({"client-ca-file": config.client_ca});
    let proxy = &config.front_proxy;
    if !proxy.client_ca.is_empty() {
        data["requestheader-client-ca-file"] = json!(proxy.client_ca);
        data["requestheader-allowed-names"] = json!(list(&proxy.allowed_names));
        data["requestheader-username-headers"] = json!(list(&proxy.headers.username));
        data["requestheader-uid-headers"] = json!(list(&proxy.headers.uid));
        data["requestheader-group-headers"] = json!(list(&proxy.headers.group));
        data["requestheader-extra-headers-prefix"] = json!(list(&proxy.headers.extra_prefix));
    }
    data
}
