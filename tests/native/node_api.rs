//! A user with ironctl, a node's API as its own process, and a real API server that says who may what.

mod machine_api;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use machine_api::{SOON, World, ironctl, now};
use pki::{CertificateAuthority, Kubeconfig, Subject};
use serde_json::Value;
use support::{Program, command, eventually, in_own_namespaces, output};

fn started(name: &str, flags: &[&str]) -> World {
    let mut world = World::new(name);
    world.restart(flags);
    world
}

/// Somebody of the cluster whom no role names yet.
fn user(world: &World, name: &str) -> PathBuf {
    world.kubeconfig(name, &Subject::new(name, &["staff"]), &world.ca)
}

/// A user whom RBAC lets look at machines, and no more.
fn may_look(world: &World, name: &str) -> PathBuf {
    let kubectl = &world.plane.kubectl;
    kubectl.run(&[
        "create",
        "clusterrole",
        "look",
        "--verb=get",
        "--resource=nodes/ironlet",
    ]);
    let bound = format!("--user={name}");
    kubectl.run(&[
        "create",
        "clusterrolebinding",
        "look",
        "--clusterrole=look",
        &bound,
    ]);
    user(world, name)
}

#[test]
fn the_clusters_rbac_says_who_may_do_what_with_a_machine() {
    let world = started("node-api", &["--slot", "A"]);
    let admin = world.admin();
    let on_node =
        |kubeconfig: &Path, args: &[&str]| ironctl(kubeconfig, &[&["--node", "node-1"], args].concat());

    let services = on_node(&admin, &["services"]).unwrap();
    assert!(services.contains("cri     running    71    1m5s"), "{services}");
    assert!(services.contains("agent   back-off"), "{services}");
    let status = on_node(&admin, &["status"]).unwrap();
    assert!(status.contains("Ready:      False (no kubelet here)"), "{status}");
    assert!(status.contains("Slot:       A"), "{status}");
    let version = on_node(&admin, &["version", "-o", "json"]).unwrap();
    let version: Value = serde_json::from_str(&version).unwrap();
    assert_eq!(version["node"], "node-1");
    assert_eq!(
        on_node(&admin, &["logs", "agent", "--tail", "1"]).unwrap(),
        "second\n"
    );
    let unknown = on_node(&admin, &["logs", "kubelet"]).unwrap_err();
    assert!(
        unknown.contains("NotFound") && unknown.contains("those that have: agent"),
        "{unknown}"
    );
    let links = on_node(&admin, &["links"]).unwrap();
    assert!(links.contains("127.0.0.1/8"), "{links}");
    assert!(
        on_node(&admin, &["top", "--limit", "3"])
            .unwrap()
            .contains("COMMAND")
    );
    assert!(on_node(&admin, &["disks"]).unwrap().starts_with("DEVICE"));

    let alice = user(&world, "alice");
    let by_address = |kubeconfig: &Path, args: &[&str]| {
        let endpoint = ["--node", "node-1", "--endpoint", &world.address];
        ironctl(kubeconfig, &[&endpoint, args].concat())
    };
    let refused = by_address(&alice, &["version"]).unwrap_err();
    assert!(
        refused.contains("PermissionDenied: nodes \"node-1\" is forbidden: User \"alice\" cannot get resource \"nodes/ironlet\""),
        "{refused}"
    );
    let bob = may_look(&world, "bob");
    assert!(by_address(&bob, &["version"]).unwrap().contains("node-1"));
    let refused = by_address(&bob, &["reboot"]).unwrap_err();
    assert!(
        refused.contains("User \"bob\" cannot update resource \"nodes/ironlet\""),
        "{refused}"
    );
    assert!(world.orders.try_recv().is_err(), "init was asked for nothing");
    assert_eq!(on_node(&admin, &["reboot"]).unwrap(), "the machine restarts\n");
    assert_eq!(world.orders.recv_timeout(SOON).unwrap(), "reboot");
    on_node(&admin, &["shutdown"]).unwrap();
    assert_eq!(world.orders.recv_timeout(SOON).unwrap(), "power-off");

    let missing = on_node(&alice, &["version"]).unwrap_err();
    assert!(
        missing.contains("node-1") && missing.contains("cannot get resource \"nodes\""),
        "{missing}"
    );
    let missing = ironctl(&admin, &["--node", "node-9", "version"]).unwrap_err();
    assert!(missing.contains("nodes \"node-9\" not found"), "{missing}");
}

