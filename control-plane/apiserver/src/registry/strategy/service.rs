//! Services: what the spec's type implies; addresses and ports come from `registry::service`.

use serde_json::{Value, json};

use super::Strategy;
use crate::object::{self, text};
use crate::registry::service::{wants_health_check_port, wants_node_ports};

pub struct Service;

impl Strategy for Service {
    /// A replaced Service keeps what it was given, unless it says otherwise.
    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        drop_what_the_type_has_not(object, old);
        if !has_address(object) || !has_address(old) {
            return;
        }
        let kept = [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "healthCheckNodePort",
        ];
        let spec = object::field(object, "spec");
        for field in kept {
            if spec.get(field).is_none_or(|value| value == "" || value == 0)
                && let Some(value) = old["spec"].get(field)
            {
                spec.insert(field.into(), value.clone());
            }
        }
        keep_node_ports(object, old);
    }
}

/// What another type implied goes with it, unless the user changed that too and is to be told.
/// Upstream: `dropTypeDependentFields`.
fn drop_what_the_type_has_not(object: &mut Value, old: &Value) {
    type Test = fn(&Value) -> bool;
    let dependent: [(&[&str], Test); 7] = [
        (&["clusterIP", "clusterIPs"], has_address),
        (&["ipFamilies"], has_address),
        (&["ipFamilyPolicy"], has_address),
        (&["healthCheckNodePort"], wants_health_check_port),
        (&["allocateLoadBalancerNodePorts"], is_load_balancer),
        (&["loadBalancerClass"], is_load_balancer),
        (&["externalTrafficPolicy"], is_reached_from_outside),
    ];
    for (fields, applies) in dependent {
        let unchanged = |field: &&str| object["spec"][*field] == old["spec"][*field];
        if applies(old) && !applies(object) && fields.iter().all(unchanged) {
            let spec = object::field(object, "spec");
            fields.iter().for_each(|field| drop(spec.remove(*field)));
        }
    }
    let node_ports = |service: &Value| -> Vec<Value> {
        let ports = service["spec"]["ports"].as_array().into_iter().flatten();
        ports.map(|port| port["nodePort"].clone()).collect()
    };
    if wants_node_ports(old) && !wants_node_ports(object) && node_ports(object) == node_ports(old) {
        let ports = object["spec"]["ports"].as_array_mut().into_iter().flatten();
        for port in ports.filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
    }
    if !is_load_balancer(object) && object["status"]["loadBalancer"].is_object() {
        object["status"]["loadBalancer"] = json!({});
    }
}

fn has_address(service: &Value) -> bool {
    service["spec"]["type"] != "ExternalName"
}

fn is_load_balancer(service: &Value) -> bool {
    service["spec"]["type"] == "LoadBalancer"
}

fn is_reached_from_outside(service: &Value) -> bool {
    let external = service["spec"]["externalIPs"].as_array();
    matches!(text(service, "/spec/type"), "NodePort" | "LoadBalancer")
        || external.is_some_and(|addresses| !addresses.is_empty())
}

/// A port without a node port keeps the one that the same port had.
fn keep_node_ports(object: &mut Value, old: &Value) {
    if !wants_node_ports(object) {
        return;
    }
    let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let Some(ports) = object["spec"]["ports"].as_array_mut() else {
        return;
    };
    for port in ports {
        if port["nodePort"].as_i64().unwrap_or(0) == 0
            && let Some(same) = before
                .iter()
                .find(|b| b["port"] == port["port"] && b["protocol"] == port["protocol"])
            && same["nodePort"].as_i64().unwrap_or(0) > 0
        {
            port["nodePort"] = same["nodePort"].clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_type_implied_goes_with_it() {
        let balanced = json!({
            "spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001,
                "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "c", "ports": [{"port": 80, "nodePort": 30000}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}},
        });
        let changed = |changes: Value| {
            let mut service = balanced.clone();
            for (field, value) in changes.as_object().unwrap() {
                service["spec"][field] = value.clone();
            }
            Service.prepare_for_update(&mut service, &balanced);
            service
        };
        let name = changed(json!({"type": "ExternalName", "externalName": "a.b"}));
        assert_eq!(
            name,
            json!({
                "spec": {"type": "ExternalName", "externalName": "a.b", "ports": [{"port": 80}]},
                "status": {"loadBalancer": {}},
            })
        );
        let node_port = changed(json!({"type": "NodePort"}));
        assert_eq!(node_port["spec"]["externalTrafficPolicy"], "Local");
        assert_eq!(node_port["spec"]["ports"][0]["nodePort"], 30000);
        assert_eq!(node_port["spec"].get("loadBalancerClass"), None);
        let told = changed(
            json!({"type": "ClusterIP", "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "nodePort": 30002}]}),
        );
        assert_eq!(told["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(told["spec"]["ports"][0]["nodePort"], 30002);
        assert_eq!(changed(json!({})), balanced);
    }
}
