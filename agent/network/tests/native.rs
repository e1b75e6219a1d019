//! Real bridges, veth pairs and iptables in a network namespace of the test's own (needs root).

use std::path::Path;
use std::process::Command;

use network::{Bandwidth, PodNetwork, PortMapping, Protocol, Sandbox};

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

fn pod_namespace(name: &str) {
    run("ip", &["netns", "add", name]);
}

fn sandbox(id: &str, name: &str, port_mappings: Vec<PortMapping>) -> Sandbox {
    Sandbox {
        sandbox_id: id.into(),
        namespace: "default".into(),
        name: name.into(),
        uid: "u".into(),
        netns: Path::new("/run/netns").join(name),
        port_mappings,
        bandwidth: network::Bandwidth::default(),
    }
}

#[tokio::test]
async fn pods_reach_each_other_and_leave_nothing_behind() {
    if !in_own_namespaces("pods_reach_each_other_and_leave_nothing_behind") {
        return;
    }
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
    run("ip", &["link", "set", "lo", "up"]);
    pod_namespace("a");
    pod_namespace("b");
    let dir = Path::new("/run/network");
    let network = PodNetwork::new(dir).unwrap();
    assert!(
        network
            .attach(sandbox("aaaaaaaaaaaa1", "a", vec![]))
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
        .attach(sandbox("aaaaaaaaaaaa1", "a", vec![web]))
        .await
        .unwrap();
    let second = network
        .attach(sandbox("bbbbbbbbbbbb2", "b", vec![]))
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

/// Debian's containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";

#[tokio::test]
async fn a_cni_configuration_takes_over_and_gives_back() {
    if !in_own_namespaces("a_cni_configuration_takes_over_and_gives_back") {
        return;
    }
    let plugins = std::env::var("CNI_PATH").unwrap_or_else(|_| PLUGINS.into());
    assert!(
        Path::new(&plugins).join("bridge").exists(),
        "{plugins}: install containernetworking-plugins"
    );
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
    // host-local keeps its addresses there.
    std::fs::create_dir_all("/var/lib/cni").unwrap();
    run("mount", &["-t", "tmpfs", "tmpfs", "/var/lib/cni"]);
    run("ip", &["link", "set", "lo", "up"]);
    pod_namespace("a");
    pod_namespace("b");
    let configs = Path::new("/run/net.d");
    std::fs::create_dir(configs).unwrap();
    let network = PodNetwork::with_cni(Path::new("/run/network"), configs, Path::new(&plugins)).unwrap();
    assert!(network.readiness().is_err(), "neither a pod CIDR nor plugins");

    let list = r#"{"cniVersion": "0.4.0", "name": "lab", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.7.0.0/24"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
    std::fs::write(configs.join("10-lab.conflist"), list).unwrap();
    assert!(network.readiness().is_ok());
    network.configure(&["10.244.7.0/24".into()]).await.unwrap();
    let web = PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: None,
    };
    let first = network
        .attach(sandbox("aaaaaaaaaaaa1", "a", vec![web]))
        .await
        .unwrap();
    assert_eq!(first, ["10.7.0.2".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(
        network
            .attach(sandbox("aaaaaaaaaaaa1", "a", vec![]))
            .await
            .unwrap(),
        first
    );
    network
        .attach(sandbox("bbbbbbbbbbbb2", "b", vec![]))
        .await
        .unwrap();
    run("ip", &["netns", "exec", "a", "ping", "-c1", "-W5", "10.7.0.3"]);
    assert!(run("iptables-save", &["-t", "nat"]).contains("--to-destination 10.7.0.2:80"));
    assert!(
        !run("ip", &["-o", "link"]).contains("ironlet0"),
        "the built-in network stays away"
    );

    // Another process, and the configuration is gone: what plugins did, they take back.
    std::fs::remove_file(configs.join("10-lab.conflist")).unwrap();
    let restarted = PodNetwork::with_cni(Path::new("/run/network"), configs, Path::new(&plugins)).unwrap();
    restarted.detach("aaaaaaaaaaaa1").await.unwrap();
    restarted.detach("aaaaaaaaaaaa1").await.unwrap();
    assert!(!run("iptables-save", &["-t", "nat"]).contains("10.7.0.2:80"));
    assert!(!run("ip", &["netns", "exec", "a", "ip", "-o", "link"]).contains("eth0"));

    std::fs::write(
        configs.join("10-bad.conf"),
        r#"{"cniVersion": "0.4.0", "name": "bad", "type": "nobody"}"#,
    )
    .unwrap();
    let error = restarted
        .attach(sandbox("cccccccccccc3", "a", vec![]))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("CNI plugin nobody"), "{error}");
}

#[tokio::test]
async fn limits_become_token_buckets_on_both_sides() {
    if !in_own_namespaces("limits_become_token_buckets_on_both_sides") {
        return;
    }
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
    run("ip", &["link", "set", "lo", "up"]);
    pod_namespace("a");
    pod_namespace("b");
    let network = PodNetwork::new(Path::new("/run/network")).unwrap();
    network.configure(&["10.244.7.0/24".into()]).await.unwrap();
    let mut limited = sandbox("aaaaaaaaaaaa1", "a", vec![]);
    limited.bandwidth = Bandwidth {
        ingress: Some(10_000_000),
        egress: Some(80_000_000_000),
    };
    network.attach(limited).await.unwrap();
    network
        .attach(sandbox("bbbbbbbbbbbb2", "b", vec![]))
        .await
        .unwrap();
    let host = run("tc", &["qdisc", "show"]);
    let limits: Vec<&str> = host.lines().filter(|line| line.contains(" tbf ")).collect();
    assert!(
        limits.len() == 1 && limits[0].contains("rate 10Mbit burst 64Kb") && limits[0].contains("root"),
        "{host}"
    );
    // More than 32 bits of bytes a second.
    let pod = run(
        "ip",
        &["netns", "exec", "a", "tc", "qdisc", "show", "dev", "eth0"],
    );
    assert!(
        pod.contains("qdisc tbf 1: root") && pod.contains("rate 80Gbit"),
        "{pod}"
    );
    run(
        "ip",
        &[
            "netns",
            "exec",
            "b",
            "ping",
            "-c3",
            "-i0.01",
            "-s1400",
            "-W5",
            "10.244.7.2",
        ],
    );
    let passed = run("tc", &["-s", "qdisc", "show"]);
    assert!(passed.contains("dropped 0, overlimits 0"), "{passed}");
}
