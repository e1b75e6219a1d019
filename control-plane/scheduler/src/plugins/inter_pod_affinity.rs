//! Pods that want to be near other pods, or far from them; those already placed have a say too.

use crate::carried::{Term, Tone, terms_of};
use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{
    ClusterEvent, EventKind, MAX_SCORE, Plugin, Prepared, Rejection, reject, reject_for_good,
};
use crate::pod_info::PodInfo;
use crate::tally::{Part, Selection, Tally};
use std::collections::HashMap;

/// Upstream's `hardPodAffinityWeight`: how much a placed pod's required affinity attracts.
pub const HARD_WEIGHT: i32 = 1;

pub struct InterPodAffinity {
    pub hard_weight: i32,
}

struct Affinity<'a> {
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    /// Pods that satisfy all required affinity terms, and the topologies that count.
    attracted: Option<(Selection, &'a Tally, Vec<&'a str>)>,
    /// Pods that a required anti-affinity term is about, and its topology.
    repelled: Vec<(Selection, &'a Tally, &'a str)>,
    /// Placed pods' required anti-affinity that is about this pod.
    unwanted: Vec<&'a Term>,
    /// Weights of preferred terms.
    preferred: Vec<(&'a Tally, &'a str, i32)>,
    /// Placed pods' wishes that are about this pod.
    wished: Vec<(&'a Term, i32)>,
    /// What a what-if changed: kind, topology and domain to the difference.
    imagined: HashMap<(Kind, String, String), i32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Attracted,
    Repelled(usize),
    Unwanted,
}

fn selection(parts: Vec<Part>) -> Selection {
    Selection {
        parts,
        terminating: true,
    }
}

/// All required affinity terms together.
fn group(pod: &PodInfo) -> Selection {
    let terms = pod.required_affinity().iter();
    selection(terms.map(|t| Part::of(t, pod.namespace())).collect())
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        !matches!(
            kind,
            EventKind::NodeAllocatable | EventKind::NodeTaints | EventKind::NodeRemoved | EventKind::Storage
        )
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        let Some(other) = event.pod else { return true };
        // Namespace selectors are not looked at: waking too often does no harm.
        let about = |owner: &PodInfo, other: &PodInfo| {
            terms_of(owner)
                .iter()
                .any(|(_, t)| api::selector::matches_some(t.label_selector.as_ref(), other.labels()))
        };
        about(pod, other) || about(other, pod)
    }

    fn warm(&self, pod: &PodInfo, cluster: &mut Cluster) {
        cluster.ensure_carried();
        for term in pod.required_affinity() {
            cluster.ensure_tally(&group(pod), &term.topology_key);
        }
        for (tone, term) in terms_of(pod) {
            if tone != Tone::ComeHere {
                let part = Part::of(term, pod.namespace());
                cluster.ensure_tally(&selection(vec![part]), &term.topology_key);
            }
        }
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        let placed = cluster.carried().terms();
        if !pod.has_affinity() && placed.is_empty() {
            return None;
        }
        let mut affinity = Affinity {
            pod,
            cluster,
            attracted: None,
            repelled: Vec::new(),
            unwanted: Vec::new(),
            preferred: Vec::new(),
            wished: Vec::new(),
            imagined: HashMap::new(),
        };
        if !pod.required_affinity().is_empty() {
            let together = group(pod);
            let keys = pod
                .required_affinity()
                .iter()
                .map(|t| t.topology_key.as_str())
                .collect();
            affinity.attracted = cluster.tally(&together).map(|tally| (together, tally, keys));
        }
        for (tone, term) in terms_of(pod) {
            let alone = selection(vec![Part::of(term, pod.namespace())]);
            let Some(tally) = cluster.tally(&alone) else {
                continue;
            };
            match tone {
                Tone::ComeHere => {}
                Tone::KeepAway => affinity.repelled.push((alone, tally, &term.topology_key)),
                Tone::Preferred(weight) => affinity.preferred.push((tally, &term.topology_key, weight)),
            }
        }
        for term in placed.iter().filter(|t| t.part.means(pod, &cluster.namespaces)) {
            match term.tone {
                Tone::KeepAway => affinity.unwanted.push(term),
                Tone::ComeHere if self.hard_weight > 0 => affinity.wished.push((term, self.hard_weight)),
                Tone::ComeHere => {}
                Tone::Preferred(weight) => affinity.wished.push((term, weight)),
            }
        }
        Some(Box::new(affinity))
    }
}

