//! How jobs end, what evictions and deletions of namespaces spare, and whose attachments controllers remove: the real
//! control plane with hollow nodes, whose pods exit as they are told.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use support::{ControlPlane, Kubectl, Program, TempDir, command, eventually};

const SOON: Duration = Duration::from_secs(60);

/// A job whose pods exit as the annotations say, or run on.
fn job(name: &str, exits: &Value, mut spec: Value) -> String {
    let mut annotations = json!({"hollow.ironlet.dev/exit-after": "0"});
    for (pods, code) in exits.as_object().expect("exit codes") {
        annotations[format!("hollow.ironlet.dev/exit-codes{pods}")] = code.clone();
    }
    spec["template"] = json!({"metadata": {"annotations": annotations}, "spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "none"}]}});
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}).to_string()
}

fn on_exit(action: &str) -> Value {
    json!({"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [42]}}]})
}

fn jobs_end_as_their_policies_say(kubectl: &Kubectl) {
    let indexed = |completions: u32, mut more: Value| {
        more["completionMode"] = json!("Indexed");
        more["completions"] = json!(completions);
        more["parallelism"] = json!(completions);
        more
    };
    let rows = [
        (
            "early",
            json!({"": "42"}),
            json!({"backoffLimit": 6, "podFailurePolicy": on_exit("FailJob")}),
            "Failed",
            "PodFailurePolicy",
            json!({"failed": 1}),
        ),
        (
            "per-index",
            json!({"": "0", "-1": "1", "-3": "1"}),
            indexed(4, json!({"backoffLimitPerIndex": 0})),
            "Failed",
            "FailedIndexes",
            json!({"failedIndexes": "1,3", "completedIndexes": "0,2", "failed": 2}),
        ),
        (
            "fail-index",
            json!({"": "0", "-1": "42"}),
            indexed(
                2,
                json!({"backoffLimitPerIndex": 6, "podFailurePolicy": on_exit("FailIndex")}),
            ),
            "Failed",
            "FailedIndexes",
            json!({"failedIndexes": "1", "completedIndexes": "0", "failed": 1}),
        ),
        (
            "max-failed",
            json!({"-0": "1"}),
            indexed(2, json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 0})),
            "Failed",
            "MaxFailedIndexesExceeded",
            json!({"failedIndexes": "0"}),
        ),
        (
            "all",
            json!({"": "0"}),
            indexed(
                2,
                json!({"successPolicy": {"rules": [{"succeededIndexes": "0-1"}]}}),
            ),
            "Complete",
            "SuccessPolicy",
            json!({"completedIndexes": "0,1", "succeeded": 2}),
        ),
        (
            "one-index",
            json!({"-0": "0"}),
            indexed(
                2,
                json!({"successPolicy": {"rules": [{"succeededIndexes": "0"}]}}),
            ),
            "Complete",
            "SuccessPolicy",
            json!({"completedIndexes": "0", "succeeded": 1}),
        ),
        (
            "one-of-two",
            json!({"-1": "0"}),
            indexed(2, json!({"successPolicy": {"rules": [{"succeededCount": 1}]}})),
            "Complete",
            "SuccessPolicy",
            json!({"completedIndexes": "1", "succeeded": 1}),
        ),
    ];
    for (name, exits, spec, ..) in &rows {
        kubectl.apply(&job(name, exits, spec.clone()));
    }
    for (name, _, _, end, reason, expected) in &rows {
        let path = format!("{{.status.conditions[?(@.type==\"{end}\")].reason}}");
        kubectl.wait_for(&["job", name], &path, reason, SOON);
        let status = &kubectl.json(&["get", "job", name])["status"];
        for (field, value) in expected.as_object().expect("fields") {
            assert_eq!(status[field], *value, "{name} {field}: {status}");
        }
    }
}

fn running(kubectl: &Kubectl, but: &str) -> String {
    eventually("another pod of the job runs", SOON, || {
        let pods = kubectl.json(&["get", "pods", "-l", "job-name=evicted"]);
        let pods = pods["items"].as_array().expect("a list");
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let other = pods
            .iter()
            .find(|pod| pod["status"]["phase"] == "Running" && name(pod) != but);
        other.map(name).ok_or_else(|| format!("{pods:?}"))
    })
}

