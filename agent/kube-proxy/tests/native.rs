//! Real connections through real rules (needs root): this process is the node, in a network namespace of its own, with
//! two pods behind a bridge and a client outside.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event as Watch;
use kube_proxy::{Config, Event, Proxier};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

const INSIDE: &str = "IRONLET_TEST_INSIDE_NAMESPACE";
const WAIT: Duration = Duration::from_secs(3);

const SETUP: &str = "
mount -t tmpfs tmpfs /run
ip link set lo up
sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1 net.ipv6.conf.all.forwarding=1
sysctl -q -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1
ip link add br0 type bridge
ip addr add 10.244.0.1/24 dev br0
ip addr add fd00:244::1/64 dev br0 nodad
ip link set br0 up
for n in 2 3; do
  ip netns add pod$n
  ip link add veth$n type veth peer name eth0 netns pod$n
  ip link set veth$n master br0 up
  ip link set dev veth$n type bridge_slave hairpin on
  ip -n pod$n addr add 10.244.0.$n/24 dev eth0
  ip -n pod$n addr add fd00:244::$n/64 dev eth0 nodad
  ip -n pod$n link set eth0 up
  ip -n pod$n link set lo up
  ip -n pod$n route add default via 10.244.0.1
  ip -n pod$n -6 route add default via fd00:244::1
done
ip netns add outside
ip link add uplink type veth peer name eth0 netns outside
ip addr add 192.168.76.11/24 dev uplink
ip link set uplink up
ip route add default via 192.168.76.1
ip -6 route add default dev uplink
ip -n outside addr add 192.168.76.1/24 dev eth0
ip -n outside link set eth0 up
ip -n outside link set lo up
ip -n outside route add default via 192.168.76.11
";

/// Runs the calling test again in fresh network and mount namespaces; true inside of them.
fn in_own_namespaces(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run("sh", &["-e", "-c", SETUP]);
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

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Does `work` in the network namespace `name`; in the node's own when empty.
fn at<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = (!name.is_empty()).then(|| File::open(format!("/run/netns/{name}")).unwrap());
    let thread = std::thread::spawn(move || {
        if let Some(netns) = &netns {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        }
        work()
    });
    thread.join().unwrap()
}

/// Says who it is and who asked, by both protocols.
fn serve(netns: &'static str, port: u16) {
    let (listener, socket) = at(netns, move || {
        (
            TcpListener::bind(("::", port)).unwrap(),
            UdpSocket::bind(("::", port)).unwrap(),
        )
    });
    let told = move |peer: SocketAddr| format!("{netns} {}", peer.ip().to_canonical());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap();
            // A client may be gone already.
            let _ = stream.write_all(told(peer).as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        loop {
            let (_, peer) = socket.recv_from(&mut buffer).unwrap();
            let _ = socket.send_to(told(peer).as_bytes(), peer);
        }
    });
}

/// What the server at `to` says when it is asked from `netns`.
fn ask(netns: &str, to: &str) -> io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    at(netns, move || {
        let mut stream = TcpStream::connect_timeout(&to, WAIT)?;
        stream.set_read_timeout(Some(WAIT))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

/// The servers that answer in a row of questions.
fn answerers(netns: &str, to: &str) -> BTreeSet<String> {
    let server = |text: String| text.split(' ').next().unwrap().to_owned();
    (0..24)
        .map(|_| server(ask(netns, to).unwrap_or_else(|e| panic!("{netns} to {to}: {e}"))))
        .collect()
}

fn service(name: &str, spec: Value) -> Service {
    let mut service = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
    if let Some(ip) = spec.get("loadBalancerIP") {
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": ip}]}});
    }
    serde_json::from_value(service).unwrap()
}

/// Endpoints are `2` and `3`: the first is this node's.
fn slice(name: &str, endpoints: &[u8]) -> EndpointSlice {
    let endpoint = |n: &u8| json!({"addresses": [format!("10.244.0.{n}")], "nodeName": if *n == 2 { "n1" } else { "n2" }});
    slice_of(name, "IPv4", endpoints.iter().map(endpoint).collect())
}

fn slice_of(name: &str, family: &str, endpoints: Vec<Value>) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": format!("{name}-{family}"), "namespace": "ns", "labels": {"kubernetes.io/service-name": name}},
        "addressType": family, "endpoints": endpoints,
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}, {"name": "u", "port": 8080, "protocol": "UDP"}]}))
    .unwrap()
}

struct Cluster(Proxier);

