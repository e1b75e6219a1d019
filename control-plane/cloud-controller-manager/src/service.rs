//! Services of type LoadBalancer: addresses, and the node that announces them.

use crate::provider::Provider;
use crate::world::Snapshot;
use crate::write::Write;
use api::event::{NORMAL, WARNING};
use api::metal::ANNOUNCED_BY;
use k8s_openapi::api::core::v1::{Node, Service};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

pub fn reconcile(snapshot: &Snapshot, provider: &impl Provider) -> Vec<Write> {
    let mut services: Vec<&Arc<Service>> = snapshot.services.iter().collect();
    services.sort_by_key(|s| {
        (
            s.metadata.creation_timestamp.clone().map(|t| t.0),
            s.metadata.uid.clone(),
        )
    });
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    for service in &services {
        if is_ours(service) {
            taken.extend(ingress(service));
        }
    }
    let mut plan = Vec::new();
    for service in services {
        if is_ours(service) && service.metadata.deletion_timestamp.is_none() {
            let current = ingress(service);
            let others: BTreeSet<IpAddr> = taken.iter().filter(|a| !current.contains(a)).copied().collect();
            let (writes, addresses) = ensure(service, snapshot, provider, &current, &others);
            plan.extend(writes);
            taken.extend(addresses);
        } else if finalizers(service).iter().any(|f| f == FINALIZER) {
            plan.extend(clean_up(service));
        }
    }
    plan
}

/// Of type LoadBalancer, and no other controller's.
fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer") && s.load_balancer_class.is_none())
}

fn finalizers(service: &Service) -> &[String] {
    service.metadata.finalizers.as_deref().unwrap_or_default()
}

fn ingress(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let entries = status.and_then(|l| l.ingress.as_deref()).unwrap_or_default();
    entries
        .iter()
        .filter_map(|i| i.ip.as_deref()?.parse().ok())
        .collect()
}

fn ensure(
    service: &Service,
    snapshot: &Snapshot,
    provider: &impl Provider,
    current: &[IpAddr],
    taken: &BTreeSet<IpAddr>,
) -> (Vec<Write>, Vec<IpAddr>) {
    if !finalizers(service).iter().any(|f| f == FINALIZER) {
        let mut all = finalizers(service).to_vec();
        all.push(FINALIZER.into());
        let write = Write::patch(service, json!({"metadata": {"finalizers": all}}));
        // The rest follows when the watch shows this.
        let write = write.event(service, NORMAL, "EnsuringLoadBalancer", "Ensuring load balancer");
        return (vec![write], Vec::new());
    }
    let nodes = eligible(service, snapshot);
    let addresses = match provider.addresses(service, current, taken, &nodes) {
        Ok(addresses) => addresses,
        Err(why) => {
            let message = format!("Error syncing load balancer: failed to ensure load balancer: {why}");
            let say = Write::say(service).event(service, WARNING, "SyncLoadBalancerFailed", message);
            return (vec![say], Vec::new());
        }
    };
    let mut plan = Vec::new();
    // A node's own address is where it is; carried by another it would cut that node off.
    let own = addresses.iter().any(|address| is_of_a_node(snapshot, *address));
    let announcer = announcer(service, &nodes).filter(|_| !own);
    if api::volume::annotation(&service.metadata, ANNOUNCED_BY) != announcer {
        let annotations = json!({ANNOUNCED_BY: announcer});
        plan.push(Write::patch(
            service,
            json!({"metadata": {"annotations": annotations}}),
        ));
    } else if addresses != current {
        let entries: Vec<Value> = addresses
            .iter()
            .map(|a| json!({"ip": a.to_string(), "ipMode": "VIP"}))
            .collect();
        let write = Write::patch_status(service, json!({"loadBalancer": {"ingress": entries}}));
        plan.push(write.event(service, NORMAL, "EnsuredLoadBalancer", "Ensured load balancer"));
    }
    (plan, addresses)
}

fn is_of_a_node(snapshot: &Snapshot, address: IpAddr) -> bool {
    let statuses = snapshot.nodes.iter().filter_map(|node| node.status.as_ref());
    let mut given = statuses.flat_map(|status| status.addresses.iter().flatten());
    given.any(|of_node| of_node.address.parse() == Ok(address))
}

/// Ready nodes that may take the Service's traffic; with the Local policy, those that have a ready endpoint.
fn eligible<'a>(service: &Service, snapshot: &'a Snapshot) -> Vec<&'a Node> {
    let spec = service.spec.as_ref();
    let local = spec.and_then(|s| s.external_traffic_policy.as_deref()) == Some("Local");
    let slices = snapshot.slices.iter().filter(|slice| {
        slice.metadata.namespace == service.metadata.namespace
            && slice
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get("kubernetes.io/service-name"))
                == service.metadata.name.as_ref()
    });
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready) != Some(false));
    let homes: BTreeSet<&str> = ready.filter_map(|e| e.node_name.as_deref()).collect();
    let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
    let mut nodes: Vec<&Node> = snapshot
        .nodes
        .iter()
        .map(|node| &**node)
        .filter(|node| {
            api::node::is_ready(node)
                && node.metadata.deletion_timestamp.is_none()
                && api::node::label(node, EXCLUDED).is_none()
                && (!local || homes.contains(name(node).as_str()))
        })
        .collect();
    nodes.sort_by_key(|node| name(node));
    nodes
}

