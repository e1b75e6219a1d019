//! The rules of Services as values: chains and their rules, named and written as upstream's proxier names and writes
//! them (pkg/proxy/iptables/proxier.go). A Service's rules depend on nothing but the Service. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use netfilter::Family;

use crate::service_map::{NodeFacts, PortName, Ports, ServicePort};

/// Chain name → rules, without the leading `-A CHAIN`.
pub type Chains = BTreeMap<String, Vec<String>>;

/// The bit that marks packets to masquerade (upstream's default, iptablesMasqueradeBit 14).
const MASQUERADE_MARK: &str = "0x4000";

/// Chains that hold rules of all Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shared {
    Services,
    NodePorts,
    /// In the table filter.
    Refused,
    RefusedOutside,
    Firewall,
}

impl Shared {
    pub const ALL: [Self; 5] = [
        Self::Services,
        Self::NodePorts,
        Self::Refused,
        Self::RefusedOutside,
        Self::Firewall,
    ];

    /// Table and chain.
    pub fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::Services => ("nat", "KUBE-SERVICES"),
            Self::NodePorts => ("nat", "KUBE-NODEPORTS"),
            Self::Refused => ("filter", "KUBE-SERVICES"),
            Self::RefusedOutside => ("filter", "KUBE-EXTERNAL-SERVICES"),
            Self::Firewall => ("filter", "KUBE-PROXY-FIREWALL"),
        }
    }
}

/// All rules of one Service in one family.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub struct Fragment {
    /// Its own chains, all in the table nat.
    pub chains: Chains,
    pub shared: BTreeSet<(Shared, String)>,
}

/// What the rules of every Service need of the node.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub struct Base {
    pub nat: Chains,
    pub filter: Chains,
    /// What ends the table nat's KUBE-SERVICES.
    pub node_ports: Vec<String>,
}

/// The jumps from built-in chains: table, chain, rule.
pub const JUMPS: [(&str, &str, &str); 12] = [
    (
        "nat",
        "PREROUTING",
        "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
    ),
    (
        "nat",
        "OUTPUT",
        "-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
    ),
    (
        "nat",
        "POSTROUTING",
        "-m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
    ),
    (
        "filter",
        "INPUT",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES",
    ),
    (
        "filter",
        "FORWARD",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES",
    ),
    (
        "filter",
        "FORWARD",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
    ),
    (
        "filter",
        "OUTPUT",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
    ),
    (
        "filter",
        "FORWARD",
        "-m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD",
    ),
    (
        "filter",
        "INPUT",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL",
    ),
    (
        "filter",
        "FORWARD",
        "-m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL",
    ),
    ("filter", "INPUT", "-j KUBE-FIREWALL"),
    ("filter", "OUTPUT", "-j KUBE-FIREWALL"),
];

/// Chains that this proxy makes and may delete: one or more per Service or endpoint.
pub fn is_per_service(chain: &str) -> bool {
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-SEP-", "KUBE-FW-"]
        .iter()
        .any(|p| chain.starts_with(p))
}

/// `node_port_networks`: node ports are open at the node's addresses in these; at all of them when there is none.
pub fn base(family: Family, node_port_networks: &[IpNet]) -> Base {
    let mark = MASQUERADE_MARK;
    let nat = Chains::from([
        ("KUBE-MARK-MASQ".into(), vec![format!("-j MARK --or-mark {mark}")]),
        (
            "KUBE-POSTROUTING".into(),
            vec![
                format!("-m mark ! --mark {mark}/{mark} -j RETURN"),
                format!("-j MARK --xor-mark {mark}"),
                "-m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully".into(),
            ],
        ),
        ("KUBE-PROXY-CANARY".into(), vec![]),
    ]);
    let mut filter = Chains::from([
        (
            "KUBE-FORWARD".into(),
            vec![
                "-m conntrack --ctstate INVALID -j DROP".into(),
                format!("-m comment --comment \"kubernetes forwarding rules\" -m mark --mark {mark}/{mark} -j ACCEPT"),
                "-m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".into(),
            ],
        ),
        ("KUBE-FIREWALL".into(), vec![]),
        ("KUBE-PROXY-CANARY".into(), vec![]),
    ]);
    if family == Family::V4 {
        // Node ports at 127.0.0.1 need route_localnet, which would open the node's loopback to its neighbours.
        filter.insert("KUBE-FIREWALL".into(), vec![
            "-m comment --comment \"block incoming localnet connections\" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP".into(),
        ]);
    }
    let comment = "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\"";
    let networks = node_port_networks
        .iter()
        .filter(|net| Family::of(net.addr()) == family);
    let destination = |net: &IpNet| {
        if net.prefix_len() == 0 {
            String::new()
        } else {
            format!(" -d {net}")
        }
    };
    let mut destinations: Vec<String> = networks.map(destination).collect();
    if node_port_networks.is_empty() {
        destinations.push(String::new());
    }
    // Nothing can be translated from ::1, unlike from 127.0.0.1.
    let but = if family == Family::V6 { "! -d ::1/128 " } else { "" };
    let node_port = |to: String| {
        let but = if to.is_empty() { but } else { "" };
        format!("{comment} -m addrtype --dst-type LOCAL{to} {but}-j KUBE-NODEPORTS")
    };
    let node_ports = destinations.into_iter().map(node_port).collect();
    Base {
        nat,
        filter,
        node_ports,
    }
}

