//! The node's own firewall: what is open to the outside is one table, and all else is refused. Traffic of pods, of
//! Services and of connections that exist passes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use netfilter::Family;
use netfilter::iptables::{self, Changes, IptablesError, Jump};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::overlay;
use crate::pod_network::{read, replace_file};
use crate::routes::peer;

const CHAIN: &str = "IRONLET-FIREWALL";
const MASTER_LABEL: &str = "node-role.kubernetes.io/control-plane";
/// Somebody may have taken our jump away.
const RESYNC: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Anyone,
    Nodes,
    Masters,
}

struct Opening {
    purpose: &'static str,
    protocol: &'static str,
    /// First and last.
    ports: (u16, u16),
    from: From,
}

const fn open(purpose: &'static str, protocol: &'static str, ports: (u16, u16), from: From) -> Opening {
    Opening {
        purpose,
        protocol,
        ports,
        from,
    }
}

/// What the machine itself serves. A port is open to those named here and, whatever else runs, to nobody else.
const OPENINGS: &[Opening] = &[
    open("API server", "tcp", (6443, 6443), From::Anyone),
    open("kubelet", "tcp", (10250, 10250), From::Anyone),
    open("node API", "tcp", (10270, 10270), From::Anyone),
    open(
        "kube-proxy health, for load balancers",
        "tcp",
        (10256, 10256),
        From::Anyone,
    ),
    open("etcd", "tcp", (2379, 2380), From::Masters),
    open(
        "pod network overlay",
        "udp",
        (overlay::PORT, overlay::PORT),
        From::Nodes,
    ),
    open(
        "node ports and their health checks",
        "tcp",
        (30_000, 32_767),
        From::Anyone,
    ),
    open("node ports", "udp", (30_000, 32_767), From::Anyone),
    open("node ports", "sctp", (30_000, 32_767), From::Anyone),
];

/// What passes whatever its port, by family: `None` is both.
const PASSING: &[(Option<Family>, &str)] = &[
    (None, "-i lo"),
    (None, "-m conntrack --ctstate RELATED,ESTABLISHED"),
    // Services and host ports lead to a server on the node's own address, too.
    (None, "-m conntrack --ctstate DNAT"),
    (Some(Family::V4), "-p icmp"),
    (Some(Family::V6), "-p icmpv6"),
    (Some(Family::V4), "-p udp -m udp --sport 67 --dport 68"),
    (Some(Family::V6), "-p udp -m udp --sport 547 --dport 546"),
];

/// What the rules depend on.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub pod_networks: Vec<IpNet>,
    pub nodes: BTreeSet<IpAddr>,
    pub masters: BTreeSet<IpAddr>,
    /// What pods in the node's own network declare to serve: protocol and port.
    pub host_pods: BTreeSet<(String, u16)>,
}

impl Facts {
    /// What was known when the machine went down: masters must reach each other's etcd before anybody answers here.
    fn remembered(file: &Path) -> Self {
        read(file)
            .unwrap_or_else(|error| {
                warn!(%error, "the firewall's record is ignored");
                None
            })
            .unwrap_or_default()
    }

    fn remember(&self, file: &Path) {
        if let Err(error) = replace_file(file, self) {
            warn!(file = %file.display(), %error, "cannot write the firewall's record");
        }
    }
}

fn render(family: Family, facts: &Facts) -> Vec<String> {
    let of_family = |ip: &&IpAddr| Family::of(**ip) == family;
    let mut rules: Vec<String> = PASSING
        .iter()
        .filter(|(only, _)| only.is_none_or(|only| only == family))
        .map(|(_, matched)| format!("{matched} -j RETURN"))
        .collect();
    for Opening {
        purpose,
        protocol,
        ports: (first, last),
        from,
    } in OPENINGS
    {
        let ports = if first == last {
            first.to_string()
        } else {
            format!("{first}:{last}")
        };
        let matched =
            format!("-p {protocol} -m {protocol} --dport {ports} -m comment --comment \"{purpose}\"");
        let sources = match from {
            From::Anyone => {
                rules.push(format!("{matched} -j RETURN"));
                continue;
            }
            From::Nodes => &facts.nodes,
            From::Masters => &facts.masters,
        };
        rules.extend(
            sources
                .iter()
                .filter(of_family)
                .map(|ip| format!("-s {ip} {matched} -j RETURN")),
        );
        rules.push(format!("{matched} -j REJECT"));
    }
    let pods = facts
        .pod_networks
        .iter()
        .filter(|net| Family::of(net.addr()) == family);
    rules.extend(pods.map(|net| format!("-s {net} -j RETURN")));
    rules.extend(facts.host_pods.iter().map(|(protocol, port)| {
        format!("-p {protocol} -m {protocol} --dport {port} -m comment --comment \"pods in the node's network\" -j RETURN")
    }));
    rules.push("-p tcp -j REJECT --reject-with tcp-reset".into());
    rules.push("-j REJECT".into());
    rules
}

