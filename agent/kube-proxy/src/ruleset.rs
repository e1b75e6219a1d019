//! The whole rule set of one address family as a value: chains and their rules, named and ordered
//! as upstream's proxier names and orders them (pkg/proxy/iptables/proxier.go). Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::service_map::{Family, PortName, ServiceMap, ServicePort};

/// Chain name → rules, without the leading `-A CHAIN`.
pub type Chains = BTreeMap<String, Vec<String>>;

/// The bit that marks packets to masquerade (upstream's default, iptablesMasqueradeBit 14).
const MASQUERADE_MARK: &str = "0x4000";

#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub struct Ruleset {
    pub nat: Chains,
    pub filter: Chains,
}

/// The jumps from built-in chains: table, chain, rule.
pub const JUMPS: [(&str, &str, &str); 10] = [
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
];

/// Chains that this proxy makes and may delete: one or more per Service or endpoint.
pub fn is_per_service(chain: &str) -> bool {
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-SEP-", "KUBE-FW-"]
        .iter()
        .any(|p| chain.starts_with(p))
}

pub fn render(family: Family, services: &ServiceMap, cluster_cidr: Option<IpNet>) -> Ruleset {
    let mut rules = Ruleset {
        nat: base_nat(),
        filter: base_filter(),
    };
    for (name, port) in services {
        Renderer {
            name,
            port,
            cluster_cidr,
            rules: &mut rules,
        }
        .render();
    }
    let node_ports = "-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS";
    let not_loopback = if family == Family::V6 { "! -d ::1/128 " } else { "" };
    push(
        &mut rules.nat,
        "KUBE-SERVICES",
        format!("{not_loopback}{node_ports}"),
    );
    rules
}

fn base_nat() -> Chains {
    let mark = MASQUERADE_MARK;
    Chains::from([
        ("KUBE-SERVICES".into(), vec![]),
        ("KUBE-NODEPORTS".into(), vec![]),
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
    ])
}

fn base_filter() -> Chains {
    let mark = MASQUERADE_MARK;
    Chains::from([
        ("KUBE-SERVICES".into(), vec![]),
        ("KUBE-EXTERNAL-SERVICES".into(), vec![]),
        ("KUBE-PROXY-FIREWALL".into(), vec![]),
        (
            "KUBE-FORWARD".into(),
            vec![
                "-m conntrack --ctstate INVALID -j DROP".into(),
                format!("-m comment --comment \"kubernetes forwarding rules\" -m mark --mark {mark}/{mark} -j ACCEPT"),
                "-m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".into(),
            ],
        ),
        ("KUBE-PROXY-CANARY".into(), vec![]),
    ])
}

struct Renderer<'a> {
    name: &'a PortName,
    port: &'a ServicePort,
    cluster_cidr: Option<IpNet>,
    rules: &'a mut Ruleset,
}

