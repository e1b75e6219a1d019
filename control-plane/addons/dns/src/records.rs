//! What the cluster's domain holds, worked out from the cluster's objects and nothing else: each name with its data, as
//! the Kubernetes DNS specification wants it. Names above a name with data exist, too, without data.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// Version of the specification, told under `dns-version`.
const SPECIFICATION: &str = "1.1.0";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Data {
    Address(IpAddr),
    Service { port: u16, target: String },
    Alias(String),
    Pointer(String),
    Text(String),
}

/// Names are lower case and without the final dot.
#[derive(Debug, Default)]
pub struct Records {
    pub domain: String,
    names: HashMap<String, Vec<Data>>,
    namespaces: HashSet<String>,
}

impl Records {
    pub fn build<'a>(
        domain: &str,
        namespaces: impl IntoIterator<Item = &'a str>,
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        let mut records = Self {
            domain,
            ..Self::default()
        };
        let domain = records.domain.clone();
        records.add(&format!("dns-version.{domain}"), Data::Text(SPECIFICATION.into()));
        records.exists(&format!("svc.{domain}"));
        records.exists(&format!("pod.{domain}"));
        for namespace in namespaces {
            records.namespaces.insert(namespace.to_owned());
            records.exists(&format!("{namespace}.svc.{domain}"));
            records.exists(&format!("{namespace}.pod.{domain}"));
        }
        let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for slice in slices {
            let service = slice
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(SERVICE_NAME));
            if let (Some(namespace), Some(service)) = (slice.metadata.namespace.as_deref(), service) {
                by_service.entry((namespace, service)).or_default().push(slice);
            }
        }
        for service in services {
            let metadata = &service.metadata;
            let (Some(namespace), Some(name)) = (metadata.namespace.as_deref(), metadata.name.as_deref())
            else {
                continue;
            };
            let slices = by_service
                .get(&(namespace, name))
                .map(Vec::as_slice)
                .unwrap_or_default();
            records.service(&format!("{name}.{namespace}.svc.{domain}"), service, slices);
        }
        records
    }

    pub fn get(&self, name: &str) -> Option<&[Data]> {
        self.names.get(name).map(Vec::as_slice)
    }

    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    fn service(&mut self, name: &str, service: &Service, slices: &[&EndpointSlice]) {
        let Some(spec) = &service.spec else { return };
        if spec.type_.as_deref() == Some("ExternalName") {
            if let Some(target) = &spec.external_name {
                let target = target.trim_end_matches('.').to_ascii_lowercase();
                self.add(name, Data::Alias(target));
            }
            return;
        }
        let own = spec.cluster_ip.iter();
        let addresses: HashSet<&String> = own.chain(spec.cluster_ips.iter().flatten()).collect();
        let addresses: Vec<IpAddr> = addresses
            .into_iter()
            .filter_map(|address| address.parse().ok())
            .collect();
        if addresses.is_empty() {
            if spec.cluster_ip.as_deref() == Some("None") {
                let unready = spec.publish_not_ready_addresses == Some(true);
                self.headless(name, slices, unready);
            }
            return;
        }
        for address in addresses {
            self.add(name, Data::Address(address));
            self.add(&reverse(address), Data::Pointer(name.to_owned()));
        }
        for port in spec.ports.iter().flatten() {
            let ServicePort {
                name: Some(label),
                port,
                protocol,
                ..
            } = port
            else {
                continue;
            };
            self.port(name, label, protocol.as_deref(), *port, name);
        }
    }

    fn headless(&mut self, name: &str, slices: &[&EndpointSlice], unready: bool) {
        self.exists(name);
        for slice in slices.iter().filter(|slice| slice.address_type != "FQDN") {
            let endpoints = slice.endpoints.iter().flatten();
            for endpoint in endpoints.filter(|endpoint| unready || ready(endpoint)) {
                let addresses = endpoint.addresses.iter();
                for address in addresses.filter_map(|address| address.parse::<IpAddr>().ok()) {
                    let label = endpoint.hostname.clone().unwrap_or_else(|| dashed(address));
                    let host = format!("{label}.{name}");
                    self.add(name, Data::Address(address));
                    self.add(&host, Data::Address(address));
                    self.add(&reverse(address), Data::Pointer(host.clone()));
                    for port in slice.ports.iter().flatten() {
                        if let (Some(label), Some(number)) = (&port.name, port.port) {
                            self.port(name, label, port.protocol.as_deref(), number, &host);
                        }
                    }
                }
            }
        }
    }

    fn port(&mut self, service: &str, label: &str, protocol: Option<&str>, port: i32, target: &str) {
        let Ok(port) = u16::try_from(port) else { return };
        if label.is_empty() {
            return;
        }
        let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
        let data = Data::Service {
            port,
            target: target.to_owned(),
        };
        self.add(&format!("_{label}._{protocol}.{service}"), data);
    }

    fn add(&mut self, name: &str, data: Data) {
        self.exists(name);
        let held = self.names.entry(name.to_ascii_lowercase()).or_default();
        if !held.contains(&data) {
            held.push(data);
        }
    }

    /// The name and, inside the cluster's domain, all names above it.
    fn exists(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        let mut name = name.as_str();
        while name.ends_with(&self.domain) && !self.names.contains_key(name) {
            self.names.insert(name.to_owned(), Vec::new());
            match name.split_once('.') {
                Some((_, above)) => name = above,
                None => break,
            }
        }
    }
}

fn ready(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.and_then(|conditions| conditions.ready) != Some(false)
}

fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// `1.0.96.10.in-addr.arpa`, or nibbles under `ip6.arpa`.
pub fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles: String = address
                .octets()
                .iter()
                .rev()
                .map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4))
                .collect();
            format!("{nibbles}ip6.arpa")
        }
    }
}
