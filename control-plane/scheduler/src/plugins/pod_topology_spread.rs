//! Pods of a kind spread over zones and hosts; without constraints of their own, gently by default.

use super::node_affinity::matches_required;
use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{ClusterEvent, MAX_SCORE, Plugin, Prepared, Rejection, reject};
use crate::pod_info::PodInfo;
use api::taint::{NO_EXECUTE, NO_SCHEDULE, first_untolerated};
use api::well_known::{HOSTNAME, ZONE};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::HashMap;

/// Upstream's system defaults, all ScheduleAnyway.
const DEFAULTS: [(&str, i32); 2] = [(HOSTNAME, 3), (ZONE, 5)];

pub struct PodTopologySpread;

struct Constraint {
    key: String,
    max_skew: i32,
    min_domains: i32,
    selector: LabelSelector,
    honor_affinity: bool,
    honor_taints: bool,
    self_match: bool,
}

/// A constraint that must hold, and how many matching pods each domain has.
struct Hard {
    constraint: Constraint,
    counts: HashMap<String, i32>,
    minimum: i32,
}

struct Spread<'a> {
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    hard: Vec<Hard>,
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

    fn wakes_on(&self, event: ClusterEvent) -> bool {
        !matches!(event, ClusterEvent::NodeAllocatable | ClusterEvent::Namespace)
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        let own = pod
            .spec()
            .topology_spread_constraints
            .as_deref()
            .unwrap_or_default();
        let of = |what: &str| -> Vec<Constraint> {
            own.iter()
                .filter(|c| c.when_unsatisfiable == what)
                .map(|c| constraint(c, pod))
                .collect()
        };
        let hard = of("DoNotSchedule");
        let soft = if own.is_empty() {
            defaults(pod, cluster)
        } else {
            of("ScheduleAnyway")
        };
        if hard.is_empty() && soft.is_empty() {
            return None;
        }
        let hard = count_hard(hard, pod, cluster);
        Some(Box::new(Spread {
            pod,
            cluster,
            hard,
            soft,
            all_keys: !own.is_empty(),
        }))
    }
}

fn constraint(spec: &TopologySpreadConstraint, pod: &PodInfo) -> Constraint {
    let mut selector = spec.label_selector.clone().unwrap_or_default();
    for key in spec.match_label_keys.iter().flatten() {
        if let Some(value) = pod.labels().and_then(|l| l.get(key)) {
            selector
                .match_labels
                .get_or_insert_default()
                .insert(key.clone(), value.clone());
        }
    }
    Constraint {
        key: spec.topology_key.clone(),
        max_skew: spec.max_skew,
        min_domains: spec.min_domains.unwrap_or(1),
        self_match: api::selector::matches(&selector, pod.labels()),
        selector,
        honor_affinity: spec.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: spec.node_taints_policy.as_deref() == Some("Honor"),
    }
}

fn defaults(pod: &PodInfo, cluster: &Cluster) -> Vec<Constraint> {
    let selector = cluster.default_selector(pod);
    if api::selector::is_empty(&selector) {
        return Vec::new();
    }
    let default = |(key, max_skew): (&str, i32)| Constraint {
        key: key.to_owned(),
        max_skew,
        min_domains: 1,
        self_match: true,
        selector: selector.clone(),
        honor_affinity: true,
        honor_taints: false,
    };
    DEFAULTS.into_iter().map(default).collect()
}

impl Constraint {
    fn counts_node(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let tolerations = pod.spec().tolerations.as_deref().unwrap_or_default();
        let taints = api::node::taints(&node.node);
        (!self.honor_affinity || matches_required(pod, node))
            && (!self.honor_taints
                || first_untolerated(taints, tolerations, &[NO_SCHEDULE, NO_EXECUTE]).is_none())
    }

    fn count(&self, namespace: &str, node: &NodeInfo) -> i32 {
        let matching = node.pods.values().filter(|p| {
            p.namespace() == namespace
                && !api::pod::is_terminating(&p.pod)
                && api::selector::matches(&self.selector, p.labels())
        });
        i32::try_from(matching.count()).unwrap_or(i32::MAX)
    }
}

fn has_all_keys<'a>(node: &NodeInfo, mut constraints: impl Iterator<Item = &'a Constraint>) -> bool {
    constraints.all(|c| node.label(&c.key).is_some())
}