pub async fn apply(family: Family, facts: &Facts) -> Result<(), IptablesError> {
    let mut changes = Changes::default();
    changes.chain(CHAIN, &render(family, facts));
    iptables::restore(family, &changes.render("filter")).await?;
    let jump = Jump {
        chain: "INPUT",
        first: false,
        rule: &["-j", CHAIN],
    };
    iptables::ensure_jumps(family, "filter", &[jump]).await
}

/// Keeps the firewall as the cluster's nodes and this node's pods want it, until `shutdown`; it stays when this ends.
/// `record` keeps what it rests on for the next start.
pub async fn run(
    client: Client,
    node: String,
    pod_networks: Vec<IpNet>,
    record: PathBuf,
    shutdown: CancellationToken,
) {
    let mut applied = Facts {
        pod_networks,
        ..Facts::remembered(&record)
    };
    put(&applied).await;
    let (nodes, node_writer) = reflector::store::<Node>();
    let (pods, pod_writer) = reflector::store::<Pod>();
    let own = watcher::Config::default()
        .any_semantic()
        .fields(&format!("spec.nodeName={node}"));
    let node_events = watcher(
        Api::<Node>::all(client.clone()),
        watcher::Config::default().any_semantic(),
    )
    .default_backoff()
    .reflect(node_writer)
    .map(|event| event.map(|_| ()));
    let pod_events = watcher(Api::<Pod>::all(client), own)
        .default_backoff()
        .reflect(pod_writer)
        .map(|event| event.map(|_| ()));
    let mut events = stream::select(node_events.boxed(), pod_events.boxed());
    let mut resync = tokio::time::interval(RESYNC);
    resync.reset();
    let known = async {
        // A store that was dropped ends with this.
        let _ = tokio::join!(nodes.wait_until_ready(), pods.wait_until_ready());
    };
    tokio::pin!(known);
    let mut complete = false;
    loop {
        let again = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => match event {
                Some(Ok(())) => false,
                Some(Err(error)) => { warn!(%error, "the watch for the firewall failed"); continue }
                None => return,
            },
            () = &mut known, if !complete => { complete = true; false }
            _ = resync.tick() => true,
        };
        let facts = if complete {
            facts(applied.pod_networks.clone(), &nodes.state(), &pods.state())
        } else {
            applied.clone()
        };
        if facts == applied && !again {
            continue;
        }
        let in_place = put(&facts).await;
        if facts != applied {
            if in_place {
                info!(
                    nodes = facts.nodes.len(),
                    host_pods = facts.host_pods.len(),
                    "the node's firewall is in place"
                );
            }
            facts.remember(&record);
            applied = facts;
        }
    }
}

/// False when a family's rules stay as they were, until the next time.
async fn put(facts: &Facts) -> bool {
    let mut in_place = true;
    for family in [Family::V4, Family::V6] {
        if let Err(error) = apply(family, facts).await {
            warn!(?family, %error, "cannot change the node's firewall");
            in_place = false;
        }
    }
    in_place
}

