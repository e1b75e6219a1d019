//! CPU and memory of a node should fill up together.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{EventKind, MAX_SCORE, Plugin, Prepared, Scope};
use crate::pod_info::{PodInfo, Resources};

pub struct NodeResourcesBalancedAllocation;

struct Wanted<'a>(&'a PodInfo);

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn wakes_on(&self, _: EventKind) -> bool {
        false
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        // A pod that asks for nothing moves no balance.
        (pod.requests != Resources::default()).then(|| Box::new(Wanted(pod)) as Box<dyn Prepared + 'a>)
    }
}

impl Prepared for Wanted<'_> {
    fn scope(&self) -> Scope {
        Scope::Pods
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let wanted = &self.0.requests;
        let score = |node: &&NodeInfo| {
            balance(
                fraction(
                    node.allocatable.milli_cpu,
                    node.requested.milli_cpu + wanted.milli_cpu,
                ),
                fraction(node.allocatable.memory, node.requested.memory + wanted.memory),
            )
        };
        Some(nodes.iter().map(score).collect())
    }
}

fn fraction(capacity: i64, requested: i64) -> Option<f64> {
    (capacity > 0).then(|| (requested as f64 / capacity as f64).min(1.0))
}

fn balance(cpu: Option<f64>, memory: Option<f64>) -> i64 {
    let deviation = match (cpu, memory) {
        (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
        _ => 0.0,
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenly_filled_is_best() {
        for (cpu, memory, score) in [(0.5, 0.5, 100), (1.0, 0.0, 50), (0.2, 0.6, 80)] {
            assert_eq!(balance(Some(cpu), Some(memory)), score);
        }
        assert_eq!(fraction(10, 20), Some(1.0));
        assert_eq!(balance(fraction(0, 1), Some(0.3)), 100);
    }
}
