//! Pods of a kind spread over zones and hosts; without constraints of their own, gently by default.

use super::node_affinity::{matches_required, requires_nodes};
use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{
    ClusterEvent, EventKind, MAX_SCORE, Plugin, Prepared, Rejection, reject, reject_for_good,
};
use crate::pod_info::PodInfo;
use crate::tally::{Part, Selection, Tally};
use api::taint::{NO_EXECUTE, NO_SCHEDULE, first_untolerated};
use api::well_known::{HOSTNAME, ZONE};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::{HashMap, HashSet};

/// Upstream's system defaults, all ScheduleAnyway.
const DEFAULTS: [(&str, i32); 2] = [(HOSTNAME, 3), (ZONE, 5)];

pub struct PodTopologySpread {
    /// For pods without constraints; `None` for the system's defaults.
    pub defaults: Option<Vec<TopologySpreadConstraint>>,
}

struct Constraint {
    key: String,
    max_skew: i32,
    min_domains: i32,
    selection: Selection,
    honor_affinity: bool,
    honor_taints: bool,
    self_match: bool,
}

/// Matching pods by domain: the standing count where all nodes take part, else this pod's own.
enum Counts<'a> {
    Standing(&'a Tally, usize),
    Own(HashMap<&'a str, i32>),
}

/// A constraint that must hold.
struct Hard<'a> {
    constraint: Constraint,
    counts: Counts<'a>,
    /// What a what-if changed, by domain.
    imagined: HashMap<String, i32>,
}

struct Spread<'a> {
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    hard: Vec<Hard<'a>>,
    soft: Vec<Constraint>,
    /// Nodes without all topology keys don't count, unless the constraints are the defaults.
    all_keys: bool,
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        !matches!(
            kind,
            EventKind::NodeAllocatable | EventKind::Namespace | EventKind::Storage
        )
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        let own = pod
            .spec()
            .topology_spread_constraints
            .as_deref()
            .unwrap_or_default();
        event.pod.is_none_or(|other| {
            other.namespace() == pod.namespace()
                && (own.is_empty() || own.iter().any(|c| of_pod(c, pod).selection_means(other)))
        })
    }

    fn warm(&self, pod: &PodInfo, cluster: &mut Cluster) {
        let (hard, soft, _) = self.constraints(pod, cluster);
        for constraint in hard.iter().chain(&soft) {
            cluster.ensure_tally(&constraint.selection, &constraint.key);
        }
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        let (hard, soft, all_keys) = self.constraints(pod, cluster);
        if hard.is_empty() && soft.is_empty() {
            return None;
        }
        let hard = count_hard(hard, pod, cluster);
        Some(Box::new(Spread {
            pod,
            cluster,
            hard,
            soft,
            all_keys,
        }))
    }
}

impl PodTopologySpread {
    /// Hard ones, soft ones, and whether nodes need all their keys.
    fn constraints(&self, pod: &PodInfo, cluster: &Cluster) -> (Vec<Constraint>, Vec<Constraint>, bool) {
        let own = pod
            .spec()
            .topology_spread_constraints
            .as_deref()
            .unwrap_or_default();
        let pick = |list: &[TopologySpreadConstraint],
                    what: &str,
                    make: &dyn Fn(&TopologySpreadConstraint) -> Constraint| {
            list.iter()
                .filter(|c| c.when_unsatisfiable == what)
                .map(make)
                .collect::<Vec<_>>()
        };
        if !own.is_empty() {
            let make = |c: &TopologySpreadConstraint| of_pod(c, pod);
            return (
                pick(own, "DoNotSchedule", &make),
                pick(own, "ScheduleAnyway", &make),
                true,
            );
        }
        let selector = cluster.default_selector(pod);
        if api::selector::is_empty(&selector) {
            return (Vec::new(), Vec::new(), false);
        }
        match &self.defaults {
            Some(list) => {
                let make = |c: &TopologySpreadConstraint| constraint(c, pod, selector.clone());
                (
                    pick(list, "DoNotSchedule", &make),
                    pick(list, "ScheduleAnyway", &make),
                    true,
                )
            }
            None => {
                let default = |(key, max_skew): (&str, i32)| Constraint {
                    key: key.to_owned(),
                    max_skew,
                    min_domains: 1,
                    self_match: true,
                    selection: selection(pod, selector.clone()),
                    honor_affinity: true,
                    honor_taints: false,
                };
                (Vec::new(), DEFAULTS.into_iter().map(default).collect(), false)
            }
        }
    }
}

