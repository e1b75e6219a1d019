//! Which endpoints of a Service traffic from this node may go to: readiness, termination, traffic policies and hints
//! (upstream: pkg/proxy/topology.go, CategorizeEndpoints). Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::service_map::{NodeFacts, ServicePort};

/// An endpoint as the slices tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub address: SocketAddr,
    pub node: Option<String>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node_hints: Vec<String>,
    pub zone_hints: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// For traffic that may leave the node, and for traffic that may not.
    pub cluster: Vec<SocketAddr>,
    pub local: Vec<SocketAddr>,
    /// Somebody serves somewhere, though perhaps not for this node.
    pub any: bool,
    /// Ready ones on this node: what a load balancer's probe counts.
    pub local_ready: usize,
    /// Connections to these may go on.
    pub serving: BTreeSet<IpAddr>,
}

pub fn categorize(candidates: &[Candidate], node: &NodeFacts, port: &ServicePort) -> Endpoints {
    let is_local = |c: &&Candidate| c.node.as_deref() == Some(&node.name);
    let ready = || candidates.iter().filter(|c| c.ready);
    let last_resort = || {
        candidates
            .iter()
            .filter(|c| !c.ready && c.serving && c.terminating)
    };
    let addresses =
        |chosen: &mut dyn Iterator<Item = &Candidate>| chosen.map(|c| c.address).collect::<Vec<_>>();
    let mut endpoints = Endpoints {
        any: ready().chain(last_resort()).next().is_some(),
        local_ready: ready().filter(is_local).count(),
        serving: candidates
            .iter()
            .filter(|c| c.serving)
            .map(|c| c.address.ip())
            .collect(),
        ..Endpoints::default()
    };
    // External traffic with the policy Local still needs them for clients inside the cluster.
    if !port.internal_local || port.is_external() {
        let preferred = preference(candidates, node);
        endpoints.cluster = addresses(&mut ready().filter(|c| preferred(c)));
        if endpoints.cluster.is_empty() {
            endpoints.cluster = addresses(&mut last_resort());
        }
    }
    if port.internal_local || (port.external_local && port.is_external()) {
        endpoints.local = addresses(&mut ready().filter(is_local));
        if endpoints.local.is_empty() {
            endpoints.local = addresses(&mut last_resort().filter(is_local));
        }
    }
    endpoints
}

/// Hints count only when every ready endpoint has one and one of them is for us: the same node, else the same zone.
fn preference<'a>(candidates: &[Candidate], node: &'a NodeFacts) -> Box<dyn Fn(&Candidate) -> bool + 'a> {
    let usable = |hints: fn(&Candidate) -> &Vec<String>, own: &str| {
        let mut ready = candidates.iter().filter(|c| c.ready).map(hints).peekable();
        ready.peek().is_some()
            && ready.clone().all(|hints| !hints.is_empty())
            && ready.any(|hints| hints.iter().any(|hint| hint == own))
    };
    if usable(|c| &c.node_hints, &node.name) {
        return Box::new(|c| c.node_hints.contains(&node.name));
    }
    match &node.zone {
        Some(zone) if usable(|c| &c.zone_hints, zone) => Box::new(|c| c.zone_hints.contains(zone)),
        _ => Box::new(|_| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ready`, `serving` (while terminating) or `down`, then the node, then hints `n:` and `z:`.
    fn candidates(texts: &[&str]) -> Vec<Candidate> {
        let one = |(index, text): (usize, &&str)| {
            let mut words = text.split(' ');
            let (state, node) = (words.next().unwrap(), words.next().unwrap());
            let mut candidate = Candidate {
                address: SocketAddr::new(IpAddr::from([10, 0, 0, index as u8 + 1]), 80),
                node: Some(node.into()),
                ready: state == "ready",
                serving: state != "down",
                terminating: state == "serving",
                node_hints: vec![],
                zone_hints: vec![],
            };
            for hint in words {
                match hint.split_once(':').unwrap() {
                    ("n", node) => candidate.node_hints.push(node.into()),
                    (_, zone) => candidate.zone_hints.push(zone.into()),
                }
            }
            candidate
        };
        texts.iter().enumerate().map(one).collect()
    }

    fn show(endpoints: &[SocketAddr]) -> String {
        let last = |e: &SocketAddr| e.ip().to_string().rsplit('.').next().unwrap().to_owned();
        endpoints.iter().map(last).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn every_policy_has_its_endpoints() {
        let node = NodeFacts {
            name: "a".into(),
            zone: Some("z1".into()),
            ..NodeFacts::default()
        };
        let both = ["ready a", "ready b", "serving a", "down a"];
        let ending = ["serving a", "serving b", "down b"];
        let hinted = ["ready b z:z2", "ready c z:z1", "ready a z:z1 z:z2"];
        let half_hinted = ["ready b z:z1", "ready c"];
        let elsewhere = ["ready b z:z2", "ready c z:z3"];
        let same_node = ["ready a n:a z:z2", "ready b n:b z:z1"];
        let other_node = ["ready c n:c z:z2", "ready b n:b z:z1"];
        for (texts, internal_local, external_local, want) in [
            (&both[..], false, false, "1,2 |  | true 1"),
            (&both, true, false, "1,2 | 1 | true 1"),
            (&both, false, true, "1,2 | 1 | true 1"),
            (&ending, false, false, "1,2 |  | true 0"),
            (&ending, false, true, "1,2 | 1 | true 0"),
            (&["down a"], false, true, " |  | false 0"),
            (&["ready b"], true, true, "1 |  | true 0"),
            (&hinted, false, true, "2,3 | 3 | true 1"),
            (&half_hinted, false, false, "1,2 |  | true 0"),
            (&elsewhere, false, false, "1,2 |  | true 0"),
            (&same_node, false, false, "1 |  | true 1"),
            (&other_node, false, false, "2 |  | true 0"),
        ] {
            let port = ServicePort {
                cluster_ip: IpAddr::from([172, 30, 0, 1]),
                port: 80,
                node_port: Some(30080),
                external_ips: vec![],
                load_balancer_ips: vec![],
                load_balancer_source_ranges: vec![],
                affinity_seconds: None,
                internal_local,
                external_local,
                health_check_node_port: None,
                endpoints: Endpoints::default(),
            };
            let found = categorize(&candidates(texts), &node, &port);
            let shown = format!(
                "{} | {} | {} {}",
                show(&found.cluster),
                show(&found.local),
                found.any,
                found.local_ready
            );
            assert_eq!(
                shown, want,
                "{texts:?} internal {internal_local} external {external_local}"
            );
        }
    }

    #[test]
    fn a_service_of_the_node_alone_needs_no_endpoints_elsewhere() {
        let port = ServicePort {
            cluster_ip: IpAddr::from([172, 30, 0, 1]),
            port: 80,
            node_port: None,
            external_ips: vec![],
            load_balancer_ips: vec![],
            load_balancer_source_ranges: vec![],
            affinity_seconds: None,
            internal_local: true,
            external_local: false,
            health_check_node_port: None,
            endpoints: Endpoints::default(),
        };
        let node = NodeFacts {
            name: "a".into(),
            ..NodeFacts::default()
        };
        let found = categorize(&candidates(&["ready b"]), &node, &port);
        assert!(found.any && found.cluster.is_empty() && found.local.is_empty());
    }
}
