//! What a plugin is: prepared once a pod, then asked about every node.

use crate::cluster::{Cluster, NodeInfo};
use crate::pod_info::PodInfo;

pub const MAX_SCORE: i64 = 100;

/// Why a node won't do, in upstream's words.
pub type Rejection = Vec<String>;

/// What happened in the cluster that may make an unschedulable pod schedulable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    NodeAdded,
    NodeAllocatable,
    NodeLabels,
    /// Taints, or cordoned.
    NodeTaints,
    NodeRemoved,
    PodAdded,
    PodUpdated,
    PodRemoved,
    Namespace,
}

pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// Its share in the sum of scores.
    fn weight(&self) -> i64 {
        0
    }

    /// May this event change its mind about a node it rejected?
    fn wakes_on(&self, event: ClusterEvent) -> bool;

    /// Looks at the pod and the cluster once; `None` when it has nothing to say about this pod.
    fn prepare<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>>;
}

/// A plugin that has looked at one pod.
pub trait Prepared {
    fn filter(&self, _node: &NodeInfo) -> Result<(), Rejection> {
        Ok(())
    }

    /// Called once with all nodes that passed the filters; one raw score each.
    fn score(&self, _nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        None
    }
}

pub fn reject(reason: &str) -> Result<(), Rejection> {
    Err(vec![reason.to_owned()])
}

/// Upstream's `DefaultNormalizeScore`: the largest becomes 100, or 0 when less is better.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or_default();
    for score in scores {
        *score = match max {
            0 if reverse => MAX_SCORE,
            0 => 0,
            _ if reverse => MAX_SCORE - *score * MAX_SCORE / max,
            _ => *score * MAX_SCORE / max,
        };
    }
}