#[test]
fn a_masters_machine_answers_its_administrators_without_an_api_server() {
    let mut world = started("node-api-alone", &[]);
    let (admin, alice) = (world.admin(), user(&world, "alice"));
    let masters = Subject::new("root", &["system:masters"]);
    let root = world.kubeconfig("root", &masters, &world.ca);
    ironctl(&admin, &["--node", "node-1", "version"]).unwrap();
    world.plane.program.kill();
    let ask = |kubeconfig: &Path, args: &[&str]| {
        let endpoint = ["--node", "node-1", "--endpoint", &world.address];
        ironctl(kubeconfig, &[&endpoint, args].concat())
    };
    let status = ask(&root, &["status"]).unwrap();
    assert!(status.contains("Ready:      not known: "), "{status}");
    ask(&root, &["reboot"]).unwrap();
    assert_eq!(world.orders.recv_timeout(SOON).unwrap(), "reboot");
    ask(&admin, &["services"]).expect("who was let in before stays so");
    let refused = ask(&admin, &["reboot"]).unwrap_err();
    assert!(
        refused.contains("\"kubernetes-admin\" may update nodes/ironlet"),
        "{refused}"
    );
    let refused = ask(&alice, &["version"]).unwrap_err();
    assert!(
        refused.contains("the API server's to say, and it cannot be asked"),
        "{refused}"
    );

    let stranger = CertificateAuthority::generate("kubernetes", now()).unwrap();
    let mallory = world.kubeconfig("mallory", &masters, &stranger);
    let refused = ask(&mallory, &["version"]).unwrap_err();
    assert!(
        refused.contains("the node refuses the kubeconfig's client certificate"),
        "{refused}"
    );
    let mut other = Kubeconfig::parse(&fs::read_to_string(&admin).unwrap()).unwrap();
    other.ca_pem = stranger.certificate_pem().to_owned();
    let path = world.dir.join("other.kubeconfig");
    fs::write(&path, other.render()).unwrap();
    let refused = ask(&path, &["version"]).unwrap_err();
    assert!(
        refused.contains("not signed by the kubeconfig's certificate authority"),
        "{refused}"
    );
    let refused = ironctl(&admin, &["version"]).unwrap_err();
    assert!(refused.contains("--node names it"), "{refused}");
}

#[test]
fn what_a_service_says_is_followed() {
    let world = started("node-api-follow", &[]);
    let mut ironctl = command("ironctl");
    ironctl.arg("--kubeconfig").arg(world.admin());
    ironctl.args(["--node", "node-1", "logs", "--follow", "agent"]);
    let mut follower = Program::start(&mut ironctl, world.dir.join("follower.log"));
    let mut shows = |text: &str| {
        eventually(&format!("the follower shows {text:?}"), SOON, || {
            follower.check()?;
            let output = follower.output();
            if output == text { Ok(()) } else { Err(output) }
        });
    };
    shows("first\nsecond\n");
    let log = world.dir.join("run/log/agent");
    let mut file = fs::File::options().append(true).open(&log).unwrap();
    file.write_all(b"third\n").unwrap();
    shows("first\nsecond\nthird\n");
    fs::rename(&log, world.dir.join("run/log/agent.1")).unwrap();
    fs::write(&log, "fourth\n").unwrap();
    shows("first\nsecond\nthird\nfourth\n");
}

/// etcd as init starts it on a master: the node API knows where that is.
#[test]
fn a_masters_store_is_looked_at_and_copied() {
    if !in_own_namespaces("a_masters_store_is_looked_at_and_copied") {
        return;
    }
    output(Command::new("ip").args(["link", "set", "lo", "up"]));
    let mut world = World::new("node-api-etcd");
    let pki = world.dir.join("plane/pki").display().to_string();
    let binary = std::env::var_os("IRONLET_TEST_ETCD").unwrap_or_else(|| "etcd".into());
    let mut etcd = Command::new(binary);
    etcd.args(["--name", "master-1", "--log-level", "error", "--client-cert-auth"]);
    etcd.arg("--data-dir").arg(world.dir.join("etcd"));
    let (client, peer) = ("https://127.0.0.1:2379", "http://127.0.0.1:2380");
    etcd.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
    etcd.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
    etcd.args(["--initial-cluster", &format!("master-1={peer}")]);
    for (flag, file) in [
        ("cert", "server.crt"),
        ("key", "server.key"),
        ("trusted-ca", "ca.crt"),
    ] {
        etcd.args([&format!("--{flag}-file"), &format!("{pki}/etcd/{file}")]);
    }
    let _etcd = Program::start(&mut etcd, world.dir.join("etcd.log"));
    world.restart(&["--control-plane-pki", &pki]);
    let admin = world.admin();
    let on_node = |kubeconfig: &Path, args: &[&str]| {
        let endpoint = ["--node", "node-1", "--endpoint", &world.address];
        ironctl(kubeconfig, &[&endpoint, args].concat())
    };
    let members = eventually("etcd answers", SOON, || on_node(&admin, &["etcd", "members"]));
    assert!(members.contains("master-1   leader"), "{members}");
    let copy = world.dir.join("copy.db");
    let copy_name = copy.display().to_string();
    on_node(&admin, &["etcd", "snapshot", &copy_name]).unwrap();
    // A database is whole pages, and its SHA-256 follows.
    let size = fs::metadata(&copy).unwrap().len();
    assert!(size > 32 && size % 512 == 32, "{size}");
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);

    let bob = may_look(&world, "bob");
    on_node(&bob, &["etcd", "members"]).unwrap();
    let refused = on_node(&bob, &["etcd", "snapshot", &copy_name]).unwrap_err();
    assert!(
        refused.contains("User \"bob\" cannot create resource \"nodes/ironlet\""),
        "{refused}"
    );
}
