//! A host port can be had once a node.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{ClusterEvent, EventKind, Plugin, Prepared, Rejection, Scope, reject};
use crate::pod_info::PodInfo;
use api::pod::HostPort;

pub struct NodePorts;

struct Wanted<'a>(&'a [HostPort]);

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        matches!(kind, EventKind::NodeAdded | EventKind::PodRemoved)
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        let clashes = |gone: &PodInfo| {
            gone.host_ports
                .iter()
                .any(|t| pod.host_ports.iter().any(|w| w.conflicts(t)))
        };
        event.pod.is_none_or(clashes)
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        (!pod.host_ports.is_empty()).then(|| Box::new(Wanted(&pod.host_ports)) as Box<dyn Prepared + 'a>)
    }
}

impl Prepared for Wanted<'_> {
    fn scope(&self) -> Scope {
        Scope::Pods
    }

    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if node.with_ports == 0 {
            return Ok(());
        }
        let mut taken = node.pods.values().flat_map(|p| &p.host_ports);
        if taken.any(|t| self.0.iter().any(|w| w.conflicts(t))) {
            return reject("node(s) didn't have free ports for the requested pod ports");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use serde_json::{Value, json};

    fn port(ip: &str, protocol: &str, port: i32) -> Value {
        json!({"spec": {"containers": [{"name": "c", "ports": [
            {"containerPort": 1, "hostPort": port, "hostIP": ip, "protocol": protocol}]}]}})
    }

    #[test]
    fn conflicts() {
        let cluster = cluster(&[("n", json!({}))], &[("x", "n", port("127.0.0.1", "TCP", 80))]);
        for (wanted, fits) in [
            (port("127.0.0.1", "TCP", 80), false),
            (port("", "TCP", 80), false),
            (port("0.0.0.0", "TCP", 80), false),
            (port("127.0.0.2", "TCP", 80), true),
            (port("127.0.0.1", "UDP", 80), true),
            (port("127.0.0.1", "TCP", 81), true),
        ] {
            let pod = pod("p", wanted.clone());
            let prepared = NodePorts.prepare(&pod, &cluster).unwrap();
            assert_eq!(
                prepared.filter(cluster.node("n").unwrap()).is_ok(),
                fits,
                "{wanted}"
            );
        }
        assert!(NodePorts.prepare(&pod("p", json!({})), &cluster).is_none());
    }
}