fn selection(pod: &PodInfo, selector: LabelSelector) -> Selection {
    Selection {
        parts: vec![Part {
            namespaces: vec![pod.namespace().to_owned()],
            namespace_selector: None,
            selector: Some(selector),
        }],
        terminating: false,
    }
}

fn of_pod(spec: &TopologySpreadConstraint, pod: &PodInfo) -> Constraint {
    let mut selector = spec.label_selector.clone().unwrap_or_default();
    for key in spec.match_label_keys.iter().flatten() {
        if let Some(value) = pod.labels().and_then(|l| l.get(key)) {
            let labels = selector.match_labels.get_or_insert_default();
            labels.insert(key.clone(), value.clone());
        }
    }
    constraint(spec, pod, selector)
}

fn constraint(spec: &TopologySpreadConstraint, pod: &PodInfo, selector: LabelSelector) -> Constraint {
    Constraint {
        key: spec.topology_key.clone(),
        max_skew: spec.max_skew,
        min_domains: spec.min_domains.unwrap_or(1),
        self_match: api::selector::matches(&selector, pod.labels()),
        selection: selection(pod, selector),
        honor_affinity: spec.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: spec.node_taints_policy.as_deref() == Some("Honor"),
    }
}

impl Constraint {
    fn selection_means(&self, pod: &PodInfo) -> bool {
        // The one part lists its namespace, so namespace labels don't matter.
        self.selection.means(pod, &HashMap::new())
    }

    /// Every node takes part, so that standing counts are this pod's counts.
    fn counts_all(&self, pod: &PodInfo) -> bool {
        !(self.honor_taints || self.honor_affinity && requires_nodes(pod))
    }

    fn counts_node(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let tolerations = pod.spec().tolerations.as_deref().unwrap_or_default();
        let taints = api::node::taints(&node.node);
        (!self.honor_affinity || matches_required(pod, node))
            && (!self.honor_taints
                || first_untolerated(taints, tolerations, &[NO_SCHEDULE, NO_EXECUTE]).is_none())
    }
}

fn has_all_keys<'a>(node: &NodeInfo, mut constraints: impl Iterator<Item = &'a Constraint>) -> bool {
    constraints.all(|c| node.label(&c.key).is_some())
}

/// Does every node that has one of the keys have them all?
fn keys_agree(constraints: &[Constraint], cluster: &Cluster) -> bool {
    let complete = |c: &Constraint| cluster.tallies().nodes_with(&c.key) == cluster.nodes().len();
    constraints.len() <= 1 || constraints.iter().all(complete)
}

fn count_hard<'a>(constraints: Vec<Constraint>, pod: &PodInfo, cluster: &'a Cluster) -> Vec<Hard<'a>> {
    let agree = keys_agree(&constraints, cluster);
    let mut counts: Vec<Counts> = Vec::new();
    for constraint in &constraints {
        let tally = cluster.tally(&constraint.selection);
        counts.push(match tally {
            Some(tally) if agree && constraint.counts_all(pod) => {
                Counts::Standing(tally, cluster.tallies().domains(&constraint.key))
            }
            _ => {
                let mut own: HashMap<&str, i32> = HashMap::new();
                for node in cluster.nodes() {
                    if has_all_keys(node, constraints.iter()) && constraint.counts_node(pod, node) {
                        let domain = node.label(&constraint.key).unwrap_or_default();
                        *own.entry(domain).or_default() += tally.map_or(0, |t| t.on_node(node.name()));
                    }
                }
                Counts::Own(own)
            }
        });
    }
    let hard = |(constraint, counts)| Hard {
        constraint,
        counts,
        imagined: HashMap::new(),
    };
    constraints.into_iter().zip(counts).map(hard).collect()
}