fn an_evicted_pod_is_no_failure_of_its_job(kubectl: &Kubectl, directory: &Path) {
    let ignored = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]});
    kubectl.apply(&job(
        "evicted",
        &json!({}),
        json!({"backoffLimit": 0, "podFailurePolicy": ignored}),
    ));
    let first = running(kubectl, "");
    let eviction = directory.join("eviction.json");
    let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": first}});
    fs::write(&eviction, body.to_string()).expect("a file");
    let path = format!("/api/v1/namespaces/default/pods/{first}/eviction");
    kubectl.run(&["create", "--raw", &path, "-f", eviction.to_str().expect("a path")]);
    running(kubectl, &first);
    let status = &kubectl.json(&["get", "job", "evicted"])["status"];
    assert!(
        status["conditions"].is_null() && status["failed"].is_null(),
        "{status}"
    );
}

fn a_namespace_loses_its_pods_first(kubectl: &Kubectl) {
    kubectl.run(&["create", "namespace", "ordered"]);
    kubectl.wait_for(
        &["-n", "ordered", "serviceaccount", "default"],
        "{.metadata.name}",
        "default",
        SOON,
    );
    kubectl.apply(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "held", "namespace": "ordered", "finalizers": ["example.com/held"]},
            "spec": {"containers": [{"name": "c", "image": "none"}]}})
        .to_string(),
    );
    kubectl.run(&["-n", "ordered", "create", "configmap", "needed"]);
    kubectl.run(&["delete", "namespace", "ordered", "--wait=false"]);
    let remaining = "{.status.conditions[?(@.type==\"NamespaceFinalizersRemaining\")].message}";
    let message =
        "Some content in the namespace has finalizers remaining: example.com/held in 1 resource instances";
    kubectl.wait_for(&["namespace", "ordered"], remaining, message, SOON);
    let kept = kubectl.json(&["-n", "ordered", "get", "configmap", "needed"]);
    assert!(kept["metadata"]["deletionTimestamp"].is_null(), "{kept}");
    let free = "{\"metadata\":{\"finalizers\":null}}";
    kubectl.run(&[
        "-n",
        "ordered",
        "patch",
        "pod",
        "held",
        "--type=merge",
        "-p",
        free,
    ]);
    kubectl.run(&["wait", "--for=delete", "namespace/ordered", "--timeout=60s"]);
}

fn attachments_of_others_stay(kubectl: &Kubectl) {
    let stale = format!("csi-{:064}", 0);
    for name in ["somebodys", &stale] {
        kubectl.apply(
            &json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name},
                "spec": {"attacher": "example.com", "nodeName": "nowhere", "source": {"persistentVolumeName": "none"}}})
            .to_string(),
        );
    }
    kubectl.run(&[
        "wait",
        "--for=delete",
        &format!("volumeattachment/{stale}"),
        "--timeout=60s",
    ]);
    kubectl.run(&["get", "volumeattachment", "somebodys"]);
}

#[test]
fn workloads_end_as_their_owners_said() {
    let directory = TempDir::new("workloads");
    let plane = ControlPlane::start(&directory.join("plane"), &[]);
    let kubectl = &plane.kubectl;
    let mut hollow = command("agent");
    hollow.args(["hollow", "--nodes", "2", "--kubeconfig"]);
    hollow.arg(directory.join("plane/admin.kubeconfig"));
    let _hollow = Program::start(&mut hollow, directory.join("hollow.log"));
    kubectl.wait_for(
        &["serviceaccount", "default"],
        "{.metadata.name}",
        "default",
        SOON,
    );
    jobs_end_as_their_policies_say(kubectl);
    an_evicted_pod_is_no_failure_of_its_job(kubectl, directory.path());
    a_namespace_loses_its_pods_first(kubectl);
    attachments_of_others_stay(kubectl);
}
