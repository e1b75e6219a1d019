//! Pods that want to be near other pods, or far from them; those already placed have a say too.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{ClusterEvent, MAX_SCORE, Plugin, Prepared, Rejection, reject};
use crate::pod_info::PodInfo;
use k8s_openapi::api::core::v1::{PodAffinityTerm, WeightedPodAffinityTerm};
use std::collections::HashMap;

/// Upstream's `hardPodAffinityWeight`: how much a placed pod's required affinity attracts.
const HARD_WEIGHT: i64 = 1;

pub struct InterPodAffinity;

/// Topology key and value to a number.
type Pairs = HashMap<(String, String), i64>;

struct Affinity<'a> {
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    /// Pods that satisfy all required affinity terms.
    attracted: Pairs,
    /// Pods that some required anti-affinity term is about.
    repelled: Pairs,
    /// Where placed pods' required anti-affinity doesn't want this pod.
    unwanted: Pairs,
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes_on(&self, event: ClusterEvent) -> bool {
        !matches!(
            event,
            ClusterEvent::NodeAllocatable | ClusterEvent::NodeTaints | ClusterEvent::NodeRemoved
        )
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        let others_care = || cluster.nodes().any(|n| n.pods.values().any(|p| p.has_affinity()));
        if !pod.has_affinity() && !others_care() {
            return None;
        }
        let mut affinity = Affinity {
            pod,
            cluster,
            attracted: Pairs::new(),
            repelled: Pairs::new(),
            unwanted: Pairs::new(),
        };
        affinity.count();
        Some(Box::new(affinity))
    }
}

/// Does `term` of `owner` mean `other`?
fn means(term: &PodAffinityTerm, owner: &PodInfo, other: &PodInfo, cluster: &Cluster) -> bool {
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let in_namespace = match &term.namespace_selector {
        None if listed.is_empty() => other.namespace() == owner.namespace(),
        selector => {
            listed.iter().any(|n| n == other.namespace())
                || selector
                    .as_ref()
                    .is_some_and(|s| api::selector::matches(s, cluster.namespaces.get(other.namespace())))
        }
    };
    in_namespace && api::selector::matches_some(term.label_selector.as_ref(), other.labels())
}

fn add(pairs: &mut Pairs, node: &NodeInfo, key: &str, amount: i64) {
    if let Some(value) = node.label(key) {
        *pairs.entry((key.to_owned(), value.to_owned())).or_default() += amount;
    }
}

fn lookup(pairs: &Pairs, node: &NodeInfo, key: &str) -> i64 {
    node.label(key)
        .and_then(|v| pairs.get(&(key.to_owned(), v.to_owned())))
        .copied()
        .unwrap_or_default()
}

impl Affinity<'_> {
    fn count(&mut self) {
        let (affinity, anti) = (self.pod.required_affinity(), self.pod.required_anti_affinity());
        for node in self.cluster.nodes() {
            for placed in node.pods.values() {
                for term in placed.required_anti_affinity() {
                    if means(term, placed, self.pod, self.cluster) {
                        add(&mut self.unwanted, node, &term.topology_key, 1);
                    }
                }
                if !affinity.is_empty() && affinity.iter().all(|t| means(t, self.pod, placed, self.cluster)) {
                    for term in affinity {
                        add(&mut self.attracted, node, &term.topology_key, 1);
                    }
                }
                for term in anti.iter().filter(|t| means(t, self.pod, placed, self.cluster)) {
                    add(&mut self.repelled, node, &term.topology_key, 1);
                }
            }
        }
    }

    fn satisfies_affinity(&self, node: &NodeInfo) -> bool {
        let terms = self.pod.required_affinity();
        if terms.iter().any(|t| node.label(&t.topology_key).is_none()) {
            return false;
        }
        terms.iter().all(|t| lookup(&self.attracted, node, &t.topology_key) > 0)
            // The first of a group that wants to be together may go anywhere.
            || (self.attracted.is_empty() && terms.iter().all(|t| means(t, self.pod, self.pod, self.cluster)))
    }

    fn weigh(&self) -> Pairs {
        let mut pairs = Pairs::new();
        let preferred = |p: &PodInfo| -> (Vec<WeightedPodAffinityTerm>, Vec<WeightedPodAffinityTerm>) {
            let near = p
                .affinity()
                .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.clone());
            let far = p
                .anti_affinity()
                .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.clone());
            (near.unwrap_or_default(), far.unwrap_or_default())
        };
        let (near, far) = preferred(self.pod);
        for node in self.cluster.nodes() {
            for placed in node.pods.values() {
                let mut weigh =
                    |terms: &[WeightedPodAffinityTerm], sign: i64, owner: &PodInfo, other: &PodInfo| {
                        for term in terms
                            .iter()
                            .filter(|t| means(&t.pod_affinity_term, owner, other, self.cluster))
                        {
                            add(
                                &mut pairs,
                                node,
                                &term.pod_affinity_term.topology_key,
                                sign * i64::from(term.weight),
                            );
                        }
                    };
                weigh(&near, 1, self.pod, placed);
                weigh(&far, -1, self.pod, placed);
                if placed.has_affinity() {
                    let (near, far) = preferred(placed);
                    weigh(&near, 1, placed, self.pod);
                    weigh(&far, -1, placed, self.pod);
                    for term in placed.required_affinity() {
                        if means(term, placed, self.pod, self.cluster) {
                            add(&mut pairs, node, &term.topology_key, HARD_WEIGHT);
                        }
                    }
                }
            }
        }
        pairs
    }
}

