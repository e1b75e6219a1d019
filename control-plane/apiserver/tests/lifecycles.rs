//! Every stored kind through the sequence that upstream's conformance tests call "API operations": create, read, list,
//! watch, patch, update, status, delete and delete the rest as a collection. `kinds.json` holds an object of each.

#[allow(dead_code, reason = "shared with tests that need more of it")]
mod support;

use serde_json::{Value, json};
use support::{Client, Server};

const SELECTOR: &str = "labelSelector=special%3Dyes";

struct Kind {
    row: Value,
}

impl Kind {
    fn text(&self, field: &str) -> &str {
        self.row[field].as_str().unwrap()
    }

    fn root(&self) -> String {
        let version = self.text("apiVersion");
        let prefix = if version.contains('/') { "/apis" } else { "/api" };
        format!("{prefix}/{version}")
    }

    fn collection(&self) -> String {
        let namespace = if self.row["namespaced"] == true {
            "/namespaces/default"
        } else {
            ""
        };
        format!("{}{namespace}/{}", self.root(), self.text("plural"))
    }

    /// Some names say what the object is; then there is one only.
    fn is_named(&self) -> bool {
        !self.row["object"]["metadata"]["name"].is_null()
    }

    fn object(&self) -> Value {
        let mut object = self.row["object"].clone();
        object["apiVersion"] = self.row["apiVersion"].clone();
        object["kind"] = self.row["kind"].clone();
        object["metadata"]["labels"]["special"] = json!("yes");
        if !self.is_named() {
            object["metadata"]["generateName"] = json!("e2e-example-");
        }
        object
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_has_its_api_operations() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path()).await;
    let admin = server.admin();
    let account = json!({"metadata": {"name": "default"}});
    admin
        .post("/api/v1/namespaces/default/serviceaccounts", account)
        .await;
    let rows: Vec<Value> = serde_json::from_str(include_str!("kinds.json")).unwrap();
    assert!(rows.len() > 50);
    for row in rows {
        operate(&admin, Kind { row }).await;
    }
}

