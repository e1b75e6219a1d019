//! Services: ports and addresses by type.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::cause::Cause;
use super::names;

pub(super) fn check(service: &Value) -> Vec<Cause> {
    let spec = &service["spec"];
    let text = |key: &str| spec[key].as_str().unwrap_or_default();
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let headless = text("clusterIP") == "None";
    let external_name = text("type") == "ExternalName";
    let mut causes = Vec::new();
    if ports.is_empty() && !headless && !external_name {
        causes.push(Cause::required("spec.ports", ""));
    }
    if external_name {
        let name = text("externalName").trim_end_matches('.');
        if name.is_empty() {
            causes.push(Cause::required("spec.externalName", ""));
        } else {
            causes.extend(
                names::dns_subdomain_problem(name)
                    .map(|problem| Cause::invalid("spec.externalName", &spec["externalName"], &problem)),
            );
        }
        if headless || !text("clusterIP").is_empty() {
            causes.push(Cause::forbidden(
                "spec.clusterIPs[0]",
                "may not be set when `type` is ExternalName",
            ));
        }
    } else if !matches!(text("clusterIP"), "" | "None")
        && text("clusterIP").parse::<std::net::IpAddr>().is_err()
    {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            &spec["clusterIP"],
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ));
    }
    if headless && text("type") == "LoadBalancer" {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            &json!("None"),
            "may not be set to 'None' for LoadBalancer services",
        ));
    }
    if headless && text("type") == "NodePort" {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            &json!("None"),
            "may not be set to 'None' for NodePort services",
        ));
    }
    causes.extend(self::ports(ports, text("type")));
    let external = matches!(text("type"), "NodePort" | "LoadBalancer") || spec.get("externalIPs").is_some();
    if !text("externalTrafficPolicy").is_empty() && !external {
        causes.push(Cause::invalid(
            "spec.externalTrafficPolicy",
            &spec["externalTrafficPolicy"],
            "may only be set for externally-accessible services",
        ));
    }
    for (index, address) in spec["externalIPs"].as_array().into_iter().flatten().enumerate() {
        if address
            .as_str()
            .is_none_or(|address| address.parse::<std::net::IpAddr>().is_err())
        {
            causes.push(Cause::invalid(
                &format!("spec.externalIPs[{index}]"),
                address,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
    }
    if let Some(seconds) = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds")
        && seconds
            .as_i64()
            .is_none_or(|seconds| !(1..=86_400).contains(&seconds))
    {
        causes.push(Cause::invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            seconds,
            "must be greater than 0 and less than 86400",
        ));
    }
    causes
}

fn ports(ports: &[Value], kind: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (mut seen, mut node_ports) = (HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        if ports.len() > 1 && port["name"].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(&format!("{field}.name"), ""));
        }
        let protocol = port["protocol"].as_str().unwrap_or_default();
        if !seen.insert((protocol, port["port"].as_i64())) {
            causes.push(Cause::duplicate(
                &field,
                &json!({"protocol": protocol, "port": port["port"]}),
            ));
        }
        if let Some(node_port) = port["nodePort"].as_i64().filter(|node_port| *node_port != 0) {
            if kind == "ClusterIP" {
                causes.push(Cause::forbidden(
                    &format!("{field}.nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                ));
            } else if !node_ports.insert((protocol, node_port)) {
                causes.push(Cause::duplicate(&format!("{field}.nodePort"), &port["nodePort"]));
            }
        }
    }
    causes
}

/// The address stays while the type does; only ExternalName has none.
pub(super) fn update(service: &Value, old: &Value) -> Vec<Cause> {
    let (spec, before) = (&service["spec"], &old["spec"]);
    let external_name = |spec: &Value| spec["type"] == "ExternalName";
    let address = |spec: &Value| spec["clusterIP"].as_str().unwrap_or_default().to_owned();
    if external_name(spec)
        || external_name(before)
        || address(before).is_empty()
        || address(spec) == address(before)
    {
        return Vec::new();
    }
    vec![Cause::invalid(
        "spec.clusterIPs[0]",
        &spec
            .get("clusterIPs")
            .cloned()
            .unwrap_or_else(|| json!([address(spec)])),
        "may not change once set",
    )]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refusals, update_refusals};
    use super::*;

    #[test]
    fn refuses_with_upstreams_words() {
        for (spec, expected) in [
            (json!({}), vec!["spec.ports: Required value"]),
            (json!({"clusterIP": "None"}), vec![]),
            (json!({"type": "ExternalName", "externalName": "a.b"}), vec![]),
            (
                json!({"type": "ExternalName"}),
                vec!["spec.externalName: Required value"],
            ),
            (
                json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
                vec!["spec.ports[0].name: Required value"],
            ),
            (
                json!({"ports": [{"port": 0}]}),
                vec!["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
            ),
            (
                json!({"ports": [{"port": 80, "nodePort": 30080}]}),
                vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
                vec![
                    r#"spec.ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP""#,
                ],
            ),
            (
                json!({"ports": [{"port": 80}], "clusterIP": "x"}),
                vec![
                    r#"spec.clusterIPs[0]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
                ],
            ),
        ] {
            let mut text = refusals("", "v1", "services", json!({"spec": spec}));
            text.retain(|line| !line.contains("targetPort"));
            assert_eq!(text, expected, "{spec}");
        }
    }

    #[test]
    fn addresses_stay() {
        let service = |address: &str| json!({"spec": {"ports": [{"port": 80}], "clusterIP": address, "clusterIPs": [address]}});
        assert_eq!(
            update_refusals("", "v1", "services", service("10.0.0.1"), service("10.0.0.2")),
            [r#"spec.clusterIPs[0]: Invalid value: ["10.0.0.2"]: may not change once set"#]
        );
        assert!(update_refusals("", "v1", "services", service("10.0.0.1"), service("10.0.0.1")).is_empty());
    }
}
