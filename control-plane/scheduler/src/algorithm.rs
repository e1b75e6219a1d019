//! One scheduling decision: filter, score, choose.

use crate::batch::{self, Batch, Candidate};
use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{Prepared, Rejection, Scope};
use crate::pod_info::PodInfo;
use crate::preemption::{self, Preemption};
use crate::profile::Profile;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// Fewer feasible nodes than this are never enough (upstream's `minFeasibleNodesToFind`).
const MIN_FEASIBLE: usize = 100;
const MIN_PERCENTAGE: usize = 5;

/// Reasons, and how many nodes have each.
pub type Reasons = HashMap<Cow<'static, str>, usize>;

/// Which nodes are looked at, from one decision to the next.
#[derive(Debug, Default)]
pub struct Sampling {
    /// The node to look at first next time, so that all nodes get their turn.
    start: usize,
    pub batch: Batch,
}

/// No node will do.
#[derive(Clone, Debug, PartialEq)]
pub struct Unschedulable {
    /// For people.
    pub message: String,
    /// Bits of the plugins that rejected a node; none when there was no node at all.
    pub rejected_by: u64,
    pub preemption: Preemption,
}

/// The plugins that have something to say about a pod.
pub struct Attempt<'a> {
    pub pod: &'a PodInfo,
    pub cluster: &'a Cluster,
    plugins: Vec<Voice<'a>>,
}

struct Voice<'a> {
    bit: u64,
    weight: i64,
    prepared: Box<dyn Prepared + 'a>,
}

impl Attempt<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), (u64, Rejection)> {
        for voice in &self.plugins {
            voice.prepared.filter(node).map_err(|why| (voice.bit, why))?;
        }
        Ok(())
    }

    /// A pod comes to a node, or leaves it, in thought.
    pub fn imagine(&mut self, pod: &PodInfo, node: &NodeInfo, sign: i32) {
        for voice in &mut self.plugins {
            voice.prepared.imagine(pod, node, sign);
        }
    }

    /// No plugin looks at pods of other nodes.
    fn rests_on_nodes(&self) -> bool {
        self.plugins
            .iter()
            .all(|voice| voice.prepared.scope() != Scope::Cluster)
    }

    /// What a node is worth whose pods changed, as far as they matter; `None` if the pod no longer fits.
    fn worth_now(&self, node: &NodeInfo) -> Option<i64> {
        self.filter(node).ok()?;
        let moving = self
            .plugins
            .iter()
            .filter(|voice| voice.prepared.scope() == Scope::Pods);
        let scores = moving.filter_map(|voice| Some(voice.weight * voice.prepared.score(&[node])?[0]));
        Some(scores.sum())
    }

    /// Nodes that passed the filters, with their scores.
    fn candidates(&self, nodes: &[&NodeInfo], places: &[usize]) -> Vec<Candidate> {
        let unknown = |at: &usize| Candidate {
            at: *at,
            fixed: 0,
            moving: 0,
        };
        let mut candidates: Vec<Candidate> = places.iter().map(unknown).collect();
        for voice in self.plugins.iter().filter(|voice| voice.weight > 0) {
            let moves = voice.prepared.scope() == Scope::Pods;
            let scores = voice.prepared.score(nodes).unwrap_or_default();
            for (candidate, score) in candidates.iter_mut().zip(scores) {
                let sum = if moves {
                    &mut candidate.moving
                } else {
                    &mut candidate.fixed
                };
                *sum += voice.weight * score;
            }
        }
        candidates
    }

    /// As upstream's `RunFilterPluginsWithNominatedPods`: with the room for pods that preempted for it taken, and
    /// without these pods, since others may depend on them.
    pub fn fits(&mut self, node: &NodeInfo) -> Result<(), (u64, Rejection)> {
        let before: Vec<_> = self
            .cluster
            .nominated_before(self.pod, node.name())
            .cloned()
            .collect();
        if !before.is_empty() {
            let mut filled = node.clone();
            for other in &before {
                filled.add(other.clone());
                self.imagine(other, &filled, 1);
            }
            let result = self.filter(&filled);
            for other in &before {
                self.imagine(other, &filled, -1);
            }
            result?;
        }
        self.filter(node)
    }
}

