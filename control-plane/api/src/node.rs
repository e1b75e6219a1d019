//! A node's state as controllers see it.

use crate::condition;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};

pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    condition::find(node.status.as_ref()?.conditions.as_ref(), kind)
}

pub fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|c| c.status == "True")
}

pub fn taints(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|s| s.taints.as_deref())
        .unwrap_or_default()
}

pub fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

pub fn is_unschedulable(node: &Node) -> bool {
    node.spec
        .as_ref()
        .and_then(|s| s.unschedulable)
        .unwrap_or_default()
}

pub fn pod_cidrs(node: &Node) -> &[String] {
    node.spec
        .as_ref()
        .and_then(|s| s.pod_cidrs.as_deref())
        .unwrap_or_default()
}

/// Addresses of one type (`InternalIP`, `Hostname`, …).
pub fn addresses<'a>(node: &'a Node, kind: &'a str) -> impl Iterator<Item = &'a str> {
    let all = node
        .status
        .as_ref()
        .and_then(|s| s.addresses.as_deref())
        .unwrap_or_default();
    all.iter()
        .filter(move |a| a.type_ == kind)
        .map(|a| a.address.as_str())
}
