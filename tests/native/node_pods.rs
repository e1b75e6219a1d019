//! What a node promises pods and keeps, as a user of kubectl sees it: who is let in, new sizes, volumes that stay
//! inside their bounds, pods of files, and all of it across the death of the agent.

mod machine;

use std::fs;

use machine::{ADDRESS, Node, READY, SOON, archive, home, prepare_machine, server};
use serde_json::{Value, json};
use support::{ControlPlane, Kubectl, eventually, in_own_namespaces};

const SETTINGS: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                        staticPodPath: /run/manifests\nmaxPods: 20\n";

/// A pod of one container that runs `script`, with more of its specification.
fn pod(name: &str, script: &str, more: &Value) -> Value {
    let container = json!({ "name": "c", "image": "busybox:latest", "imagePullPolicy": "Never",
        "command": ["sh", "-c", script] });
    let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "a": "1" } },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [container] } });
    for (key, value) in more.as_object().into_iter().flatten() {
        match key.strip_prefix("container.") {
            Some(key) => pod["spec"]["containers"][0][key] = value.clone(),
            None => pod["spec"][key] = value.clone(),
        }
    }
    pod
}

fn status(kubectl: &Kubectl, name: &str) -> Value {
    kubectl.json(&["get", "pod", name])["status"].clone()
}

fn refuses_what_it_cannot_have(kubectl: &Kubectl) {
    let unsafe_sysctl = json!({ "nodeName": "node-1",
        "securityContext": { "sysctls": [{ "name": "kernel.msgmax", "value": "1" }] } });
    let too_big = json!({ "nodeName": "node-1", "container.resources": { "requests": { "cpu": "1000" } } });
    for (name, more, reason) in [
        ("unsafe", unsafe_sysctl, "SysctlForbidden"),
        ("too-big", too_big, "OutOfcpu"),
    ] {
        kubectl.apply(&pod(name, "sleep 1000", &more).to_string());
        kubectl.wait_for(&["pod", name], "{.status.reason}", reason, SOON);
        assert_eq!(status(kubectl, name)["phase"], "Failed");
        assert_eq!(status(kubectl, name)["containerStatuses"], Value::Null);
    }
}

fn resize(kubectl: &Kubectl, cpu: &str) {
    let resources = json!({ "requests": { "cpu": cpu }, "limits": { "cpu": cpu } });
    let patch = json!({ "spec": { "containers": [{ "name": "c", "resources": resources }] } }).to_string();
    kubectl.run(&[
        "patch",
        "pod",
        "sized",
        "--subresource",
        "resize",
        "--patch",
        &patch,
    ]);
}

fn resizes_in_place(kubectl: &Kubectl) {
    let resources = json!({ "requests": { "cpu": "10m" }, "limits": { "cpu": "10m" } });
    let sized = pod(
        "sized",
        "sleep 1000",
        &json!({ "container.resources": resources }),
    );
    kubectl.apply(&sized.to_string());
    kubectl.wait_for(&["pod", "sized"], READY, "True", SOON);
    resize(kubectl, "20m");
    let size = "{.status.containerStatuses[0].resources.limits.cpu}";
    kubectl.wait_for(&["pod", "sized"], size, "20m", SOON);
    assert_eq!(
        status(kubectl, "sized")["containerStatuses"][0]["restartCount"],
        0
    );
    resize(kubectl, "1000");
    let pending = "{.status.conditions[?(@.type==\"PodResizePending\")].reason}";
    kubectl.wait_for(&["pod", "sized"], pending, "Infeasible", SOON);
    resize(kubectl, "30m");
    kubectl.wait_for(&["pod", "sized"], size, "30m", SOON);
    kubectl.wait_for(&["pod", "sized"], pending, "", SOON);
}

