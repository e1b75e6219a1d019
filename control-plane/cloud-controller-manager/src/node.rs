//! Nodes get what the provider knows of their machine, and lose the taint that waits for it. Those that the API
//! is served from get the role that kubeadm gives them; a kubelet may not claim it for itself (NodeRestriction).

use crate::provider::Provider;
use crate::world::Snapshot;
use crate::write::Write;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Map, json};
use std::collections::BTreeSet;

const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

pub fn reconcile(snapshot: &Snapshot, provider: &impl Provider) -> Vec<Write> {
    let servers: BTreeSet<&str> = snapshot.slices.iter().flat_map(|slice| servers(slice)).collect();
    let initialize = |node: &Node| {
        let serves = api::node::addresses(node, "InternalIP").any(|address| servers.contains(address));
        initialize(node, provider, serves)
    };
    snapshot
        .nodes
        .iter()
        .filter_map(|node| initialize(node))
        .collect()
}

/// The addresses of API servers, if these are the end points of the Service `kubernetes`.
fn servers(slice: &EndpointSlice) -> impl Iterator<Item = &str> {
    let labels = slice.metadata.labels.as_ref();
    let service = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
    let ours = slice.metadata.namespace.as_deref() == Some("default")
        && service.is_some_and(|service| service == "kubernetes");
    let endpoints = slice.endpoints.iter().flatten().filter(move |_| ours);
    endpoints.flat_map(|endpoint| endpoint.addresses.iter().map(String::as_str))
}

fn initialize(node: &Node, provider: &impl Provider, serves: bool) -> Option<Write> {
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
    let wanted = [
        (INSTANCE_TYPE, Some(instance.kind.as_str())),
        (CONTROL_PLANE, serves.then_some("")),
    ];
    let labels: Map<_, _> = wanted
        .into_iter()
        .filter(|(key, _)| api::node::label(node, key).is_none())
        .filter_map(|(key, value)| Some((key.to_owned(), json!(value?))))
        .collect();
    if !labels.is_empty() {
        patch["metadata"]["labels"] = json!(labels);
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
    use std::sync::Arc;

    #[test]
    fn a_node_is_initialized_once() {
        let metal = Metal::new(Vec::new());
        let mut node: Node = from_value(json!({"metadata": {"name": "a"}, "spec": {"taints": [
            {"key": UNINITIALIZED, "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}]}}))
        .unwrap();
        let body = initialize(&node, &metal, false).and_then(|w| w.body).unwrap();
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
        assert_eq!(initialize(&node, &metal, false), None);
    }

    #[test]
    fn nodes_that_serve_the_api_have_their_role() {
        let node = |address: &str| {
            let node = json!({"metadata": {"name": "a", "labels": {INSTANCE_TYPE: "metal"}},
                "spec": {"providerID": "metal://a"},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]}});
            Arc::new(from_value(node).unwrap())
        };
        let slice = |namespace: &str| {
            let slice = json!({"metadata": {"name": "kubernetes", "namespace": namespace,
                "labels": {"kubernetes.io/service-name": "kubernetes"}},
                "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]});
            Arc::new(from_value(slice).unwrap())
        };
        let roles = |address: &str, namespace: &str| {
            let snapshot = Snapshot {
                nodes: vec![node(address)],
                slices: vec![slice(namespace)],
                ..Snapshot::default()
            };
            let writes = reconcile(&snapshot, &Metal::new(Vec::new()));
            writes
                .into_iter()
                .filter_map(|write| write.body)
                .collect::<Vec<_>>()
        };
        let given = roles("10.0.0.1", "default");
        assert_eq!(given[0]["metadata"]["labels"], json!({CONTROL_PLANE: ""}));
        assert!(roles("10.0.0.2", "default").is_empty());
        assert!(roles("10.0.0.1", "elsewhere").is_empty());
    }
}
