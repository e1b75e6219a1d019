//! What a plugin is: prepared once a pod, then asked about every node.

use crate::cluster::{Cluster, NodeInfo};
use crate::pod_info::PodInfo;
use std::borrow::Cow;

pub const MAX_SCORE: i64 = 100;

/// Why a node won't do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// In upstream's words.
    pub reasons: Vec<Cow<'static, str>>,
    /// No pod's removal would change it (upstream's `UnschedulableAndUnresolvable`).
    pub unresolvable: bool,
}

/// What happened in the cluster that may make an unschedulable pod schedulable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
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
    /// Volumes, claims, storage classes, CSI drivers and what they say of nodes.
    Storage,
}

/// An event, and what it is about.
#[derive(Clone, Copy, Debug)]
pub struct ClusterEvent<'a> {
    pub kind: EventKind,
    pub node: Option<&'a NodeInfo>,
    pub pod: Option<&'a PodInfo>,
}

pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// Its share in the sum of scores, unless the profile says otherwise.
    fn weight(&self) -> i64 {
        0
    }

    /// May events of this kind change its mind?
    fn wakes_on(&self, kind: EventKind) -> bool;

    /// Does this very event change its mind about this pod? Asked after [`Self::wakes_on`] (upstream's queueing hint).
    fn hint(&self, _pod: &PodInfo, _event: &ClusterEvent) -> bool {
        true
    }

    /// Names what [`Self::prepare`] will count, so that the cluster keeps the counts.
    fn warm(&self, _pod: &PodInfo, _cluster: &mut Cluster) {}

    /// Can the pod be scheduled at all? (Upstream's PreFilter.)
    fn admit(&self, _pod: &PodInfo, _cluster: &Cluster) -> Result<(), Rejection> {
        Ok(())
    }

    /// Looks at the pod and the cluster once; `None` when it has nothing to say about this pod.
    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>>;
}

/// A plugin that has looked at one pod.
/// What a prepared plugin's word about a node rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Pods elsewhere, too.
    Cluster,
    /// The node's object only.
    Node,
    /// The node and the pods on it; its scores are not relative to those of other nodes.
    Pods,
}

pub trait Prepared {
    fn scope(&self) -> Scope {
        Scope::Cluster
    }

    fn filter(&self, _node: &NodeInfo) -> Result<(), Rejection> {
        Ok(())
    }

    /// In a what-if, `pod` comes to `node` (`sign` 1) or leaves it (-1).
    fn imagine(&mut self, _pod: &PodInfo, _node: &NodeInfo, _sign: i32) {}

    /// Called once with all nodes that passed the filters; one normalized score each.
    fn score(&self, _nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        None
    }
}

/// The node won't do while the pods on it stay.
pub fn reject(reason: &'static str) -> Result<(), Rejection> {
    Err(Rejection {
        reasons: vec![reason.into()],
        unresolvable: false,
    })
}

/// The node won't do, whoever leaves it.
pub fn reject_for_good(reason: impl Into<Cow<'static, str>>) -> Result<(), Rejection> {
    Err(Rejection {
        reasons: vec![reason.into()],
        unresolvable: true,
    })
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
