//! The audit log of a running server: as its policy says, to a file and to a webhook.

// Each test binary uses its own part of it.
#[allow(dead_code)]
mod support;
#[allow(dead_code)]
#[path = "support/webhook.rs"]
mod webhook;

use std::path::Path;
use std::time::Duration;

use apiserver::AuditOptions;
use apiserver::audit::{LogOptions, WebhookOptions};
use serde_json::{Value, json};
use support::Server;
use webhook::{Webhook, patch, review};

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: None, userGroups: ["system:nodes"]}
- {level: Metadata, resources: [{group: "", resources: [secrets]}]}
- {level: RequestResponse, resources: [{group: "", resources: [configmaps]}], omitStages: []}
- {level: Request, resources: [{group: "", resources: [pods]}]}
- {level: Metadata, nonResourceURLs: ["/version"]}
- {level: Metadata, userGroups: ["system:unauthenticated"]}
"#;

async fn start(directory: &Path, webhook: Option<WebhookOptions>) -> Server {
    let policy_file = directory.join("policy.yaml");
    std::fs::write(&policy_file, POLICY).unwrap();
    Server::start_with(&directory.join("store"), |config| {
        config.audit = AuditOptions {
            policy_file: Some(policy_file),
            log: Some(LogOptions {
                path: directory.join("audit.log"),
                ..LogOptions::default()
            }),
            webhook,
        };
    })
    .await
}

fn events(directory: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(directory.join("audit.log")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Of one resource's requests.
fn about(directory: &Path, resource: &str) -> Vec<Value> {
    let mut found = events(directory);
    found.retain(|event| event["objectRef"]["resource"] == resource && event["user"]["username"] == "alice");
    found
}

#[tokio::test]
async fn requests_are_told_of_as_the_policy_says() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let server = start(directory, None).await;
    let alice = server.client("alice", &["system:masters"]);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "hidden"}});
    alice.post("/api/v1/namespaces/default/secrets", secret).await;
    let told = about(directory, "secrets");
    assert_eq!(told.len(), 1, "{told:?}");
    let event = &told[0];
    assert_eq!(event["kind"], "Event");
    assert_eq!(event["apiVersion"], "audit.k8s.io/v1");
    assert_eq!(event["level"], "Metadata");
    assert_eq!(event["stage"], "ResponseComplete");
    assert_eq!(event["verb"], "create");
    assert_eq!(event["requestURI"], "/api/v1/namespaces/default/secrets");
    assert_eq!(event["sourceIPs"], json!(["127.0.0.1"]));
    assert_eq!(
        event["user"]["groups"],
        json!(["system:masters", "system:authenticated"])
    );
    assert_eq!(
        event["objectRef"],
        json!({"resource": "secrets", "namespace": "default", "name": "s", "apiVersion": "v1"})
    );
    assert_eq!(event["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "allow");
    assert_eq!(event["annotations"]["authorization.k8s.io/reason"], "");
    assert!(event.get("requestObject").is_none() && event.get("responseObject").is_none());

    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}});
    alice.post("/api/v1/namespaces/default/configmaps", map).await;
    let told = about(directory, "configmaps");
    assert_eq!(
        told.len(),
        1,
        "RequestReceived is omitted by the policy as a whole: {told:?}"
    );
    assert_eq!(told[0]["requestObject"]["data"]["a"], "b");
    let answered = &told[0]["responseObject"];
    assert_eq!(answered["data"]["a"], "b");
    assert!(answered["metadata"]["uid"].is_string() && answered["metadata"].get("managedFields").is_none());

    let nobody = server.client("bob", &[]);
    let (code, _) = nobody.get("/api/v1/namespaces/default/pods").await;
    assert_eq!(code, 403);
    let all = events(directory);
    let refused = all
        .iter()
        .find(|event| event["user"]["username"] == "bob")
        .unwrap();
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(refused["responseStatus"]["code"], 403);
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
    assert_eq!(refused["level"], "Request");

    let node = server.client("system:node:n", &["system:nodes"]);
    let before = events(directory).len();
    node.get("/version").await;
    let mut stranger = server.anonymous();
    stranger.token = Some("forged".into());
    assert_eq!(stranger.get("/version").await.0, 401);
    let all = events(directory);
    assert_eq!(all.len(), before + 1, "nodes are not told of");
    assert_eq!(all[before]["stage"], "ResponseStarted");
    assert_eq!(
        all[before]["responseStatus"],
        json!({"metadata": {}, "message": "Authentication failed, attempted: bearer", "code": 401})
    );
    server.handle.shutdown().await;
}

#[tokio::test]
async fn streams_have_a_beginning_and_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let server = start(directory, None).await;
    let alice = server.client("alice", &["system:masters"]);
    let watch = alice
        .watch("/api/v1/namespaces/default/secrets?watch=1&timeoutSeconds=1")
        .await;
    let told = about(directory, "secrets");
    assert_eq!((told.len(), &told[0]["stage"]), (1, &json!("ResponseStarted")));
    let mut watch = watch;
    while watch.next().await.is_some() {}
    drop(watch);
    server.handle.shutdown().await;
    let stages: Vec<Value> = about(directory, "secrets")
        .iter()
        .map(|event| event["stage"].clone())
        .collect();
    assert_eq!(stages, ["ResponseStarted", "ResponseComplete"]);
    let told = about(directory, "secrets");
    assert_eq!(told[0]["auditID"], told[1]["auditID"]);
}

