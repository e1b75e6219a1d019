//! `control-plane all` as a process of its own, under a real kubectl, with either store.

use std::time::Duration;

use support::{ControlPlane, Etcd, Kubectl, TempDir};

const SOON: Duration = Duration::from_secs(20);

fn serves_a_user(kubectl: &Kubectl) {
    let version = kubectl.json(&["version"]);
    assert_eq!(version["serverVersion"]["major"], "1");
    assert_eq!(version["serverVersion"]["minor"], "36");

    kubectl.wait_for(
        &["serviceaccount", "default"],
        "{.metadata.name}",
        "default",
        SOON,
    );
    kubectl.run(&[
        "create",
        "deployment",
        "web",
        "--image=busybox",
        "--replicas=2",
        "--port=80",
    ]);
    kubectl.wait_for(&["deployment", "web"], "{.status.replicas}", "2", SOON);
    let pods = kubectl.json(&["get", "pods", "-l", "app=web"]);
    let pods = pods["items"].as_array().expect("a list");
    assert_eq!(pods.len(), 2);
    let spec = &pods[0]["spec"];
    assert_eq!(spec["restartPolicy"], "Always");
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(
        spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
        3607
    );

    kubectl.run(&["expose", "deployment", "web", "--name=web"]);
    let service = kubectl.json(&["get", "service", "web"]);
    assert!(
        service["spec"]["clusterIP"]
            .as_str()
            .is_some_and(|ip| ip.starts_with("10.")),
        "{service}"
    );

    kubectl.run(&["scale", "deployment", "web", "--replicas=3"]);
    kubectl.wait_for(&["deployment", "web"], "{.status.replicas}", "3", SOON);
    kubectl.run(&["set", "image", "deployment/web", "busybox=busybox:2"]);
    kubectl.wait_for(
        &["deployment", "web"],
        "{.metadata.annotations.deployment\\.kubernetes\\.io/revision}",
        "2",
        SOON,
    );

    let table = kubectl.run(&["get", "deployments"]);
    assert_eq!(
        table
            .lines()
            .next()
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    );

    kubectl.run(&["delete", "deployment", "web"]);
    kubectl.wait_for(&["pods", "-l", "app=web"], "{.items}", "[]", SOON);
    kubectl.wait_for(&["replicasets", "-l", "app=web"], "{.items}", "[]", SOON);
}

fn refuses_what_it_must(kubectl: &Kubectl) {
    assert!(
        kubectl
            .fails(&["get", "pod", "nobody"])
            .contains("Error from server (NotFound): pods \"nobody\" not found")
    );
    kubectl.run(&["create", "configmap", "twice"]);
    let again = kubectl.fails(&["create", "configmap", "twice"]);
    assert!(
        again.contains("error: failed to create configmap: configmaps \"twice\" already exists"),
        "{again}"
    );
    let name = kubectl.fails(&["create", "namespace", "Capital"]);
    assert!(name.contains("RFC 1123"), "{name}");
    let forbidden = kubectl.fails(&["get", "secrets", "--as=eve"]);
    assert!(
        forbidden.contains("secrets is forbidden: User \"eve\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\""),
        "{forbidden}"
    );
    assert_eq!(kubectl.run(&["auth", "can-i", "create", "pods"]).trim(), "yes");
}

fn deletes_namespaces_with_their_content(kubectl: &Kubectl) {
    kubectl.run(&["create", "namespace", "doomed"]);
    kubectl.run(&["-n", "doomed", "create", "configmap", "inside"]);
    kubectl.run(&["delete", "namespace", "doomed", "--timeout=30s"]);
    assert!(
        kubectl
            .fails(&["get", "namespace", "doomed"])
            .contains("NotFound")
    );
}

#[test]
fn the_embedded_store_serves_a_user_and_survives_a_power_cut() {
    let dir = TempDir::new("embedded");
    let mut plane = ControlPlane::start(&dir.join("data"), &["--store", "embedded"]);
    serves_a_user(&plane.kubectl);
    refuses_what_it_must(&plane.kubectl);
    deletes_namespaces_with_their_content(&plane.kubectl);

    plane
        .kubectl
        .run(&["create", "secret", "generic", "kept", "--from-literal=a=b"]);
    plane.program.kill();
    let plane = ControlPlane::start(&dir.join("data"), &["--store", "embedded"]);
    assert_eq!(
        plane
            .kubectl
            .run(&["get", "secret", "kept", "-o", "jsonpath={.data.a}"]),
        "Yg=="
    );
}

#[test]
fn etcd_serves_a_user() {
    let dir = TempDir::new("etcd");
    let etcd = Etcd::start(&dir.join("etcd"));
    let plane = ControlPlane::start(
        &dir.join("data"),
        &["--store", "etcd", "--etcd-servers", &etcd.endpoint],
    );
    serves_a_user(&plane.kubectl);
    refuses_what_it_must(&plane.kubectl);
    deletes_namespaces_with_their_content(&plane.kubectl);
}
