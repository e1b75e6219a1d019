//! The nodes found for one pod, for the pods like it that come next: of these nodes only the one that was taken is
//! looked at again. Upstream: opportunistic batching (KEP-5598).

use crate::cluster::{Cluster, NodeInfo};
use crate::pod_info::PodInfo;
use std::sync::Arc;

/// Of a sample of the nodes; others get their turn after so many pods.
const USES_OF_A_SAMPLE: usize = 64;

/// A feasible node by its place in the cluster, and its score: what rests on the node alone, and what its pods change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub at: usize,
    pub fixed: i64,
    pub moving: i64,
}

#[derive(Debug, Default)]
pub struct Batch {
    like: Option<Arc<PodInfo>>,
    /// The cluster as it was, the last pod placed.
    version: u64,
    candidates: Vec<Candidate>,
    last: usize,
    uses: usize,
}

impl Batch {
    /// `chosen` of `candidates` is taken by `pod`; `all`: no node was left out.
    pub fn begin(&mut self, pod: &Arc<PodInfo>, candidates: Vec<Candidate>, chosen: usize, all: bool) {
        *self = Self {
            like: Some(pod.clone()),
            version: 0,
            candidates,
            last: chosen,
            uses: if all { usize::MAX } else { USES_OF_A_SAMPLE },
        };
    }

    pub fn end(&mut self) {
        self.like = None;
    }

    /// The pod is where it was to be, and nothing else happened.
    pub fn settle(&mut self, version: u64) {
        self.version = version;
    }

    /// The best node for another pod like the last, if what is known still holds. `look` says what the node taken last
    /// is worth now; `None`: it is full.
    pub fn next<'a>(
        &mut self,
        pod: &PodInfo,
        cluster: &'a Cluster,
        look: impl FnOnce(&NodeInfo) -> Option<i64>,
        pick: &mut impl FnMut(usize) -> usize,
    ) -> Option<&'a NodeInfo> {
        let holds = self.version == cluster.version() && self.uses > 0;
        if !holds || !self.like.as_ref().is_some_and(|like| alike(like, pod)) {
            self.end();
            return None;
        }
        let taken = self.candidates[self.last].at;
        match look(&cluster.nodes()[taken]) {
            Some(worth) => self.candidates[self.last].moving = worth,
            None => {
                self.candidates.swap_remove(self.last);
            }
        }
        let Some(best) = best(&self.candidates, pick) else {
            self.end();
            return None;
        };
        self.last = best;
        self.uses -= 1;
        Some(&cluster.nodes()[self.candidates[best].at])
    }
}

/// The place in the list of one with the highest score.
pub fn best(candidates: &[Candidate], pick: &mut impl FnMut(usize) -> usize) -> Option<usize> {
    let score = |candidate: &Candidate| candidate.fixed + candidate.moving;
    let highest = candidates.iter().map(score).max()?;
    let tied = || (0..candidates.len()).filter(|at| score(&candidates[*at]) == highest);
    let count = tied().count();
    tied().nth(pick(count).min(count - 1))
}

