//! A pod that names its node goes there or nowhere.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{EventKind, Plugin, Prepared, Rejection, Scope, reject_for_good};
use crate::pod_info::PodInfo;

pub struct NodeName;

struct Named<'a>(&'a str);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn wakes_on(&self, kind: EventKind) -> bool {
        kind == EventKind::NodeAdded
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        api::pod::node_name(&pod.pod).map(|name| Box::new(Named(name)) as Box<dyn Prepared + 'a>)
    }
}

impl Prepared for Named<'_> {
    fn scope(&self) -> Scope {
        Scope::Node
    }

    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if node.name() != self.0 {
            return reject_for_good("node(s) didn't match the requested node name");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use serde_json::json;

    #[test]
    fn only_the_named_node() {
        let cluster = cluster(&[("a", json!({})), ("b", json!({}))], &[]);
        let pod = pod("p", json!({"spec": {"nodeName": "b"}}));
        let prepared = NodeName.prepare(&pod, &cluster).unwrap();
        assert!(prepared.filter(cluster.node("a").unwrap()).is_err());
        assert!(prepared.filter(cluster.node("b").unwrap()).is_ok());
    }
}