fn count_hard(constraints: Vec<Constraint>, pod: &PodInfo, cluster: &Cluster) -> Vec<Hard> {
    let mut counts: Vec<HashMap<String, i32>> = vec![HashMap::new(); constraints.len()];
    for node in cluster.nodes().filter(|n| has_all_keys(n, constraints.iter())) {
        for (constraint, counts) in constraints.iter().zip(&mut counts) {
            if constraint.counts_node(pod, node) {
                let domain = node.label(&constraint.key).unwrap_or_default().to_owned();
                *counts.entry(domain).or_default() += constraint.count(pod.namespace(), node);
            }
        }
    }
    let minimum = |constraint: &Constraint, counts: &HashMap<String, i32>| {
        let domains = i32::try_from(counts.len()).unwrap_or(i32::MAX);
        if domains < constraint.min_domains {
            0
        } else {
            counts.values().copied().min().unwrap_or(i32::MAX)
        }
    };
    constraints
        .into_iter()
        .zip(counts)
        .map(|(constraint, counts)| Hard {
            minimum: minimum(&constraint, &counts),
            constraint,
            counts,
        })
        .collect()
}

impl Prepared for Spread<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for Hard {
            constraint,
            counts,
            minimum,
        } in &self.hard
        {
            let Some(domain) = node.label(&constraint.key) else {
                return reject(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            };
            let there = counts.get(domain).copied().unwrap_or_default() + i32::from(constraint.self_match);
            if there.saturating_sub(*minimum) > constraint.max_skew {
                return reject("node(s) didn't match pod topology spread constraints");
            }
        }
        Ok(())
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.soft.is_empty() {
            return None;
        }
        let counted = |node: &NodeInfo| !self.all_keys || has_all_keys(node, self.soft.iter());
        let eligible = nodes.iter().filter(|n| counted(n)).count();
        let domains: Vec<(HashMap<&str, i32>, f64)> = self
            .soft
            .iter()
            .map(|constraint| self.domains(constraint, nodes, eligible, counted))
            .collect();
        let raw: Vec<Option<i64>> = nodes
            .iter()
            .map(|node| {
                counted(node).then(|| {
                    let parts =
                        self.soft
                            .iter()
                            .zip(&domains)
                            .filter_map(|(constraint, (counts, weight))| {
                                let domain = node.label(&constraint.key)?;
                                let count = if constraint.key == HOSTNAME {
                                    constraint.count(self.pod.namespace(), node)
                                } else {
                                    counts.get(domain).copied().unwrap_or_default()
                                };
                                Some(f64::from(count) * weight + f64::from(constraint.max_skew - 1))
                            });
                    parts.sum::<f64>().round() as i64
                })
            })
            .collect();
        Some(flip(&raw))
    }
}

impl Spread<'_> {
    /// Matching pods in each domain of the candidate nodes, and the weight of one pod: few domains weigh less.
    fn domains<'n>(
        &self,
        constraint: &Constraint,
        nodes: &[&'n NodeInfo],
        eligible: usize,
        counted: impl Fn(&NodeInfo) -> bool,
    ) -> (HashMap<&'n str, i32>, f64) {
        let weight = |size: usize| ((size + 2) as f64).ln();
        if constraint.key == HOSTNAME {
            return (HashMap::new(), weight(eligible));
        }
        let mut counts: HashMap<&str, i32> = nodes
            .iter()
            .filter(|n| counted(n))
            .map(|n| (n.label(&constraint.key).unwrap_or_default(), 0))
            .collect();
        for node in self
            .cluster
            .nodes()
            .filter(|n| counted(n) && constraint.counts_node(self.pod, n))
        {
            if let Some(count) = counts.get_mut(node.label(&constraint.key).unwrap_or_default()) {
                *count += constraint.count(self.pod.namespace(), node);
            }
        }
        let size = counts.len();
        (counts, weight(size))
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
        let cluster = world();
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
            let prepared = PodTopologySpread.prepare(&pod, &cluster).unwrap();
            let passed: Vec<&str> = cluster
                .nodes()
                .filter(|n| prepared.filter(n).is_ok())
                .map(NodeInfo::name)
                .collect();
            assert_eq!(passed, fits, "max skew {max_skew}, min domains {min_domains}");
            let why = prepared.filter(cluster.node("bare").unwrap()).unwrap_err();
            assert!(why[0].ends_with("(missing required label)"), "{why:?}");
        }
    }

    #[test]
    fn soft_constraints_score() {
        let cluster = world();
        let pod = pod(
            "p",
            web(
                json!({"topologyKey": HOSTNAME, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app": "web"}}}),
            ),
        );
        let prepared = PodTopologySpread.prepare(&pod, &cluster).unwrap();
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
        assert!(PodTopologySpread.prepare(&pod, &cluster).is_none());
        cluster.set_service(
            &serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "default"},
                "spec": {"selector": {"app": "web"}}}))
            .unwrap(),
        );
        let prepared = PodTopologySpread.prepare(&pod, &cluster).unwrap();
        let nodes: Vec<&NodeInfo> = ["a1", "b1"].iter().map(|n| cluster.node(n).unwrap()).collect();
        let scores = prepared.score(&nodes).unwrap();
        assert!(scores[1] > scores[0], "{scores:?}");
    }
}
