//! A Service and its EndpointSlices reduced to what rules need: one [`ServicePort`] per port and address family, with
//! the endpoints that traffic may go to (upstream: pkg/proxy ServicePortMap and EndpointsMap).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort as ApiServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointPort, EndpointSlice};
use kube::ResourceExt;
use netfilter::Family;

use crate::endpoints::{self, Candidate, Endpoints};

pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Its number in IP headers (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

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

/// What this node is to the policies of Services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub name: String,
    pub zone: Option<String>,
    pub addresses: Vec<IpAddr>,
}

/// One port of a Service in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub cluster_ip: IpAddr,
    pub port: u16,
    pub node_port: Option<u16>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub load_balancer_source_ranges: Vec<IpNet>,
    /// Session affinity by client IP lasts this many seconds.
    pub affinity_seconds: Option<i32>,
    pub internal_local: bool,
    pub external_local: bool,
    /// Where a load balancer asks whether this node has endpoints.
    pub health_check_node_port: Option<u16>,
    pub endpoints: Endpoints,
}

impl ServicePort {
    pub fn is_external(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }
}

pub type Ports = BTreeMap<PortName, ServicePort>;

/// The Service's ports in one family as this node sees them; none when it is not ours to proxy.
pub fn ports<'a>(
    family: Family,
    node: &NodeFacts,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
) -> Ports {
    let Some(cluster_ip) = proxied_cluster_ip(service, family) else {
        return Ports::new();
    };
    let slices = slices.filter(|slice| slice.address_type == family.name());
    let mut found = Ports::new();
    for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else {
            continue;
        };
        let name = PortName {
            namespace: service.namespace().unwrap_or_default(),
            service: service.name_any(),
            port: port.name.clone().unwrap_or_default(),
            protocol,
        };
        let candidates = candidates(&name, slices.clone());
        let port = service_port(service, port, cluster_ip, family, node, &candidates);
        found.insert(name, port);
    }
    found
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
    node: &NodeFacts,
    candidates: &[Candidate],
) -> ServicePort {
    let spec = service.spec.clone().unwrap_or_default();
    let affinity = spec
        .session_affinity_config
        .as_ref()
        .and_then(|c| c.client_ip.as_ref());
    let status = service.status.iter().filter_map(|s| s.load_balancer.as_ref());
    // With ipMode Proxy the balancer sends to the nodes' own addresses (KEP-1860).
    let virtual_ips: Vec<String> = status
        .flat_map(|l| l.ingress.iter().flatten())
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.clone())
        .collect();
    let mut port = ServicePort {
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
        health_check_node_port: spec.health_check_node_port.filter(|p| *p != 0).map(|p| p as u16),
        endpoints: Endpoints::default(),
    };
    port.endpoints = endpoints::categorize(candidates, node, &port);
    port
}

fn parse_addresses<'a>(addresses: impl Iterator<Item = &'a String>, family: Family) -> Vec<IpAddr> {
    let mut parsed: Vec<IpAddr> = addresses
        .filter_map(|a| a.parse().ok())
        .filter(|a| Family::of(*a) == family)
        .collect();
    parsed.dedup();
    parsed
}

fn source_ranges(ranges: Option<&[String]>, family: Family) -> Vec<IpNet> {
    let ranges = ranges.unwrap_or_default().iter();
    ranges
        .filter_map(|range| range.trim().parse::<IpNet>().ok())
        .filter(|range| Family::of(range.addr()) == family)
        .collect()
}

fn candidates<'a>(name: &PortName, slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<Candidate> {
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
    let hints = endpoint.hints.clone().unwrap_or_default();
    Some(Candidate {
        address: SocketAddr::new(endpoint.addresses.first()?.parse().ok()?, port),
        node: endpoint.node_name.clone(),
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node_hints: hints
            .for_nodes
            .unwrap_or_default()
            .into_iter()
            .map(|n| n.name)
            .collect(),
        zone_hints: hints
            .for_zones
            .unwrap_or_default()
            .into_iter()
            .map(|z| z.name)
            .collect(),
    })
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

    fn build_one(service: &Service, slice: &EndpointSlice) -> Ports {
        let node = NodeFacts {
            name: "n1".into(),
            ..NodeFacts::default()
        };
        ports(Family::V4, &node, service, [slice].into_iter())
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

    #[test]
    fn an_endpoint_in_two_slices_counts_once_and_balancers_in_front_of_nodes_are_not_ours() {
        let mut service = service(
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.5", "ports": [{"port": 80}],
            "loadBalancerSourceRanges": [" 203.0.113.0/25 ", "2001:db8::/32"]}),
        );
        service.status = serde_json::from_value(json!({"loadBalancer": {"ingress":
            [{"ip": "203.0.113.7"}, {"ip": "203.0.113.8", "ipMode": "Proxy"}, {"hostname": "x"}]}}))
        .unwrap();
        let endpoint = |ready| json!([{"addresses": ["10.244.0.2"], "conditions": {"ready": ready}}]);
        let slices = [slice(endpoint(true)), slice(endpoint(false))];
        let ports = ports(Family::V4, &NodeFacts::default(), &service, slices.iter());
        let port = ports.values().next().unwrap();
        assert_eq!(port.endpoints.cluster, ["10.244.0.2:8080".parse().unwrap()]);
        assert_eq!(port.load_balancer_ips, ["203.0.113.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            port.load_balancer_source_ranges,
            ["203.0.113.0/25".parse().unwrap()]
        );
    }
}