#[tokio::test]
async fn admission_tells_what_it_did() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let server = start(directory, None).await;
    let alice = server.client("alice", &["system:masters"]);
    let hook = Webhook::start(|_, question| {
        let mut answer = patch(json!([{"op": "add", "path": "/data/by", "value": "hook"}]));
        answer["auditAnnotations"] = json!({"seen": "yes"});
        Some(review(question, answer))
    })
    .await;
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "hooks"},
        "webhooks": [{"name": "a.example.com", "clientConfig": hook.by_url("/"), "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}],
    });
    let group = "/apis/admissionregistration.k8s.io/v1";
    alice
        .post(&format!("{group}/mutatingwebhookconfigurations"), configuration)
        .await;
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "look"},
        "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]},
            "validations": [{"expression": "false", "message": "never"}],
            "auditAnnotations": [{"key": "name", "valueExpression": "'named ' + object.metadata.name"}, {"key": "none", "valueExpression": "null"}],
        },
    });
    alice
        .post(&format!("{group}/validatingadmissionpolicies"), policy)
        .await;
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "looking"},
        "spec": {"policyName": "look", "validationActions": ["Audit"]},
    });
    alice
        .post(&format!("{group}/validatingadmissionpolicybindings"), binding)
        .await;
    let mut count = 0;
    // The configurations reach admission through caches.
    let annotations = loop {
        count += 1;
        assert!(count < 200, "the policy never took effect");
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{count}")}, "data": {"a": "b"}});
        let (code, _) = alice.post("/api/v1/namespaces/default/configmaps", map).await;
        assert_eq!(code, 201, "the policy only looks");
        let told = about(directory, "configmaps").pop().unwrap();
        let annotations = told["annotations"].clone();
        let key = "mutation.webhook.admission.k8s.io/round_0_index_0";
        if annotations.get("look/name").is_some() && annotations.get(key).is_some() {
            break annotations;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(annotations["look/name"], format!("named m{count}"));
    assert!(annotations.get("look/none").is_none());
    let inner = |key: &str| serde_json::from_str::<Value>(annotations[key].as_str().unwrap()).unwrap();
    assert_eq!(
        inner("validation.policy.admission.k8s.io/validation_failure"),
        json!([{"message": "never", "policy": "look", "binding": "looking", "expressionIndex": 0, "validationActions": ["Audit"]}])
    );
    assert_eq!(
        inner("mutation.webhook.admission.k8s.io/round_0_index_0"),
        json!({"configuration": "hooks", "webhook": "a.example.com", "mutated": true})
    );
    assert_eq!(
        inner("patch.webhook.admission.k8s.io/round_0_index_0")["patch"],
        json!([{"op": "add", "path": "/data/by", "value": "hook"}])
    );
    assert_eq!(annotations["a.example.com/seen"], "yes");
    server.handle.shutdown().await;
}

#[tokio::test]
async fn a_webhook_takes_events_in_batches() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (sender, mut lists) = tokio::sync::mpsc::unbounded_channel();
    let hook = Webhook::start(move |path, list| {
        sender.send((path.to_owned(), list.clone())).ok()?;
        Some(Value::Null)
    })
    .await;
    let kubeconfig = directory.join("webhook.kubeconfig");
    let config = json!({"clusters": [{"name": "c", "cluster": {"server": format!("https://{}/events", hook.address), "certificate-authority-data": hook.bundle}}],
        "contexts": [{"name": "x", "context": {"cluster": "c"}}], "current-context": "x"});
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let options = WebhookOptions {
        config_file: kubeconfig,
        batch_max_size: 2,
        batch_max_wait: Duration::from_secs(3600),
        initial_backoff: Duration::from_secs(1),
    };
    let server = start(directory, Some(options)).await;
    let alice = server.client("alice", &["system:masters"]);
    for _ in 0..3 {
        alice.get("/version").await;
    }
    let mut seen = Vec::new();
    let patience = Duration::from_secs(30);
    while seen.len() < 2 {
        let (path, list) = tokio::time::timeout(patience, lists.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!((path.as_str(), &list["kind"]), ("/events", &json!("EventList")));
        seen.extend(list["items"].as_array().unwrap().clone());
    }
    // What has not been sent yet leaves at shutdown.
    server.handle.shutdown().await;
    while seen
        .iter()
        .filter(|event| event["user"]["username"] == "alice")
        .count()
        < 3
    {
        let (_, list) = tokio::time::timeout(patience, lists.recv())
            .await
            .unwrap()
            .unwrap();
        seen.extend(list["items"].as_array().unwrap().clone());
    }
}
