use super::*;
use crate::policy::world;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

fn pod(namespace: &str, name: &str, address: &str, local: bool) -> Pod {
    Pod {
        namespace: namespace.into(),
        name: name.into(),
        labels: [("pod".to_owned(), name.to_owned())].into(),
        addresses: vec![address.parse().unwrap()],
        local,
        ports: vec![("TCP".into(), "http".into(), 8080)],
    }
}

fn rendered(specs: &[Value]) -> Rules {
    let policies: Vec<NetworkPolicy> = specs
        .iter()
        .enumerate()
        .map(|(n, spec)| {
            serde_json::from_value(
                json!({"metadata": {"namespace": "x", "name": format!("p{n}")}, "spec": spec}),
            )
            .unwrap()
        })
        .collect();
    let world = World {
        namespaces: ["x", "y"]
            .map(|ns| (ns.to_owned(), [("ns".to_owned(), ns.to_owned())].into()))
            .into(),
        pods: vec![
            pod("x", "a", "10.244.0.2", true),
            pod("x", "b", "10.244.0.3", true),
            pod("y", "a", "10.244.1.2", false),
        ],
        policies: world::policies(policies.iter()),
        pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
        gateways: vec!["10.244.0.1".parse().unwrap()],
    };
    render(Family::V4, &world, "ironlet0")
}

/// The lines of the chain that leads `what` anywhere, with sets shown by their members.
fn lines(rules: &Rules, what: &str) -> Vec<String> {
    let jump = rules.chains[CHAIN]
        .iter()
        .find(|rule| rule.starts_with(&format!("{what} -j {POD_CHAINS}")));
    let Some(jump) = jump else {
        return vec!["not isolated".into()];
    };
    let chain = jump.rsplit(' ').next().unwrap();
    let show = |line: &String| {
        rules.sets.iter().fold(line.clone(), |line, (name, set)| {
            let members: Vec<_> = set.members.iter().map(String::as_str).collect();
            line.replace(name, &format!("{{{}}}", members.join(", ")))
        })
    };
    rules.chains[chain].iter().map(show).collect()
}

#[test]
fn rules_say_what_policies_say() {
    let a = json!({"matchLabels": {"pod": "a"}});
    let ingress = |rule: Value| json!({"podSelector": a, "policyTypes": ["Ingress"], "ingress": [rule]});
    let egress = |rule: Value| json!({"podSelector": a, "policyTypes": ["Egress"], "egress": [rule]});
    let (into, out) = ("-d 10.244.0.2", "-s 10.244.0.2");
    for (spec, what, want) in [
        (json!({"podSelector": {}}), into, &["-j DROP"][..]),
        (json!({"podSelector": {}}), out, &["not isolated"]),
        (
            json!({"podSelector": {}, "policyTypes": ["Egress"]}),
            into,
            &["not isolated"],
        ),
        (
            json!({"podSelector": {}, "egress": [{}]}),
            out,
            &["-j RETURN", "-j DROP"],
        ),
        (ingress(json!({})), "-d 10.244.0.3", &["not isolated"]),
        (
            ingress(json!({"from": [{"podSelector": {}}]})),
            into,
            &[
                "-m set --match-set {10.244.0.2, 10.244.0.3} src -j RETURN",
                "-j DROP",
            ],
        ),
        (
            ingress(
                json!({"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}], "ports": [{"port": 80}]}),
            ),
            into,
            &[
                "-p tcp -m tcp --dport 80 -m set --match-set {10.244.1.2} src -j RETURN",
                "-j DROP",
            ],
        ),
        (
            ingress(json!({"from": [{"namespaceSelector": {}, "podSelector": a}]})),
            into,
            &[
                "-m set --match-set {10.244.0.2, 10.244.1.2} src -j RETURN",
                "-j DROP",
            ],
        ),
        (
            ingress(
                json!({"ports": [{"port": "http"}, {"port": "none"}, {"protocol": "UDP"},
                {"protocol": "SCTP", "port": 5, "endPort": 9}]}),
            ),
            into,
            &[
                "-p tcp -m tcp --dport 8080 -j RETURN",
                "-p udp -j RETURN",
                "-p sctp -m sctp --dport 5:9 -j RETURN",
                "-j DROP",
            ],
        ),
        (
            egress(
                json!({"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}},
                {"ipBlock": {"cidr": "10.96.0.10/32"}}, {"ipBlock": {"cidr": "fd00::/8"}}]}),
            ),
            out,
            &[
                "-m set --match-set {0.0.0.0/1, 10.0.0.0/8 nomatch, 128.0.0.0/1} dst -j RETURN",
                "-m set --match-set {10.96.0.10/32} dst -j RETURN",
                "-j DROP",
            ],
        ),
        (
            egress(json!({"to": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]})),
            out,
            &[
                "-p tcp -m set --match-set {10.244.0.2,tcp:8080, 10.244.0.3,tcp:8080, 10.244.1.2,tcp:8080} dst,dst -j RETURN",
                "-j DROP",
            ],
        ),
        (
            ingress(json!({"from": [{}]})),
            into,
            &["-m set --match-set {} src -j RETURN", "-j DROP"],
        ),
    ] {
        assert_eq!(
            lines(&rendered(std::slice::from_ref(&spec)), what),
            want,
            "{spec}"
        );
    }
}

#[test]
fn equal_pods_share_a_chain_and_strangers_wait() {
    let rules = rendered(&[json!({"podSelector": {}})]);
    assert_eq!(rules.chains.len(), 2, "{rules:?}");
    let known = &rules.sets["IRL4-known"].members;
    assert_eq!(
        known.iter().map(String::as_str).collect::<Vec<_>>(),
        ["10.244.0.1", "10.244.0.2", "10.244.0.3"]
    );
    let last = rules.chains[CHAIN].last().unwrap();
    assert_eq!(
        last,
        "-d 10.244.0.0/24 -m set ! --match-set IRL4-known dst -j DROP"
    );
}

#[test]
fn without_policies_nothing_is_asked_of_the_kernel() {
    let rules = rendered(&[]);
    assert!(rules.sets.is_empty());
    assert_eq!(rules.chains[CHAIN].len(), 1);
}
