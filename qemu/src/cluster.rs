//! A cluster of virtual machines as data: who is in it, and what each machine is told on its command line. Pure.

use node_config::{
    DiskSelector, Endpoint, IpExtra, IpMethod, IpParameter, NodeConfig, Role, StaticAddress, Token,
};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

/// The lab network between the machines; QEMU's user network, the way outside, is 10.0.2.0/24.
const LAB: [u8; 3] = [192, 168, 76];
const LAB_PREFIX: u8 = 24;
/// Masters count from here, workers from the next: both fit 89 machines.
const FIRST_MASTER: u8 = 11;
const FIRST_WORKER: u8 = 101;
pub const MAX_NODES_PER_ROLE: u8 = 89;
/// Where the guest's API server listens.
pub const API_PORT: u16 = 6443;
/// Where each guest's node API listens, for ironctl.
pub const NODE_API_PORT: u16 = 10270;
/// Interfaces in the order of their PCI slots.
const LAB_INTERFACE: &str = "eth1";
const OUTSIDE_INTERFACE: &str = "eth0";

/// Memory in MiB when the caller names none.
const MASTER_MEMORY: u32 = 768;
const WORKER_MEMORY: u32 = 512;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    #[serde(with = "role_text")]
    pub role: Role,
    pub memory: u32,
    pub cpus: u32,
    pub lab_address: Ipv4Addr,
    /// The whole kernel command line.
    pub cmdline: String,
}

/// What `qemu up` was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub masters: u8,
    pub workers: u8,
    pub memory: Option<u32>,
    pub cpus: u32,
    /// Parameters for every machine, then for the machines of one role.
    pub append: String,
    pub append_master: String,
    pub append_worker: String,
}

/// The nodes of a new cluster. `baked` gives the command line that an image of the role brings.
pub fn nodes(request: &Request, token: &str, baked: impl Fn(Role) -> String) -> Vec<Node> {
    let masters = (0..request.masters).map(|index| (Role::Master, index));
    let workers = (0..request.workers).map(|index| (Role::Worker, index));
    masters
        .chain(workers)
        .map(|(role, index)| {
            let (first, memory, of_role) = match role {
                Role::Master => (FIRST_MASTER, MASTER_MEMORY, &request.append_master),
                Role::Worker => (FIRST_WORKER, WORKER_MEMORY, &request.append_worker),
            };
            let name = format!("{role}-{}", index + 1);
            let lab_address = Ipv4Addr::new(LAB[0], LAB[1], LAB[2], first + index);
            let founder = role == Role::Master && index == 0;
            let own = parameters(&name, lab_address, founder, token).to_string();
            let texts = [&baked(role), &own, &request.append, of_role];
            let cmdline = texts
                .map(|text| text.trim())
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect::<Vec<_>>()
                .join(" ");
            Node {
                name,
                role,
                memory: request.memory.unwrap_or(memory),
                cpus: request.cpus,
                lab_address,
                cmdline,
            }
        })
        .collect()
}

fn parameters(name: &str, lab_address: Ipv4Addr, founder: bool, token: &str) -> NodeConfig {
    let interface = |interface: &str, method| IpParameter {
        interface: Some(interface.to_owned()),
        method,
        hostname: None,
        extra: IpExtra::None,
    };
    let lab = StaticAddress {
        address: IpAddr::V4(lab_address),
        prefix: LAB_PREFIX,
        peer: None,
        gateway: None,
    };
    let first_master = Ipv4Addr::new(LAB[0], LAB[1], LAB[2], FIRST_MASTER);
    NodeConfig {
        hostname: Some(name.to_owned()),
        node_ip: Some(IpAddr::V4(lab_address)),
        server: (!founder).then(|| Endpoint {
            host: first_master.to_string(),
            port: API_PORT,
        }),
        token: token.parse::<Token>().ok(),
        disk: Some(DiskSelector::Device("/dev/vda".into())),
        ip: vec![
            interface(OUTSIDE_INTERFACE, IpMethod::Dhcp),
            interface(LAB_INTERFACE, IpMethod::Static(lab)),
        ],
        ..NodeConfig::default()
    }
}

/// Serde for the role's command-line text.
mod role_text {
    use super::Role;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(role)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|_| D::Error::custom(format!("{text}: neither worker nor master")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "abcdef.0123456789abcdef";

    fn request(workers: u8, append: &str, append_worker: &str) -> Request {
        let [append, append_master, append_worker] = [append, "", append_worker].map(str::to_owned);
        Request {
            masters: 1,
            workers,
            memory: None,
            cpus: 2,
            append,
            append_master,
            append_worker,
        }
    }

    fn plan(request: &Request) -> Vec<Node> {
        nodes(request, TOKEN, |role| {
            format!("console=ttyS0 ironlet.role={role}\n")
        })
    }

    #[test]
    fn a_master_founds_and_a_worker_joins_it() {
        let nodes = plan(&request(1, "", ""));
        let names: Vec<_> = nodes
            .iter()
            .map(|node| (node.name.as_str(), node.memory))
            .collect();
        assert_eq!(names, [("master-1", 768), ("worker-1", 512)]);
        for (node, server) in nodes.iter().zip([None, Some("192.168.76.11:6443")]) {
            let (config, errors) = node_config::parse(&node.cmdline);
            assert_eq!(errors, [], "{}", node.cmdline);
            assert_eq!(config.server.map(|server| server.to_string()).as_deref(), server);
            assert_eq!(config.role, Some(node.role));
            assert_eq!(config.hostname.as_deref(), Some(node.name.as_str()));
            assert_eq!(config.node_ip, Some(IpAddr::V4(node.lab_address)));
            assert_eq!(
                config.token.map(|token| token.to_string()).as_deref(),
                Some(TOKEN)
            );
        }
    }

    #[test]
    fn the_callers_parameters_come_last_and_addresses_differ() {
        let nodes = plan(&Request {
            masters: 2,
            memory: Some(256),
            ..request(3, "ironlet.disk=none", "ironlet.hostname=odd")
        });
        let mut addresses: Vec<_> = nodes.iter().map(|node| node.lab_address).collect();
        addresses.dedup();
        assert_eq!(addresses.len(), 5);
        assert!(nodes.iter().all(|node| node.memory == 256));
        let configs: Vec<_> = nodes
            .iter()
            .map(|node| node_config::parse(&node.cmdline).0)
            .collect();
        assert!(
            configs
                .iter()
                .all(|config| config.disk == Some(DiskSelector::None))
        );
        assert!(configs[1].server.is_some(), "the second master joins");
        assert_eq!(
            [&configs[0], &configs[4]].map(|config| config.hostname.as_deref()),
            [Some("master-1"), Some("odd")]
        );
    }

    #[test]
    fn nodes_survive_their_record() {
        let nodes = plan(&request(1, "", ""));
        let text = serde_json::to_string(&nodes).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Node>>(&text).unwrap(), nodes);
    }
}