impl Affinity<'_> {
    fn imagined(&self, kind: Kind, key: &str, value: &str) -> i32 {
        if self.imagined.is_empty() {
            return 0;
        }
        let at = (kind, key.to_owned(), value.to_owned());
        self.imagined.get(&at).copied().unwrap_or_default()
    }

    fn satisfies_affinity(&self, node: &NodeInfo) -> bool {
        let Some((together, tally, keys)) = &self.attracted else {
            return true;
        };
        if keys.iter().any(|key| node.label(key).is_none()) {
            return false;
        }
        let near = |key: &&str| {
            node.label(key).is_some_and(|value| {
                tally.in_domain(key, value) + self.imagined(Kind::Attracted, key, value) > 0
            })
        };
        // The first of a group that wants to be together may go anywhere.
        keys.iter().all(near)
            || (tally.total == 0
                && together
                    .parts
                    .iter()
                    .all(|p| p.means(self.pod, &self.cluster.namespaces)))
    }

    fn is_unwanted(&self, node: &NodeInfo) -> bool {
        let said = |term: &&&Term| {
            node.label(&term.key)
                .is_some_and(|v| term.domains.contains_key(v))
        };
        let mut said = self.unwanted.iter().filter(said);
        if self.imagined.is_empty() {
            return said.next().is_some();
        }
        let mut counts: HashMap<&str, i32> = HashMap::new();
        for term in said {
            let here = node.label(&term.key).and_then(|v| term.domains.get(v));
            *counts.entry(&term.key).or_default() += here.copied().unwrap_or_default();
        }
        for (kind, key, value) in self.imagined.keys() {
            if *kind == Kind::Unwanted && node.label(key) == Some(value) {
                *counts.entry(key).or_default() += self.imagined(*kind, key, value);
            }
        }
        counts.values().any(|count| *count > 0)
    }
}

