//! What operators see of a server: readable answers, its lease, and how it leaves.

// Each test binary uses its own part of it.
#[allow(dead_code)]
mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::Server;

#[tokio::test]
async fn answers_are_laid_out_for_people_who_ask() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path()).await;
    let admin = server.admin();
    let (_, plain) = admin.text("/api/v1/namespaces/default").await;
    let (_, pretty) = admin.text("/api/v1/namespaces/default?pretty=true").await;
    assert!(
        !plain.trim().contains('\n') && pretty.contains("\n  \"apiVersion\": \"v1\""),
        "{pretty}"
    );
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(parse(&plain), parse(&pretty));
    let (_, refused) = admin.text("/api/v1/namespaces/none?pretty=1").await;
    assert!(refused.contains("\n  \"code\": 404"), "{refused}");
    server.handle.shutdown().await;
}

#[tokio::test]
async fn a_server_has_a_lease_and_says_when_it_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start_with(directory.path(), |config| {
        config.shutdown_delay = Duration::from_secs(3600);
    })
    .await;
    let admin = server.admin();
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    let mut watch = admin
        .watch(&format!("{leases}?watch=1&labelSelector=apiserver.kubernetes.io%2Fidentity%3Dkube-apiserver&timeoutSeconds=20"))
        .await;
    let lease = watch.next().await.expect("a lease")["object"].clone();
    let name = lease["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("apiserver-"), "{name}");
    assert!(
        lease["spec"]["holderIdentity"]
            .as_str()
            .unwrap()
            .starts_with(&format!("{name}_"))
    );
    assert_eq!(lease["spec"]["leaseDurationSeconds"], json!(3600));
    assert_eq!(admin.text("/readyz").await.0, 200);
    let leaving = tokio::spawn(server.handle.shutdown());
    // The task has to run once.
    let refused = loop {
        let (code, text) = admin.text("/readyz").await;
        if code != 200 {
            break text;
        }
        tokio::task::yield_now().await;
    };
    assert!(
        refused.contains("[-]shutdown failed: reason withheld"),
        "{refused}"
    );
    assert_eq!(admin.text("/livez").await.0, 200);
    assert_eq!(admin.get("/api/v1/namespaces").await.0, 200, "it serves on");
    leaving.abort();
}
