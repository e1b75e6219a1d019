//! NetworkPolicies as a truth table of real connections (needs root): pods of three namespaces on this node, one pod
//! elsewhere, and every pod to every pod at every port, before and after a change.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use netfilter::Family;
use network::{Attached, Observed, PodNetwork, Policies};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

const INSIDE: &str = "IRONLET_TEST_INSIDE_NAMESPACE";
/// What is not answered within this was dropped: everything is on one machine.
const WAIT: Duration = Duration::from_millis(400);
const PORTS: [u16; 2] = [80, 81];
/// Namespace and name; those of `x` to `z` are on this node, `w/a` is behind another one.
const PODS: [(&str, &str); 7] = [
    ("x", "a"),
    ("x", "b"),
    ("y", "a"),
    ("y", "b"),
    ("z", "a"),
    ("z", "b"),
    ("w", "a"),
];

fn in_own_namespaces(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--fork"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare(1) from util-linux");
    assert!(status.success(), "inside the namespaces: {status}");
    false
}

fn run(command: &str) {
    let output = Command::new("sh").args(["-e", "-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn at<T: Send + 'static>(netns: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = File::open(format!("/run/netns/{netns}")).unwrap();
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    });
    thread.join().unwrap()
}

fn serve(netns: &str) {
    for port in PORTS {
        let listener = at(netns, move || TcpListener::bind(("::", port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client may be gone already.
                let _ = stream.unwrap().write_all(b"!");
            }
        });
    }
    let socket = at(netns, || UdpSocket::bind(("::", 80)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        loop {
            let (_, peer) = socket.recv_from(&mut buffer).unwrap();
            let _ = socket.send_to(b"!", peer);
        }
    });
}

fn tcp(to: SocketAddr) -> bool {
    let answer = TcpStream::connect_timeout(&to, WAIT).and_then(|mut stream| {
        stream.set_read_timeout(Some(WAIT))?;
        stream.read(&mut [0])
    });
    answer.is_ok_and(|length| length == 1)
}

fn udp(to: SocketAddr) -> bool {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket.send_to(b"?", to).is_ok() && socket.recv(&mut [0]).is_ok()
}

struct Cluster {
    addresses: BTreeMap<String, Vec<IpAddr>>,
    attached: Attached,
    policies: Policies,
    specs: Vec<(String, Value)>,
    labels: BTreeMap<String, Value>,
}

