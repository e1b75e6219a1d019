//! An extension API server behind an APIService, and flow control, as clients meet them.

// Each test binary uses its own part of it.
#[allow(dead_code)]
mod support;
#[allow(dead_code)]
#[path = "support/webhook.rs"]
mod webhook;

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use support::{Client, Server};
use webhook::Webhook;

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const WARDLE: &str = "/apis/wardle.example.com/v1alpha1";
const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

/// Controllers follow soon, not at once.
async fn eventually(what: &str, mut attempt: impl AsyncFnMut() -> bool) {
    let trying = async {
        while !attempt().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), trying)
        .await
        .expect(what);
}

async fn condition(admin: &Client, path: &str, kind: &str) -> Value {
    let (_, object) = admin.get(path).await;
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind);
    found.unwrap_or_default()
}

async fn created(admin: &Client, path: &str, object: Value) {
    let (code, answer) = admin.post(path, object).await;
    assert_eq!(code, 201, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_server_answers_as_if_it_were_ours() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path()).await;
    let admin = server.admin();
    let extension = Webhook::start(|path, _| {
        Some(match path.strip_prefix(WARDLE)? {
            "" => json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1alpha1",
                "resources": [{"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"]}]}),
            rest => json!({"kind": "FlunderList", "apiVersion": "wardle.example.com/v1alpha1", "metadata": {}, "items": [], "asked": rest}),
        })
    })
    .await;
    let port = extension.address.port();
    created(
        &admin,
        "/api/v1/namespaces/default/services",
        json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"port": 7443, "targetPort": port}]}}),
    )
    .await;
    created(&admin, API_SERVICES,
        json!({"metadata": {"name": "v1alpha1.wardle.example.com"}, "spec": {"group": "wardle.example.com", "version": "v1alpha1",
            "groupPriorityMinimum": 2000, "versionPriority": 200, "caBundle": extension.bundle,
            "service": {"namespace": "default", "name": "hook", "port": 7443}}})).await;
    let own = format!("{API_SERVICES}/v1alpha1.wardle.example.com");
    let reason = async || condition(&admin, &own, "Available").await["reason"].clone();
    eventually("nobody is behind the service", async || {
        reason().await == "EndpointsNotFound"
    })
    .await;
    let (code, _) = admin.text(&format!("{WARDLE}/namespaces/default/flunders")).await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);

    created(&admin, SLICES,
        json!({"metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}}, "addressType": "IPv4",
            "ports": [{"name": "", "port": port, "protocol": "TCP"}], "endpoints": [{"addresses": ["127.0.0.1"]}]})).await;
    eventually("it is found", async || reason().await == "Passed").await;
    let path = format!("{WARDLE}/namespaces/default/flunders");
    eventually("it answers", async || admin.text(&path).await.0 == StatusCode::OK).await;
    let (_, list) = admin.get(&path).await;
    assert_eq!(list["asked"], "/namespaces/default/flunders");
    let (code, _) = server.client("nobody", &[]).get(&path).await;
    assert_eq!(code, 403, "we authorize before anyone is asked");
    let (_, group) = admin.get("/apis/wardle.example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v1alpha1");
    let (_, groups) = admin.get("/apis").await;
    let names: Vec<&Value> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| &group["name"])
        .collect();
    assert!(
        names.iter().any(|name| *name == "wardle.example.com"),
        "{names:?}"
    );

    admin.delete(&format!("{SLICES}/hook-1"), Value::Null).await;
    eventually("it is gone", async || {
        admin.text(&path).await.0 == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    eventually("what is served here is registered", async || {
        condition(&admin, &format!("{API_SERVICES}/v1.apps"), "Available").await["reason"] == "Local"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_level_without_seats_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path()).await;
    let admin = server.admin();
    created(&admin, &format!("{FLOW}/prioritylevelconfigurations"),
        json!({"metadata": {"name": "none"}, "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 0, "limitResponse": {"type": "Reject"}}}})).await;
    created(&admin, &format!("{FLOW}/flowschemas"),
        json!({"metadata": {"name": "jane"}, "spec": {"matchingPrecedence": 10, "priorityLevelConfiguration": {"name": "none"},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": "jane"}}], "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/version"]}]}]}})).await;
    let jane = server.client("jane", &["system:authenticated"]);
    eventually("jane is refused", async || {
        jane.text("/version").await.0 == StatusCode::TOO_MANY_REQUESTS
    })
    .await;
    assert_eq!(jane.text("/healthz").await.0, StatusCode::OK, "another flow");
    assert_eq!(admin.text("/version").await.0, StatusCode::OK, "another user");
    let schema = format!("{FLOW}/flowschemas/jane");
    eventually("the level exists", async || {
        condition(&admin, &schema, "Dangling").await["reason"] == "Found"
    })
    .await;
    admin
        .delete(&format!("{FLOW}/prioritylevelconfigurations/none"), Value::Null)
        .await;
    eventually("jane is served by the next schema", async || {
        jane.text("/version").await.0 == StatusCode::OK
    })
    .await;
    eventually("the schema dangles", async || {
        condition(&admin, &schema, "Dangling").await["reason"] == "NotFound"
    })
    .await;
    eventually("what every cluster has comes back", async || {
        admin
            .delete(&format!("{FLOW}/flowschemas/catch-all"), Value::Null)
            .await;
        admin.get(&format!("{FLOW}/flowschemas/catch-all")).await.0 == 200
    })
    .await;
}