impl Prepared for Affinity<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if !self.satisfies_affinity(node) {
            return reject("node(s) didn't match pod affinity rules");
        }
        if self
            .pod
            .required_anti_affinity()
            .iter()
            .any(|t| lookup(&self.repelled, node, &t.topology_key) > 0)
        {
            return reject("node(s) didn't match pod anti-affinity rules");
        }
        if self
            .unwanted
            .iter()
            .any(|((key, value), _)| node.label(key) == Some(value))
        {
            return reject("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Ok(())
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let pairs = self.weigh();
        if pairs.is_empty() {
            return None;
        }
        let sum = |node: &&NodeInfo| -> i64 {
            pairs
                .iter()
                .filter(|((key, value), _)| node.label(key) == Some(value))
                .map(|(_, weight)| weight)
                .sum()
        };
        let raw: Vec<i64> = nodes.iter().map(sum).collect();
        let max = raw.iter().copied().max().unwrap_or_default().max(0);
        let min = raw.iter().copied().min().unwrap_or_default().min(0);
        let scaled = |score: &i64| {
            if max == min {
                0
            } else {
                MAX_SCORE * (score - min) / (max - min)
            }
        };
        Some(raw.iter().map(scaled).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use serde_json::{Value, json};

    fn node(zone: &str) -> Value {
        json!({"metadata": {"labels": {"zone": zone}}})
    }

    fn term(app: &str) -> Value {
        json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}})
    }

    fn app(app: &str, affinity: Value) -> Value {
        json!({"metadata": {"labels": {"app": app}}, "spec": {"affinity": affinity}})
    }

    fn passes(cluster: &Cluster, body: Value) -> Vec<String> {
        let pod = pod("p", body);
        let Some(prepared) = InterPodAffinity.prepare(&pod, cluster) else {
            return vec!["skipped".into()];
        };
        cluster
            .nodes()
            .filter(|n| prepared.filter(n).is_ok())
            .map(|n| n.name().to_owned())
            .collect()
    }

    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

    #[test]
    fn required_terms_filter() {
        let world = cluster(
            &[("a", node("1")), ("b", node("2"))],
            &[("db", "a", app("db", json!({})))],
        );
        let near = |to: &str| json!({"podAffinity": {REQUIRED: [term(to)]}});
        let far = |from: &str| json!({"podAntiAffinity": {REQUIRED: [term(from)]}});
        assert_eq!(passes(&world, app("web", near("db"))), ["a"]);
        assert_eq!(passes(&world, app("web", far("db"))), ["b"]);
        assert_eq!(passes(&world, app("web", near("nobody"))), Vec::<String>::new());
        assert_eq!(
            passes(&world, app("web", near("web"))),
            ["a", "b"],
            "first of its group"
        );
        let mut elsewhere = app("web", near("db"));
        elsewhere["metadata"]["namespace"] = json!("other");
        assert_eq!(
            passes(&world, elsewhere),
            Vec::<String>::new(),
            "another namespace's pods don't count"
        );
    }

    #[test]
    fn placed_pods_keep_others_away() {
        let hermit = app("hermit", json!({"podAntiAffinity": {REQUIRED: [term("web")]}}));
        let world = cluster(&[("a", node("1")), ("b", node("2"))], &[("h", "a", hermit)]);
        assert_eq!(passes(&world, app("web", json!({}))), ["b"]);
        assert_eq!(passes(&world, app("db", json!({}))), ["a", "b"]);
    }

    #[test]
    fn preferred_terms_score() {
        let world = cluster(
            &[("a", node("1")), ("b", node("2"))],
            &[("db", "a", app("db", json!({})))],
        );
        let nodes: Vec<&NodeInfo> = world.nodes().collect();
        for (kind, scores) in [("podAffinity", [100, 0]), ("podAntiAffinity", [0, 100])] {
            let wish = json!({kind: {PREFERRED: [{"weight": 10, "podAffinityTerm": term("db")}]}});
            let pod = pod("p", app("web", wish));
            let prepared = InterPodAffinity.prepare(&pod, &world).unwrap();
            assert_eq!(prepared.score(&nodes), Some(scores.to_vec()), "{kind}");
        }
    }
}
