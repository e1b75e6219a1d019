//! Services: what the spec's type implies; addresses and ports come from `registry::service`.

use serde_json::Value;

use super::Strategy;
use crate::object;

pub struct Service;

impl Strategy for Service {
    /// A replaced Service keeps what it was given, unless it says otherwise.
    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        if object["spec"]["type"] == "ExternalName" || old["spec"]["type"] == "ExternalName" {
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

/// A port without a node port keeps the one that the same port had.
fn keep_node_ports(object: &mut Value, old: &Value) {
    if !crate::registry::service::wants_node_ports(object) {
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
