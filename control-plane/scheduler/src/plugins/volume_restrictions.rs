//! A ReadWriteOncePod claim has one pod.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{EventKind, Plugin, Prepared, Rejection, reject};
use crate::pod_info::PodInfo;

pub struct VolumeRestrictions;

/// Nodes where another pod uses a claim that is for one pod.
struct Conflicts<'a>(Vec<&'a str>);

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        matches!(kind, EventKind::PodRemoved | EventKind::Storage)
    }

    fn hint(&self, pod: &PodInfo, event: &crate::framework::ClusterEvent) -> bool {
        event.pod.is_none_or(|gone| {
            gone.claims
                .iter()
                .any(|c| pod.claims.iter().any(|w| w.name == c.name))
        })
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        let exclusive = pod.claims.iter().filter(|c| {
            let claim = cluster.volumes.claim(pod.namespace(), &c.name);
            let modes = claim.and_then(|c| c.spec.as_ref()?.access_modes.as_deref());
            modes.unwrap_or_default().iter().any(|m| m == "ReadWriteOncePod")
        });
        let conflicts: Vec<&str> = exclusive
            .flat_map(|c| {
                let key = (pod.namespace().to_owned(), c.name.clone());
                cluster.volumes.nodes_using(&key, pod.uid()).collect::<Vec<_>>()
            })
            .collect();
        (!conflicts.is_empty()).then(|| Box::new(Conflicts(conflicts)) as Box<dyn Prepared + 'a>)
    }
}

impl Prepared for Conflicts<'_> {
    fn filter(&self, _: &NodeInfo) -> Result<(), Rejection> {
        if self.0.is_empty() {
            return Ok(());
        }
        reject("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode")
    }

    fn imagine(&mut self, pod: &PodInfo, node: &NodeInfo, sign: i32) {
        if pod.claims.is_empty() {
            return;
        }
        if sign > 0 {
            // Only pods that were taken away come back.
            return;
        }
        if let Some(at) = self.0.iter().position(|name| *name == node.name()) {
            self.0.swap_remove(at);
        }
    }
}
