//! Golden rule sets: every shape of Service, with the whole of its rules.

use super::*;
use crate::service_map::{self, Protocol};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

/// Shape, spec of the Service (merged over a plain one), endpoints.
fn shapes() -> Vec<(&'static str, Value, Value)> {
    let ready = |ip: &str, node: &str| json!({"addresses": [ip], "nodeName": node});
    let both = json!([ready("10.180.0.1", "n1"), ready("10.180.0.2", "n2")]);
    let away = json!([ready("10.180.0.2", "n2")]);
    let none = json!([]);
    let ending = json!([{"addresses": ["10.180.0.1"], "nodeName": "n1",
        "conditions": {"ready": false, "serving": true, "terminating": true}}]);
    let node_port = json!({"type": "NodePort", "ports": [{"name": "p80", "port": 80, "nodePort": 30080}]});
    let balancer = |more: Value| {
        let mut spec =
            json!({"type": "LoadBalancer", "ports": [{"name": "p80", "port": 80, "nodePort": 30080}]});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        spec
    };
    let local = |mut spec: Value, policy: &str| {
        spec[policy] = json!("Local");
        spec
    };
    let affinity = json!({"sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    vec![
        ("cluster-ip", json!({}), both.clone()),
        ("cluster-ip-without-endpoints", json!({}), none.clone()),
        ("cluster-ip-terminating", json!({}), ending),
        ("cluster-ip-affinity", affinity, both.clone()),
        (
            "cluster-ip-internal-local",
            local(json!({}), "internalTrafficPolicy"),
            both.clone(),
        ),
        (
            "cluster-ip-internal-local-elsewhere",
            local(json!({}), "internalTrafficPolicy"),
            away.clone(),
        ),
        (
            "external-ip",
            json!({"externalIPs": ["203.0.113.9"]}),
            both.clone(),
        ),
        (
            "external-ip-without-endpoints",
            json!({"externalIPs": ["203.0.113.9"]}),
            none.clone(),
        ),
        ("node-port", node_port.clone(), both.clone()),
        ("node-port-without-endpoints", node_port.clone(), none),
        (
            "node-port-external-local",
            local(node_port.clone(), "externalTrafficPolicy"),
            both.clone(),
        ),
        (
            "node-port-external-local-elsewhere",
            local(node_port, "externalTrafficPolicy"),
            away.clone(),
        ),
        ("load-balancer", balancer(json!({})), both.clone()),
        (
            "load-balancer-source-ranges",
            balancer(json!({"loadBalancerSourceRanges": ["203.0.113.0/25", "192.168.76.0/24"]})),
            both.clone(),
        ),
        (
            "load-balancer-external-local-elsewhere",
            local(balancer(json!({})), "externalTrafficPolicy"),
            away,
        ),
        (
            "udp-and-sctp",
            json!({"ports": [
            {"name": "p80", "port": 53, "protocol": "UDP"}, {"name": "s", "port": 99, "protocol": "SCTP"}]}),
            both,
        ),
    ]
}

fn fragment_of(spec: &Value, endpoints: &Value) -> Fragment {
    let mut service = json!({"metadata": {"name": "svc1", "namespace": "ns1"},
        "spec": {"clusterIP": "172.30.0.41", "ports": [{"name": "p80", "port": 80}]}});
    service["spec"]
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    if spec["type"] == "LoadBalancer" {
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    }
    let service: Service = serde_json::from_value(service).unwrap();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "svc1-x", "namespace": "ns1", "labels": {"kubernetes.io/service-name": "svc1"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "p80", "port": 8080, "protocol": "TCP"}, {"name": "p80", "port": 5353, "protocol": "UDP"},
            {"name": "s", "port": 9999, "protocol": "SCTP"}]}))
    .unwrap();
    let node = NodeFacts {
        name: "n1".into(),
        zone: None,
        addresses: vec!["192.168.76.11".parse().unwrap()],
    };
    let ports = service_map::ports(Family::V4, &node, &service, [&slice].into_iter());
    render(&ports, Some("10.180.0.0/16".parse().unwrap()), &node)
}

fn text(fragment: &Fragment) -> String {
    let mut lines = String::new();
    for (shared, rule) in &fragment.shared {
        let (table, chain) = shared.place();
        lines.push_str(&format!("{table} -A {chain} {rule}\n"));
    }
    for (chain, rules) in &fragment.chains {
        for rule in rules {
            lines.push_str(&format!("nat -A {chain} {rule}\n"));
        }
    }
    lines
}

/// `UPDATE_GOLDEN=1` writes the file anew, for the next build.
#[test]
fn every_shape_has_its_rules() {
    let shapes = shapes().into_iter();
    let found: String = shapes
        .map(|(shape, spec, endpoints)| format!("# {shape}\n{}\n", text(&fragment_of(&spec, &endpoints))))
        .collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ruleset.golden");
        std::fs::write(path, &found).unwrap();
    }
    let want = include_str!("ruleset.golden");
    for (found, want) in found.split("\n\n").zip(want.split("\n\n")) {
        assert_eq!(found, want);
    }
    assert_eq!(found.len(), want.len());
}

#[test]
fn chain_names_are_upstream_s() {
    let name = PortName {
        namespace: "ns1".into(),
        service: "svc1".into(),
        port: "p80".into(),
        protocol: Protocol::Tcp,
    };
    assert_eq!(chain("KUBE-SVC-", &name, None), "KUBE-SVC-XPGD46QRK7WJZT7O");
    let endpoint = Some("10.180.0.1:80".parse().unwrap());
    assert_eq!(chain("KUBE-SEP-", &name, endpoint), "KUBE-SEP-SXIVWICOYRO3J4NJ");
}

#[test]
fn every_jump_leads_to_a_chain_that_exists() {
    for family in [Family::V4, Family::V6] {
        let base = base(family, &[]);
        for (shape, spec, endpoints) in shapes() {
            let fragment = fragment_of(&spec, &endpoints);
            let shared = fragment.shared.iter().map(|(_, rule)| rule);
            for rule in fragment
                .chains
                .values()
                .flatten()
                .chain(shared)
                .chain(&base.node_ports)
            {
                let target = rule.split("-j ").nth(1).unwrap().split(' ').next().unwrap();
                let known = fragment.chains.contains_key(target)
                    || base.nat.contains_key(target)
                    || Shared::ALL.iter().any(|shared| shared.place().1 == target);
                assert!(!target.starts_with("KUBE-") || known, "{shape}: {rule}");
            }
        }
    }
}

#[test]
fn node_ports_are_open_where_they_shall_be() {
    let ends = |family, networks: &[&str]| -> Vec<String> {
        let networks: Vec<IpNet> = networks.iter().map(|net| net.parse().unwrap()).collect();
        let rules = base(family, &networks).node_ports;
        rules
            .iter()
            .map(|rule| rule.split("LOCAL").nth(1).unwrap().to_owned())
            .collect()
    };
    assert_eq!(ends(Family::V4, &[]), [" -j KUBE-NODEPORTS"]);
    assert_eq!(ends(Family::V6, &[]), [" ! -d ::1/128 -j KUBE-NODEPORTS"]);
    let networks = ["192.168.76.0/24", "127.0.0.0/8", "::/0"];
    assert_eq!(
        ends(Family::V4, &networks),
        [
            " -d 192.168.76.0/24 -j KUBE-NODEPORTS",
            " -d 127.0.0.0/8 -j KUBE-NODEPORTS"
        ]
    );
    assert_eq!(ends(Family::V6, &networks), [" ! -d ::1/128 -j KUBE-NODEPORTS"]);
}
