//! Nodes get what the provider knows of their machine, and lose the taint that waits for it.

use crate::provider::Provider;
use crate::world::Snapshot;
use crate::write::Write;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";

pub fn reconcile(snapshot: &Snapshot, provider: &impl Provider) -> Vec<Write> {
    snapshot
        .nodes
        .iter()
        .filter_map(|node| initialize(node, provider))
        .collect()
}

fn initialize(node: &Node, provider: &impl Provider) -> Option<Write> {
    let instance = provider.instance(node);
    let mut patch = json!({});
    let known = node
        .spec
        .as_ref()
        .and_then(|s| s.provider_id.as_deref())
        .unwrap_or_default();
    if known.is_empty() {
        patch["spec"]["providerID"] = json!(instance.id);
    }
    if api::node::label(node, INSTANCE_TYPE).is_none() {
        patch["metadata"]["labels"] = json!({INSTANCE_TYPE: instance.kind});
    }
    let taints = api::node::taints(node);
    if taints.iter().any(|t| t.key == UNINITIALIZED) {
        let rest: Vec<_> = taints.iter().filter(|t| t.key != UNINITIALIZED).collect();
        patch["spec"]["taints"] = json!(rest);
    }
    patch
        .as_object()
        .is_some_and(|p| !p.is_empty())
        .then(|| Write::patch(node, patch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metal::Metal;
    use serde_json::from_value;

    #[test]
    fn a_node_is_initialized_once() {
        let metal = Metal::new(Vec::new());
        let mut node: Node = from_value(json!({"metadata": {"name": "a"}, "spec": {"taints": [
            {"key": UNINITIALIZED, "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}]}}))
        .unwrap();
        let body = initialize(&node, &metal).and_then(|w| w.body).unwrap();
        assert_eq!(body["spec"]["providerID"], "metal://a");
        assert_eq!(body["metadata"]["labels"][INSTANCE_TYPE], "metal");
        assert_eq!(
            body["spec"]["taints"],
            json!([{"key": "mine", "effect": "NoSchedule"}])
        );
        node.metadata
            .labels
            .get_or_insert_default()
            .insert(INSTANCE_TYPE.into(), "metal".into());
        let spec = node.spec.get_or_insert_default();
        spec.provider_id = Some("metal://a".into());
        spec.taints = None;
        assert_eq!(initialize(&node, &metal), None);
    }
}
