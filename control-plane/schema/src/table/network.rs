//! Cells of services, endpoints, ingresses and their relatives.

use jiff::Timestamp;
use serde_json::Value;

use super::text::{first_three, int, joined, list, plain, text, text_or};

pub(super) fn external_ip(service: &Value, _: Timestamp) -> Value {
    let mut addresses: Vec<&str> = list(service, "/spec/externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match text(service, "/spec/type") {
        "ClusterIP" | "NodePort" if addresses.is_empty() => "<none>".into(),
        "ClusterIP" | "NodePort" => addresses.join(",").into(),
        "LoadBalancer" => {
            let mut balanced: Vec<&str> = list(service, "/status/loadBalancer/ingress")
                .iter()
                .map(|ingress| text_or(ingress, "/ip", text(ingress, "/hostname")))
                .filter(|address| !address.is_empty())
                .collect();
            balanced.append(&mut addresses);
            if balanced.is_empty() {
                "<pending>".into()
            } else {
                balanced.join(",").into()
            }
        }
        "ExternalName" => text(service, "/spec/externalName").into(),
        _ => "<unknown>".into(),
    }
}

pub(super) fn cluster_ip(service: &Value, _: Timestamp) -> Value {
    text_or(
        service,
        "/spec/clusterIPs/0",
        text_or(service, "/spec/clusterIP", "<none>"),
    )
    .into()
}

pub(super) fn service_ports(service: &Value, _: Timestamp) -> Value {
    let ports: Vec<String> = list(service, "/spec/ports")
        .iter()
        .map(|port| {
            let (number, node_port, protocol) = (
                int(port, "/port"),
                int(port, "/nodePort"),
                text(port, "/protocol"),
            );
            if node_port > 0 {
                format!("{number}:{node_port}/{protocol}")
            } else {
                format!("{number}/{protocol}")
            }
        })
        .collect();
    if ports.is_empty() {
        "<none>".into()
    } else {
        ports.join(",").into()
    }
}

pub(super) fn endpoints(endpoints: &Value, _: Timestamp) -> Value {
    let mut found: Vec<String> = Vec::new();
    for subset in list(endpoints, "/subsets") {
        let addresses = list(subset, "/addresses")
            .iter()
            .map(|address| text(address, "/ip"));
        let ports = list(subset, "/ports");
        if ports.is_empty() {
            found.extend(addresses.map(str::to_owned));
            continue;
        }
        for port in ports {
            found.extend(addresses.clone().map(|address| {
                if address.contains(':') {
                    format!("[{address}]:{}", port["port"])
                } else {
                    format!("{address}:{}", port["port"])
                }
            }));
        }
    }
    if found.is_empty() {
        "<none>".into()
    } else {
        first_three(&found, ",").into()
    }
}

pub(super) fn slice_ports(slice: &Value, _: Timestamp) -> Value {
    let ports: Vec<String> = list(slice, "/ports")
        .iter()
        .map(|port| port.get("port").map_or("*".to_owned(), plain))
        .collect();
    if ports.is_empty() {
        "<unset>".into()
    } else {
        first_three(&ports, ",").into()
    }
}

pub(super) fn slice_endpoints(slice: &Value, _: Timestamp) -> Value {
    let addresses: Vec<String> = list(slice, "/endpoints")
        .iter()
        .flat_map(|endpoint| list(endpoint, "/addresses"))
        .map(plain)
        .collect();
    if addresses.is_empty() {
        "<unset>".into()
    } else {
        first_three(&addresses, ",").into()
    }
}

pub(super) fn ingress_hosts(ingress: &Value, _: Timestamp) -> Value {
    let hosts: Vec<String> = list(ingress, "/spec/rules")
        .iter()
        .map(|rule| text(rule, "/host").to_owned())
        .filter(|host| !host.is_empty())
        .collect();
    if hosts.is_empty() {
        "*".into()
    } else {
        first_three(&hosts, ",").into()
    }
}

pub(super) fn ingress_address(ingress: &Value, _: Timestamp) -> Value {
    joined(
        list(ingress, "/status/loadBalancer/ingress")
            .iter()
            .map(|it| text_or(it, "/ip", text(it, "/hostname"))),
        ",",
    )
    .into()
}

pub(super) fn ingress_ports(ingress: &Value, _: Timestamp) -> Value {
    if list(ingress, "/spec/tls").is_empty() {
        "80".into()
    } else {
        "80, 443".into()
    }
}

pub(super) fn class_parameters(class: &Value, _: Timestamp) -> Value {
    let Some(parameters) = class.pointer("/spec/parameters") else {
        return "<none>".into();
    };
    let group = match text(parameters, "/apiGroup") {
        "" => String::new(),
        group => format!(".{group}"),
    };
    format!(
        "{}{group}/{}",
        text(parameters, "/kind"),
        text(parameters, "/name")
    )
    .into()
}

pub(super) fn parent_reference(address: &Value, _: Timestamp) -> Value {
    let parent = |name| text(address, name);
    let parts = [
        parent("/spec/parentRef/resource"),
        parent("/spec/parentRef/namespace"),
        parent("/spec/parentRef/name"),
    ];
    joined(parts.into_iter().filter(|part| !part.is_empty()), "/").into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::cells_of;
    use super::*;

    #[test]
    fn services_of_each_type() {
        for (spec, status, expected) in [
            (
                json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}),
                json!({}),
                ["ClusterIP", "10.0.0.1", "<none>", "80/TCP,53/UDP"],
            ),
            (
                json!({"type": "NodePort", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}),
                json!({}),
                ["NodePort", "10.0.0.1", "<none>", "80:30080/TCP"],
            ),
            (
                json!({"type": "LoadBalancer", "clusterIPs": ["10.0.0.1"]}),
                json!({}),
                ["LoadBalancer", "10.0.0.1", "<pending>", "<none>"],
            ),
            (
                json!({"type": "LoadBalancer", "externalIPs": ["9.9.9.9"]}),
                json!({"loadBalancer": {"ingress": [{"ip": "8.8.8.8"}]}}),
                ["LoadBalancer", "<none>", "8.8.8.8,9.9.9.9", "<none>"],
            ),
            (
                json!({"type": "ExternalName", "externalName": "x.y"}),
                json!({}),
                ["ExternalName", "<none>", "x.y", "<none>"],
            ),
        ] {
            let cells = cells_of(
                "",
                "v1",
                "services",
                &json!({"metadata": {"name": "s"}, "spec": spec, "status": status}),
            );
            assert_eq!(cells[1..5], expected.map(Value::from));
            assert_eq!(cells[6], "<none>");
        }
    }

    #[test]
    fn endpoints_are_cut_after_three() {
        let object = json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "2.2.2.2"}], "ports": [{"port": 1}, {"port": 2}]}]});
        assert_eq!(
            cells_of("", "v1", "endpoints", &object)[1],
            "1.1.1.1:1,2.2.2.2:1,1.1.1.1:2 + 1 more..."
        );
        let slice = json!({"metadata": {"name": "e"}, "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["1.1.1.1"]}, {"addresses": ["2.2.2.2"]}]});
        assert_eq!(
            cells_of("discovery.k8s.io", "v1", "endpointslices", &slice)[1..4],
            ["IPv4", "80", "1.1.1.1,2.2.2.2"].map(Value::from)
        );
        assert_eq!(
            cells_of("discovery.k8s.io", "v1", "endpointslices", &json!({}))[2..4],
            ["<unset>", "<unset>"].map(Value::from)
        );
    }
}