impl Hard<'_> {
    fn in_domain(&self, domain: &str) -> i32 {
        let standing = match &self.counts {
            Counts::Standing(tally, _) => tally.in_domain(&self.constraint.key, domain),
            Counts::Own(own) => own.get(domain).copied().unwrap_or_default(),
        };
        standing + self.imagined.get(domain).copied().unwrap_or_default()
    }

    fn minimum(&self) -> i32 {
        let (domains, standing) = match &self.counts {
            Counts::Standing(tally, domains) => (*domains, tally.minimum(&self.constraint.key, *domains)),
            Counts::Own(own) => (own.len(), own.values().copied().min().unwrap_or(i32::MAX)),
        };
        if i32::try_from(domains).unwrap_or(i32::MAX) < self.constraint.min_domains {
            return 0;
        }
        let imagined = self.imagined.keys().map(|domain| self.in_domain(domain)).min();
        imagined.map_or(standing, |imagined| imagined.min(standing))
    }
}

impl Prepared for Spread<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for hard in &self.hard {
            let Some(domain) = node.label(&hard.constraint.key) else {
                return reject_for_good(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            };
            let there = hard.in_domain(domain) + i32::from(hard.constraint.self_match);
            if there.saturating_sub(hard.minimum()) > hard.constraint.max_skew {
                return reject("node(s) didn't match pod topology spread constraints");
            }
        }
        Ok(())
    }

    fn imagine(&mut self, pod: &PodInfo, node: &NodeInfo, sign: i32) {
        let all_keys = has_all_keys(node, self.hard.iter().map(|h| &h.constraint));
        for hard in &mut self.hard {
            if all_keys
                && hard.constraint.selection_means(pod)
                && hard.constraint.counts_node(self.pod, node)
                && let Some(domain) = node.label(&hard.constraint.key)
            {
                *hard.imagined.entry(domain.to_owned()).or_default() += sign;
            }
        }
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.soft.is_empty() {
            return None;
        }
        let counted = |node: &NodeInfo| !self.all_keys || has_all_keys(node, self.soft.iter());
        let eligible = nodes.iter().filter(|n| counted(n)).count();
        let parts: Vec<(&Constraint, Counts, f64)> = self
            .soft
            .iter()
            .map(|c| {
                let (counts, weight) = self.domains(c, nodes, eligible, &counted);
                (c, counts, weight)
            })
            .collect();
        let score = |node: &&NodeInfo| {
            counted(node).then(|| {
                let parts = parts.iter().filter_map(|(constraint, counts, weight)| {
                    let domain = node.label(&constraint.key)?;
                    let count = match counts {
                        Counts::Standing(tally, _) if constraint.key == HOSTNAME => {
                            tally.on_node(node.name())
                        }
                        Counts::Standing(tally, _) => tally.in_domain(&constraint.key, domain),
                        Counts::Own(own) => own.get(domain).copied().unwrap_or_default(),
                    };
                    Some(f64::from(count) * weight + f64::from(constraint.max_skew - 1))
                });
                parts.sum::<f64>().round() as i64
            })
        };
        let raw: Vec<Option<i64>> = nodes.iter().map(score).collect();
        Some(flip(&raw))
    }
}

impl<'a> Spread<'a> {
    /// Matching pods by domain, and the weight of one pod: few domains weigh less.
    fn domains(
        &self,
        constraint: &Constraint,
        nodes: &[&NodeInfo],
        eligible: usize,
        counted: &dyn Fn(&NodeInfo) -> bool,
    ) -> (Counts<'a>, f64) {
        let weight = |size: usize| ((size + 2) as f64).ln();
        let tally = self.cluster.tally(&constraint.selection);
        if let (Some(tally), true) = (tally, constraint.key == HOSTNAME) {
            return (Counts::Standing(tally, 0), weight(eligible));
        }
        let seen = nodes
            .iter()
            .filter(|n| counted(n))
            .map(|n| n.label(&constraint.key).unwrap_or_default());
        let seen: HashSet<&str> = seen.collect();
        let size = weight(seen.len());
        let complete = !self.all_keys || keys_agree(&self.soft, self.cluster);
        match tally {
            Some(tally) if complete && constraint.counts_all(self.pod) => (Counts::Standing(tally, 0), size),
            _ => {
                let mut own: HashMap<&'a str, i32> = HashMap::new();
                for node in self.cluster.nodes() {
                    let domain = node.label(&constraint.key).unwrap_or_default();
                    if seen.contains(domain) && counted(node) && constraint.counts_node(self.pod, node) {
                        *own.entry(domain).or_default() += tally.map_or(0, |t| t.on_node(node.name()));
                    }
                }
                (Counts::Own(own), size)
            }
        }
    }
}