impl Cluster {
    async fn start() -> Self {
        run("mount -t tmpfs tmpfs /run; ip link set lo up
            sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            sysctl -q -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1
            ip netns add wa; ip link add uplink type veth peer name eth0 netns wa; sysctl -q -w net.ipv6.conf.uplink.accept_dad=0
            ip addr add 192.168.76.11/24 dev uplink; ip -6 addr add fd00:76::11/64 dev uplink nodad; ip link set uplink up
            ip -n wa addr add 10.244.9.2/24 dev eth0; ip -n wa addr add 192.168.76.12/24 dev eth0
            ip -n wa -6 addr add fd00:244:0:9::2/64 dev eth0 nodad; ip -n wa -6 addr add fd00:76::12/64 dev eth0 nodad
            ip -n wa link set eth0 up; ip -n wa link set lo up
            ip -n wa route add 10.244.7.0/24 via 192.168.76.11 src 10.244.9.2; ip route add 10.244.9.0/24 via 192.168.76.12
            ip -n wa -6 route add fd00:244:0:7::/64 via fd00:76::11 src fd00:244:0:9::2
            ip -6 route add fd00:244:0:9::/64 via fd00:76::12");
        let pod_network = PodNetwork::new(Path::new("/run/network")).unwrap();
        pod_network
            .configure(&["10.244.7.0/24".into(), "fd00:244:0:7::/64".into()])
            .await
            .unwrap();
        let mut cluster = Self {
            addresses: BTreeMap::new(),
            attached: Attached::new(),
            policies: Policies::new(&[Family::V4, Family::V6]),
            specs: Vec::new(),
            labels: BTreeMap::new(),
        };
        for (index, (namespace, name)) in PODS.into_iter().enumerate() {
            let netns = format!("{namespace}{name}");
            let addresses = if namespace == "w" {
                vec!["10.244.9.2".parse().unwrap(), "fd00:244:0:9::2".parse().unwrap()]
            } else {
                run(&format!("ip netns add {netns}"));
                let sandbox = network::Sandbox {
                    sandbox_id: format!("{index}{index}"),
                    namespace: namespace.into(),
                    name: name.into(),
                    uid: String::new(),
                    netns: Path::new("/run/netns").join(&netns),
                    port_mappings: vec![],
                    bandwidth: network::Bandwidth::default(),
                };
                pod_network.attach(sandbox).await.unwrap()
            };
            serve(&netns);
            cluster.attached.insert(
                (namespace.into(), name.into()),
                addresses.iter().copied().collect(),
            );
            cluster.addresses.insert(netns, addresses);
        }
        cluster.sync().await;
        cluster
    }

    fn observed(&self) -> Observed {
        let pods = PODS.into_iter().map(|(namespace, name)| {
            let mut labels = json!({"pod": name});
            if let Some(more) = self.labels.get(&format!("{namespace}{name}")) {
                labels = more.clone();
            }
            let status = match namespace {
                "w" => json!({"podIPs": [{"ip": "10.244.9.2"}, {"ip": "fd00:244:0:9::2"}]}),
                // What its node has attached is known without it.
                _ => json!({}),
            };
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"namespace": namespace, "name": name, "labels": labels},
                "spec": {"nodeName": if namespace == "w" { "n2" } else { "n1" },
                    "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 81}]}]},
                "status": status}))
            .unwrap();
            Arc::new(pod)
        });
        let namespaces = ["w", "x", "y", "z"].map(|name| {
            let namespace: Namespace =
                serde_json::from_value(json!({"metadata": {"name": name, "labels": {"ns": name}}})).unwrap();
            Arc::new(namespace)
        });
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1"},
            "spec": {"podCIDRs": ["10.244.7.0/24", "fd00:244:0:7::/64"]}}))
        .unwrap();
        let policies = self.specs.iter().enumerate().map(|(n, (namespace, spec))| {
            let policy = json!({"metadata": {"namespace": namespace, "name": format!("p{n}")}, "spec": spec});
            Arc::new(serde_json::from_value::<NetworkPolicy>(policy).unwrap())
        });
        Observed {
            policies: policies.collect(),
            namespaces: namespaces.into(),
            pods: pods.collect(),
            nodes: vec![Arc::new(node)],
            attached: self.attached.clone(),
        }
    }

    async fn sync(&mut self) {
        assert!(self.policies.sync("n1", &self.observed()).await);
    }

    async fn policies(&mut self, specs: &[(&str, Value)]) {
        self.specs = specs
            .iter()
            .map(|(namespace, spec)| ((*namespace).to_owned(), spec.clone()))
            .collect();
        self.sync().await;
    }

    /// Every pod asks every other one at every port, by both families: who may is as `allowed` says.
    fn check(&self, what: &str, allowed: fn(&str, &str, u16) -> bool) {
        let mut threads = Vec::new();
        for from in self.addresses.keys() {
            for (to, addresses) in self.addresses.iter().filter(|(to, _)| *to != from) {
                for (address, port) in addresses.iter().flat_map(|a| PORTS.map(|port| (*a, port))) {
                    let (from, to) = (from.clone(), to.clone());
                    threads.push(std::thread::spawn(move || {
                        let address = SocketAddr::new(address, port);
                        (at(&from, move || tcp(address)), from, to, address)
                    }));
                }
            }
        }
        for thread in threads {
            let (connected, from, to, address) = thread.join().unwrap();
            let want = allowed(&from, &to, address.port());
            assert_eq!(connected, want, "{what}: {from} to {to} at {address}");
        }
    }
}