async fn operate(admin: &Client, kind: Kind) {
    let (plural, collection) = (kind.text("plural").to_owned(), kind.collection());
    let (_, before) = admin.get(&format!("{collection}?{SELECTOR}")).await;
    let from = before["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let copies = if kind.is_named() { 1 } else { 2 };
    let mut names = Vec::new();
    for _ in 0..copies {
        let (code, made) = admin.post(&collection, kind.object()).await;
        assert_eq!(code, 201, "{plural}: {made}");
        assert_eq!(
            (&made["kind"], &made["apiVersion"]),
            (&kind.row["kind"], &kind.row["apiVersion"])
        );
        names.push(made["metadata"]["name"].as_str().unwrap().to_owned());
    }
    let path = format!("{collection}/{}", names[0]);
    for list in [&collection, &format!("{}/{plural}", kind.root())] {
        let (_, listed) = admin.get(&format!("{list}?{SELECTOR}")).await;
        assert_eq!(listed["items"].as_array().map(Vec::len), Some(copies), "{plural}");
    }
    for (media, patch) in [
        (
            "merge-patch+json",
            json!({"metadata": {"annotations": {"merge": "true"}}}),
        ),
        (
            "strategic-merge-patch+json",
            json!({"metadata": {"annotations": {"strategic": "true"}}}),
        ),
        (
            "json-patch+json",
            json!([{"op": "add", "path": "/metadata/annotations/json", "value": "true"}]),
        ),
    ] {
        let (code, patched) = admin.patch(&path, media, patch).await;
        assert_eq!(code, 200, "{plural} {media}: {patched}");
    }
    let (_, object) = admin.get(&path).await;
    let expected = json!({"merge": "true", "strategic": "true", "json": "true"});
    assert_eq!(object["metadata"]["annotations"], expected, "{plural}");
    let mut stale = object;
    // The server itself reports on some kinds and may be faster.
    let updated = loop {
        let (_, mut object) = admin.get(&path).await;
        object["metadata"]["annotations"]["updated"] = json!("true");
        match admin.put(&path, object).await {
            (409, _) => {}
            (code, updated) => break (code, updated),
        }
    };
    assert_eq!(
        (updated.0, &updated.1["metadata"]["annotations"]["updated"]),
        (200, &json!("true")),
        "{plural}"
    );
    stale["metadata"]["labels"]["stale"] = json!("true");
    let (code, refused) = admin.put(&path, stale).await;
    assert_eq!((code, &refused["reason"]), (409, &json!("Conflict")), "{plural}");
    if let Some(status) = kind.row.get("status") {
        report(admin, &plural, &path, status).await;
    }
    let (code, deleted) = admin.delete(&path, Value::Null).await;
    assert_eq!(code, 200, "{plural}: {deleted}");
    release(admin, &path).await;
    assert_eq!(admin.get(&path).await.0, 404, "{plural}");
    if plural == "namespaces" {
        for name in &names[1..] {
            admin.delete(&format!("{collection}/{name}"), Value::Null).await;
        }
    } else {
        let (code, deleted) = admin
            .delete(&format!("{collection}?{SELECTOR}"), Value::Null)
            .await;
        assert_eq!(code, 200, "{plural}: {deleted}");
    }
    for name in &names[1..] {
        release(admin, &format!("{collection}/{name}")).await;
    }
    let (_, left) = admin.get(&format!("{collection}?{SELECTOR}")).await;
    assert_eq!(left["items"], json!([]), "{plural}");
    let mut events = admin
        .watch(&format!("{collection}?watch=1&{SELECTOR}&resourceVersion={from}"))
        .await;
    let mut seen = Vec::new();
    while seen.iter().filter(|kind| *kind == "DELETED").count() < copies {
        seen.push(events.brief().await.0);
    }
    assert_eq!(
        seen.iter().filter(|kind| *kind == "ADDED").count(),
        copies,
        "{plural}: {seen:?}"
    );
    assert!(seen.iter().any(|kind| kind == "MODIFIED"), "{plural}: {seen:?}");
}

/// The status changes through its sub-resource, and nothing else of the object does.
async fn report(admin: &Client, plural: &str, path: &str, status: &Value) {
    let (_, before) = admin.get(path).await;
    let patch = json!({"status": status, "spec": {"nodeName": "elsewhere"}});
    let (code, reported) = admin
        .patch(&format!("{path}/status"), "merge-patch+json", patch)
        .await;
    assert_eq!(code, 200, "{plural}: {reported}");
    assert_eq!(reported["spec"], before["spec"], "{plural}");
    assert_eq!(
        reported["metadata"]["generation"], before["metadata"]["generation"],
        "{plural}"
    );
    for (field, value) in status.as_object().unwrap() {
        let given = &reported["status"][field];
        let kept = given == value
            || value
                .as_array()
                .is_some_and(|list| given.as_array().is_some_and(|kept| kept.len() >= list.len()));
        assert!(kept, "{plural} status.{field}: {given}");
    }
    let (_, read) = admin.get(&format!("{path}/status")).await;
    assert_eq!(
        (&read["spec"], &read["kind"]),
        (&reported["spec"], &reported["kind"]),
        "{plural}"
    );
}

/// Finalizers that controllers would remove: there are none here.
async fn release(admin: &Client, path: &str) {
    let (code, mut object) = admin.get(path).await;
    if code == 404 {
        return;
    }
    if object["kind"] == "Namespace" {
        object["spec"]["finalizers"] = json!([]);
        admin.put(&format!("{path}/finalize"), object).await;
    } else {
        admin
            .patch(
                path,
                "merge-patch+json",
                json!({"metadata": {"finalizers": null}}),
            )
            .await;
    }
}
