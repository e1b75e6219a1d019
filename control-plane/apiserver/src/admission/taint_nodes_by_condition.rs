//! A new node takes no pods before it has been seen ready.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{is, items, list_mut};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

pub struct TaintNodesByCondition;

#[async_trait]
impl Admission for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, node: &mut Value) -> Result<(), ApiError> {
        if context.operation != Operation::Create || !is(context, "", "nodes") {
            return Ok(());
        }
        let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let same = |other: &Value| other["key"] == taint["key"] && other["effect"] == taint["effect"];
        if !items(&node["spec"]["taints"]).iter().any(same) {
            list_mut(&mut node["spec"], "taints").push(taint);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Objects, Request};
    use super::*;

    #[test]
    fn new_nodes_are_tainted_once() {
        let request = Request::create("/api/v1/nodes", "Node");
        let admit = |node: Value| {
            request
                .run(&TaintNodesByCondition, &Objects::default(), Some(node))
                .unwrap()
                .unwrap()
        };
        let node = admit(json!({"metadata": {"name": "n"}, "spec": {}}));
        let taints = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
        assert_eq!(node["spec"]["taints"], taints);
        assert_eq!(admit(node.clone()), node);
    }
}