impl Cluster {
    async fn start(cidrs: &[&str]) -> Self {
        let config = Config {
            node_name: "n1".into(),
            cluster_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            node_port_addresses: vec![],
            health_port: 0,
            metrics_port: 0,
        };
        let mut proxier = Proxier::new(&config);
        proxier.apply(Event::Service(Watch::InitDone));
        proxier.apply(Event::Slice(Watch::InitDone));
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.76.11"}]}}))
        .unwrap();
        proxier.apply(Event::Node(Watch::Apply(node)));
        proxier.apply(Event::Node(Watch::InitDone));
        let mut cluster = Self(proxier);
        cluster.sync().await;
        serve("pod2", 8080);
        serve("pod3", 8080);
        cluster
    }

    async fn sync(&mut self) {
        assert!(self.0.sync().await);
    }

    async fn has(&mut self, service: Service, slice: EndpointSlice) {
        self.0.apply(Event::Service(Watch::Apply(service)));
        self.0.apply(Event::Slice(Watch::Apply(slice)));
        self.sync().await;
    }

    async fn endpoints(&mut self, slice: EndpointSlice) {
        self.0.apply(Event::Slice(Watch::Apply(slice)));
        self.sync().await;
    }
}

fn both() -> BTreeSet<String> {
    ["pod2".to_owned(), "pod3".to_owned()].into()
}

fn only(pod: &str) -> BTreeSet<String> {
    [pod.to_owned()].into()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_of_service_carries_connections() {
    if !in_own_namespaces("every_shape_of_service_carries_connections") {
        return;
    }
    let mut cluster = Cluster::start(&["10.244.0.0/16", "fd00:244::/56"]).await;

    // A cluster IP, from a pod (itself among the endpoints), from the node, and with changing endpoints.
    let plain = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    cluster
        .has(service("plain", plain.clone()), slice("plain", &[2, 3]))
        .await;
    for from in ["pod2", "pod3", ""] {
        assert_eq!(answerers(from, "10.96.0.1:80"), both(), "from {from:?}");
    }
    assert_eq!(ask("pod3", "10.96.0.1:80").unwrap().split(' ').count(), 2);
    cluster.endpoints(slice("plain", &[3])).await;
    assert_eq!(answerers("pod2", "10.96.0.1:80"), only("pod3"));
    assert_eq!(ask("pod2", "10.96.0.1:80").unwrap(), "pod3 10.244.0.2");
    assert_eq!(
        ask("pod3", "10.96.0.1:80").unwrap(),
        "pod3 10.244.0.1",
        "a hairpin comes from the bridge"
    );
    cluster.endpoints(slice("plain", &[])).await;
    for from in ["pod2", ""] {
        let refused = ask(from, "10.96.0.1:80").unwrap_err().kind();
        assert_eq!(refused, io::ErrorKind::ConnectionRefused, "from {from:?}");
    }
    cluster.endpoints(slice("plain", &[2])).await;
    assert_eq!(answerers("pod3", "10.96.0.1:80"), only("pod2"));

    // Its type changes: node port, then an external name, which nobody proxies.
    let node_port =
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
    cluster
        .has(service("plain", node_port), slice("plain", &[2, 3]))
        .await;
    for (from, to) in [
        ("outside", "192.168.76.11"),
        ("", "127.0.0.1"),
        ("", "192.168.76.11"),
        ("pod2", "10.244.0.1"),
    ] {
        assert_eq!(
            answerers(from, &format!("{to}:30080")),
            both(),
            "{from:?} to {to}"
        );
    }
    let name = json!({"type": "ExternalName", "externalName": "example.com"});
    cluster.has(service("plain", name), slice("plain", &[])).await;
    assert!(ask("outside", "192.168.76.11:30080").is_err());
    cluster.has(service("plain", plain), slice("plain", &[2])).await;
    assert_eq!(answerers("pod3", "10.96.0.1:80"), only("pod2"));

    // Traffic policies: the client's address arrives, and endpoints of other nodes serve only clients inside.
    let mut local = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.2", "loadBalancerIP": "203.0.113.7",
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999, "ports": [{"port": 80, "nodePort": 30082}]});
    cluster
        .has(service("local", local.clone()), slice("local", &[2, 3]))
        .await;
    for to in ["192.168.76.11:30082", "203.0.113.7:80"] {
        assert_eq!(answerers("outside", to), only("pod2"), "{to}");
        assert_eq!(ask("outside", to).unwrap(), "pod2 192.168.76.1");
        assert_eq!(answerers("pod3", to), both(), "{to}");
        assert_eq!(answerers("", to), both(), "{to}");
    }
    assert!(probe("192.168.76.11:30999").starts_with("HTTP/1.1 200 "));
    cluster.endpoints(slice("local", &[3])).await;
    assert_eq!(
        ask("outside", "203.0.113.7:80").unwrap_err().kind(),
        io::ErrorKind::TimedOut
    );
    assert_eq!(answerers("pod2", "203.0.113.7:80"), only("pod3"));
    let probed = probe("192.168.76.11:30999");
    assert!(
        probed.starts_with("HTTP/1.1 503 ") && probed.contains("\"localEndpoints\":0"),
        "{probed}"
    );

    // Source ranges close the balancer's address to others, and nothing else.
    local["externalTrafficPolicy"] = json!("Cluster");
    local["loadBalancerSourceRanges"] = json!(["192.168.76.128/25"]);
    cluster
        .has(service("local", local.clone()), slice("local", &[2, 3]))
        .await;
    assert_eq!(
        ask("outside", "203.0.113.7:80").unwrap_err().kind(),
        io::ErrorKind::TimedOut
    );
    assert_eq!(answerers("outside", "192.168.76.11:30082"), both());
    local["loadBalancerSourceRanges"] = json!(["192.168.76.0/25"]);
    cluster
        .has(service("local", local), slice("local", &[2, 3]))
        .await;
    assert_eq!(answerers("outside", "203.0.113.7:80"), both());

    // Affinity holds a client to one endpoint, and lets go when it is switched off.
    let mut sticky = json!({"clusterIP": "10.96.0.3", "externalIPs": ["203.0.113.9"], "sessionAffinity": "ClientIP",
        "ports": [{"port": 80}]});
    cluster
        .has(service("sticky", sticky.clone()), slice("sticky", &[2, 3]))
        .await;
    let chosen = answerers("pod2", "10.96.0.3:80");
    assert_eq!(chosen.len(), 1);
    assert_eq!(answerers("outside", "203.0.113.9:80").len(), 1);
    sticky["sessionAffinity"] = json!("None");
    cluster
        .has(service("sticky", sticky), slice("sticky", &[2, 3]))
        .await;
    assert_eq!(answerers("pod2", "10.96.0.3:80"), both());

    // The other family.
    let six = json!({"clusterIP": "fd00:96::1", "ports": [{"port": 80}]});
    let six_endpoints = vec![
        json!({"addresses": ["fd00:244::2"]}),
        json!({"addresses": ["fd00:244::3"]}),
    ];
    cluster
        .has(service("six", six), slice_of("six", "IPv6", six_endpoints))
        .await;
    assert_eq!(answerers("pod3", "[fd00:96::1]:80"), both());
    assert_eq!(answerers("", "[fd00:96::1]:80"), both());

    // Somebody empties a chain, somebody takes a jump away: both are seen and mended.
    for damage in [
        &["-t", "nat", "-F", "KUBE-SERVICES"][..],
        &["-t", "nat", "-F", "OUTPUT"],
        &["-t", "nat", "-D", "KUBE-NODEPORTS", "1"],
    ] {
        cluster.0.inspect().await;
        assert!(!cluster.0.is_due(), "before {damage:?}");
        run("iptables", damage);
        cluster.0.inspect().await;
        assert!(cluster.0.is_due(), "{damage:?}");
        cluster.sync().await;
        assert_eq!(answerers("", "10.96.0.3:80"), both(), "{damage:?}");
        assert_eq!(answerers("outside", "192.168.76.11:30082"), both(), "{damage:?}");
    }
    let metrics = cluster.0.metrics.render();
    assert!(
        metrics.contains("kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 4"),
        "{metrics}"
    );
}

