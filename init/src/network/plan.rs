//! Which interface is configured how: a pure function of the command line and the links that are there.

use super::{netlink::Link, stacked};
use node_config::{IpExtra, IpMethod, IpParameter, NodeConfig, StaticAddress};
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub link: Link,
    pub method: Method,
    pub mtu: Option<u32>,
    pub mac: Option<[u8; 6]>,
    pub hostname: Option<String>,
    pub nameservers: Vec<IpAddr>,
    pub ntp: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    Dhcp,
    Static(StaticAddress),
}

/// The interfaces to configure that are not configured yet.
pub fn assignments(config: &NodeConfig, links: &[Link], configured: &[String]) -> Vec<Assignment> {
    let usable = |link: &&Link| {
        (link.physical && !stacked::is_member(config, &link.name)) || stacked::is_usable(config, links, link)
    };
    let mut physical: Vec<&Link> = links.iter().filter(usable).collect();
    physical.sort_by_key(|link| link.index);
    let fresh = |link: &Link| !configured.contains(&link.name);
    if config.ip.is_empty() {
        return physical
            .into_iter()
            .filter(|link| fresh(link))
            .map(plain_dhcp)
            .collect();
    }
    let named: Vec<&str> = config
        .ip
        .iter()
        .filter_map(|parameter| parameter.interface.as_deref())
        .collect();
    let unnamed: Vec<&Link> = physical
        .into_iter()
        .filter(|link| !named.contains(&link.name.as_str()))
        .collect();
    let mut assignments: Vec<Assignment> = Vec::new();
    for parameter in &config.ip {
        let links: Vec<&Link> = match (&parameter.interface, &parameter.method) {
            (Some(name), _) => {
                let is_bond = config.bonds.iter().any(|bond| bond.name == *name);
                let named = links.iter().filter(|link| link.name == *name);
                named.filter(|link| !is_bond || usable(link)).collect()
            }
            // One address belongs to one interface: the first.
            (None, IpMethod::Static(_)) => unnamed.first().copied().into_iter().collect(),
            (None, _) => unnamed.clone(),
        };
        let links = links.into_iter().filter(|link| fresh(link));
        assignments.extend(links.filter_map(|link| assignment(link, parameter)));
    }
    assignments
}

/// The interfaces that the command line names and that are not there.
pub fn missing(config: &NodeConfig, links: &[Link]) -> Vec<String> {
    let named = config
        .ip
        .iter()
        .filter(|parameter| parameter.method != IpMethod::Off);
    let mut missing: Vec<String> = named
        .filter_map(|parameter| parameter.interface.clone())
        .filter(|name| links.iter().all(|link| link.name != *name))
        .chain(stacked::missing(config, links))
        .collect();
    if missing.is_empty() && !links.iter().any(|link| link.physical) {
        missing.push("a network interface".to_owned());
    }
    missing
}

fn plain_dhcp(link: &Link) -> Assignment {
    Assignment {
        link: link.clone(),
        method: Method::Dhcp,
        mtu: None,
        mac: None,
        hostname: None,
        nameservers: vec![],
        ntp: None,
    }
}

