//! The endpoints a Service should have, grouped as slices are: by address family and ports.

use api::pod::{is_ready, is_terminal, is_terminating};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A slice's ports in the order of the Service: name, protocol, number, application protocol.
pub type Ports = Vec<(String, String, i32, Option<String>)>;

/// Address type and ports to endpoints.
pub type Groups = BTreeMap<(&'static str, Ports), Vec<Endpoint>>;

/// Services without a selector have endpoints of somebody else's making.
pub fn has_selector(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.selector.is_some() && s.type_.as_deref() != Some("ExternalName"))
}

pub fn groups(service: &Service, pods: &[Arc<Pod>], zone_of: &dyn Fn(&str) -> Option<String>) -> Groups {
    let mut groups = Groups::new();
    let Some(spec) = &service.spec else { return groups };
    let selector = spec.selector.clone().unwrap_or_default();
    let families = families(spec);
    let mut selected: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|p| !is_terminal(p) && api::selector::matches_map(&selector, p.metadata.labels.as_ref()))
        .collect();
    selected.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for pod in selected {
        let ports = pod_ports(spec, pod);
        for family in &families {
            if let Some(ip) = api::pod::ips(pod)
                .into_iter()
                .find(|ip| address_type(ip) == Some(family))
            {
                let endpoint = endpoint(service, pod, ip, zone_of);
                groups.entry((family, ports.clone())).or_default().push(endpoint);
            }
        }
    }
    groups
}

/// The families of the Service's cluster addresses, before it has any: those it asks for.
pub fn families(spec: &ServiceSpec) -> Vec<&'static str> {
    let listed: Vec<&'static str> = spec
        .ip_families
        .iter()
        .flatten()
        .map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" })
        .collect();
    if listed.is_empty() { vec!["IPv4"] } else { listed }
}

pub fn address_type(ip: &str) -> Option<&'static str> {
    match ip.parse().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

/// The Service's ports as this pod serves them; a named port the pod doesn't have is left out.
pub fn pod_ports(spec: &ServiceSpec, pod: &Pod) -> Ports {
    spec.ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            let number = match &port.target_port {
                None => port.port,
                Some(IntOrString::Int(0)) => port.port,
                Some(IntOrString::Int(n)) => *n,
                Some(IntOrString::String(name)) => named_port(pod, name, &protocol)?,
            };
            Some((
                port.name.clone().unwrap_or_default(),
                protocol,
                number,
                port.app_protocol.clone(),
            ))
        })
        .collect()
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| api::resources::is_sidecar(c));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .find(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|p| p.container_port)
}

fn endpoint(service: &Service, pod: &Pod, ip: &str, zone_of: &dyn Fn(&str) -> Option<String>) -> Endpoint {
    let publish = service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        .unwrap_or_default();
    let (serving, terminating) = (is_ready(pod), is_terminating(pod));
    let node = api::pod::node_name(pod);
    let spec = pod.spec.as_ref();
    let subdomain = spec.and_then(|s| s.subdomain.as_deref());
    let hostname = spec
        .and_then(|s| s.hostname.clone())
        .filter(|h| !h.is_empty() && subdomain == service.metadata.name.as_deref());
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: node.map(str::to_owned),
        zone: node.and_then(zone_of),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// As the slice has them; a slice without ports (headless, none declared) has an empty list.
pub fn slice_ports(ports: &Ports) -> Vec<EndpointPort> {
    ports
        .iter()
        .map(|(name, protocol, number, app_protocol)| EndpointPort {
            name: Some(name.clone()),
            protocol: Some(protocol.clone()),
            port: Some(*number),
            app_protocol: app_protocol.clone(),
        })
        .collect()
}