/// Fewer is better; nodes that don't count get nothing.
fn flip(raw: &[Option<i64>]) -> Vec<i64> {
    let max = raw.iter().flatten().copied().max().unwrap_or_default();
    let min = raw.iter().flatten().copied().min().unwrap_or_default();
    let flipped = |score: &Option<i64>| match score {
        None => 0,
        Some(_) if max == 0 => MAX_SCORE,
        Some(score) => MAX_SCORE * (max + min - score) / max,
    };
    raw.iter().map(flipped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use serde_json::{Value, json};

    fn zone(zone: &str, host: &str) -> Value {
        json!({"metadata": {"labels": {ZONE: zone, HOSTNAME: host}}})
    }

    fn web(constraint: Value) -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"topologySpreadConstraints": [constraint]}})
    }

    fn labelled() -> Value {
        json!({"metadata": {"labels": {"app": "web"}}})
    }

    fn plugin() -> PodTopologySpread {
        PodTopologySpread { defaults: None }
    }

    fn world() -> Cluster {
        let nodes = [
            ("a1", zone("a", "a1")),
            ("a2", zone("a", "a2")),
            ("b1", zone("b", "b1")),
            ("bare", json!({})),
        ];
        cluster(&nodes, &[("x", "a1", labelled()), ("y", "a2", labelled())])
    }

    #[test]
    fn hard_constraints_filter() {
        let mut cluster = world();
        for (max_skew, min_domains, fits) in [
            (1, 1, ["b1"].as_slice()),
            (3, 1, &["a1", "a2", "b1"]),
            (2, 3, &["b1"]),
        ] {
            let body = web(
                json!({"topologyKey": ZONE, "maxSkew": max_skew, "minDomains": min_domains,
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}),
            );
            let pod = pod("p", body);
            plugin().warm(&pod, &mut cluster);
            let plugin = plugin();
            let prepared = plugin.prepare(&pod, &cluster).unwrap();
            let passed: Vec<&str> = cluster
                .nodes()
                .iter()
                .filter(|n| prepared.filter(n).is_ok())
                .map(NodeInfo::name)
                .collect();
            assert_eq!(passed, fits, "max skew {max_skew}, min domains {min_domains}");
            let why = prepared.filter(cluster.node("bare").unwrap()).unwrap_err();
            assert!(why.reasons[0].ends_with("(missing required label)"), "{why:?}");
        }
    }

    #[test]
    fn soft_constraints_score() {
        let mut cluster = world();
        let pod = pod(
            "p",
            web(
                json!({"topologyKey": HOSTNAME, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app": "web"}}}),
            ),
        );
        let plugin = plugin();
        plugin.warm(&pod, &mut cluster);
        let prepared = plugin.prepare(&pod, &cluster).unwrap();
        let nodes: Vec<&NodeInfo> = ["a1", "b1", "bare"]
            .iter()
            .map(|n| cluster.node(n).unwrap())
            .collect();
        assert_eq!(prepared.score(&nodes), Some(vec![0, 100, 0]));
    }

    #[test]
    fn services_spread_their_pods_by_default() {
        let mut cluster = world();
        let pod = pod("p", labelled());
        assert!(plugin().prepare(&pod, &cluster).is_none());
        cluster.set_service(
            &serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "default"},
                "spec": {"selector": {"app": "web"}}}))
            .unwrap(),
        );
        let plugin = plugin();
        plugin.warm(&pod, &mut cluster);
        let prepared = plugin.prepare(&pod, &cluster).unwrap();
        let nodes: Vec<&NodeInfo> = ["a1", "b1"].iter().map(|n| cluster.node(n).unwrap()).collect();
        let scores = prepared.score(&nodes).unwrap();
        assert!(scores[1] > scores[0], "{scores:?}");
    }
}
