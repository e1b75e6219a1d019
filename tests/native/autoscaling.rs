//! What pods use decides how many there are: hollow pods say what they use, metrics-server asks their kubelets with the
//! rights of its manifest, kubectl shows it, and the autoscaler follows.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::{ControlPlane, Kubectl, Program, TempDir, command, eventually, in_own_namespaces, output};

const SOON: Duration = Duration::from_secs(60);
/// Endpoints may not be on the loopback network.
const ADDRESS: &str = "192.168.76.11";
const MANIFEST: &str = "../control-plane/addons/metrics-server/manifest.yaml";

const WORKLOAD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations: {hollow.ironlet.dev/cpu: 100m, hollow.ironlet.dev/memory: 64Mi}
    spec:
      containers:
      - {name: web, image: none, resources: {requests: {cpu: 100m}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 1
  maxReplicas: 3
  metrics:
  - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}
"#;

/// All of the add-on but its pods, which cannot run here: this machine's process takes their place.
fn install(kubectl: &Kubectl) {
    let manifest = fs::read_to_string(MANIFEST).expect("the manifest");
    let objects: Vec<&str> = manifest.split("\n---\n").collect();
    let of_kind = |kind: &str, object: &&str| object.contains(&format!("\nkind: {kind}\n"));
    let service = objects
        .iter()
        .find(|object| of_kind("Service", object))
        .expect("a Service");
    let selector = "  selector:\n    k8s-app: metrics-server\n";
    assert!(service.contains(selector), "{service}");
    kubectl.apply(&service.replace(selector, ""));
    for object in objects
        .iter()
        .filter(|object| !of_kind("Deployment", object) && !of_kind("Service", object))
    {
        kubectl.apply(object);
    }
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "metrics-server", "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "metrics-server"}},
        "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": 10250, "protocol": "TCP"}]});
    kubectl.apply(&slice.to_string());
}

/// The credentials its pod would have.
fn kubeconfig(kubectl: &Kubectl) -> Value {
    let mut config: Value =
        serde_json::from_str(&kubectl.run(&["config", "view", "--raw", "-o", "json"])).expect("a kubeconfig");
    let token = kubectl.run(&["-n", "kube-system", "create", "token", "metrics-server"]);
    config["users"][0]["user"] = json!({"token": token.trim()});
    config
}

/// Names and CPU as `kubectl top` has them, once it has `count` of them.
fn top(kubectl: &Kubectl, what: &[&str], count: usize) -> Vec<(String, String)> {
    eventually(&format!("kubectl top {what:?}"), SOON, || {
        let text = kubectl.try_run(&[&["top"], what, &["--no-headers"]].concat())?;
        let lines = fields(&text);
        if lines.len() == count {
            Ok(lines)
        } else {
            Err(text)
        }
    })
}

fn fields(text: &str) -> Vec<(String, String)> {
    let fields = |line: &str| {
        let mut fields = line.split_whitespace().map(str::to_owned);
        Some((fields.next()?, fields.next()?))
    };
    text.lines().filter_map(fields).collect()
}

#[test]
fn pods_are_as_many_as_their_use_asks_for() {
    if !in_own_namespaces("pods_are_as_many_as_their_use_asks_for") {
        return;
    }
    for args in [
        &["link", "set", "lo", "up"][..],
        &["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"],
    ] {
        output(Command::new("ip").args(args));
    }
    let directory = TempDir::new("autoscaling");
    let plane = ControlPlane::start(
        &directory.join("plane"),
        &[
            "--bind-address",
            ADDRESS,
            "--horizontal-pod-autoscaler-sync-period=1s",
            "--horizontal-pod-autoscaler-downscale-stabilization=1s",
            "--horizontal-pod-autoscaler-cpu-initialization-period=0s",
        ],
    );
    let kubectl = &plane.kubectl;
    install(kubectl);
    let config = directory.join("metrics-server.kubeconfig");
    fs::write(&config, kubeconfig(kubectl).to_string()).expect("a kubeconfig");
    let mut hollow = command("agent");
    hollow.args([
        "hollow",
        "--nodes",
        "2",
        "--kubelet-address",
        ADDRESS,
        "--kubeconfig",
    ]);
    hollow.arg(directory.join("plane/admin.kubeconfig"));
    let _hollow = Program::start(&mut hollow, directory.join("hollow.log"));
    let mut server = command("metrics-server");
    server.arg("--kubeconfig").arg(&config).args([
        "--kubelet-insecure-tls",
        "--kubelet-use-node-status-port",
        "--kubelet-preferred-address-types=ExternalIP",
        "--metric-resolution=1s",
    ]);
    let _server = Program::start(&mut server, directory.join("metrics-server.log"));

    kubectl.wait_for(
        &["apiservice", "v1beta1.metrics.k8s.io"],
        "{.status.conditions[?(@.type==\"Available\")].status}",
        "True",
        SOON,
    );
    let nodes = top(kubectl, &["nodes"], 2);
    // A hollow node itself uses 100m.
    assert_eq!(
        nodes,
        [
            ("hollow-0".into(), "100m".into()),
            ("hollow-1".into(), "100m".into())
        ]
    );

    kubectl.apply(WORKLOAD);
    kubectl.wait_for(&["deployment", "web"], "{.spec.replicas}", "3", SOON);
    let used = top(kubectl, &["pods", "-l", "app=web"], 3);
    assert!(
        used.iter()
            .all(|(name, cpu)| name.starts_with("web-") && cpu == "100m"),
        "{used:?}"
    );
    let none = kubectl.run(&["get", "pods.metrics.k8s.io", "-l", "app=other", "-o", "name"]);
    assert_eq!(none, "");
    let table = kubectl.run(&["get", "pods.metrics.k8s.io"]);
    assert!(table.starts_with("NAME ") && table.contains("64Mi"), "{table}");
    let condition = |kind: &str| format!("{{.status.conditions[?(@.type==\"{kind}\")].reason}}");
    kubectl.wait_for(
        &["hpa", "web"],
        &condition("ScalingLimited"),
        "TooManyReplicas",
        SOON,
    );

    kubectl.run(&[
        "annotate",
        "pods",
        "-l",
        "app=web",
        "--overwrite",
        "hollow.ironlet.dev/cpu=10m",
    ]);
    kubectl.wait_for(&["deployment", "web"], "{.spec.replicas}", "1", SOON);
    let said = kubectl.run(&[
        "get",
        "events",
        "--field-selector",
        "reason=SuccessfulRescale",
        "-o",
        "jsonpath={.items[*].message}",
    ]);
    for message in [
        "New size: 3; reason: cpu resource utilization (percentage of request) above target",
        "New size: 1; reason: All metrics below target",
    ] {
        assert!(said.contains(message), "{said}");
    }
}
