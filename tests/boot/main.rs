//! Machines that are told wrong things or lack something: each says so on its console, lives on, and
//! recovers when the cause goes away.

use support::{BOOT, Machines};

#[test]
fn a_worker_with_a_wrong_token_and_hash_says_so_and_joins_once_they_are_right() {
    let wrong_hash = "0".repeat(64);
    let append = format!(
        "ironlet.token=aaaaaa.0123456789abcdef ironlet.ca-hash=sha256:{wrong_hash} ironlet.bogus=1 ironlet.node-taints=nonsense"
    );
    let machines = Machines::up("join", &["--no-wait", "--append-worker", &append]);
    machines.console_shows("worker-1", "parameter error: ironlet.bogus", 0);
    machines.console_shows("worker-1", "parameter error: ironlet.node-taints", 0);
    // The master is not up yet either.
    machines.console_shows(
        "worker-1",
        "cannot join: API server https://192.168.76.11:6443 cannot be reached",
        0,
    );
    machines.console_shows(
        "worker-1",
        "cannot join: bootstrap token \"aaaaaa\" is not known to the cluster",
        0,
    );

    let _waiting = machines.begin_to_wait();
    machines.kubectl().apply(
        r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"bootstrap-token-aaaaaa","namespace":"kube-system"},
            "type":"bootstrap.kubernetes.io/token","stringData":{"token-id":"aaaaaa","token-secret":"0123456789abcdef",
            "usage-bootstrap-authentication":"true","usage-bootstrap-signing":"true"}}"#,
    );
    machines.console_shows(
        "worker-1",
        &format!("cluster CA hash mismatch: expected sha256:{wrong_hash}"),
        0,
    );
}

#[test]
fn a_worker_boots_without_disk_and_finds_a_master_that_comes_late() {
    let machines = Machines::up("late", &["--no-wait", "--append-worker", "ironlet.disk=none"]);
    machines.control("kill", "master-1");
    machines.console_shows("worker-1", "WARNING: no state disk", 0);
    machines.console_shows("worker-1", "cannot be reached", 0);
    machines.control("start", "master-1");
    machines.begin_to_wait().succeeds(3 * BOOT);
}

#[test]
fn a_machine_without_a_network_card_says_so() {
    let machines = Machines::up(
        "no-nic",
        &["--no-wait", "--append-worker", "module_blacklist=virtio_net"],
    );
    machines.console_shows("worker-1", "network: eth0 is not there", 0);
}
