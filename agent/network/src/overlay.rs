//! Which peers are reached through VXLAN, and what that needs. Nothing is agreed on between nodes: a peer's place in
//! the overlay, its hardware address included, follows from its pod CIDR.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::routes::{LinkAddress, Peer, Route, direct};
use crate::sys::links::hardware_address;

pub const DEVICE: &str = "ironlet-vx";
/// Linux' own port of VXLAN, and the network's number in it.
pub const PORT: u16 = 8472;
pub const VNI: u32 = 1;

/// Ethernet in VXLAN in UDP in IP: what it takes of a packet (RFC 7348).
fn overhead(underlay: IpAddr) -> u32 {
    if underlay.is_ipv4() { 50 } else { 70 }
}

/// This node's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The address that other nodes reach this one at.
    pub underlay: IpAddr,
    /// What the node itself sends into the overlay as: the network addresses of its pod CIDRs.
    pub addresses: Vec<IpNet>,
    pub mtu: u32,
}

impl Local {
    pub fn new(underlay: IpAddr, pod_cidrs: &[IpNet], uplink_mtu: u32) -> Self {
        let host = |net: &IpNet| IpNet::new_assert(net.network(), net.max_prefix_len());
        Self {
            underlay,
            addresses: pod_cidrs.iter().map(host).collect(),
            mtu: uplink_mtu.saturating_sub(overhead(underlay)),
        }
    }
}

/// A peer's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    pub endpoint: IpAddr,
    pub gateways: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
}

impl Tunnel {
    pub fn hardware(&self) -> [u8; 6] {
        hardware_address(self.gateways.first().copied())
    }

    pub fn routes(&self, link: u32) -> impl Iterator<Item = Route> {
        let pairs = self.pod_cidrs.iter().zip(&self.gateways);
        pairs.map(move |(cidr, gateway)| Route {
            destination: *cidr,
            gateway: *gateway,
            link,
            on_link: true,
        })
    }
}

/// The peers that share no link with this node for some of their pod CIDRs, and have an address of the underlay's family.
pub fn tunnels(peers: &[Peer], links: &[LinkAddress], underlay: IpAddr) -> Vec<Tunnel> {
    let far = |peer: &&Peer| {
        peer.pod_cidrs
            .iter()
            .any(|cidr| direct(peer, *cidr, links).is_none())
    };
    let tunnel = |peer: &Peer| {
        let endpoint = peer
            .addresses
            .iter()
            .find(|a| a.is_ipv4() == underlay.is_ipv4() && **a != underlay)?;
        Some(Tunnel {
            endpoint: *endpoint,
            gateways: peer.pod_cidrs.iter().map(IpNet::network).collect(),
            pod_cidrs: peer.pod_cidrs.clone(),
        })
    };
    peers.iter().filter(far).filter_map(tunnel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_far_peers_are_tunnelled_to() {
        let peer = |node: &str, address: &str, cidr: &str| Peer {
            node: node.into(),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: vec![cidr.parse().unwrap()],
        };
        let peers = [
            peer("near", "192.168.76.21", "10.244.1.0/24"),
            peer("far", "172.16.0.9", "10.244.2.0/24"),
            peer("six", "fd00::9", "10.244.3.0/24"),
        ];
        let links = [LinkAddress {
            link: 3,
            network: "192.168.76.11/24".parse().unwrap(),
        }];
        let found = tunnels(&peers, &links, "192.168.76.11".parse().unwrap());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].endpoint, "172.16.0.9".parse::<IpAddr>().unwrap());
        assert_eq!(found[0].hardware(), [0x0a, 0x58, 10, 244, 2, 0]);
        let route = found[0].routes(7).next().unwrap();
        assert_eq!(
            (route.gateway.to_string(), route.on_link),
            ("10.244.2.0".into(), true)
        );
    }

    #[test]
    fn packets_grow_by_their_envelope() {
        let cidrs = ["10.244.0.0/24".parse().unwrap(), "fd00:244::/64".parse().unwrap()];
        let local = Local::new("192.168.76.11".parse().unwrap(), &cidrs, 1500);
        assert_eq!(local.mtu, 1450);
        assert_eq!(
            local.addresses,
            [
                "10.244.0.0/32".parse().unwrap(),
                "fd00:244::/128".parse().unwrap()
            ]
        );
        assert_eq!(Local::new("fd00::1".parse().unwrap(), &cidrs, 1500).mtu, 1430);
    }
}