impl Renderer<'_> {
    fn render(&mut self) {
        let cluster = chain("KUBE-SVC-", self.name, None);
        let local = chain("KUBE-SVL-", self.name, None);
        let has_cluster = !self.port.cluster_endpoints.is_empty();
        let has_local = !self.port.local_endpoints.is_empty();

        let (internal, internal_ready) = if self.port.internal_local {
            (&local, has_local)
        } else {
            (&cluster, has_cluster)
        };
        self.portal("cluster IP", self.port.cluster_ip, internal, internal_ready);
        self.external(has_cluster, has_local, &cluster, &local);

        let external_used = self.is_external();
        let needs_cluster = has_cluster && (!self.port.internal_local || external_used);
        let needs_local =
            has_local && (self.port.internal_local || (external_used && self.port.external_local));
        if needs_cluster {
            self.load_balance(&cluster, &self.port.cluster_endpoints.clone());
        }
        if needs_local {
            self.load_balance(&local, &self.port.local_endpoints.clone());
        }
        let mut endpoints = Vec::new();
        endpoints.extend(
            needs_cluster
                .then_some(&self.port.cluster_endpoints)
                .into_iter()
                .flatten()
                .copied(),
        );
        endpoints.extend(
            needs_local
                .then_some(&self.port.local_endpoints)
                .into_iter()
                .flatten()
                .copied(),
        );
        for endpoint in endpoints {
            self.endpoint(endpoint);
        }
    }

    fn is_external(&self) -> bool {
        let ServicePort {
            node_port,
            external_ips,
            load_balancer_ips,
            ..
        } = self.port;
        node_port.is_some() || !external_ips.is_empty() || !load_balancer_ips.is_empty()
    }

    /// Traffic to `ip` goes to `target`, or is refused while there is nobody to serve it.
    fn portal(&mut self, what: &str, ip: IpAddr, target: &str, ready: bool) {
        let Self { name, port, .. } = self;
        let matched = matches(name, ip, port.port);
        if ready {
            let rule = format!("-m comment --comment \"{name} {what}\" {matched} -j {target}");
            push(&mut self.rules.nat, "KUBE-SERVICES", rule);
            return;
        }
        let (reason, verdict) = self.nobody(what == "cluster IP");
        let chain = if what == "cluster IP" {
            "KUBE-SERVICES"
        } else {
            "KUBE-EXTERNAL-SERVICES"
        };
        let rule = format!(
            "-m comment --comment \"{} {reason}\" {matched} -j {verdict}",
            self.name
        );
        push(&mut self.rules.filter, chain, rule);
    }

    /// Without any endpoint a client is told at once; with endpoints elsewhere a load balancer's
    /// probe must see silence.
    fn nobody(&self, internal: bool) -> (&'static str, &'static str) {
        let local_only = if internal {
            self.port.internal_local
        } else {
            self.port.external_local
        };
        if local_only && !self.port.cluster_endpoints.is_empty() {
            ("has no local endpoints", "DROP")
        } else {
            ("has no endpoints", "REJECT")
        }
    }

    fn external(&mut self, has_cluster: bool, has_local: bool, cluster: &str, local: &str) {
        if !self.is_external() {
            return;
        }
        let ready = if self.port.external_local {
            has_local
        } else {
            has_cluster
        };
        let external = chain("KUBE-EXT-", self.name, None);
        for ip in self.port.external_ips.clone() {
            self.portal("external IP", ip, &external, ready);
        }
        for ip in self.port.load_balancer_ips.clone() {
            let target = if !ready || self.port.load_balancer_source_ranges.is_empty() {
                external.clone()
            } else {
                self.firewall(ip, &external)
            };
            self.portal("loadbalancer IP", ip, &target, ready);
        }
        if let Some(node_port) = self.port.node_port {
            self.node_port(node_port, &external, ready);
        }
        if has_cluster || has_local {
            self.external_chain(&external, cluster, local, has_local);
        }
    }

    fn node_port(&mut self, node_port: u16, external: &str, ready: bool) {
        let Self { name, .. } = self;
        let protocol = name.protocol;
        if ready {
            let rule = format!(
                "-m comment --comment {name} -m {protocol} -p {protocol} --dport {node_port} -j {external}"
            );
            push(&mut self.rules.nat, "KUBE-NODEPORTS", rule);
            return;
        }
        let (reason, verdict) = self.nobody(false);
        let name = self.name;
        let rule = format!(
            "-m comment --comment \"{name} {reason}\" -m addrtype --dst-type LOCAL -m {protocol} -p {protocol} --dport {node_port} -j {verdict}"
        );
        push(&mut self.rules.filter, "KUBE-EXTERNAL-SERVICES", rule);
    }

    fn external_chain(&mut self, external: &str, cluster: &str, local: &str, has_local: bool) {
        let name = self.name;
        let mut rules = Vec::new();
        if self.port.external_local {
            if !self.port.cluster_endpoints.is_empty() {
                if let Some(cidr) = self.cluster_cidr {
                    rules.push(format!("-m comment --comment \"pod traffic for {name} external destinations\" -s {cidr} -j {cluster}"));
                }
                rules.push(format!("-m comment --comment \"masquerade LOCAL traffic for {name} external destinations\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"));
                rules.push(format!("-m comment --comment \"route LOCAL traffic for {name} external destinations\" -m addrtype --src-type LOCAL -j {cluster}"));
            }
            if has_local {
                rules.push(format!("-j {local}"));
            }
        } else {
            rules.push(format!("-m comment --comment \"masquerade traffic for {name} external destinations\" -j KUBE-MARK-MASQ"));
            rules.push(format!("-j {cluster}"));
        }
        self.rules.nat.insert(external.to_owned(), rules);
    }

    /// Only the Service's source ranges may use its load balancer address (loadBalancerSourceRanges).
    fn firewall(&mut self, ip: IpAddr, external: &str) -> String {
        let firewall = chain("KUBE-FW-", self.name, None);
        let name = self.name;
        let allow = |range: &String| {
            format!("-m comment --comment \"{name} loadbalancer IP\" -s {range} -j {external}")
        };
        let rules = self.port.load_balancer_source_ranges.iter().map(allow).collect();
        self.rules.nat.insert(firewall.clone(), rules);
        let drop = format!(
            "-m comment --comment \"{name} traffic not accepted by {firewall}\" {} -j DROP",
            matches(name, ip, self.port.port)
        );
        push(&mut self.rules.filter, "KUBE-PROXY-FIREWALL", drop);
        firewall
    }

    fn load_balance(&mut self, service_chain: &str, endpoints: &[SocketAddr]) {
        let Self { name, port, .. } = self;
        let mut rules = Vec::with_capacity(endpoints.len() + 1);
        let is_cluster = service_chain.starts_with("KUBE-SVC-");
        if let Some(cidr) = self.cluster_cidr.filter(|_| is_cluster) {
            let matched = matches(name, port.cluster_ip, port.port);
            rules.push(format!(
                "-m comment --comment \"{name} cluster IP\" {matched} ! -s {cidr} -j KUBE-MARK-MASQ"
            ));
        }
        if let Some(seconds) = port.affinity_seconds {
            for endpoint in endpoints {
                let sep = chain("KUBE-SEP-", name, Some(*endpoint));
                rules.push(format!(
                    "-m comment --comment \"{name} -> {endpoint}\" -m recent --name {sep} --rcheck --seconds {seconds} --reap -j {sep}"
                ));
            }
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            let sep = chain("KUBE-SEP-", name, Some(*endpoint));
            let left = endpoints.len() - i;
            let chance = if left > 1 {
                format!(
                    "-m statistic --mode random --probability {:.10} ",
                    1.0 / left as f64
                )
            } else {
                String::new()
            };
            rules.push(format!(
                "-m comment --comment \"{name} -> {endpoint}\" {chance}-j {sep}"
            ));
        }
        self.rules.nat.insert(service_chain.to_owned(), rules);
    }

    fn endpoint(&mut self, endpoint: SocketAddr) {
        let Self { name, port, .. } = self;
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
        self.rules.nat.insert(sep, rules);
    }
}

