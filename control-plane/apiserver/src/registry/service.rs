//! Cluster addresses and node ports of Services.
//!
//! Each address and port in use is a key of its own in the store, created in the same transaction as
//! the Service: two API servers cannot give one away twice, and nothing leaks when a write fails.
//! Addresses are `IPAddress` objects, as upstream's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use rand::Rng;
use serde_json::{Value, json};

use crate::object::{self, text};
use crate::registry;
use crate::status::Cause;

/// A service network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    base: u128,
    size: u128,
    v6: bool,
}

impl Network {
    fn parse(cidr: &str) -> Option<Self> {
        let (address, length) = cidr.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let length: u32 = length.parse().ok()?;
        let (bits, v6, width) = match address {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), false, 32),
            IpAddr::V6(v6) => (u128::from(v6), true, 128),
        };
        let host_bits = width - length.min(width);
        if length > width || !(2..=127).contains(&host_bits) {
            return None;
        }
        let size = 1u128 << host_bits;
        Some(Self {
            base: bits & !(size - 1),
            size,
            v6,
        })
    }

    fn address(&self, offset: u128) -> IpAddr {
        let bits = self.base + offset;
        if self.v6 {
            IpAddr::V6(Ipv6Addr::from(bits))
        } else {
            IpAddr::V4(Ipv4Addr::from(bits as u32))
        }
    }

    /// Neither the network's own address nor, in IPv4, its broadcast address.
    fn contains(&self, address: IpAddr) -> bool {
        let (bits, v6) = match address {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), false),
            IpAddr::V6(v6) => (u128::from(v6), true),
        };
        let last = self.size - if v6 { 1 } else { 2 };
        v6 == self.v6 && bits > self.base && bits <= self.base + last
    }

    /// Random, above the band that is left for chosen addresses (KEP-3070).
    fn pick(&self) -> IpAddr {
        let band = if self.size < 32 {
            1
        } else {
            (self.size / 16).clamp(16, 256)
        };
        let last = self.size.min(1 << 64) - if self.v6 { 1 } else { 2 };
        self.address(rand::rng().random_range(band.min(last)..=last))
    }

    fn family(&self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }
}

#[derive(Debug, Clone)]
pub struct Allocator {
    networks: Vec<Network>,
    ports: (u16, u16),
}

/// What a Service holds: store key → value.
pub type Claims = BTreeMap<Bytes, Bytes>;

impl Allocator {
    pub fn new(cidrs: &[String], ports: (u16, u16)) -> Result<Self, String> {
        let networks: Option<Vec<_>> = cidrs.iter().map(|cidr| Network::parse(cidr.trim())).collect();
        match networks {
            Some(networks) if matches!(networks.len(), 1 | 2) => {
                if networks.len() == 2 && networks[0].v6 == networks[1].v6 {
                    return Err("two service networks must be of different IP families".into());
                }
                if ports.0 == 0 || ports.0 > ports.1 {
                    return Err(format!("bad node port range {}-{}", ports.0, ports.1));
                }
                Ok(Self { networks, ports })
            }
            _ => Err(format!("{cidrs:?} must be one or two networks in CIDR form")),
        }
    }

    /// Where the API server itself is found: the first address of the first network.
    pub fn first_address(&self) -> IpAddr {
        self.networks[0].address(1)
    }

