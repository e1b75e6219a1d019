//! A node as processes on this machine: control plane, container runtime and agent in namespaces of
//! their own, a pod from an archive under a real kubectl, and the death of both agent processes.

mod machine;

use std::fs;

use machine::{ADDRESS, Node, READY, SOON, archive, home, prepare_machine, server};
use support::{ControlPlane, Kubectl, eventually, in_own_namespaces};

/// Counts aloud until it is let go, then ends with a code of its own.
const COUNTER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  restartPolicy: Never
  volumes: [{name: shared, hostPath: {path: /run/shared, type: DirectoryOrCreate}}]
  containers:
  - name: counter
    image: busybox:latest
    imagePullPolicy: Never
    volumeMounts: [{name: shared, mountPath: /shared}]
    command:
    - sh
    - -c
    - |
      i=0
      while [ ! -e /shared/end ]; do
        echo "line $i"; echo $i > /shared/new; mv /shared/new /shared/count; i=$((i+1)); sleep 0.02
      done
      echo "last $i"; touch /shared/ended; exit 7
---
apiVersion: v1
kind: Pod
metadata: {name: steady}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: steady
    image: busybox:latest
    imagePullPolicy: Never
    command: [sh, -c, "trap 'exit 0' TERM; while true; do sleep 0.1; done"]
"#;

fn count() -> u64 {
    eventually("the counter counts", SOON, || {
        let text = fs::read_to_string(home("shared/count")).map_err(|e| e.to_string())?;
        text.trim().parse::<u64>().map_err(|e| e.to_string())
    })
}

fn serves_a_user(kubectl: &Kubectl) {
    kubectl.wait_for(&["node", "node-1"], READY, "True", SOON);
    kubectl.wait_for(
        &["serviceaccount", "default"],
        "{.metadata.name}",
        "default",
        SOON,
    );
    kubectl.apply(COUNTER);
    for pod in ["counter", "steady"] {
        kubectl.wait_for(&["pod", pod], READY, "True", SOON);
    }
    let ip = kubectl.run(&["get", "pod", "counter", "-o", "jsonpath={.status.podIP}"]);
    assert!(ip.starts_with("10.244."), "{ip}");
    count();
    assert!(kubectl.run(&["logs", "counter"]).starts_with("line 0\n"));

    let said = kubectl.run(&[
        "exec",
        "counter",
        "--",
        "sh",
        "-c",
        "cat /etc/hostname; ls /shared/count",
    ]);
    assert_eq!(said, "counter\n/shared/count\n");
    let failed = kubectl.fails(&["exec", "counter", "--", "sh", "-c", "exit 3"]);
    assert!(failed.contains("exit code 3"), "{failed}");
}

#[test]
fn a_pod_serves_a_user_and_outlives_the_agent() {
    let archives = archive();
    if !in_own_namespaces("a_pod_serves_a_user_and_outlives_the_agent") {
        return;
    }
    prepare_machine();
    let plane = ControlPlane::start(
        &home("control-plane"),
        &["--advertise-address", ADDRESS, "--cluster-cidr", "10.244.0.0/16"],
    );
    let kubectl = &plane.kubectl;
    let server = server(kubectl);
    let mut node = Node::start(&server, &archives, &[]);
    serves_a_user(kubectl);
    let steady = || kubectl.json(&["get", "pod", "steady"])["status"]["containerStatuses"].clone();
    let before = steady();

    node.kill();
    let at_death = count();
    eventually("the counter goes on alone", SOON, || match count() {
        now if now > at_death + 20 => Ok(()),
        now => Err(format!("{now} after {at_death}")),
    });
    fs::write(home("shared/end"), "").expect("the shared directory");
    eventually("the counter ends alone", SOON, || {
        match home("shared/ended").exists() {
            true => Ok(()),
            false => Err(format!("at {}", count())),
        }
    });

    let _node = Node::start(&server, &archives, &[]);
    kubectl.wait_for(&["pod", "counter"], "{.status.phase}", "Failed", SOON);
    let code = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}";
    assert_eq!(kubectl.run(&["get", "pod", "counter", "-o", code]), "7");
    let log = kubectl.run(&["logs", "counter"]);
    let last = count() + 1;
    let spoken: String = (0..last).map(|i| format!("line {i}\n")).collect();
    assert!(
        log == format!("{spoken}last {last}\n"),
        "lines are missing, {last} were spoken:\n{log}"
    );

    kubectl.wait_for(&["pod", "steady"], READY, "True", SOON);
    assert_eq!(steady(), before, "the container runs on as it was");
    assert_eq!(
        kubectl.run(&["exec", "steady", "--", "echo", "still here"]),
        "still here\n"
    );
    kubectl.run(&["delete", "pod", "steady", "counter", "--timeout=30s"]);
    assert!(kubectl.fails(&["get", "pod", "steady"]).contains("NotFound"));
    eventually("nothing of the pods is left", SOON, || {
        let left: Vec<_> = fs::read_dir(home("logs"))
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
}