/// The one that announces now as long as it may; else one by the Service's hash, so that Services spread.
fn announcer<'a>(service: &Service, nodes: &[&'a Node]) -> Option<&'a str> {
    let names = || nodes.iter().filter_map(|n| n.metadata.name.as_deref());
    let current = api::volume::annotation(&service.metadata, ANNOUNCED_BY);
    let weight = |node: &str| {
        let mut hasher = DefaultHasher::new();
        (&service.metadata.uid, node).hash(&mut hasher);
        hasher.finish()
    };
    names()
        .find(|name| Some(*name) == current)
        .or_else(|| names().max_by_key(|name| weight(name)))
}

/// No longer a load balancer, or about to go.
fn clean_up(service: &Service) -> Vec<Write> {
    if !ingress(service).is_empty() && service.metadata.deletion_timestamp.is_none() {
        let write = Write::patch_status(service, json!({"loadBalancer": {"ingress": null}}));
        return vec![write.event(service, NORMAL, "DeletingLoadBalancer", "Deleting load balancer")];
    }
    let rest: Vec<&String> = finalizers(service).iter().filter(|f| *f != FINALIZER).collect();
    let patch = json!({"metadata": {"finalizers": rest, "annotations": {ANNOUNCED_BY: null}}});
    let mut write = Write::patch(service, patch);
    if !ingress(service).is_empty() {
        write = write.event(service, NORMAL, "DeletingLoadBalancer", "Deleting load balancer");
    }
    vec![write.event(service, NORMAL, "DeletedLoadBalancer", "Deleted load balancer")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metal::Metal;
    use serde_json::from_value;

    fn node(name: &str, ready: &str) -> Arc<Node> {
        Arc::new(
            from_value(json!({"metadata": {"name": name}, "status": {
            "conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap(),
        )
    }

    /// Applies merge patches until nothing is left to do.
    fn settled(service: Value, nodes: &[Arc<Node>]) -> (Value, Vec<String>) {
        settled_from(&["10.0.0.1-10.0.0.2"], service, nodes)
    }

    fn settled_from(pool: &[&str], mut service: Value, nodes: &[Arc<Node>]) -> (Value, Vec<String>) {
        let metal = Metal::new(pool.iter().map(|range| range.parse().unwrap()).collect());
        let mut said = Vec::new();
        for _ in 0..10 {
            let snapshot = Snapshot {
                nodes: nodes.to_vec(),
                services: vec![Arc::new(from_value(service.clone()).unwrap())],
                ..Snapshot::default()
            };
            let plan = reconcile(&snapshot, &metal);
            let mut quiet = true;
            for write in plan {
                said.extend(write.events.iter().map(|e| e.reason.clone()));
                if let Some(patch) = write.body {
                    merge(&mut service, &patch);
                    quiet = false;
                }
            }
            if quiet {
                return (service, said);
            }
        }
        panic!("never quiet: {service}");
    }

    fn merge(target: &mut Value, patch: &Value) {
        for (key, value) in patch.as_object().into_iter().flatten() {
            match value {
                Value::Null => {
                    target.as_object_mut().unwrap().remove(key);
                }
                Value::Object(_) => {
                    if !target[key].is_object() {
                        target[key] = json!({});
                    }
                    merge(&mut target[key], value);
                }
                other => target[key] = other.clone(),
            }
        }
    }

    #[test]
    fn a_service_gets_addresses_and_an_announcer_and_loses_them() {
        let fresh = json!({"metadata": {"name": "s", "namespace": "n", "uid": "u"}, "spec": {"type": "LoadBalancer"}});
        let (mut service, said) = settled(fresh, &[node("a", "True"), node("b", "False")]);
        assert_eq!(
            service["status"]["loadBalancer"]["ingress"],
            json!([{"ip": "10.0.0.1", "ipMode": "VIP"}])
        );
        assert_eq!(service["metadata"]["annotations"][ANNOUNCED_BY], "a");
        assert_eq!(said, ["EnsuringLoadBalancer", "EnsuredLoadBalancer"]);
        let (moved, said) = settled(service.clone(), &[node("a", "Unknown"), node("b", "True")]);
        assert_eq!(
            moved["metadata"]["annotations"][ANNOUNCED_BY], "b",
            "at once when the node is gone"
        );
        assert_eq!(moved["status"], service["status"]);
        assert!(said.is_empty());
        service["spec"]["type"] = json!("ClusterIP");
        let (plain, said) = settled(service, &[node("a", "True")]);
        assert_eq!(plain["metadata"]["finalizers"], json!([]));
        assert_eq!(plain["status"]["loadBalancer"], json!({}));
        assert_eq!(said, ["DeletingLoadBalancer", "DeletedLoadBalancer"]);
    }

    #[test]
    fn no_node_carries_another_nodes_address() {
        let mut node = Node::clone(&node("a", "True"));
        let address = from_value(json!({"type": "InternalIP", "address": "192.168.0.9"})).unwrap();
        node.status.get_or_insert_default().addresses = Some(vec![address]);
        let fresh = json!({"metadata": {"name": "s", "namespace": "n", "uid": "u"}, "spec": {"type": "LoadBalancer"}});
        let (service, _) = settled_from(&[], fresh, &[Arc::new(node)]);
        assert_eq!(
            service["status"]["loadBalancer"]["ingress"][0]["ip"],
            "192.168.0.9"
        );
        assert_eq!(service["metadata"]["annotations"].get(ANNOUNCED_BY), None);
    }

    #[test]
    fn others_classes_and_full_pools() {
        let other =
            json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "loadBalancerClass": "x/y"}});
        assert_eq!(settled(other.clone(), &[node("a", "True")]), (other, vec![]));
        let wish =
            json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "loadBalancerIP": "9.9.9.9"}});
        let (_, said) = settled(wish, &[node("a", "True")]);
        assert_eq!(said, ["EnsuringLoadBalancer", "SyncLoadBalancerFailed"]);
    }
}
