//! Chooses the first free network of each pool. What nodes hold already, also from before a restart, is taken.

use super::cidr::Cidr;
use crate::action::Action;
use api::event::NORMAL;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use std::sync::Arc;

/// One address family's pod networks.
pub struct Pool {
    pub network: Cidr,
    pub mask: u8,
    pub excluded: Vec<Cidr>,
}

pub fn reconcile(node: &Node, nodes: &[Arc<Node>], pools: &[Pool]) -> Vec<Action> {
    if !api::node::pod_cidrs(node).is_empty() || node.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let taken: Vec<Cidr> = nodes
        .iter()
        .flat_map(|n| api::node::pod_cidrs(n))
        .filter_map(|c| c.parse().ok())
        .collect();
    let chosen: Option<Vec<String>> = pools
        .iter()
        .map(|p| p.first_free(&taken).map(|c| c.to_string()))
        .collect();
    match chosen {
        Some(chosen) => {
            vec![Action::patch_as_seen(
                node,
                json!({"spec": {"podCIDR": chosen[0], "podCIDRs": chosen}}),
            )]
        }
        None => {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            vec![Action::event(node, NORMAL, "CIDRNotAvailable", message)]
        }
    }
}

impl Pool {
    fn first_free(&self, taken: &[Cidr]) -> Option<Cidr> {
        (0..).map_while(|n| self.network.part(self.mask, n)).find(|part| {
            !taken
                .iter()
                .chain(&self.excluded)
                .any(|other| other.overlaps(part))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    fn node(name: &str, cidrs: Value) -> Arc<Node> {
        Arc::new(from_value(json!({"metadata": {"name": name}, "spec": {"podCIDRs": cidrs}})).unwrap())
    }

    fn pool(network: &str, mask: u8, excluded: &[&str]) -> Pool {
        let excluded = excluded.iter().map(|e| e.parse().unwrap()).collect();
        Pool {
            network: network.parse().unwrap(),
            mask,
            excluded,
        }
    }

    fn chosen(plan: &[Action]) -> Value {
        match plan {
            [Action::Patch { patch, .. }] => patch["spec"]["podCIDRs"].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_free_network_of_each_family() {
        let pools = [
            pool("10.244.0.0/16", 24, &["10.244.2.0/23"]),
            pool("fd00::/48", 64, &[]),
        ];
        let nodes = [
            node("a", json!(["10.244.0.0/24", "fd00::/64"])),
            node("c", json!(["10.244.1.0/24"])),
        ];
        let new = node("b", Value::Null);
        assert_eq!(
            chosen(&reconcile(&new, &nodes, &pools)),
            json!(["10.244.4.0/24", "fd00:0:0:1::/64"])
        );
    }

    #[test]
    fn a_node_that_has_one_keeps_it_and_a_full_pool_says_so() {
        let full = [pool("10.244.0.0/24", 24, &[])];
        let holder = node("a", json!(["10.244.0.0/24"]));
        assert_eq!(reconcile(&holder, std::slice::from_ref(&holder), &full), []);
        let plan = reconcile(&node("b", Value::Null), &[holder], &full);
        assert!(matches!(&plan[..], [Action::Event(n)] if n.reason == "CIDRNotAvailable"));
    }
}
