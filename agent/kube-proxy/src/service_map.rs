//! Services and EndpointSlices reduced to what rules need: one [`ServicePort`] per port and address
//! family, with the endpoints that traffic may go to (upstream: pkg/proxy ServicePortMap,
//! EndpointsMap and CategorizeEndpoints).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Service, ServicePort as ApiServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointPort, EndpointSlice};
use kube::ResourceExt;

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn parse(name: Option<&str>) -> Option<Self> {
        match name.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Identity of a port of a Service; displays as upstream's ServicePortName.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortName {
    pub namespace: String,
    pub service: String,
    pub port: String,
    pub protocol: Protocol,
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if self.port.is_empty() {
            Ok(())
        } else {
            write!(f, ":{}", self.port)
        }
    }
}

/// One port of a Service in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub cluster_ip: IpAddr,
    pub port: u16,
    pub node_port: Option<u16>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub load_balancer_source_ranges: Vec<String>,
    /// Session affinity by client IP lasts this many seconds.
    pub affinity_seconds: Option<i32>,
    pub internal_local: bool,
    pub external_local: bool,
    /// Endpoints on any node, and those on this one, that a policy may choose from.
    pub cluster_endpoints: Vec<SocketAddr>,
    pub local_endpoints: Vec<SocketAddr>,
}

pub type ServiceMap = BTreeMap<PortName, ServicePort>;

/// The services of one family as this node sees them.
pub fn build<'a>(
    family: Family,
    node_name: &str,
    services: impl Iterator<Item = &'a Service>,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> ServiceMap {
    let mut by_service: BTreeMap<(String, String), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.filter(|s| s.address_type == address_type(family)) {
        if let Some(service) = slice.labels().get(SERVICE_NAME_LABEL) {
            by_service
                .entry((slice.namespace().unwrap_or_default(), service.clone()))
                .or_default()
                .push(slice);
        }
    }
    let mut map = ServiceMap::new();
    for service in services {
        let Some(cluster_ip) = proxied_cluster_ip(service, family) else {
            continue;
        };
        let key = (service.namespace().unwrap_or_default(), service.name_any());
        let slices = by_service.get(&key).map(Vec::as_slice).unwrap_or_default();
        let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
        for port in ports {
            let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else {
                continue;
            };
            let name = PortName {
                namespace: key.0.clone(),
                service: key.1.clone(),
                port: port.name.clone().unwrap_or_default(),
                protocol,
            };
            let endpoints = endpoints_of(&name, slices);
            map.insert(
                name,
                service_port(service, port, cluster_ip, family, node_name, &endpoints),
            );
        }
    }
    map
}

fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The Service's cluster IP of this family, unless the Service is not ours to proxy.
fn proxied_cluster_ip(service: &Service, family: Family) -> Option<IpAddr> {
    let spec = service.spec.as_ref()?;
    let labels = service.labels();
    if spec.type_.as_deref() == Some("ExternalName")
        || labels.contains_key(SERVICE_PROXY_NAME_LABEL)
        || labels.contains_key(HEADLESS_LABEL)
    {
        return None;
    }
    let of_spec = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    parse_addresses(of_spec, family).into_iter().next()
}

fn service_port(
    service: &Service,
    port: &ApiServicePort,
    cluster_ip: IpAddr,
    family: Family,
    node_name: &str,
    endpoints: &[Candidate],
) -> ServicePort {
    let spec = service.spec.clone().unwrap_or_default();
    let affinity = spec
        .session_affinity_config
        .as_ref()
        .and_then(|c| c.client_ip.as_ref());
    let ingress = service
        .status
        .iter()
        .filter_map(|s| s.load_balancer.as_ref())
        .flat_map(|l| l.ingress.iter().flatten());
    let virtual_ips: Vec<String> = ingress
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.clone())
        .collect();
    ServicePort {
        cluster_ip,
        port: port.port as u16,
        node_port: port.node_port.filter(|p| *p != 0).map(|p| p as u16),
        external_ips: parse_addresses(spec.external_ips.iter().flatten(), family),
        load_balancer_ips: parse_addresses(virtual_ips.iter(), family),
        load_balancer_source_ranges: source_ranges(spec.load_balancer_source_ranges.as_deref(), family),
        affinity_seconds: (spec.session_affinity.as_deref() == Some("ClientIP"))
            .then(|| affinity.and_then(|c| c.timeout_seconds).unwrap_or(10_800)),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        cluster_endpoints: usable(endpoints.iter()),
        local_endpoints: usable(endpoints.iter().filter(|e| e.node.as_deref() == Some(node_name))),
    }
}

