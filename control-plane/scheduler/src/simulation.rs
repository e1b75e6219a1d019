//! The scheduler without an API server: what it would decide, as fast as it can. For measurements.

use crate::config::Config;
use crate::state::{Decision, Shared};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use std::time::Instant;

pub struct Simulation(Shared);

impl Default for Simulation {
    fn default() -> Self {
        Self(Shared::new(&Config::default()))
    }
}

impl Simulation {
    pub fn add_node(&self, node: Node) {
        self.0.set_node(node);
    }

    pub fn add_pod(&self, pod: Pod) {
        self.0.set_pod(pod);
    }

    pub fn add_replica_set(&self, set: &ReplicaSet) {
        if let (Some(uid), Some(spec)) = (&set.metadata.uid, &set.spec) {
            self.0.with_cluster(|c| c.set_owner(uid, spec.selector.clone()));
        }
    }

    /// Decides until nothing is left to do now: how many pods got a node, and how many would have others leave.
    pub fn run(&self) -> (usize, usize) {
        let (mut placed, mut preempting) = (0, 0);
        loop {
            match self.0.decide(Instant::now(), |n| n / 2) {
                Ok(Decision::Bind { .. }) => placed += 1,
                Ok(Decision::Preempt { .. }) => preempting += 1,
                Ok(Decision::Unschedulable { .. }) => {}
                Err(_) => return (placed, preempting),
            }
        }
    }
}