fn matches(name: &PortName, ip: IpAddr, port: u16) -> String {
    let protocol = name.protocol;
    format!("-m {protocol} -p {protocol} -d {ip} --dport {port}")
}

fn push(chains: &mut Chains, chain: &str, rule: String) {
    chains.entry(chain.to_owned()).or_default().push(rule);
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
mod tests {
    use super::*;
    use crate::service_map::Protocol;

    fn name(service: &str) -> PortName {
        PortName {
            namespace: "ns1".into(),
            service: service.into(),
            port: "p80".into(),
            protocol: Protocol::Tcp,
        }
    }

    fn port(endpoints: &[&str]) -> ServicePort {
        ServicePort {
            cluster_ip: "172.30.0.41".parse().unwrap(),
            port: 80,
            node_port: None,
            external_ips: vec![],
            load_balancer_ips: vec![],
            load_balancer_source_ranges: vec![],
            affinity_seconds: None,
            internal_local: false,
            external_local: false,
            cluster_endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
            local_endpoints: vec![],
        }
    }

    fn render_one(port: ServicePort) -> Ruleset {
        let cidr = Some("10.0.0.0/8".parse().unwrap());
        render(Family::V4, &ServiceMap::from([(name("svc1"), port)]), cidr)
    }

    #[test]
    fn chain_names_are_upstream_s() {
        assert_eq!(
            chain("KUBE-SVC-", &name("svc1"), None),
            "KUBE-SVC-XPGD46QRK7WJZT7O"
        );
        assert_eq!(
            chain("KUBE-SEP-", &name("svc1"), Some("10.180.0.1:80".parse().unwrap())),
            "KUBE-SEP-SXIVWICOYRO3J4NJ"
        );
    }

    #[test]
    fn a_cluster_ip_spreads_over_its_endpoints() {
        let rules = render_one(port(&["10.180.0.1:80", "10.180.0.2:80"]));
        let svc = &rules.nat["KUBE-SVC-XPGD46QRK7WJZT7O"];
        assert_eq!(svc.len(), 3);
        assert_eq!(
            svc[0],
            "-m comment --comment \"ns1/svc1:p80 cluster IP\" -m tcp -p tcp -d 172.30.0.41 --dport 80 ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ"
        );
        assert_eq!(
            svc[1],
            "-m comment --comment \"ns1/svc1:p80 -> 10.180.0.1:80\" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-SXIVWICOYRO3J4NJ"
        );
        assert!(svc[2].starts_with("-m comment --comment \"ns1/svc1:p80 -> 10.180.0.2:80\" -j KUBE-SEP-"));
        assert_eq!(
            rules.nat["KUBE-SEP-SXIVWICOYRO3J4NJ"],
            [
                "-m comment --comment ns1/svc1:p80 -s 10.180.0.1 -j KUBE-MARK-MASQ",
                "-m comment --comment ns1/svc1:p80 -m tcp -p tcp -j DNAT --to-destination 10.180.0.1:80",
            ]
        );
        assert!(
            rules.nat["KUBE-SERVICES"]
                .last()
                .unwrap()
                .ends_with("-j KUBE-NODEPORTS")
        );
    }

    #[test]
    fn without_endpoints_clients_are_refused() {
        let rules = render_one(port(&[]));
        assert_eq!(
            rules.filter["KUBE-SERVICES"],
            [
                "-m comment --comment \"ns1/svc1:p80 has no endpoints\" -m tcp -p tcp -d 172.30.0.41 --dport 80 -j REJECT"
            ]
        );
        assert!(!rules.nat.keys().any(|c| is_per_service(c)));
    }

    #[test]
    fn a_local_node_port_serves_only_local_endpoints_to_the_outside() {
        let mut port = port(&["10.180.0.1:80", "10.180.0.2:80"]);
        port.node_port = Some(30080);
        port.external_local = true;
        port.local_endpoints = vec!["10.180.0.2:80".parse().unwrap()];
        let rules = render_one(port.clone());
        assert_eq!(
            rules.nat["KUBE-EXT-XPGD46QRK7WJZT7O"],
            [
                "-m comment --comment \"pod traffic for ns1/svc1:p80 external destinations\" -s 10.0.0.0/8 -j KUBE-SVC-XPGD46QRK7WJZT7O",
                "-m comment --comment \"masquerade LOCAL traffic for ns1/svc1:p80 external destinations\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
                "-m comment --comment \"route LOCAL traffic for ns1/svc1:p80 external destinations\" -m addrtype --src-type LOCAL -j KUBE-SVC-XPGD46QRK7WJZT7O",
                "-j KUBE-SVL-XPGD46QRK7WJZT7O",
            ]
        );
        assert_eq!(rules.nat["KUBE-SVL-XPGD46QRK7WJZT7O"].len(), 1);

        port.local_endpoints.clear();
        let rules = render_one(port);
        assert_eq!(
            rules.filter["KUBE-EXTERNAL-SERVICES"],
            [
                "-m comment --comment \"ns1/svc1:p80 has no local endpoints\" -m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30080 -j DROP"
            ]
        );
    }

    #[test]
    fn affinity_asks_before_it_rolls_dice() {
        let mut port = port(&["10.180.0.1:80"]);
        port.affinity_seconds = Some(10_800);
        let rules = render_one(port);
        let svc = &rules.nat["KUBE-SVC-XPGD46QRK7WJZT7O"];
        assert!(
            svc[1].contains("-m recent --name KUBE-SEP-SXIVWICOYRO3J4NJ --rcheck --seconds 10800 --reap")
        );
        assert!(
            rules.nat["KUBE-SEP-SXIVWICOYRO3J4NJ"][1]
                .contains("-m recent --name KUBE-SEP-SXIVWICOYRO3J4NJ --set")
        );
    }

    #[test]
    fn every_jump_leads_to_a_chain_that_exists() {
        let mut port = port(&["10.180.0.1:80"]);
        port.node_port = Some(30080);
        port.load_balancer_ips = vec!["203.0.113.7".parse().unwrap()];
        port.load_balancer_source_ranges = vec!["203.0.113.0/25".into()];
        port.external_ips = vec!["203.0.113.9".parse().unwrap()];
        let rules = render_one(port);
        for chains in [&rules.nat, &rules.filter] {
            for rule in chains.values().flatten() {
                let target = rule.split("-j ").nth(1).unwrap().split(' ').next().unwrap();
                assert!(
                    !target.starts_with("KUBE-") || chains.contains_key(target),
                    "{rule}"
                );
            }
        }
    }
}