fn parse_addresses<'a>(addresses: impl Iterator<Item = &'a String>, family: Family) -> Vec<IpAddr> {
    addresses
        .filter_map(|a| a.parse().ok())
        .filter(|a| Family::of(*a) == family)
        .collect()
}

fn source_ranges(ranges: Option<&[String]>, family: Family) -> Vec<String> {
    let of_family = |r: &&String| r.contains(':') == (family == Family::V6);
    ranges
        .unwrap_or_default()
        .iter()
        .filter(of_family)
        .map(|r| r.trim().to_owned())
        .collect()
}

struct Candidate {
    address: SocketAddr,
    node: Option<String>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

fn endpoints_of(name: &PortName, slices: &[&EndpointSlice]) -> Vec<Candidate> {
    let mut found: BTreeMap<SocketAddr, Candidate> = BTreeMap::new();
    for slice in slices {
        let is_ours = |p: &&EndpointPort| {
            p.name.as_deref().unwrap_or_default() == name.port
                && Protocol::parse(p.protocol.as_deref()) == Some(name.protocol)
        };
        let Some(port) = slice.ports.iter().flatten().find(is_ours).and_then(|p| p.port) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(candidate) = candidate(endpoint, port as u16) else {
                continue;
            };
            // A pod may stand in two slices while the controller moves it; a ready mention wins.
            let known_ready = found.get(&candidate.address).is_some_and(|c| c.ready);
            if !known_ready {
                found.insert(candidate.address, candidate);
            }
        }
    }
    found.into_values().collect()
}

fn candidate(endpoint: &ApiEndpoint, port: u16) -> Option<Candidate> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    Some(Candidate {
        address: SocketAddr::new(endpoint.addresses.first()?.parse().ok()?, port),
        node: endpoint.node_name.clone(),
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
    })
}

/// The ready endpoints; when there are none, those that still serve while they terminate (KEP-1669).
fn usable<'a>(candidates: impl Iterator<Item = &'a Candidate> + Clone) -> Vec<SocketAddr> {
    let ready: Vec<_> = candidates
        .clone()
        .filter(|c| c.ready)
        .map(|c| c.address)
        .collect();
    if !ready.is_empty() {
        return ready;
    }
    candidates
        .filter(|c| c.serving && c.terminating)
        .map(|c| c.address)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}))
            .unwrap()
    }

    fn slice(endpoints: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": "web-x", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn only(map: ServiceMap) -> ServicePort {
        assert_eq!(map.len(), 1);
        map.into_values().next().unwrap()
    }

    fn build_one(service: &Service, slice: &EndpointSlice) -> ServiceMap {
        build(Family::V4, "n1", [service].into_iter(), [slice].into_iter())
    }

    fn addresses(endpoints: &[SocketAddr]) -> Vec<String> {
        endpoints.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ready_endpoints_are_used_and_local_ones_known() {
        let service = service(json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]}));
        let slice = slice(json!([
            {"addresses": ["10.244.0.2"], "nodeName": "n1", "conditions": {"ready": true}},
            {"addresses": ["10.244.1.2"], "nodeName": "n2", "conditions": {"ready": true}},
            {"addresses": ["10.244.1.3"], "nodeName": "n2", "conditions": {"ready": false}},
        ]));
        let port = only(build_one(&service, &slice));
        assert_eq!(
            addresses(&port.cluster_endpoints),
            ["10.244.0.2:8080", "10.244.1.2:8080"]
        );
        assert_eq!(addresses(&port.local_endpoints), ["10.244.0.2:8080"]);
    }

    #[test]
    fn terminating_endpoints_serve_when_nothing_is_ready() {
        let service = service(json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]}));
        let slice = slice(json!([
            {"addresses": ["10.244.1.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.244.1.3"], "conditions": {"ready": false, "serving": false, "terminating": true}},
        ]));
        assert_eq!(
            addresses(&only(build_one(&service, &slice)).cluster_endpoints),
            ["10.244.1.2:8080"]
        );
    }

    #[test]
    fn headless_external_name_and_foreign_services_are_left_alone() {
        let endpoints = slice(json!([]));
        for spec in [
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "example.com"}),
            json!({"clusterIP": "fd00::5", "ports": [{"port": 80}]}),
        ] {
            assert!(build_one(&service(spec), &endpoints).is_empty());
        }
        let mut foreign = service(json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]}));
        foreign
            .labels_mut()
            .insert(SERVICE_PROXY_NAME_LABEL.into(), "other".into());
        assert!(build_one(&foreign, &endpoints).is_empty());
    }
}
