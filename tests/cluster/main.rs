//! A cluster of two virtual machines as its user lives with it. One boot, told as one story: under
//! software emulation a boot costs more than everything that follows.

use std::time::Duration;

use support::{BOOT, Kubectl, Machines, eventually};

const SOON: Duration = Duration::from_secs(120);

#[test]
fn a_cluster_works_and_survives_restarts_of_everything() {
    let machines = Machines::up("cluster", &[]);
    let kubectl = machines.kubectl();
    a_service_is_reachable_from_the_other_node(&kubectl);
    logs_exec_and_delete_work(&kubectl);
    limits_hold(&kubectl);
    names_resolve_and_policies_hold(&kubectl);
    a_claim_keeps_what_was_written(&kubectl);
    a_load_balancer_leaves_the_nodes_reachable(&kubectl);
    containers_outlive_the_kubelet_and_the_cri_server(&kubectl);
    everything_is_there_after_a_reboot_of_the_master(&machines, &kubectl);
}

fn run_pod(kubectl: &Kubectl, name: &str, node: &str, extra: &str, command: &str) {
    kubectl.apply(&format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"{name}"}}}},
            "spec":{{"nodeSelector":{{"kubernetes.io/hostname":"{node}"}},"terminationGracePeriodSeconds":1,{extra}
            "containers":[{{"name":"c","image":"busybox","imagePullPolicy":"IfNotPresent",
            "command":["sh","-c",{command:?}],
            "securityContext":{{"privileged":{privileged}}},
            "volumeMounts":[{{"name":"flags","mountPath":"/flags"}}]}}],
            "volumes":[{{"name":"flags","hostPath":{{"path":"/var/lib/test-flags","type":"DirectoryOrCreate"}}}}]}}}}"#,
        privileged = extra.contains("hostPID"),
    ));
}

fn running(kubectl: &Kubectl, name: &str) {
    kubectl.wait_for(&["pod", name], "{.status.phase}", "Running", SOON);
}

fn a_service_is_reachable_from_the_other_node(kubectl: &Kubectl) {
    run_pod(
        kubectl,
        "server",
        "worker-1",
        "",
        "echo served > /tmp/index.html; exec httpd -f -p 8080 -h /tmp",
    );
    run_pod(kubectl, "client", "master-1", "", "exec sleep 100000");
    running(kubectl, "server");
    running(kubectl, "client");
    kubectl.run(&["expose", "pod", "server", "--port=80", "--target-port=8080"]);
    let ip = kubectl.run(&["get", "service", "server", "-o", "jsonpath={.spec.clusterIP}"]);
    eventually("the Service answers on the other node", SOON, || {
        let answer = kubectl.try_run(&["exec", "client", "--", "wget", "-qO-", &format!("http://{ip}/")])?;
        if answer == "served\n" { Ok(()) } else { Err(answer) }
    });
}

fn logs_exec_and_delete_work(kubectl: &Kubectl) {
    run_pod(
        kubectl,
        "talker",
        "worker-1",
        "\"restartPolicy\":\"Never\",",
        "echo one; echo two >&2; exit 3",
    );
    kubectl.wait_for(&["pod", "talker"], "{.status.phase}", "Failed", SOON);
    kubectl.wait_for(
        &["pod", "talker"],
        "{.status.containerStatuses[0].state.terminated.exitCode}",
        "3",
        SOON,
    );
    assert_eq!(kubectl.run(&["logs", "talker"]), "one\ntwo\n");

    let status = kubectl
        .command(&["exec", "client", "--", "sh", "-c", "exit 42"])
        .status()
        .expect("kubectl");
    assert_eq!(status.code(), Some(42));
    let cmdline = kubectl.run(&["exec", "client", "--", "cat", "/proc/cmdline"]);
    assert!(!cmdline.contains("ironlet.token"), "{cmdline}");

    kubectl.run(&["delete", "pod", "talker", "--timeout=60s"]);
    assert!(kubectl.fails(&["get", "pod", "talker"]).contains("NotFound"));
}

