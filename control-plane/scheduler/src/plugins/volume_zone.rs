//! Volumes labelled with a zone or region are used there.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{EventKind, Plugin, Prepared, Rejection, reject_for_good};
use crate::pod_info::PodInfo;

const TOPOLOGY: [&str; 4] = [
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];
/// Separates the zones of a volume that is in several.
const SEPARATOR: &str = "__";

pub struct VolumeZone;

/// Label and its values.
struct Zones<'a>(Vec<(&'static str, &'a str)>);

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        matches!(
            kind,
            EventKind::Storage | EventKind::NodeAdded | EventKind::NodeLabels
        )
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        let claims = pod
            .claims
            .iter()
            .filter_map(|c| cluster.volumes.claim(pod.namespace(), &c.name));
        let volumes = claims.filter_map(|c| cluster.volumes.volumes.get(api::volume::volume_name(c)?));
        let labels = volumes.filter_map(|v| v.metadata.labels.as_ref());
        let zones: Vec<_> = labels
            .flat_map(|labels| {
                TOPOLOGY
                    .iter()
                    .filter_map(|key| Some((*key, labels.get(*key)?.as_str())))
            })
            .collect();
        (!zones.is_empty()).then(|| Box::new(Zones(zones)) as Box<dyn Prepared + 'a>)
    }
}

impl Prepared for Zones<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let elsewhere = |(key, values): &(&str, &str)| {
            node.label(key)
                .is_none_or(|here| !values.split(SEPARATOR).any(|v| v == here))
        };
        // A node without any topology is in all zones.
        let placed = TOPOLOGY.iter().any(|key| node.label(key).is_some());
        if placed && self.0.iter().any(elsewhere) {
            return reject_for_good("node(s) had no available volume zone");
        }
        Ok(())
    }
}