    /// Fills what the user left open; picks are random, so a lost race is run again.
    pub fn assign(&self, service: &mut Value, old: Option<&Value>) -> Result<(), Vec<Cause>> {
        let kind = text(service, "/spec/type").to_owned();
        if kind == "ExternalName" {
            let spec = object::field(service, "spec");
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.remove(field);
            }
        } else {
            self.assign_addresses(service, old)?;
        }
        if wants_node_ports(service) {
            self.assign_node_ports(service)
        } else {
            release_node_ports(service);
            Ok(())
        }
    }

    fn assign_addresses(&self, service: &mut Value, old: Option<&Value>) -> Result<(), Vec<Cause>> {
        let mut addresses = strings(&service["spec"]["clusterIPs"]);
        let first = text(service, "/spec/clusterIP").to_owned();
        let before = old
            .map(|old| strings(&old["spec"]["clusterIPs"]))
            .unwrap_or_default();
        if !addresses.is_empty() && !first.is_empty() && addresses == before {
            // Who writes only clusterIP means both, as upstream's normalizeClusterIPs has it.
            addresses[0] = first;
        } else if addresses.is_empty() && !first.is_empty() {
            addresses.push(first);
        } else if !first.is_empty() && addresses[0] != first {
            return Err(invalid(
                "spec.clusterIPs",
                &json!(addresses),
                "first value must match `clusterIP`",
            ));
        }
        if let Some(before) = before.first()
            && addresses.first().is_some_and(|now| now != before)
        {
            return Err(invalid(
                "spec.clusterIPs[0]",
                &json!(addresses),
                "may not change once set",
            ));
        }
        let networks = self.families(service, &addresses)?;
        if addresses.first().map(String::as_str) == Some("None") {
            addresses.truncate(1);
        } else {
            for (place, address) in addresses.iter().enumerate() {
                let parsed: Option<IpAddr> = address.parse().ok();
                let Some(parsed) = parsed else {
                    let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                    return Err(invalid(
                        &format!("spec.clusterIPs[{place}]"),
                        &json!(address),
                        why,
                    ));
                };
                if !self.networks.iter().any(|network| network.contains(parsed)) {
                    let why = "failed to allocate IP: the provided network does not match the current range";
                    return Err(invalid("spec.clusterIPs", &json!(addresses), why));
                }
            }
            addresses.truncate(networks.len());
            for network in &networks[addresses.len()..] {
                addresses.push(network.pick().to_string());
            }
        }
        let families: Vec<&str> = networks.iter().map(Network::family).collect();
        let spec = object::field(service, "spec");
        spec.insert("clusterIP".into(), json!(addresses[0]));
        spec.insert("clusterIPs".into(), json!(addresses));
        spec.insert("ipFamilies".into(), json!(families));
        let policy = spec.entry("ipFamilyPolicy").or_insert(Value::Null);
        if policy.is_null() || *policy == "" {
            *policy = json!("SingleStack");
        }
        Ok(())
    }

    /// The networks a Service gets addresses from, primary first.
    fn families(&self, service: &Value, addresses: &[String]) -> Result<Vec<Network>, Vec<Cause>> {
        let mut wanted = strings(&service["spec"]["ipFamilies"]);
        if wanted.is_empty()
            && let Some(address) = addresses.first().and_then(|a| a.parse::<IpAddr>().ok())
        {
            wanted.push(if address.is_ipv6() {
                "IPv6".into()
            } else {
                "IPv4".into()
            });
        }
        let mut networks = Vec::new();
        for (place, family) in wanted.iter().enumerate() {
            match self.networks.iter().find(|network| network.family() == family) {
                Some(network) => networks.push(*network),
                None => {
                    let why = "not configured on this cluster";
                    return Err(invalid(&format!("spec.ipFamilies[{place}]"), &json!(family), why));
                }
            }
        }
        if networks.is_empty() {
            networks.push(self.networks[0]);
        }
        let policy = text(service, "/spec/ipFamilyPolicy");
        if matches!(policy, "PreferDualStack" | "RequireDualStack") {
            let others: Vec<_> = self
                .networks
                .iter()
                .filter(|n| !networks.contains(n))
                .copied()
                .collect();
            networks.extend(others);
            if policy == "RequireDualStack" && networks.len() < 2 {
                let why = "this cluster is not configured for dual-stack services";
                return Err(invalid("spec.ipFamilyPolicy", &json!(policy), why));
            }
        }
        Ok(networks)
    }

    fn assign_node_ports(&self, service: &mut Value) -> Result<(), Vec<Cause>> {
        let mut taken = Vec::new();
        let (low, high) = (i64::from(self.ports.0), i64::from(self.ports.1));
        let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
        for (place, port) in ports.iter().enumerate() {
            let mut number = port["nodePort"].as_i64().unwrap_or(0);
            if number == 0 {
                // One number for the protocols of one port (DNS over UDP and TCP).
                let twin = taken
                    .iter()
                    .find(|(p, protocol, _)| *p == port["port"] && *protocol != port["protocol"]);
                number = match twin {
                    Some((_, _, number)) => *number,
                    None => rand::rng().random_range(low..=high),
                };
            } else if number < low || number > high {
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {low}-{high}"
                );
                return Err(invalid(
                    &format!("spec.ports[{place}].nodePort"),
                    &json!(number),
                    &why,
                ));
            }
            service["spec"]["ports"][place]["nodePort"] = json!(number);
            taken.push((port["port"].clone(), port["protocol"].clone(), number));
        }
        if wants_health_check_port(service)
            && service["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) == 0
        {
            service["spec"]["healthCheckNodePort"] = json!(rand::rng().random_range(low..=high));
        }
        Ok(())
    }
}