fn facts(pod_networks: Vec<IpNet>, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Facts {
    let addresses = |node: &Arc<Node>| peer(node).addresses;
    let masters = nodes
        .iter()
        .filter(|node| node.labels().contains_key(MASTER_LABEL));
    Facts {
        pod_networks,
        nodes: nodes.iter().flat_map(addresses).collect(),
        masters: masters.flat_map(addresses).collect(),
        host_pods: pods.iter().flat_map(|pod| declared(pod)).collect(),
    }
}

/// The ports of a pod in the node's own network.
fn declared(pod: &Pod) -> Vec<(String, u16)> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let spec = pod.spec.as_ref().filter(|spec| spec.host_network == Some(true));
    let Some(spec) = spec.filter(|_| !matches!(phase, Some("Succeeded" | "Failed"))) else {
        return Vec::new();
    };
    let ports = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .flat_map(|container| container.ports.iter().flatten());
    let numbers = ports.filter_map(|port| {
        let number = u16::try_from(port.container_port).ok()?;
        Some((port.protocol.as_deref().unwrap_or("TCP").to_lowercase(), number))
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_the_rules() {
        let facts = Facts {
            pod_networks: vec!["10.244.0.0/16".parse().unwrap()],
            nodes: ["192.168.76.11", "192.168.76.21", "fd00::21"]
                .map(|ip| ip.parse().unwrap())
                .into(),
            masters: ["192.168.76.11".parse().unwrap()].into(),
            host_pods: [("tcp".to_owned(), 8443)].into(),
        };
        assert_eq!(
            render(Family::V4, &facts).join("\n"),
            "-i lo -j RETURN\n\
             -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
             -m conntrack --ctstate DNAT -j RETURN\n\
             -p icmp -j RETURN\n\
             -p udp -m udp --sport 67 --dport 68 -j RETURN\n\
             -p tcp -m tcp --dport 6443 -m comment --comment \"API server\" -j RETURN\n\
             -p tcp -m tcp --dport 10250 -m comment --comment \"kubelet\" -j RETURN\n\
             -p tcp -m tcp --dport 10270 -m comment --comment \"node API\" -j RETURN\n\
             -p tcp -m tcp --dport 10256 -m comment --comment \"kube-proxy health, for load balancers\" -j RETURN\n\
             -s 192.168.76.11 -p tcp -m tcp --dport 2379:2380 -m comment --comment \"etcd\" -j RETURN\n\
             -p tcp -m tcp --dport 2379:2380 -m comment --comment \"etcd\" -j REJECT\n\
             -s 192.168.76.11 -p udp -m udp --dport 8472 -m comment --comment \"pod network overlay\" -j RETURN\n\
             -s 192.168.76.21 -p udp -m udp --dport 8472 -m comment --comment \"pod network overlay\" -j RETURN\n\
             -p udp -m udp --dport 8472 -m comment --comment \"pod network overlay\" -j REJECT\n\
             -p tcp -m tcp --dport 30000:32767 -m comment --comment \"node ports and their health checks\" -j RETURN\n\
             -p udp -m udp --dport 30000:32767 -m comment --comment \"node ports\" -j RETURN\n\
             -p sctp -m sctp --dport 30000:32767 -m comment --comment \"node ports\" -j RETURN\n\
             -s 10.244.0.0/16 -j RETURN\n\
             -p tcp -m tcp --dport 8443 -m comment --comment \"pods in the node's network\" -j RETURN\n\
             -p tcp -j REJECT --reject-with tcp-reset\n\
             -j REJECT"
        );
    }

    #[test]
    fn pods_in_the_nodes_network_open_what_they_declare_while_they_run() {
        let pod = |host: bool, phase: &str| -> Arc<Pod> {
            let port = json!({"containerPort": 53, "protocol": "UDP"});
            let pod = json!({
                "spec": {"hostNetwork": host, "initContainers": [{"name": "s", "ports": [{"containerPort": 8443}]}],
                    "containers": [{"name": "c", "ports": [port]}, {"name": "d"}]},
                "status": {"phase": phase},
            });
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let opened = |pod| facts(Vec::new(), &[], &[pod]).host_pods;
        assert_eq!(
            opened(pod(true, "Running")),
            [("tcp".to_owned(), 8443), ("udp".to_owned(), 53)].into()
        );
        assert!(opened(pod(true, "Succeeded")).is_empty());
        assert!(opened(pod(false, "Running")).is_empty());
    }

    #[test]
    fn what_was_known_outlives_a_restart_and_a_spoilt_record_does_not_matter() {
        let dir = std::env::temp_dir().join(format!("ironlet-firewall-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("firewall.json");
        assert_eq!(Facts::remembered(&file), Facts::default());
        let facts = Facts {
            masters: ["192.168.76.11".parse().unwrap()].into(),
            host_pods: [("tcp".to_owned(), 8443)].into(),
            ..Facts::default()
        };
        facts.remember(&file);
        assert_eq!(Facts::remembered(&file), facts);
        std::fs::write(&file, "{").unwrap();
        assert_eq!(Facts::remembered(&file), Facts::default());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