fn keeps_volumes_in_bounds(kubectl: &Kubectl) {
    let volumes = json!({
        "volumes": [{ "name": "v", "emptyDir": {} },
            { "name": "d", "downwardAPI": { "items": [{ "path": "labels",
                "fieldRef": { "fieldPath": "metadata.labels" } }] } }],
        "securityContext": { "runAsUser": 1000 },
        "container.env": [{ "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
        "container.volumeMounts": [{ "name": "v", "mountPath": "/sub", "subPathExpr": "$(NAME)/x" },
            { "name": "v", "mountPath": "/all" }, { "name": "d", "mountPath": "/d" }],
    });
    kubectl.apply(&pod("volumes", "touch /sub/f && sleep 1000", &volumes).to_string());
    kubectl.wait_for(&["pod", "volumes"], READY, "True", SOON);
    assert_eq!(
        kubectl.run(&["exec", "volumes", "--", "ls", "/all/volumes/x"]),
        "f\n"
    );
    kubectl.run(&["label", "pod", "volumes", "a=2", "--overwrite"]);
    eventually("the label reaches its file", SOON, || {
        match kubectl.try_run(&["exec", "volumes", "--", "cat", "/d/labels"])? {
            labels if labels.contains("a=\"2\"") => Ok(()),
            labels => Err(labels),
        }
    });

    let nameless = json!({ "volumes": [{ "name": "v", "emptyDir": {} }],
        "container.volumeMounts": [{ "name": "v", "mountPath": "/v", "subPathExpr": "$(NOBODY)" }] });
    kubectl.apply(&pod("nameless", "sleep 1000", &nameless).to_string());
    let reason = "{.status.containerStatuses[0].state.waiting.reason}";
    kubectl.wait_for(&["pod", "nameless"], reason, "CreateContainerConfigError", SOON);

    let limited = json!({ "volumes": [{ "name": "v", "emptyDir": { "sizeLimit": "1Mi" } }],
        "container.volumeMounts": [{ "name": "v", "mountPath": "/v" }] });
    let script = "dd if=/dev/zero of=/v/x bs=1M count=2; sleep 1000";
    kubectl.apply(&pod("greedy", script, &limited).to_string());
    kubectl.wait_for(&["pod", "greedy"], "{.status.reason}", "Evicted", SOON);
}

fn runs_pods_of_files(kubectl: &Kubectl) {
    let file = home("manifests/static.yaml");
    fs::write(&file, pod("static", "sleep 1000", &json!({})).to_string()).expect("the manifest");
    kubectl.wait_for(&["pod", "static-node-1"], READY, "True", SOON);
    let uid = "{.metadata.uid}";
    let first = kubectl.run(&["get", "pod", "static-node-1", "-o", &format!("jsonpath={uid}")]);
    kubectl.run(&["delete", "pod", "static-node-1", "--wait=false"]);
    eventually("another mirror shows the pod that ran on", SOON, || {
        let mirror = kubectl.try_run(&["get", "pod", "static-node-1", "-o", &format!("jsonpath={uid}")])?;
        if mirror == first { Err(mirror) } else { Ok(()) }
    });
    kubectl.wait_for(&["pod", "static-node-1"], READY, "True", SOON);
    assert_eq!(
        status(kubectl, "static-node-1")["containerStatuses"][0]["restartCount"],
        0
    );
    fs::remove_file(&file).expect("the manifest");
    eventually("the mirror goes with the file", SOON, || {
        match kubectl.try_run(&["get", "pod", "static-node-1"]) {
            Ok(still) => Err(still),
            Err(_) => Ok(()),
        }
    });
}

fn left_behind(directory: &str) -> usize {
    fs::read_dir(home(directory)).into_iter().flatten().count()
}

#[test]
fn a_node_keeps_what_it_promises() {
    let archives = archive();
    if !in_own_namespaces("a_node_keeps_what_it_promises") {
        return;
    }
    prepare_machine();
    fs::create_dir_all(home("manifests")).expect("a directory of manifests");
    fs::write(home("kubelet.yaml"), SETTINGS).expect("the kubelet's settings");
    let plane = ControlPlane::start(
        &home("control-plane"),
        &["--advertise-address", ADDRESS, "--cluster-cidr", "10.244.0.0/16"],
    );
    let kubectl = &plane.kubectl;
    let server = server(kubectl);
    let settings = ["--config", "/run/kubelet.yaml"];
    let mut node = Node::start(&server, &archives, &settings);
    kubectl.wait_for(&["node", "node-1"], READY, "True", SOON);
    kubectl.wait_for(&["node", "node-1"], "{.status.capacity.pods}", "20", SOON);
    kubectl.wait_for(
        &["serviceaccount", "default"],
        "{.metadata.name}",
        "default",
        SOON,
    );

    refuses_what_it_cannot_have(kubectl);
    resizes_in_place(kubectl);
    keeps_volumes_in_bounds(kubectl);
    runs_pods_of_files(kubectl);

    let container = || status(kubectl, "sized")["containerStatuses"].clone();
    let before = container();
    node.kill();
    let _node = Node::start(&server, &archives, &settings);
    // The new kubelet is there when it takes a pod.
    kubectl.apply(&pod("later", "sleep 1000", &json!({})).to_string());
    kubectl.wait_for(&["pod", "later"], READY, "True", SOON);
    assert_eq!(container(), before, "size and container outlive the kubelet");

    kubectl.run(&["delete", "pod", "--all", "--timeout=60s"]);
    for directory in ["agent/pods", "agent/allocations", "logs", "cri/sandboxes"] {
        eventually(&format!("{directory} is empty"), SOON, || {
            match left_behind(directory) {
                0 => Ok(()),
                some => Err(some.to_string()),
            }
        });
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the list of mounts");
    let leaked: Vec<&str> = mounts
        .lines()
        .filter(|line| line.contains("/run/agent/pods"))
        .collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}