#[tokio::test]
async fn connections_are_what_policies_allow() {
    if !in_own_namespaces("connections_are_what_policies_allow") {
        return;
    }
    let mut cluster = Cluster::start().await;
    // Until every link's own address has passed duplicate detection, nobody is asked for neighbours.
    while String::from_utf8_lossy(&Command::new("ip").args(["-6", "addr"]).output().unwrap().stdout)
        .contains("tentative")
    {
        tokio::time::sleep(WAIT).await;
    }
    cluster.check("no policy", |_, _, _| true);

    let all = json!({});
    let a = json!({"matchLabels": {"pod": "a"}});
    let of = |namespace: &str| json!({"matchLabels": {"ns": namespace}});
    cluster.policies(&[("x", json!({"podSelector": all}))]).await;
    cluster.check("x denies ingress", |_, to, _| !to.starts_with('x'));

    cluster
        .policies(&[("x", json!({"podSelector": all, "policyTypes": ["Egress"]}))])
        .await;
    cluster.check("x denies egress", |from, _, _| !from.starts_with('x'));

    let from_y = json!({"podSelector": a, "ingress": [{"from": [{"namespaceSelector": of("y")}]}]});
    cluster
        .policies(&[("x", json!({"podSelector": all})), ("x", from_y.clone())])
        .await;
    cluster.check("x denies, but y may reach x/a", |from, to, _| {
        !to.starts_with('x') || (to == "xa" && from.starts_with('y'))
    });

    let port = json!({"podSelector": all, "ingress": [{"from": [{"podSelector": a}], "ports": [{"port": 80}]},
        {"from": [{"namespaceSelector": {}, "podSelector": a}], "ports": [{"port": "web"}]}]});
    cluster.policies(&[("x", port)]).await;
    cluster.check(
        "ports by number for the own namespace, by name for all",
        |from, to, port| !to.starts_with('x') || (from.ends_with('a') && (port == 81 || from == "xa")),
    );

    let blocks = json!({"podSelector": all, "policyTypes": ["Egress"], "egress": [
        {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.7.0/24"]}},
            {"ipBlock": {"cidr": "fd00:244:0:9::/64"}}], "ports": [{"port": 80, "endPort": 81}]},
        {"to": [{"namespaceSelector": of("z"), "podSelector": a}], "ports": [{"port": "web"}]}]});
    cluster.policies(&[("y", blocks)]).await;
    cluster.check(
        "y may go out of the node, and to z/a by the port's name",
        |from, to, port| !from.starts_with('y') || to == "wa" || (to == "za" && port == 81),
    );

    // Both ends decide.
    let to_z = json!({"podSelector": all, "policyTypes": ["Egress"], "egress": [{"to": [{"namespaceSelector": of("z")}]}]});
    let from_x = json!({"podSelector": a, "ingress": [{"from": [{"namespaceSelector": of("x")}]}]});
    cluster.policies(&[("x", to_z), ("z", from_x)]).await;
    cluster.check("x only to z, z/a only from x", |from, to, _| {
        (!from.starts_with('x') || to.starts_with('z')) && (to != "za" || from.starts_with('x'))
    });

    // A label changes what a pod is to a policy, at once.
    cluster.policies(&[("x", from_y)]).await;
    cluster.labels.insert("xa".into(), json!({"pod": "c"}));
    cluster.labels.insert("xb".into(), json!({"pod": "a"}));
    cluster.sync().await;
    cluster.check("x/b is what x/a was", |from, to, _| {
        to != "xb" || from.starts_with('y')
    });
    cluster.labels.clear();

    // A pod that nobody knows yet speaks to nobody; itself it always reaches, and its node reaches it.
    cluster.policies(&[("z", json!({"podSelector": a}))]).await;
    let attached = cluster.attached.remove(&("y".into(), "b".into())).unwrap();
    cluster.sync().await;
    cluster.check("y/b is not known", |from, to, _| {
        from != "yb" && to != "yb" && to != "za"
    });
    for address in attached.iter().chain(&cluster.addresses["za"]) {
        assert!(tcp(SocketAddr::new(*address, 80)), "a node's probe of {address}");
    }
    let own = SocketAddr::new(cluster.addresses["za"][0], 80);
    assert!(at("za", move || tcp(own)));
    cluster.attached.insert(("y".into(), "b".into()), attached);

    // Another process takes over what this one wrote.
    cluster.policies = Policies::new(&[Family::V4, Family::V6]);
    cluster.sync().await;
    cluster.check("after a restart", |_, to, _| to != "za");
    let datagram = |to: &str| {
        let to = SocketAddr::new(cluster.addresses[to][0], 80);
        at("xa", move || udp(to))
    };
    assert!(datagram("zb") && !datagram("za"));
    cluster.policies(&[]).await;
    cluster.check("no policy any more", |_, _, _| true);
    let left = Command::new("ipset").args(["list", "-name"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}