pub fn wants_node_ports(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

pub fn wants_health_check_port(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
}

fn release_node_ports(service: &mut Value) {
    if let Some(ports) = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut) {
        for port in ports.iter_mut().filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
    }
    object::field(service, "spec").remove("healthCheckNodePort");
}

/// The keys a Service holds, with what to store there.
pub fn claims(service: &Value) -> Claims {
    let (namespace, name) = (object::namespace(service), object::name(service));
    let mut claims = Claims::new();
    let mut addresses = strings(&service["spec"]["clusterIPs"]);
    // A request may name the first address only.
    addresses.push(text(service, "/spec/clusterIP").to_owned());
    for address in addresses {
        if let Ok(parsed) = address.parse::<IpAddr>() {
            let value = ip_address(
                parsed,
                namespace,
                name,
                text(service, "/metadata/creationTimestamp"),
            );
            claims.insert(
                registry::key("networking.k8s.io", "ipaddresses", "", &address),
                object::encode(&value),
            );
        }
    }
    let ports = service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| &port["nodePort"]);
    for port in ports
        .chain([&service["spec"]["healthCheckNodePort"]])
        .filter_map(Value::as_i64)
        .filter(|p| *p > 0)
    {
        let key = format!("/registry/ranges/servicenodeports/{port}");
        claims.insert(
            key.into(),
            json!({"namespace": namespace, "name": name}).to_string().into(),
        );
    }
    claims
}

fn ip_address(address: IpAddr, namespace: &str, name: &str, created: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(),
            "uid": registry::names::uid(),
            "creationTimestamp": created,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": if address.is_ipv6() { "IPv6" } else { "IPv4" },
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": namespace, "name": name}},
    })
}

/// What to answer when a chosen address or port belongs to another Service.
pub fn taken(service: &Value, key: &[u8]) -> Vec<Cause> {
    let key = String::from_utf8_lossy(key);
    let value = key.rsplit('/').next().unwrap_or_default();
    if key.contains("servicenodeports") {
        invalid(
            "spec.ports[0].nodePort",
            &json!(value.parse::<u16>().unwrap_or(0)),
            "provided port is already allocated",
        )
    } else {
        let why = format!("failed to allocate IP {value}: provided IP is already allocated");
        invalid("spec.clusterIPs", &service["spec"]["clusterIPs"], &why)
    }
}

