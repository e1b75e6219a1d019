//! A CSI driver attaches only so many volumes to a node.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{EventKind, Plugin, Prepared, Rejection, reject};
use crate::pod_info::PodInfo;
use std::collections::{HashMap, HashSet};

pub struct NodeVolumeLimits;

struct Wanted<'a> {
    /// Driver to handles.
    new: HashMap<&'a str, HashSet<&'a str>>,
    cluster: &'a Cluster,
}

/// Driver and handle of a pod's CSI volumes, of those that are known already.
fn handles<'a>(pod: &PodInfo, cluster: &'a Cluster) -> Vec<(&'a str, &'a str)> {
    let volumes = &cluster.volumes;
    let claims = pod
        .claims
        .iter()
        .filter_map(|c| volumes.claim(pod.namespace(), &c.name));
    claims
        .filter_map(|claim| match api::volume::volume_name(claim) {
            Some(name) => {
                let csi = volumes.volumes.get(name)?.spec.as_ref()?.csi.as_ref()?;
                Some((csi.driver.as_str(), csi.volume_handle.as_str()))
            }
            None => {
                let class = volumes.classes.get(api::volume::claim_class(claim))?;
                Some((class.provisioner.as_str(), claim.metadata.uid.as_deref()?))
            }
        })
        .collect()
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        matches!(
            kind,
            EventKind::Storage | EventKind::NodeAdded | EventKind::PodRemoved
        )
    }

    fn hint(&self, _: &PodInfo, event: &crate::framework::ClusterEvent) -> bool {
        event.pod.is_none_or(|gone| !gone.claims.is_empty())
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        let mut new: HashMap<&str, HashSet<&str>> = HashMap::new();
        for (driver, handle) in handles(pod, cluster) {
            new.entry(driver).or_default().insert(handle);
        }
        (!new.is_empty()).then(|| Box::new(Wanted { new, cluster }) as Box<dyn Prepared + 'a>)
    }
}

impl Prepared for Wanted<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(drivers) = self.cluster.volumes.csi_nodes.get(node.name()) else {
            return Ok(());
        };
        for driver in &drivers.spec.drivers {
            let limit = driver.allocatable.as_ref().and_then(|a| a.count);
            let (Some(limit), Some(new)) = (limit, self.new.get(driver.name.as_str())) else {
                continue;
            };
            let on_node = node.pods.values().flat_map(|p| handles(p, self.cluster));
            let mut attached: HashSet<&str> = on_node
                .filter(|(name, _)| *name == driver.name)
                .map(|(_, handle)| handle)
                .collect();
            attached.extend(new);
            if attached.len() > usize::try_from(limit).unwrap_or_default() {
                return reject("node(s) exceed max volume count");
            }
        }
        Ok(())
    }
}