/// `cluster_cidr`: where pods are; others' traffic to cluster IPs is masqueraded.
pub fn render(ports: &Ports, cluster_cidr: Option<IpNet>, node: &NodeFacts) -> Fragment {
    let mut fragment = Fragment::default();
    for (name, port) in ports {
        Renderer {
            name,
            port,
            cluster_cidr,
            node,
            fragment: &mut fragment,
        }
        .render();
    }
    fragment
}

struct Renderer<'a> {
    name: &'a PortName,
    port: &'a ServicePort,
    cluster_cidr: Option<IpNet>,
    node: &'a NodeFacts,
    fragment: &'a mut Fragment,
}

impl Renderer<'_> {
    fn render(&mut self) {
        let Self { name, port, .. } = *self;
        let cluster = chain("KUBE-SVC-", name, None);
        let local = chain("KUBE-SVL-", name, None);
        let choose = |local_only: bool| if local_only { &local } else { &cluster };
        let endpoints = |local_only: bool| match local_only {
            true => &port.endpoints.local,
            false => &port.endpoints.cluster,
        };
        let internal = choose(port.internal_local);
        let internal_ready = !endpoints(port.internal_local).is_empty();
        if internal_ready {
            self.portal("cluster IP", port.cluster_ip, internal);
        } else {
            self.refuse(
                Shared::Refused,
                port.internal_local,
                &matches(name, port.cluster_ip, port.port),
            );
        }
        if port.is_external() {
            let ready = !endpoints(port.external_local).is_empty();
            self.external(&cluster, choose(port.external_local), ready);
        }
        for (chain, endpoints) in [
            (&cluster, &port.endpoints.cluster),
            (&local, &port.endpoints.local),
        ] {
            if !endpoints.is_empty() {
                self.load_balance(chain, endpoints, chain == internal);
            }
            for endpoint in endpoints {
                self.endpoint(*endpoint);
            }
        }
    }

    fn share(&mut self, chain: Shared, rule: String) {
        self.fragment.shared.insert((chain, rule));
    }

    fn portal(&mut self, what: &str, ip: IpAddr, target: &str) {
        let Self { name, port, .. } = *self;
        let matched = matches(name, ip, port.port);
        self.share(
            Shared::Services,
            format!("-m comment --comment \"{name} {what}\" {matched} -j {target}"),
        );
    }

    /// Without any endpoint a client is told at once; with endpoints elsewhere a load balancer's probe must see silence.
    fn refuse(&mut self, chain: Shared, local_only: bool, matched: &str) {
        let name = self.name;
        let (reason, verdict) = match local_only && self.port.endpoints.any {
            true => ("has no local endpoints", "DROP"),
            false => ("has no endpoints", "REJECT"),
        };
        self.share(
            chain,
            format!("-m comment --comment \"{name} {reason}\" {matched} -j {verdict}"),
        );
    }

    /// `ready`: the policy for traffic from outside has endpoints in `policy`.
    fn external(&mut self, cluster: &str, policy: &str, ready: bool) {
        let Self { name, port, .. } = *self;
        let protocol = name.protocol;
        // Clients on this node and in pods reach endpoints elsewhere whatever the policy.
        let reachable = !port.endpoints.cluster.is_empty() || !port.endpoints.local.is_empty();
        let external = chain("KUBE-EXT-", name, None);
        let balancer = match reachable && !port.load_balancer_source_ranges.is_empty() {
            true => chain("KUBE-FW-", name, None),
            false => external.clone(),
        };
        let places = port.external_ips.iter().map(|ip| ("external IP", *ip, &external));
        let balanced = port
            .load_balancer_ips
            .iter()
            .map(|ip| ("loadbalancer IP", *ip, &balancer));
        for (what, ip, target) in places.chain(balanced) {
            if reachable {
                self.portal(what, ip, target);
            }
            if !ready {
                self.refuse(
                    Shared::RefusedOutside,
                    port.external_local,
                    &matches(name, ip, port.port),
                );
            }
        }
        if let Some(node_port) = port.node_port {
            let matched = format!("-m {protocol} -p {protocol} --dport {node_port}");
            if reachable {
                self.share(
                    Shared::NodePorts,
                    format!("-m comment --comment {name} {matched} -j {external}"),
                );
            }
            if !ready {
                let matched = format!("-m addrtype --dst-type LOCAL {matched}");
                self.refuse(Shared::RefusedOutside, port.external_local, &matched);
            }
        }
        if reachable {
            if balancer != external && !port.load_balancer_ips.is_empty() {
                self.firewall(&balancer, &external);
            }
            self.external_chain(external, cluster, policy, ready);
        }
    }

    fn external_chain(&mut self, external: String, cluster: &str, policy: &str, ready: bool) {
        let name = self.name;
        let mut rules = Vec::new();
        if !self.port.external_local {
            rules.push(format!("-m comment --comment \"masquerade traffic for {name} external destinations\" -j KUBE-MARK-MASQ"));
        } else if !self.port.endpoints.cluster.is_empty() {
            if let Some(cidr) = self.cluster_cidr {
                rules.push(format!("-m comment --comment \"pod traffic for {name} external destinations\" -s {cidr} -j {cluster}"));
            }
            rules.push(format!("-m comment --comment \"masquerade LOCAL traffic for {name} external destinations\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"));
            rules.push(format!("-m comment --comment \"route LOCAL traffic for {name} external destinations\" -m addrtype --src-type LOCAL -j {cluster}"));
        }
        if ready {
            rules.push(format!("-j {policy}"));
        }
        self.fragment.chains.insert(external, rules);
    }

    /// Only the Service's source ranges may use its load balancer addresses (loadBalancerSourceRanges).
    fn firewall(&mut self, firewall: &str, external: &str) {
        let Self { name, port, node, .. } = *self;
        let ranges = &port.load_balancer_source_ranges;
        let mut sources: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        // An address that the node has itself is reached without a balancer, from itself.
        if ranges
            .iter()
            .any(|range| node.addresses.iter().any(|ip| range.contains(ip)))
        {
            sources.extend(port.load_balancer_ips.iter().map(ToString::to_string));
        }
        let allow =
            |source| format!("-m comment --comment \"{name} loadbalancer IP\" -s {source} -j {external}");
        self.fragment
            .chains
            .insert(firewall.to_owned(), sources.into_iter().map(allow).collect());
        for ip in &port.load_balancer_ips {
            let matched = matches(name, *ip, port.port);
            let comment = format!("\"{name} traffic not accepted by {firewall}\"");
            self.share(
                Shared::Firewall,
                format!("-m comment --comment {comment} {matched} -j DROP"),
            );
        }
    }

    fn load_balance(&mut self, service_chain: &str, endpoints: &[SocketAddr], internal: bool) {
        let Self { name, port, .. } = *self;
        let mut rules = Vec::with_capacity(endpoints.len() + 1);
        if let Some(cidr) = self.cluster_cidr.filter(|_| internal) {
            let matched = matches(name, port.cluster_ip, port.port);
            rules.push(format!(
                "-m comment --comment \"{name} cluster IP\" {matched} ! -s {cidr} -j KUBE-MARK-MASQ"
            ));
        }
        let seps: Vec<String> = endpoints
            .iter()
            .map(|e| chain("KUBE-SEP-", name, Some(*e)))
            .collect();
        if let Some(seconds) = port.affinity_seconds {
            for (endpoint, sep) in endpoints.iter().zip(&seps) {
                rules.push(format!(
                    "-m comment --comment \"{name} -> {endpoint}\" -m recent --name {sep} --rcheck --seconds {seconds} --reap -j {sep}"
                ));
            }
        }
        for (i, (endpoint, sep)) in endpoints.iter().zip(&seps).enumerate() {
            let left = endpoints.len() - i;
            let chance = match left {
                1 => String::new(),
                _ => format!(
                    "-m statistic --mode random --probability {:.10} ",
                    1.0 / left as f64
                ),
            };
            rules.push(format!(
                "-m comment --comment \"{name} -> {endpoint}\" {chance}-j {sep}"
            ));
        }
        self.fragment.chains.insert(service_chain.to_owned(), rules);
    }

    fn endpoint(&mut self, endpoint: SocketAddr) {
        let Self { name, port, .. } = *self;
        let protocol = name.protocol;
        let sep = chain("KUBE-SEP-", name, Some(endpoint));
        let remember = match port.affinity_seconds {
            Some(_) => format!("-m recent --name {sep} --set "),
            None => String::new(),
        };
        let rules = vec![
            format!(
                "-m comment --comment {name} -s {} -j KUBE-MARK-MASQ",
                endpoint.ip()
            ),
            format!(
                "-m comment --comment {name} {remember}-m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}"
            ),
        ];
        self.fragment.chains.insert(sep, rules);
    }
}

fn matches(name: &PortName, ip: IpAddr, port: u16) -> String {
    let protocol = name.protocol;
    format!("-m {protocol} -p {protocol} -d {ip} --dport {port}")
}

/// Upstream's chain names: a prefix and 16 base32 digits of a SHA-256.
fn chain(prefix: &str, name: &PortName, endpoint: Option<SocketAddr>) -> String {
    let mut hash = Sha256::new();
    hash.update(name.to_string());
    hash.update(name.protocol.to_string());
    if let Some(endpoint) = endpoint {
        hash.update(endpoint.to_string());
    }
    format!("{prefix}{}", base32(&hash.finalize()[..10]))
}

/// RFC 4648 base32 of whole five-byte groups, which need no padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digits = |group: &[u8]| {
        let bits = group.iter().fold(0u64, |acc, b| acc << 8 | u64::from(*b));
        (0..8).map(move |i| char::from(ALPHABET[(bits >> (35 - 5 * i) & 31) as usize]))
    };
    bytes.chunks_exact(5).flat_map(digits).collect()
}

#[cfg(test)]
#[path = "ruleset_tests.rs"]
mod tests;
