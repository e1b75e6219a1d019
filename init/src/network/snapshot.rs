//! What the network is at a moment, and what follows from it: the node's address, its name, its servers. Pure.

use super::{dhcp::Lease, netlink::Link};
use node_config::NodeConfig;
use std::{fmt::Write, net::IpAddr};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Interfaces that are configured or about to be, by index.
    pub interfaces: Vec<Interface>,
    /// What should be configured and is not there.
    pub missing: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub mac: Vec<u8>,
    pub address: Option<(IpAddr, u8)>,
    pub default_route: bool,
    pub nameservers: Vec<IpAddr>,
    pub ntp: Vec<IpAddr>,
    pub hostname: Option<String>,
    pub domain: Option<String>,
}

impl Interface {
    pub(super) fn new(link: &Link) -> Self {
        Self {
            index: link.index,
            name: link.name.clone(),
            mac: link.mac.clone(),
            address: None,
            default_route: false,
            nameservers: vec![],
            ntp: vec![],
            hostname: None,
            domain: None,
        }
    }

    pub(super) fn lease(&mut self, lease: &Lease) {
        self.address = Some((lease.address.into(), lease.prefix));
        self.default_route = lease.routes.iter().any(|((_, prefix), _)| *prefix == 0);
        self.nameservers
            .extend(lease.nameservers.iter().copied().map(IpAddr::from));
        self.ntp.extend(lease.ntp.iter().copied().map(IpAddr::from));
        self.hostname = self.hostname.take().or_else(|| lease.hostname.clone());
        self.domain.clone_from(&lease.domain);
    }
}

impl Snapshot {
    pub(super) fn set(&mut self, interface: Interface) {
        self.interfaces.retain(|other| other.index != interface.index);
        self.interfaces.push(interface);
        self.interfaces.sort_by_key(|interface| interface.index);
    }

    /// The node's address: the one asked for, once an interface has it; else the default route's. While earlier
    /// interfaces are still being configured (and `patient`), theirs may yet be the answer.
    pub fn node_ip(&self, config: &NodeConfig, patient: bool) -> Option<IpAddr> {
        let addresses = || {
            self.interfaces
                .iter()
                .filter_map(|interface| interface.address.map(|(address, _)| address))
        };
        if let Some(wanted) = config.node_ip {
            return addresses().find(|address| *address == wanted);
        }
        for interface in &self.interfaces {
            match interface.address {
                Some((address, _)) if interface.default_route => return Some(address),
                None if patient => return None,
                _ => {}
            }
        }
        addresses().next().filter(|_| {
            !patient
                || self
                    .interfaces
                    .iter()
                    .all(|interface| interface.address.is_some())
        })
    }

    /// The name the network gives this machine, else one made of the first interface's hardware address.
    pub fn hostname(&self) -> Option<String> {
        let given = self
            .interfaces
            .iter()
            .find_map(|interface| interface.hostname.clone());
        given.or_else(|| {
            let interface = self
                .interfaces
                .first()
                .filter(|interface| !interface.mac.is_empty())?;
            Some(interface.mac.iter().fold("node-".to_owned(), |mut name, byte| {
                // Writing to a String cannot fail.
                let _ = write!(name, "{byte:02x}");
                name
            }))
        })
    }

    /// Whether every interface that is to have an address has one.
    pub fn complete(&self) -> bool {
        self.missing.is_empty()
            && self
                .interfaces
                .iter()
                .all(|interface| interface.address.is_some())
    }

    pub fn ntp_servers(&self) -> Vec<IpAddr> {
        unique(
            self.interfaces
                .iter()
                .flat_map(|interface| interface.ntp.iter().copied()),
        )
    }

    /// resolv.conf(5): the command line's servers first. The C library reads three.
    pub fn resolv_conf(&self, config: &NodeConfig) -> String {
        let learned = self
            .interfaces
            .iter()
            .flat_map(|interface| interface.nameservers.iter().copied());
        let servers = unique(config.nameservers.iter().copied().chain(learned));
        let domain = self
            .interfaces
            .iter()
            .find_map(|interface| interface.domain.as_deref());
        let mut text = domain
            .map(|domain| format!("search {domain}\n"))
            .unwrap_or_default();
        for server in servers.iter().take(3) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "nameserver {server}");
        }
        text
    }
}

fn unique(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut list = Vec::new();
    for address in addresses {
        if !list.contains(&address) {
            list.push(address);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, address: Option<&str>, default_route: bool) -> Interface {
        Interface {
            index,
            name: format!("eth{index}"),
            mac: vec![0x52, 0x54, 0, 0, 0, index as u8],
            address: address.map(|address| (address.parse().unwrap(), 24)),
            default_route,
            nameservers: vec!["10.0.2.3".parse().unwrap()],
            ntp: vec!["10.0.2.4".parse().unwrap()],
            hostname: None,
            domain: None,
        }
    }

    fn snapshot(interfaces: Vec<Interface>) -> Snapshot {
        Snapshot {
            interfaces,
            missing: vec![],
        }
    }

    fn node_ip(cmdline: &str, interfaces: Vec<Interface>, patient: bool) -> Option<String> {
        let config = node_config::parse(cmdline).0;
        snapshot(interfaces)
            .node_ip(&config, patient)
            .map(|address| address.to_string())
    }

    #[test]
    fn the_nodes_address() {
        let outside = || interface(1, Some("10.0.2.15"), true);
        let lab = || interface(2, Some("192.168.76.11"), false);
        let silent = || interface(0, None, false);
        for (cmdline, interfaces, patient, expected) in [
            ("", vec![outside(), lab()], true, Some("10.0.2.15")),
            (
                "ironlet.node-ip=192.168.76.11",
                vec![outside(), lab()],
                true,
                Some("192.168.76.11"),
            ),
            ("ironlet.node-ip=192.168.76.11", vec![outside()], false, None),
            ("", vec![silent(), outside()], true, None),
            ("", vec![silent(), outside()], false, Some("10.0.2.15")),
            ("", vec![lab()], true, Some("192.168.76.11")),
            ("", vec![silent(), lab()], true, None),
            ("", vec![silent(), lab()], false, Some("192.168.76.11")),
            ("", vec![], false, None),
        ] {
            let case = format!("{cmdline} {interfaces:?} {patient}");
            assert_eq!(
                node_ip(cmdline, interfaces, patient).as_deref(),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn the_name_is_the_networks_or_made_of_the_hardware_address() {
        let mut named = interface(2, None, false);
        named.hostname = Some("rack-7".to_owned());
        assert_eq!(
            snapshot(vec![interface(1, None, false), named])
                .hostname()
                .as_deref(),
            Some("rack-7")
        );
        assert_eq!(
            snapshot(vec![interface(1, None, false)]).hostname().as_deref(),
            Some("node-525400000001")
        );
        assert_eq!(snapshot(vec![]).hostname(), None);
    }

    #[test]
    fn name_servers_of_the_command_line_come_first_and_none_twice() {
        let config = node_config::parse("nameserver=9.9.9.9 nameserver=10.0.2.3").0;
        let text = snapshot(vec![interface(1, None, false), interface(2, None, false)]).resolv_conf(&config);
        assert_eq!(text, "nameserver 9.9.9.9\nnameserver 10.0.2.3\n");
    }
}
