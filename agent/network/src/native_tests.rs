//! Two nodes, a router and a neighbour as network namespaces (needs root): the overlay and the announcements of load
//! balancers with real packets.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use netfilter::Family;
use serde_json::json;

use crate::routes::{Peer, sync_routes};
use crate::sys::namespace::within;
use crate::{announce, firewall, overlay, sys};

const INSIDE: &str = "IRONLET_TEST_INSIDE_NAMESPACE";

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

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-e", "-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn netns(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Makes `name`'s routes lead to one peer, as that node's agent would.
async fn route(name: &str, own: &str, own_cidr: &str, peer: &str, peer_cidr: &str) {
    let peer = Peer {
        node: "peer".into(),
        addresses: vec![peer.parse().unwrap()],
        pod_cidrs: vec![peer_cidr.parse().unwrap()],
    };
    let (own, cidrs) = (own.parse().unwrap(), [own_cidr.parse().unwrap()]);
    within(&netns(name), move || async move {
        let links = sys::routes::link_addresses().await?;
        sync_routes(&[peer], &links, Some(own), &cidrs).await
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn nodes_without_a_common_link_reach_each_other_s_pods() {
    if !in_own_namespaces("native_tests::nodes_without_a_common_link_reach_each_other_s_pods") {
        return;
    }
    run("mount -t tmpfs tmpfs /run
        sysctl -q -w net.ipv4.ip_forward=1
        for n in 1 2; do
          ip netns add n$n; ip link add r$n type veth peer name eth0 netns n$n
          ip addr add 10.$n.0.1/24 dev r$n; ip link set r$n up
          ip -n n$n addr add 10.$n.0.11/24 dev eth0; ip -n n$n link set eth0 up; ip -n n$n link set lo up
          ip -n n$n route add default via 10.$n.0.1
          ip -n n$n link add pods type bridge; ip -n n$n addr add 10.244.$n.2/24 dev pods; ip -n n$n link set pods up
        done
        ip link add cc type veth peer name dd; ip link set cc netns n1; ip link set dd netns n2");
    let ping = |size: u32| {
        let command = format!("ip netns exec n1 ping -c1 -W2 -M do -s {size} -I 10.244.1.2 10.244.2.2");
        Command::new("sh")
            .args(["-c", &command])
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(!ping(56), "the router knows nothing of pods");
    for _ in 0..2 {
        route("n1", "10.1.0.11", "10.244.1.0/24", "10.2.0.11", "10.244.2.0/24").await;
        route("n2", "10.2.0.11", "10.244.2.0/24", "10.1.0.11", "10.244.1.0/24").await;
    }
    // Ethernet's 1500 less the envelope's 50, less the headers of IP and ICMP.
    assert!(ping(56) && ping(1450 - 28));
    assert!(!ping(1450 - 27), "longer packets are told of the limit");
    let from_node = run("ip netns exec n1 ping -c1 -W2 10.244.2.2");
    assert!(from_node.contains("1 received"), "{from_node}");

    // A link between the two comes up: the way is direct from now on.
    run(
        "ip -n n1 addr add 10.9.0.1/24 dev cc; ip -n n1 link set cc up; ip -n n2 addr add 10.9.0.2/24 dev dd; ip -n n2 link set dd up",
    );
    route("n1", "10.9.0.1", "10.244.1.0/24", "10.9.0.2", "10.244.2.0/24").await;
    route("n2", "10.9.0.2", "10.244.2.0/24", "10.9.0.1", "10.244.1.0/24").await;
    assert!(ping(1500 - 28));
    let left = run("ip -n n1 route; ip -n n1 link");
    assert!(
        left.contains("10.244.2.0/24 via 10.9.0.2 dev cc") && !left.contains(overlay::DEVICE),
        "{left}"
    );
}

#[tokio::test]
async fn a_load_balancer_s_address_moves_with_its_announcement() {
    if !in_own_namespaces("native_tests::a_load_balancer_s_address_moves_with_its_announcement") {
        return;
    }
    run("mount -t tmpfs tmpfs /run
        ip link add lan type bridge; ip link set lan up
        for n in n1 n2 outside; do
          ip netns add $n; ip link add $n type veth peer name eth0 netns $n; ip link set $n master lan up
          ip netns exec $n sysctl -q -w net.ipv6.conf.eth0.accept_dad=0
          ip -n $n link set eth0 up; ip -n $n link set lo up
        done
        ip -n n1 addr add 192.168.76.11/24 dev eth0; ip -n n2 addr add 192.168.76.12/24 dev eth0
        ip -n outside addr add 192.168.76.1/24 dev eth0
        ip -n n1 addr add fd00:76::11/64 dev eth0 nodad; ip -n n2 addr add fd00:76::12/64 dev eth0 nodad
        ip -n outside addr add fd00:76::1/64 dev eth0 nodad");
    let hardware = |node: &str| {
        run(&format!("ip netns exec {node} cat /sys/class/net/eth0/address"))
            .trim()
            .to_owned()
    };
    let announced = |by: &str| -> Vec<Arc<Service>> {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "annotations": {api::metal::ANNOUNCED_BY: by}},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.168.76.200"}, {"ip": "fd00:76::200"}]}}}))
        .unwrap();
        vec![Arc::new(service)]
    };
    // First the new owner hears of it, then the old one: for a moment both carry the address.
    for (by, order) in [("n1", ["n1", "n2"]), ("n2", ["n2", "n1"]), ("n1", ["n1", "n2"])] {
        for node in order {
            let services = announced(by);
            within(&netns(node), move || async move {
                for told in announce::sync(&services, node).await? {
                    told.await.map_err(std::io::Error::other)?;
                }
                Ok(())
            })
            .await
            .unwrap();
        }
        for address in ["192.168.76.200", "fd00:76::200"] {
            let known = run(&format!("ip -n outside neigh show {address}"));
            assert!(
                by == "n1" && known.is_empty() || known.contains(&hardware(by)),
                "{address} at {by}: {known}"
            );
            run(&format!("ip netns exec outside ping -c1 -W2 {address}"));
            let known = run(&format!("ip -n outside neigh show {address}"));
            assert!(known.contains(&hardware(by)), "{address} at {by}: {known}");
        }
        let left = run(&format!("ip -n {} addr", order[1]));
        assert!(!left.contains("200"), "{left}");
    }
}

#[tokio::test]
async fn the_firewall_opens_what_its_table_says() {
    if !in_own_namespaces("native_tests::the_firewall_opens_what_its_table_says") {
        return;
    }
    run("mount -t tmpfs tmpfs /run; ip link set lo up; sysctl -q -w net.ipv4.ip_forward=1
        for n in outside pod; do
          ip netns add $n; ip link add $n type veth peer name eth0 netns $n; ip link set $n up
          ip -n $n link set eth0 up; ip -n $n link set lo up
        done
        ip addr add 192.168.76.11/24 dev outside; ip -n outside addr add 192.168.76.1/24 dev eth0
        ip addr add 10.244.0.1/24 dev pod; ip -n pod addr add 10.244.0.2/24 dev eth0; ip -n pod route add default via 10.244.0.1");
    let listen = |port: u16| std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
    const PORTS: [u16; 14] = [
        22, 2379, 2380, 6443, 8080, 9100, 10250, 10256, 10257, 10270, 29999, 30000, 32767, 32768,
    ];
    let _listeners = PORTS.map(listen);
    let refused = |from: &'static str| async move {
        let mut refused = Vec::new();
        for port in PORTS {
            let connect = move || async move {
                let to = std::net::SocketAddr::from(([192, 168, 76, 11], port));
                Ok(tokio::net::TcpStream::connect(to).await.is_err())
            };
            if within(&netns(from), connect).await.unwrap() {
                refused.push(port);
            }
        }
        refused
    };
    let facts = firewall::Facts {
        pod_networks: vec!["10.244.0.0/16".parse().unwrap()],
        ..firewall::Facts::default()
    };
    assert!(refused("outside").await.is_empty());
    for _ in 0..2 {
        firewall::apply(Family::V4, &facts).await.unwrap();
    }
    const CLOSED: [u16; 8] = [22, 2379, 2380, 8080, 9100, 10257, 29999, 32768];
    assert_eq!(refused("outside").await, CLOSED);
    assert_eq!(refused("pod").await, [2379, 2380]);
    run("ip netns exec outside ping -c1 -W2 192.168.76.11");
    assert!(
        std::net::TcpStream::connect("192.168.76.11:2379").is_ok(),
        "the node itself"
    );

    // As a host port leads to a pod, or a Service to a server in the node's own network.
    run(
        "iptables -w -t nat -A PREROUTING -i outside -p tcp --dport 8080 -j DNAT --to-destination 192.168.76.11:9100
        iptables -w -t nat -A PREROUTING -i outside -p tcp --dport 32768 -j DNAT --to-destination 10.244.0.2:80",
    );
    let listen = || async { tokio::net::TcpListener::bind("0.0.0.0:80").await?.into_std() };
    let _pod = within(&netns("pod"), listen).await.unwrap();
    let facts = firewall::Facts {
        masters: ["192.168.76.1".parse().unwrap()].into(),
        host_pods: [("tcp".to_owned(), 10257), ("tcp".to_owned(), 2379)].into(),
        ..facts
    };
    firewall::apply(Family::V4, &facts).await.unwrap();
    assert_eq!(refused("outside").await, [22, 9100, 29999]);
    assert_eq!(
        refused("pod").await,
        [2379, 2380],
        "a pod of the host's network opens no port of the node's own"
    );
}