fn limits_hold(kubectl: &Kubectl) {
    kubectl.apply(
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"glutton"},"spec":{"restartPolicy":"Never",
            "containers":[{"name":"c","image":"busybox","imagePullPolicy":"IfNotPresent",
            "command":["sh","-c","tail -c 200m /dev/zero | sleep 100"],
            "resources":{"limits":{"memory":"16Mi"}}}]}}"#,
    );
    eventually("the glutton is stopped by its memory limit", SOON, || {
        let reason = kubectl.try_run(&[
            "get",
            "pod",
            "glutton",
            "-o",
            "jsonpath={.status.containerStatuses[0].state.terminated.reason}",
        ])?;
        if reason == "OOMKilled" {
            Ok(())
        } else {
            Err(reason)
        }
    });
    kubectl.run(&["delete", "pod", "glutton", "--timeout=60s"]);
}

/// The name server runs as a pod, and a policy holds on both nodes.
fn names_resolve_and_policies_hold(kubectl: &Kubectl) {
    let fetch = |url: &str| kubectl.try_run(&["exec", "client", "--", "timeout", "5", "wget", "-qO-", url]);
    let served = || match fetch("http://server.default.svc.cluster.local/") {
        Ok(answer) if answer == "served\n" => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("the Service has a name", SOON, served);
    kubectl.apply(
        r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"closed"},
            "spec":{"podSelector":{"matchLabels":{"app":"server"}},"policyTypes":["Ingress"]}}"#,
    );
    eventually("the policy closes the server", SOON, || {
        match fetch("http://server/") {
            Err(_) => Ok(()),
            Ok(answer) => Err(answer),
        }
    });
    // What is refused is the connection, not the name.
    let name = [
        "exec",
        "client",
        "--",
        "nslookup",
        "server.default.svc.cluster.local",
    ];
    assert!(kubectl.run(&name).contains("server.default.svc.cluster.local"));
    kubectl.run(&["delete", "networkpolicy", "closed"]);
    eventually("the server is open again", SOON, served);
}