fn probe(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_follow_their_endpoints() {
    if !in_own_namespaces("datagrams_follow_their_endpoints") {
        return;
    }
    let mut cluster = Cluster::start(&["10.244.0.0/16"]).await;
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.1",
        "ports": [{"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30053}]});
    cluster.has(service("dns", spec), slice("dns", &[2])).await;
    // One socket each, so that what the kernel tracked before a change would lead astray after it.
    for (from, to) in [
        ("pod2", "10.96.0.1:53"),
        ("", "10.96.0.1:53"),
        ("outside", "192.168.76.11:30053"),
    ] {
        cluster.endpoints(slice("dns", &[2])).await;
        let socket = at(from, || UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(WAIT)).unwrap();
        let say = || -> io::Result<String> {
            socket.send_to(b"x", to)?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length])
                .split(' ')
                .next()
                .unwrap()
                .to_owned())
        };
        assert_eq!(say().unwrap(), "pod2", "from {from:?}");
        cluster.endpoints(slice("dns", &[2, 3])).await;
        assert_eq!(
            say().unwrap(),
            "pod2",
            "a new endpoint changes nothing for old flows"
        );
        cluster.endpoints(slice("dns", &[3])).await;
        assert_eq!(say().unwrap(), "pod3", "from {from:?}");
    }
}