impl Prepared for Affinity<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if !self.satisfies_affinity(node) {
            return reject_for_good("node(s) didn't match pod affinity rules");
        }
        let repelled = |(at, (_, tally, key)): (usize, &(Selection, &Tally, &str))| {
            node.label(key).is_some_and(|value| {
                tally.in_domain(key, value) + self.imagined(Kind::Repelled(at), key, value) > 0
            })
        };
        if self.repelled.iter().enumerate().any(repelled) {
            return reject("node(s) didn't match pod anti-affinity rules");
        }
        if self.is_unwanted(node) {
            return reject("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        Ok(())
    }

    fn imagine(&mut self, pod: &PodInfo, node: &NodeInfo, sign: i32) {
        let namespaces = &self.cluster.namespaces;
        let mut changes: Vec<(Kind, &str)> = Vec::new();
        if let Some((together, _, keys)) = &self.attracted
            && together.means(pod, namespaces)
        {
            changes.extend(keys.iter().map(|key| (Kind::Attracted, *key)));
        }
        for (at, (alone, _, key)) in self.repelled.iter().enumerate() {
            if alone.means(pod, namespaces) {
                changes.push((Kind::Repelled(at), key));
            }
        }
        for term in pod.required_anti_affinity() {
            if Part::of(term, pod.namespace()).means(self.pod, namespaces) {
                changes.push((Kind::Unwanted, &term.topology_key));
            }
        }
        for (kind, key) in changes {
            if let Some(value) = node.label(key) {
                *self
                    .imagined
                    .entry((kind, key.to_owned(), value.to_owned()))
                    .or_default() += sign;
            }
        }
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.preferred.is_empty() && self.wished.is_empty() {
            return None;
        }
        let sum = |node: &&NodeInfo| -> i64 {
            let own = self.preferred.iter().filter_map(|(tally, key, weight)| {
                Some(i64::from(tally.in_domain(key, node.label(key)?)) * i64::from(*weight))
            });
            let others = self.wished.iter().filter_map(|(term, weight)| {
                Some(i64::from(*term.domains.get(node.label(&term.key)?)?) * i64::from(*weight))
            });
            own.sum::<i64>() + others.sum::<i64>()
        };
        let raw: Vec<i64> = nodes.iter().map(sum).collect();
        let max = raw.iter().copied().max().unwrap_or_default();
        let min = raw.iter().copied().min().unwrap_or_default();
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

    fn passes(cluster: &mut Cluster, body: Value) -> Vec<String> {
        let pod = pod("p", body);
        let plugin = InterPodAffinity {
            hard_weight: HARD_WEIGHT,
        };
        plugin.warm(&pod, cluster);
        let Some(prepared) = plugin.prepare(&pod, cluster) else {
            return vec!["skipped".into()];
        };
        cluster
            .nodes()
            .iter()
            .filter(|n| prepared.filter(n).is_ok())
            .map(|n| n.name().to_owned())
            .collect()
    }

    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

    #[test]
    fn required_terms_filter() {
        let mut world = cluster(
            &[("a", node("1")), ("b", node("2"))],
            &[("db", "a", app("db", json!({})))],
        );
        let near = |to: &str| json!({"podAffinity": {REQUIRED: [term(to)]}});
        let far = |from: &str| json!({"podAntiAffinity": {REQUIRED: [term(from)]}});
        assert_eq!(passes(&mut world, app("web", near("db"))), ["a"]);
        assert_eq!(passes(&mut world, app("web", far("db"))), ["b"]);
        assert_eq!(
            passes(&mut world, app("web", near("nobody"))),
            Vec::<String>::new()
        );
        assert_eq!(
            passes(&mut world, app("web", near("web"))),
            ["a", "b"],
            "first of its group"
        );
        let mut elsewhere = app("web", near("db"));
        elsewhere["metadata"]["namespace"] = json!("other");
        assert_eq!(
            passes(&mut world, elsewhere),
            Vec::<String>::new(),
            "another namespace's pods don't count"
        );
    }

    #[test]
    fn placed_pods_keep_others_away() {
        let hermit = app("hermit", json!({"podAntiAffinity": {REQUIRED: [term("web")]}}));
        let mut world = cluster(&[("a", node("1")), ("b", node("2"))], &[("h", "a", hermit)]);
        assert_eq!(passes(&mut world, app("web", json!({}))), ["b"]);
        assert_eq!(passes(&mut world, app("db", json!({}))), ["a", "b"]);
    }

    #[test]
    fn preferred_terms_score() {
        let mut world = cluster(
            &[("a", node("1")), ("b", node("2"))],
            &[("db", "a", app("db", json!({})))],
        );
        for (kind, scores) in [("podAffinity", [100, 0]), ("podAntiAffinity", [0, 100])] {
            let wish = json!({kind: {PREFERRED: [{"weight": 10, "podAffinityTerm": term("db")}]}});
            let pod = pod("p", app("web", wish));
            let plugin = InterPodAffinity {
                hard_weight: HARD_WEIGHT,
            };
            plugin.warm(&pod, &mut world);
            let nodes: Vec<&NodeInfo> = world.nodes().iter().collect();
            let prepared = plugin.prepare(&pod, &world).unwrap();
            assert_eq!(prepared.score(&nodes), Some(scores.to_vec()), "{kind}");
        }
    }
}
