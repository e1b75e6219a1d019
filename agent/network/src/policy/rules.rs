//! NetworkPolicies as chains and sets of one address family. Pure.
//!
//! All traffic that is new passes `IRONLET-POLICY`, in the table mangle: there, cluster IPs are translated already, and
//! nothing that others accept in the table filter comes before. A pod that is isolated is led through a chain of its
//! rules: what a rule allows returns, what reaches the end is dropped. Pods with equal rules share a chain.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    NetworkPolicyPeer as Peer, NetworkPolicyPort as Port, NetworkPolicySpec as Spec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netfilter::Family;

use super::world::{Pod, World};

pub const CHAIN: &str = "IRONLET-POLICY";
/// Begins the names of the chains that pods share.
pub const POD_CHAINS: &str = "IRONLET-P-";

/// One set of the kernel: its type, and its members as ipset(8) writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub kind: &'static str,
    pub members: BTreeSet<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub sets: BTreeMap<String, Set>,
    pub chains: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }

    /// Where the pod itself stands in a packet, and its peer, for iptables and for sets.
    fn sides(self) -> (&'static str, &'static str) {
        match self {
            Self::Ingress => ("-d", "src"),
            Self::Egress => ("-s", "dst"),
        }
    }
}

/// The names of our sets begin with this.
pub fn set_prefix(family: Family) -> &'static str {
    match family {
        Family::V4 => "IRL4-",
        Family::V6 => "IRL6-",
    }
}

pub fn render(family: Family, world: &World, bridge: &str) -> Rules {
    let mut rules = Rules::default();
    let mut dispatch = vec!["-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".to_owned()];
    if family == Family::V6 {
        // Without neighbour discovery nobody reaches anybody (RFC 4861).
        dispatch.extend((133..=137).map(|kind| format!("-p icmpv6 -m icmp6 --icmpv6-type {kind} -j RETURN")));
    }
    if !world.policies.is_empty() {
        let mut renderer = Renderer {
            family,
            world,
            rules: &mut rules,
        };
        let pods: Vec<_> = world.local_pods(family).collect();
        dispatch.extend(
            pods.iter()
                .map(|(_, address)| format!("-s {address} -d {address} -j RETURN")),
        );
        for direction in [Direction::Egress, Direction::Ingress] {
            for (pod, address) in &pods {
                if let Some(chain) = renderer.pod_chain(pod, direction) {
                    dispatch.push(format!("{} {address} -j {chain}", direction.sides().0));
                }
            }
        }
        // A pod whose labels are not known yet waits.
        let known: BTreeSet<IpAddr> = pods
            .iter()
            .map(|(_, address)| *address)
            .chain(world.gateways.iter().copied())
            .collect();
        let known = known
            .into_iter()
            .filter(|ip| Family::of(*ip) == family)
            .map(|ip| ip.to_string());
        let known = renderer.set("known", "hash:net", known.collect());
        for cidr in world
            .pod_cidrs
            .iter()
            .filter(|cidr| Family::of(cidr.addr()) == family)
        {
            dispatch.push(format!(
                "-i {bridge} -s {cidr} -m set ! --match-set {known} src -j DROP"
            ));
            dispatch.push(format!("-d {cidr} -m set ! --match-set {known} dst -j DROP"));
        }
    }
    rules.chains.insert(CHAIN.to_owned(), dispatch);
    rules
}

struct Renderer<'a> {
    family: Family,
    world: &'a World,
    rules: &'a mut Rules,
}

