//! The default profile: upstream's plugins in upstream's order, with upstream's weights.

mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_balanced_allocation;
mod node_resources_fit;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod taint_toleration;
pub mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use crate::framework::Plugin;
use k8s_openapi::api::core::v1::TopologySpreadConstraint;

/// What `pluginConfig` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Arguments {
    /// InterPodAffinityArgs.hardPodAffinityWeight.
    pub hard_pod_affinity_weight: i32,
    /// PodTopologySpreadArgs.defaultConstraints; `None` for the system's.
    pub default_constraints: Option<Vec<TopologySpreadConstraint>>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            hard_pod_affinity_weight: inter_pod_affinity::HARD_WEIGHT,
            default_constraints: None,
        }
    }
}

pub fn all(arguments: &Arguments) -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(node_unschedulable::NodeUnschedulable),
        Box::new(node_name::NodeName),
        Box::new(taint_toleration::TaintToleration),
        Box::new(node_affinity::NodeAffinity),
        Box::new(node_ports::NodePorts),
        Box::new(node_resources_fit::NodeResourcesFit),
        Box::new(volume_restrictions::VolumeRestrictions),
        Box::new(node_volume_limits::NodeVolumeLimits),
        Box::new(volume_binding::VolumeBinding),
        Box::new(volume_zone::VolumeZone),
        Box::new(pod_topology_spread::PodTopologySpread {
            defaults: arguments.default_constraints.clone(),
        }),
        Box::new(inter_pod_affinity::InterPodAffinity {
            hard_weight: arguments.hard_pod_affinity_weight,
        }),
        Box::new(node_resources_balanced_allocation::NodeResourcesBalancedAllocation),
        Box::new(image_locality::ImageLocality),
    ]
}
