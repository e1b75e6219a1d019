//! Real bridges, veth pairs and iptables in a network namespace of the test's own (needs root).

use std::path::{Path, PathBuf};
use std::process::Command;

use network::{PodNetwork, PortMapping, Protocol};

const INSIDE: &str = "IRONLET_TEST_INSIDE_NAMESPACE";

/// Runs the calling test again in fresh network and mount namespaces; true inside of them.
fn in_own_namespaces(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let exe = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--fork"])
        .arg(exe)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare(1) from util-linux");
    assert!(status.success(), "inside the namespaces: {status}");
    false
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn pod_namespace(name: &str) -> PathBuf {
    run("ip", &["netns", "add", name]);
    Path::new("/run/netns").join(name)
}

#[tokio::test]
async fn pods_reach_each_other_and_leave_nothing_behind() {
    if !in_own_namespaces("pods_reach_each_other_and_leave_nothing_behind") {
        return;
    }
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
    run("ip", &["link", "set", "lo", "up"]);
    let (a, b) = (pod_namespace("a"), pod_namespace("b"));
    let dir = Path::new("/run/network");
    let network = PodNetwork::new(dir).unwrap();
    assert!(
        network
            .attach("aaaaaaaaaaaa1", "default/a", &a, vec![])
            .await
            .is_err(),
        "no pod CIDR yet"
    );
    network.configure(&["10.244.7.0/24".into()]).await.unwrap();

    let web = PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: None,
    };
    let first = network
        .attach("aaaaaaaaaaaa1", "default/a", &a, vec![web])
        .await
        .unwrap();
    let second = network
        .attach("bbbbbbbbbbbb2", "default/b", &b, vec![])
        .await
        .unwrap();
    assert_eq!(first, ["10.244.7.2".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(second, ["10.244.7.3".parse::<std::net::IpAddr>().unwrap()]);
    run("ip", &["netns", "exec", "a", "ping", "-c1", "-W5", "10.244.7.3"]);
    run("ip", &["netns", "exec", "b", "ping", "-c1", "-W5", "10.244.7.1"]);
    assert!(
        run("iptables-save", &["-t", "nat"]).contains("--dport 8080 -j DNAT --to-destination 10.244.7.2:80")
    );

    let restarted = PodNetwork::new(dir).unwrap();
    restarted.detach("aaaaaaaaaaaa1").await.unwrap();
    restarted.detach("aaaaaaaaaaaa1").await.unwrap();
    assert!(!run("iptables-save", &["-t", "nat"]).contains("8080"));
    let links = run("ip", &["-o", "link"]);
    assert!(
        !links.contains("vethaaaa") && links.contains("vethbbbb"),
        "{links}"
    );
    run("ip", &["netns", "del", "a"]);
    run("ip", &["netns", "del", "b"]);
}
