//! Links that are made of others, `bond=` and `vlan=`: what is to be done next, from the command line and the links that
//! are there. Pure; asked again after each change until there is nothing to do.

use super::netlink::Link;
use node_config::{Bond, NodeConfig};

/// dracut.cmdline(7) makes a bond of these when it names none.
const DEFAULT_MEMBERS: [&str; 2] = ["eth0", "eth1"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Options are set before there are members, in their order: some need an earlier one.
    MakeBond {
        name: String,
        options: Vec<(String, String)>,
        mtu: Option<u32>,
    },
    AddMember {
        bond: Link,
        member: Link,
    },
    MakeVlan {
        name: String,
        id: u16,
        device: Link,
    },
}

fn members(bond: &Bond) -> Vec<&str> {
    if bond.members.is_empty() {
        DEFAULT_MEMBERS.to_vec()
    } else {
        bond.members.iter().map(String::as_str).collect()
    }
}

/// Whether the link belongs to a bond, and so has no address of its own.
pub fn is_member(config: &NodeConfig, name: &str) -> bool {
    config.bonds.iter().any(|bond| members(bond).contains(&name))
}

/// Whether the link is one of ours that is whole: a bond without members has no hardware address to ask with.
pub fn is_usable(config: &NodeConfig, links: &[Link], link: &Link) -> bool {
    let is_bond = config.bonds.iter().any(|bond| bond.name == link.name);
    let has_members = links.iter().any(|other| other.controller == Some(link.index));
    (is_bond && has_members) || config.vlans.iter().any(|vlan| vlan.name == link.name)
}

/// The parts that the command line names and that are not there.
pub fn missing(config: &NodeConfig, links: &[Link]) -> Vec<String> {
    let of_bonds = config.bonds.iter().flat_map(members);
    let of_vlans = config.vlans.iter().map(|vlan| vlan.device.as_str());
    let absent = |name: &&str| links.iter().all(|link| link.name != *name);
    of_bonds
        .chain(of_vlans)
        .filter(absent)
        .map(str::to_owned)
        .collect()
}

pub fn steps(config: &NodeConfig, links: &[Link]) -> Vec<Step> {
    let find = |name: &str| links.iter().find(|link| link.name == name);
    let mut steps = Vec::new();
    for bond in &config.bonds {
        let Some(made) = find(&bond.name) else {
            steps.push(Step::MakeBond {
                name: bond.name.clone(),
                options: bond.options.clone(),
                mtu: bond.mtu,
            });
            continue;
        };
        let free = members(bond)
            .into_iter()
            .filter_map(find)
            .filter(|member| member.controller.is_none());
        steps.extend(free.map(|member| Step::AddMember {
            bond: made.clone(),
            member: member.clone(),
        }));
    }
    for vlan in &config.vlans {
        let device = find(&vlan.device).filter(|device| {
            let of_bond = config.bonds.iter().any(|bond| bond.name == device.name);
            !of_bond || is_usable(config, links, device)
        });
        if let (None, Some(device)) = (find(&vlan.name), device) {
            steps.push(Step::MakeVlan {
                name: vlan.name.clone(),
                id: vlan.id,
                device: device.clone(),
            });
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, controller: Option<u32>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: vec![2, 0, 0, 0, 0, index as u8],
            up: true,
            physical: name.starts_with("eth"),
            controller,
        }
    }

    fn described(cmdline: &str, links: &[Link]) -> Vec<String> {
        let (config, errors) = node_config::parse(cmdline);
        assert_eq!(errors, []);
        let describe = |step| match step {
            Step::MakeBond { name, options, mtu } => format!("bond {name} {options:?} {mtu:?}"),
            Step::AddMember { bond, member } => format!("{} into {}", member.name, bond.name),
            Step::MakeVlan { name, id, device } => format!("vlan {name} {id} on {}", device.name),
        };
        steps(&config, links).into_iter().map(describe).collect()
    }

    #[test]
    fn a_bond_is_made_filled_and_carries_vlans() {
        let cmdline = "bond=bond0:eth0,eth1:mode=802.3ad,miimon=100:9000 vlan=bond0.7:bond0";
        let mut links = vec![link(2, "eth0", None)];
        assert_eq!(
            described(cmdline, &links),
            [r#"bond bond0 [("mode", "802.3ad"), ("miimon", "100")] Some(9000)"#]
        );
        links.push(link(9, "bond0", None));
        assert_eq!(described(cmdline, &links), ["eth0 into bond0"]);
        let config = node_config::parse(cmdline).0;
        assert!(!is_usable(&config, &links, &links[1]), "it has no member");
        links[0].controller = Some(9);
        links.push(link(3, "eth1", None));
        assert_eq!(
            described(cmdline, &links),
            ["eth1 into bond0", "vlan bond0.7 7 on bond0"]
        );
        links[2].controller = Some(9);
        links.push(link(10, "bond0.7", None));
        assert_eq!(described(cmdline, &links), [""; 0], "all is made");
        assert!(is_usable(&config, &links, &links[1]) && is_usable(&config, &links, &links[3]));
        assert!(is_member(&config, "eth1") && !is_member(&config, "eth2"));
    }

    #[test]
    fn what_is_not_there_is_named_and_defaults_are_dracuts() {
        let links = [link(2, "eth0", None)];
        let config = node_config::parse("bond=bond0 vlan=vlan0005:eth9").0;
        assert_eq!(missing(&config, &links), ["eth1", "eth9"]);
        let links = [link(2, "eth0", None), link(9, "bond0", None)];
        assert_eq!(described("bond=bond0", &links), ["eth0 into bond0"]);
        assert_eq!(
            described("vlan=vlan0005:eth0", &links),
            ["vlan vlan0005 5 on eth0"]
        );
    }
}