/// The default class makes a volume on the node that the pod is scheduled to; it outlives the pod, not the claim.
fn a_claim_keeps_what_was_written(kubectl: &Kubectl) {
    let pod = |name: &str, command: &str| {
        kubectl.apply(&format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}},"spec":{{"restartPolicy":"Never",
                "containers":[{{"name":"c","image":"busybox","imagePullPolicy":"IfNotPresent",
                "command":["sh","-c",{command:?}],"volumeMounts":[{{"name":"kept","mountPath":"/kept"}}]}}],
                "volumes":[{{"name":"kept","persistentVolumeClaim":{{"claimName":"kept"}}}}]}}}}"#
        ));
        kubectl.wait_for(&["pod", name], "{.status.phase}", "Succeeded", SOON);
    };
    kubectl.apply(
        r#"{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":"kept"},
            "spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"10Mi"}}}}"#,
    );
    pod("writer", "echo kept > /kept/file");
    kubectl.run(&["delete", "pod", "writer", "--timeout=60s"]);
    pod("reader", "cat /kept/file");
    assert_eq!(kubectl.run(&["logs", "reader"]), "kept\n");
    kubectl.run(&["delete", "pod", "reader", "--timeout=60s"]);
    kubectl.run(&["delete", "pvc", "kept", "--timeout=60s"]);
    eventually("the volume goes with its claim", SOON, || {
        let left = kubectl.try_run(&["get", "pv", "-o", "name"])?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

/// Without a pool the addresses are the nodes' own, which must stay where they are.
fn a_load_balancer_leaves_the_nodes_reachable(kubectl: &Kubectl) {
    kubectl.run(&[
        "expose",
        "pod",
        "server",
        "--name=outside",
        "--type=LoadBalancer",
        "--port=80",
        "--target-port=8080",
    ]);
    let ingress = "jsonpath={.status.loadBalancer.ingress[*].ip}";
    let addresses = eventually("addresses are given", SOON, || {
        let given = kubectl.try_run(&["get", "service", "outside", "-o", ingress])?;
        if given.split_whitespace().count() == 2 {
            Ok(given)
        } else {
            Err(given)
        }
    });
    for address in addresses.split_whitespace() {
        eventually("the address answers", SOON, || {
            let url = format!("http://{address}/");
            let answer = kubectl.try_run(&["exec", "client", "--", "timeout", "5", "wget", "-qO-", &url])?;
            if answer == "served\n" { Ok(()) } else { Err(answer) }
        });
    }
    // Through the kubelet of the other node.
    kubectl.run(&["logs", "server"]);
    kubectl.run(&["delete", "service", "outside", "--timeout=60s"]);
}

fn containers_outlive_the_kubelet_and_the_cri_server(kubectl: &Kubectl) {
    run_pod(
        kubectl,
        "counter",
        "worker-1",
        "",
        "i=0; while true; do echo $i; i=$((i+1)); sleep 0.2; done",
    );
    run_pod(
        kubectl,
        "leaver",
        "worker-1",
        "\"restartPolicy\":\"Never\",",
        "until [ -e /flags/go ]; do sleep 0.1; done; echo bye; exit 7",
    );
    run_pod(
        kubectl,
        "saboteur",
        "worker-1",
        "\"hostPID\":true,",
        "exec sleep 100000",
    );
    for pod in ["counter", "leaver", "saboteur"] {
        running(kubectl, pod);
    }
    // The session dies with what it kills; what was started in it does not.
    let kill =
        "pkill -9 -f '^/usr/bin/agent --kubeconfig'; pkill -9 -f '^/usr/bin/agent cri '; touch /flags/go";
    let _ = kubectl.try_run(&["exec", "saboteur", "--", "sh", "-c", kill]);

    kubectl.wait_for(
        &["pod", "leaver"],
        "{.status.containerStatuses[0].state.terminated.exitCode}",
        "7",
        SOON,
    );
    assert_eq!(kubectl.run(&["logs", "leaver"]), "bye\n");
    let count = || {
        kubectl
            .try_run(&["logs", "counter", "--tail=1"])
            .and_then(|l| l.trim().parse::<usize>().map_err(|e| e.to_string()))
    };
    let before = eventually("logs work again", SOON, count);
    eventually("the counter goes on", SOON, || match count()? {
        now if now > before => Ok(()),
        now => Err(now.to_string()),
    });
    let lines: Vec<usize> = kubectl
        .run(&["logs", "counter"])
        .lines()
        .map(|l| l.parse().expect("a number"))
        .collect();
    assert!(
        lines.iter().copied().eq(0..lines.len()),
        "a log line was lost: {lines:?}"
    );
    assert_eq!(
        kubectl.run(&[
            "get",
            "pod",
            "counter",
            "-o",
            "jsonpath={.status.containerStatuses[0].restartCount}"
        ]),
        "0"
    );
}

fn everything_is_there_after_a_reboot_of_the_master(machines: &Machines, kubectl: &Kubectl) {
    kubectl.run(&["create", "configmap", "kept", "--from-literal=a=b"]);
    machines.control("stop", "master-1");
    machines.control("start", "master-1");
    eventually("the API server answers again", BOOT, || {
        kubectl.try_run(&["get", "configmap", "kept"]).map(|_| ())
    });
    kubectl.run(&[
        "wait",
        "--for=condition=Ready",
        "node/master-1",
        "node/worker-1",
        "--timeout=300s",
    ]);
    kubectl.run(&[
        "wait",
        "--for=condition=Ready",
        "pod/client",
        "pod/server",
        "--timeout=300s",
    ]);
    let ip = kubectl.run(&["get", "service", "server", "-o", "jsonpath={.spec.clusterIP}"]);
    eventually("the Service answers again", SOON, || {
        kubectl
            .try_run(&["exec", "client", "--", "wget", "-qO-", &format!("http://{ip}/")])
            .map(|_| ())
    });
}