fn assignment(link: &Link, parameter: &IpParameter) -> Option<Assignment> {
    let method = match &parameter.method {
        IpMethod::Dhcp => Method::Dhcp,
        IpMethod::Static(address) => Method::Static(address.clone()),
        IpMethod::Off => return None,
    };
    let mut assignment = Assignment {
        method,
        hostname: parameter.hostname.clone(),
        ..plain_dhcp(link)
    };
    match &parameter.extra {
        IpExtra::None => {}
        IpExtra::Link { mtu, mac } => (assignment.mtu, assignment.mac) = (*mtu, *mac),
        IpExtra::Servers { nameservers, ntp } => {
            assignment.nameservers.clone_from(nameservers);
            assignment.ntp = *ntp;
        }
    }
    Some(assignment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, physical: bool) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: vec![2, 0, 0, 0, 0, index as u8],
            up: false,
            physical,
            controller: None,
        }
    }

    fn three() -> Vec<Link> {
        vec![
            link(3, "eth1", true),
            link(1, "lo", false),
            link(2, "eth0", true),
            link(9, "cni0", false),
        ]
    }

    fn planned(cmdline: &str, links: &[Link], configured: &[&str]) -> Vec<String> {
        let (config, errors) = node_config::parse(cmdline);
        assert_eq!(errors, []);
        let configured: Vec<String> = configured.iter().map(|&name| name.to_owned()).collect();
        let describe = |assignment: Assignment| match assignment.method {
            Method::Dhcp => format!("{} dhcp", assignment.link.name),
            Method::Static(address) => {
                format!("{} {}/{}", assignment.link.name, address.address, address.prefix)
            }
        };
        assignments(&config, links, &configured)
            .into_iter()
            .map(describe)
            .collect()
    }

    #[test]
    fn interfaces_get_what_the_command_line_says() {
        for (cmdline, expected) in [
            ("", &["eth0 dhcp", "eth1 dhcp"][..]),
            ("ip=dhcp", &["eth0 dhcp", "eth1 dhcp"]),
            ("ip=off", &[]),
            ("ip=eth0:dhcp", &["eth0 dhcp"]),
            (
                "ip=eth0:dhcp ip=10.0.0.5::10.0.0.1:24::eth1:none",
                &["eth0 dhcp", "eth1 10.0.0.5/24"],
            ),
            (
                "ip=10.0.0.5/24::10.0.0.1:::eth1:none ip=dhcp",
                &["eth1 10.0.0.5/24", "eth0 dhcp"],
            ),
            ("ip=10.0.0.5/24::10.0.0.1::::none", &["eth0 10.0.0.5/24"]),
            ("ip=eth0:off ip=dhcp", &["eth1 dhcp"]),
            ("ip=eth7:dhcp", &[]),
        ] {
            assert_eq!(planned(cmdline, &three(), &[]), expected, "{cmdline}");
        }
    }

    #[test]
    fn members_of_bonds_have_no_address_and_bonds_do() {
        let mut links = three();
        links.push(link(9, "bond0", false));
        let bond = "bond=bond0:eth0:mode=active-backup";
        assert_eq!(
            planned(bond, &links, &[]),
            ["eth1 dhcp"],
            "the bond has no member yet"
        );
        assert_eq!(planned(&format!("{bond} ip=bond0:dhcp"), &links, &[]), [""; 0]);
        links[2].controller = Some(9);
        assert_eq!(planned(bond, &links, &[]), ["eth1 dhcp", "bond0 dhcp"]);
        assert_eq!(
            planned(&format!("{bond} ip=bond0:dhcp"), &links, &[]),
            ["bond0 dhcp"]
        );
        links.push(link(10, "vlan7", false));
        assert_eq!(
            planned("vlan=vlan7:eth1 ip=vlan7:dhcp", &links, &[]),
            ["vlan7 dhcp"]
        );
    }

    #[test]
    fn what_is_configured_stays_and_late_interfaces_are_taken_up() {
        assert_eq!(planned("", &three(), &["eth0", "eth1"]), [""; 0]);
        let mut links = three();
        links.push(link(12, "eth2", true));
        assert_eq!(planned("", &links, &["eth0", "eth1"]), ["eth2 dhcp"]);
    }

    #[test]
    fn missing_interfaces_are_named() {
        let of = |cmdline: &str, links: &[Link]| missing(&node_config::parse(cmdline).0, links);
        assert_eq!(of("", &three()), [""; 0]);
        assert_eq!(of("", &[link(1, "lo", false)]), ["a network interface"]);
        assert_eq!(of("ip=eth7:dhcp ip=eth0:dhcp", &three()), ["eth7"]);
        assert_eq!(of("ip=eth7:off", &three()), [""; 0]);
    }
}