fn invalid(field: &str, value: &Value, why: &str) -> Vec<Cause> {
    vec![Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {value}: {why}"),
        field: field.into(),
    }]
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator() -> Allocator {
        Allocator::new(&["10.96.0.0/24".into()], (30000, 30010)).unwrap()
    }

    fn assigned(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec});
        allocator().assign(&mut service, None).unwrap();
        service
    }

    fn refused(spec: Value) -> String {
        let mut service = json!({"metadata": {}, "spec": spec});
        allocator()
            .assign(&mut service, None)
            .unwrap_err()
            .remove(0)
            .message
    }

    #[test]
    fn addresses_are_in_the_network_above_the_chosen_band() {
        for _ in 0..500 {
            let service = assigned(json!({"type": "ClusterIP"}));
            let address: Ipv4Addr = text(&service, "/spec/clusterIP").parse().unwrap();
            let last = address.octets()[3];
            assert!((16..=254).contains(&last), "{address}");
            assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
            assert_eq!(service["spec"]["ipFamilyPolicy"], "SingleStack");
            assert_eq!(claims(&service).len(), 1);
        }
        assert_eq!(allocator().first_address().to_string(), "10.96.0.1");
    }

    #[test]
    fn chosen_addresses_are_checked() {
        assert_eq!(
            assigned(json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"}))["spec"]["clusterIPs"],
            json!(["10.96.0.10"])
        );
        let headless = assigned(json!({"type": "ClusterIP", "clusterIP": "None"}));
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        assert!(claims(&headless).is_empty());
        for address in ["10.97.0.1", "10.96.0.0", "10.96.0.255"] {
            assert!(
                refused(json!({"type": "ClusterIP", "clusterIP": address})).contains("range"),
                "{address}"
            );
        }
        assert!(refused(json!({"type": "ClusterIP", "clusterIP": "x"})).contains("valid IP"));
        assert!(refused(json!({"ipFamilyPolicy": "RequireDualStack"})).contains("dual-stack"));
    }

    #[test]
    fn an_address_does_not_change() {
        let old = assigned(json!({"type": "ClusterIP", "clusterIP": "10.96.0.10"}));
        let mut new = old.clone();
        new["spec"]["clusterIP"] = json!("10.96.0.11");
        for addresses in [json!(["10.96.0.11"]), json!(["10.96.0.10"])] {
            new["spec"]["clusterIPs"] = addresses;
            let causes = allocator().assign(&mut new.clone(), Some(&old)).unwrap_err();
            assert_eq!(
                causes[0].message,
                r#"Invalid value: ["10.96.0.11"]: may not change once set"#
            );
        }
    }

    #[test]
    fn node_ports_come_and_go_with_the_type() {
        let ports = json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 80, "protocol": "TCP", "nodePort": 30005}]);
        let mut service = assigned(json!({"type": "NodePort", "ports": ports}));
        let numbers: Vec<i64> = service["spec"]["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["nodePort"].as_i64().unwrap())
            .collect();
        assert!((30000..=30010).contains(&numbers[0]));
        assert_eq!((numbers[0], numbers[2]), (numbers[1], 30005));
        service["spec"]["type"] = json!("ClusterIP");
        let old = service.clone();
        allocator().assign(&mut service, Some(&old)).unwrap();
        assert!(service["spec"]["ports"][2].get("nodePort").is_none());
        let mut alias = json!({"spec": {"type": "ExternalName", "externalName": "a.b"}});
        let before = alias.clone();
        allocator().assign(&mut alias, Some(&old)).unwrap();
        assert_eq!(alias, before);
        assert!(
            refused(json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}))
                .contains("30000-30010")
        );
    }

    #[test]
    fn two_families() {
        let dual = Allocator::new(&["10.96.0.0/24".into(), "fd00::/108".into()], (1, 2)).unwrap();
        let mut service =
            json!({"metadata": {}, "spec": {"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack"}});
        dual.assign(&mut service, None).unwrap();
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(claims(&service).len(), 2);
        for bad in [
            vec![],
            vec!["x".to_owned()],
            vec!["10.0.0.0/24".into(), "10.1.0.0/24".into()],
        ] {
            assert!(Allocator::new(&bad, (1, 2)).is_err(), "{bad:?}");
        }
    }
}