impl Renderer<'_> {
    /// The chain of all policies that isolate the pod in this direction; `None` when it is not isolated.
    fn pod_chain(&mut self, pod: &Pod, direction: Direction) -> Option<String> {
        let world = self.world;
        let of_pod = world.policies.iter().filter(|((namespace, _), spec)| {
            *namespace == pod.namespace
                && isolates(spec, direction)
                && spec
                    .pod_selector
                    .as_ref()
                    .is_none_or(|s| api::selector::matches(s, Some(&pod.labels)))
        });
        let mut isolated = false;
        let mut lines = Vec::new();
        for ((namespace, _), spec) in of_pod {
            isolated = true;
            match direction {
                Direction::Ingress => {
                    for rule in spec.ingress.iter().flatten() {
                        self.rule(
                            pod,
                            namespace,
                            direction,
                            rule.from.as_deref(),
                            rule.ports.as_deref(),
                            &mut lines,
                        );
                    }
                }
                Direction::Egress => {
                    for rule in spec.egress.iter().flatten() {
                        self.rule(
                            pod,
                            namespace,
                            direction,
                            rule.to.as_deref(),
                            rule.ports.as_deref(),
                            &mut lines,
                        );
                    }
                }
            }
        }
        if !isolated {
            return None;
        }
        lines.push("-j DROP".to_owned());
        let name = format!("{POD_CHAINS}{}", digest(&lines));
        self.rules.chains.entry(name.clone()).or_insert(lines);
        Some(name)
    }

    fn rule(
        &mut self,
        pod: &Pod,
        namespace: &str,
        direction: Direction,
        peers: Option<&[Peer]>,
        ports: Option<&[Port]>,
        lines: &mut Vec<String>,
    ) {
        let (_, side) = direction.sides();
        let peers = peers.filter(|peers| !peers.is_empty());
        let matched: Vec<String> = match peers {
            None => vec![String::new()],
            Some(peers) => {
                let sets = self.peer_sets(namespace, peers);
                sets.iter()
                    .map(|set| format!("-m set --match-set {set} {side} "))
                    .collect()
            }
        };
        let Some(ports) = ports.filter(|ports| !ports.is_empty()) else {
            lines.extend(matched.iter().map(|matched| format!("{matched}-j RETURN")));
            return;
        };
        for port in ports {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let lower = protocol.to_ascii_lowercase();
            let numbers = match (&port.port, direction) {
                (None, _) => String::new(),
                (Some(IntOrString::Int(first)), _) => match port.end_port {
                    Some(last) => format!(" -m {lower} --dport {first}:{last}"),
                    None => format!(" -m {lower} --dport {first}"),
                },
                // A name means what it means at the destination.
                (Some(IntOrString::String(name)), Direction::Ingress) => match pod.port(protocol, name) {
                    Some(number) => format!(" -m {lower} --dport {number}"),
                    None => continue,
                },
                (Some(IntOrString::String(name)), Direction::Egress) => {
                    let set = self.named_port_set(namespace, peers, protocol, name);
                    lines.push(format!("-p {lower} -m set --match-set {set} dst,dst -j RETURN"));
                    continue;
                }
            };
            lines.extend(
                matched
                    .iter()
                    .map(|matched| format!("-p {lower}{numbers} {matched}-j RETURN")),
            );
        }
    }

    /// One set for all peers, and one more for each block of addresses with exceptions.
    fn peer_sets(&mut self, namespace: &str, peers: &[Peer]) -> Vec<String> {
        let mut plain = BTreeSet::new();
        let mut sets = Vec::new();
        for peer in peers {
            let Some(block) = &peer.ip_block else {
                for pod in self.pods(namespace, peer) {
                    plain.extend(pod.addresses_of(self.family).map(|ip| ip.to_string()));
                }
                continue;
            };
            let Some(networks) = self.networks(&block.cidr) else {
                continue;
            };
            let except = block
                .except
                .iter()
                .flatten()
                .filter_map(|cidr| self.networks(cidr))
                .flatten();
            let except: Vec<String> = except.map(|cidr| format!("{cidr} nomatch")).collect();
            if except.is_empty() {
                plain.extend(networks);
            } else {
                let members = networks.into_iter().chain(except).collect();
                sets.push(self.set(&digest(block), "hash:net", members));
            }
        }
        sets.push(self.set(&digest(&(namespace, peers)), "hash:net", plain));
        sets
    }

    fn named_port_set(
        &mut self,
        namespace: &str,
        peers: Option<&[Peer]>,
        protocol: &str,
        name: &str,
    ) -> String {
        let everybody = [Peer {
            namespace_selector: Some(LabelSelector::default()),
            ..Peer::default()
        }];
        let lower = protocol.to_ascii_lowercase();
        let mut members = BTreeSet::new();
        for peer in peers.unwrap_or(&everybody) {
            for pod in self.pods(namespace, peer) {
                if let Some(number) = pod.port(protocol, name) {
                    members.extend(
                        pod.addresses_of(self.family)
                            .map(|ip| format!("{ip},{lower}:{number}")),
                    );
                }
            }
        }
        self.set(
            &digest(&(namespace, peers, protocol, name)),
            "hash:ip,port",
            members,
        )
    }

    fn pods<'p>(&'p self, namespace: &'p str, peer: &'p Peer) -> impl Iterator<Item = &'p Pod> {
        // A peer of neither selector nor block chooses nobody.
        let chooses = peer.namespace_selector.is_some() || peer.pod_selector.is_some();
        let selected = self.world.select(
            namespace,
            peer.namespace_selector.as_ref(),
            peer.pod_selector.as_ref(),
        );
        selected.filter(move |_| chooses)
    }

    /// The kernel's sets know no network of all addresses: two halves are the same.
    fn networks(&self, cidr: &str) -> Option<Vec<String>> {
        let net: IpNet = cidr.parse().ok()?;
        if Family::of(net.addr()) != self.family {
            return None;
        }
        match (net.prefix_len(), self.family) {
            (0, Family::V4) => Some(vec!["0.0.0.0/1".into(), "128.0.0.0/1".into()]),
            (0, Family::V6) => Some(vec!["::/1".into(), "8000::/1".into()]),
            _ => Some(vec![net.trunc().to_string()]),
        }
    }

    fn set(&mut self, what: &str, kind: &'static str, members: BTreeSet<String>) -> String {
        let name = format!("{}{what}", set_prefix(self.family));
        self.rules
            .sets
            .entry(name.clone())
            .or_insert(Set { kind, members });
        name
    }
}

fn isolates(spec: &Spec, direction: Direction) -> bool {
    match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => types.iter().any(|t| t == direction.name()),
        _ => direction == Direction::Ingress || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

/// Sixteen digits that mean this value.
fn digest<T: std::fmt::Debug + ?Sized>(value: &T) -> String {
    let mut hasher = DefaultHasher::new();
    format!("{value:?}").hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