/// Finds the best node. `pick` chooses among equals: given how many there are, it returns one of them.
pub fn schedule(
    profile: &Profile,
    pod: &Arc<PodInfo>,
    cluster: &mut Cluster,
    sampling: &mut Sampling,
    mut pick: impl FnMut(usize) -> usize,
) -> Result<String, Unschedulable> {
    for plugin in &profile.plugins {
        plugin.plugin.warm(pod, cluster);
    }
    let cluster: &Cluster = cluster;
    let total = cluster.nodes().len();
    if total == 0 {
        return Err(Unschedulable {
            message: "no nodes available to schedule pods".into(),
            rejected_by: 0,
            preemption: Preemption::Keep,
        });
    }
    for entry in &profile.plugins {
        if let Err(why) = entry.plugin.admit(pod, cluster) {
            let unhelpful = Reasons::from([(preemption::UNHELPFUL.into(), total)]);
            return Err(Unschedulable {
                message: format!(
                    "0/{total} nodes are available: {}. preemption: {}",
                    why.reasons.join(", "),
                    message(total, &unhelpful)
                ),
                rejected_by: entry.bit,
                preemption: Preemption::Clear,
            });
        }
    }
    let mut attempt = Attempt {
        pod,
        cluster,
        plugins: Vec::new(),
    };
    for entry in &profile.plugins {
        if let Some(prepared) = entry.plugin.prepare(pod, cluster) {
            attempt.plugins.push(Voice {
                bit: entry.bit,
                weight: entry.weight,
                prepared,
            });
        }
    }
    if let Some(nominated) = cluster.nomination(pod.uid()).and_then(|name| cluster.node(name))
        && attempt.fits(nominated).is_ok()
    {
        sampling.batch.end();
        return Ok(nominated.name().to_owned());
    }
    let batched = cluster.nobody_waits() && attempt.rests_on_nodes();
    if batched
        && let Some(node) = sampling
            .batch
            .next(pod, cluster, |node| attempt.worth_now(node), &mut pick)
    {
        return Ok(node.name().to_owned());
    }
    sampling.batch.end();
    let enough = enough(total, profile.percentage_of_nodes_to_score);
    let mut feasible: Vec<&NodeInfo> = Vec::new();
    let mut places: Vec<usize> = Vec::new();
    let mut reasons = Reasons::new();
    let mut rejected_by = 0;
    // Nodes that others' leaving might make feasible.
    let mut hopeful: Vec<&NodeInfo> = Vec::new();
    let mut examined = 0;
    let first = sampling.start % total;
    for at in (first..total).chain(0..first) {
        let node = &cluster.nodes()[at];
        examined += 1;
        match attempt.fits(node) {
            Ok(()) => {
                feasible.push(node);
                places.push(at);
            }
            Err((bit, why)) => {
                rejected_by |= bit;
                if !why.unresolvable {
                    hopeful.push(node);
                }
                for reason in why.reasons {
                    *reasons.entry(reason).or_default() += 1;
                }
            }
        }
        if feasible.len() >= enough {
            break;
        }
    }
    sampling.start = (first + examined) % total;
    match feasible.as_slice() {
        [] => {
            let mut text = message(total, &reasons);
            let preemption = if profile.preempts {
                let (outcome, words) = preemption::preempt(&mut attempt, &hopeful, &mut pick);
                if !words.is_empty() {
                    text = format!("{text} preemption: {words}");
                }
                outcome
            } else {
                Preemption::Keep
            };
            Err(Unschedulable {
                message: text,
                rejected_by,
                preemption,
            })
        }
        [only] => Ok(only.name().to_owned()),
        several => {
            let candidates = attempt.candidates(several, &places);
            let chosen = batch::best(&candidates, &mut pick).unwrap_or_default();
            if batched {
                let all = examined == total;
                sampling.batch.begin(pod, candidates, chosen, all);
            }
            Ok(several[chosen].name().to_owned())
        }
    }
}

/// How many feasible nodes are enough (upstream's `numFeasibleNodesToFind`).
fn enough(total: usize, percentage: usize) -> usize {
    if total < MIN_FEASIBLE {
        return total;
    }
    let percentage = match percentage {
        0 => 50usize.saturating_sub(total / 125).max(MIN_PERCENTAGE),
        given => given,
    };
    (total * percentage / 100).max(MIN_FEASIBLE)
}

/// Upstream's `FitError`.
pub fn message(total: usize, reasons: &Reasons) -> String {
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    format!("0/{total} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use serde_json::json;

    fn run(pod: &Arc<PodInfo>, cluster: &mut Cluster) -> Result<String, Unschedulable> {
        schedule(&Profile::default(), pod, cluster, &mut Sampling::default(), |_| 0)
    }

    #[test]
    fn the_message_counts_reasons_as_upstream_does() {
        let mut cluster = cluster(
            &[
                (
                    "a",
                    json!({"status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}}}),
                ),
                (
                    "b",
                    json!({"status": {"allocatable": {"cpu": "2", "memory": "1Mi", "pods": "10"}}}),
                ),
                (
                    "c",
                    json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
                ),
                (
                    "d",
                    json!({"status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "0"}}}),
                ),
            ],
            &[],
        );
        let pod = pod(
            "p",
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "2Mi"}}}]}}),
        );
        let error = run(&pod, &mut cluster).unwrap_err();
        assert_eq!(
            error.message,
            "0/4 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods, \
             1 node(s) had untolerated taint(s). preemption: 0/4 nodes are available: \
             1 No preemption victims found for incoming pod, 3 Preemption is not helpful for scheduling."
        );
        let profile = Profile::default();
        let bits = profile.bits(&["NodeResourcesFit", "TaintToleration"]);
        assert_eq!(error.rejected_by, bits);
    }

    #[test]
    fn the_emptier_node_wins() {
        let asks = |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}]}});
        let mut cluster = cluster(
            &[("busy", json!({})), ("idle", json!({}))],
            &[("x", "busy", asks("2"))],
        );
        assert_eq!(run(&pod("p", asks("1")), &mut cluster), Ok("idle".into()));
    }

    #[test]
    fn an_empty_cluster_says_so() {
        let error = run(&pod("p", json!({})), &mut cluster(&[], &[])).unwrap_err();
        assert_eq!(error.message, "no nodes available to schedule pods");
    }

    #[test]
    fn large_clusters_are_sampled() {
        for (total, percentage, wanted) in [
            (50, 0, 50),
            (100, 0, 100),
            (1000, 0, 420),
            (5000, 0, 500),
            (6000, 0, 300),
            (1000, 40, 400),
            (200, 10, 100),
        ] {
            assert_eq!(enough(total, percentage), wanted, "{total} nodes, {percentage} %");
        }
    }
}