/// Do nodes look the same to both, as far as plugins without an eye for other nodes' pods can tell?
fn alike(one: &PodInfo, other: &PodInfo) -> bool {
    let (a, b) = (one.spec(), other.spec());
    let images = |pod: &PodInfo| -> Vec<Option<String>> {
        let spec = pod.spec();
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        containers.map(|container| container.image.clone()).collect()
    };
    one.claims.is_empty()
        && other.claims.is_empty()
        && one.requests == other.requests
        && one.scoring == other.scoring
        && one.host_ports == other.host_ports
        && a.scheduler_name == b.scheduler_name
        && a.node_selector == b.node_selector
        && a.affinity == b.affinity
        && a.tolerations == b.tolerations
        && api::pod::node_name(&one.pod) == api::pod::node_name(&other.pod)
        && images(one) == images(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Sampling, schedule};
    use crate::cluster::testing::{cluster, pod};
    use crate::profile::Profile;
    use serde_json::{Value, json};

    fn asks(cpu: &str) -> Value {
        json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn node(cpu: &str) -> Value {
        json!({"status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}})
    }

    /// Places the pod as `state` does; whether the batch answered.
    fn place(
        name: &str,
        body: Value,
        cluster: &mut Cluster,
        sampling: &mut Sampling,
    ) -> Option<(String, bool)> {
        let pod = pod(name, body);
        let uses = sampling.batch.uses;
        let found = schedule(&Profile::default(), &pod, cluster, sampling, |_| 0).ok()?;
        let reused = sampling.batch.like.is_some() && sampling.batch.uses < uses;
        cluster.set_pod(pod, &found);
        sampling.batch.settle(cluster.version());
        Some((found, reused))
    }

    /// All equally good nodes of a decision that rests on nothing before it.
    fn best_alone(pod: &Arc<PodInfo>, cluster: &mut Cluster) -> Vec<String> {
        let (mut found, mut equals) = (Vec::new(), 1);
        while found.len() < equals {
            let at = found.len();
            let pick = |count| {
                equals = count;
                at
            };
            match schedule(&Profile::default(), pod, cluster, &mut Sampling::default(), pick) {
                Ok(node) => found.push(node),
                Err(_) => break,
            }
        }
        found
    }

    #[test]
    fn pods_alike_go_where_each_would_have_gone_alone() {
        let nodes: Vec<(String, Value)> = (0..9)
            .map(|at| (format!("n{at}"), node(&format!("{}", 2 + at % 3))))
            .collect();
        let nodes: Vec<(&str, Value)> = nodes
            .iter()
            .map(|(name, body)| (name.as_str(), body.clone()))
            .collect();
        let mut cluster = cluster(&nodes, &[]);
        let mut sampling = Sampling::default();
        let mut answered = 0;
        for round in 0..70 {
            let body = asks(if round % 20 < 15 { "300m" } else { "500m" });
            let name = format!("p{round}");
            let best = best_alone(&pod(&name, body.clone()), &mut cluster);
            let found = place(&name, body, &mut cluster, &mut sampling);
            answered += usize::from(found.as_ref().is_some_and(|(_, reused)| *reused));
            match found {
                Some((node, _)) => assert!(best.contains(&node), "round {round}: {node} is none of {best:?}"),
                None => assert!(best.is_empty(), "round {round}: {best:?} would have done"),
            }
        }
        assert!(
            answered > 50,
            "only {answered} of 70 pods were answered from a batch"
        );
    }

    #[test]
    fn whatever_else_happens_ends_a_batch() {
        let nodes = [("a", node("4")), ("b", node("4")), ("c", node("4"))];
        let start = || {
            let (mut cluster, mut sampling) = (cluster(&nodes, &[]), Sampling::default());
            let first = place("p0", asks("1"), &mut cluster, &mut sampling).unwrap();
            assert!(!first.1);
            (cluster, sampling)
        };
        type Change = fn(&mut Cluster);
        let changes: [(&str, Change, bool); 6] = [
            ("nothing", |_| (), true),
            (
                "the watch confirms the pod",
                |c| {
                    let node = c.node_of("p0").unwrap().to_owned();
                    c.set_pod(pod("p0", asks("1")), &node);
                },
                true,
            ),
            ("a pod leaves", |c| drop(c.remove_pod("p0")), false),
            ("a pod comes", |c| c.set_pod(pod("x", asks("1")), "a"), false),
            (
                "a node is cordoned",
                |c| {
                    set_node(
                        c,
                        json!({"metadata": {"name": "a"}, "spec": {"unschedulable": true}}),
                    )
                },
                false,
            ),
            ("a node goes", |c| c.remove_node("c"), false),
        ];
        for (what, change, reused) in changes {
            let (mut cluster, mut sampling) = start();
            change(&mut cluster);
            let second = place("p1", asks("1"), &mut cluster, &mut sampling).unwrap();
            assert_eq!(second.1, reused, "{what}");
        }
        let (mut cluster, mut sampling) = start();
        assert!(
            !place("p1", asks("2"), &mut cluster, &mut sampling).unwrap().1,
            "another pod"
        );
    }

    fn set_node(cluster: &mut Cluster, body: Value) {
        cluster.set_node(Arc::new(serde_json::from_value(body).unwrap()));
    }

    #[test]
    fn pods_that_look_at_other_pods_are_no_batch() {
        let spread = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "k", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"a": "b"}}}]}});
        let (mut cluster, mut sampling) = (
            cluster(&[("a", node("4")), ("b", node("4"))], &[]),
            Sampling::default(),
        );
        for name in ["p0", "p1", "p2"] {
            assert!(
                !place(name, spread.clone(), &mut cluster, &mut sampling)
                    .unwrap()
                    .1
            );
        }
    }
}
