//! Which address a new pod gets. The decision is pure; what is taken is read off the attachment
//! records, so a crash between decision and record can lose nothing but a little time.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("pod CIDR {0:?} is not a network in CIDR notation")]
    Malformed(String),
    #[error("pod CIDR {0} is too small: it needs room for a gateway and a pod")]
    TooSmall(IpNet),
    #[error("no free address left in pod CIDR {0}")]
    Exhausted(IpNet),
}

/// Parses `cidr` and clears its host bits.
pub fn parse(cidr: &str) -> Result<IpNet, AddressError> {
    let net: IpNet = cidr
        .parse()
        .map_err(|_| AddressError::Malformed(cidr.to_owned()))?;
    let net = net.trunc();
    let smallest = net.max_prefix_len() - 2;
    if net.prefix_len() > smallest {
        return Err(AddressError::TooSmall(net));
    }
    Ok(net)
}

/// The bridge's own address: the first host of the network.
pub fn gateway(net: IpNet) -> IpAddr {
    offset(net, 1)
}

/// The first free address after `last`, wrapping round, so that an address that was just given
/// back is the last one to be used again: peers and conntrack still remember its former owner.
pub fn next_free(net: IpNet, taken: &BTreeSet<IpAddr>, last: Option<IpAddr>) -> Result<IpAddr, AddressError> {
    let hosts = host_count(net);
    let start = last.filter(|a| net.contains(a)).map_or(2, |a| index(net, a) + 1);
    let span = hosts - 1;
    (0..span)
        .map(|i| offset(net, 2 + (start.saturating_sub(2) + i) % span))
        .find(|a| !taken.contains(a))
        .ok_or(AddressError::Exhausted(net))
}

/// How many addresses hosts may use, the gateway included; IPv6 networks are searched no further
/// than IPv4's largest.
fn host_count(net: IpNet) -> u128 {
    let bits = (net.max_prefix_len() - net.prefix_len()).min(32);
    (1u128 << bits) - 2
}

fn offset(net: IpNet, by: u128) -> IpAddr {
    match net.network() {
        IpAddr::V4(a) => IpAddr::from((u32::from(a) + by as u32).to_be_bytes()),
        IpAddr::V6(a) => IpAddr::from((u128::from(a) + by).to_be_bytes()),
    }
}

fn index(net: IpNet, address: IpAddr) -> u128 {
    match (net.network(), address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => u128::from(u32::from(a) - u32::from(n)),
        (IpAddr::V6(n), IpAddr::V6(a)) => u128::from(a) - u128::from(n),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn addresses_are_handed_out_in_turn_and_wrap_round() {
        let net = parse("10.244.1.7/29").unwrap();
        assert_eq!(gateway(net), ip("10.244.1.1"));
        let mut taken = BTreeSet::new();
        let mut last = None;
        for expected in 2..=6 {
            let a = next_free(net, &taken, last).unwrap();
            assert_eq!(a, ip(&format!("10.244.1.{expected}")));
            taken.insert(a);
            last = Some(a);
        }
        assert_eq!(next_free(net, &taken, last), Err(AddressError::Exhausted(net)));
        taken.remove(&ip("10.244.1.4"));
        assert_eq!(next_free(net, &taken, last).unwrap(), ip("10.244.1.4"));
    }

    #[test]
    fn a_released_address_is_reused_last() {
        let net = parse("10.244.1.0/24").unwrap();
        assert_eq!(
            next_free(net, &BTreeSet::new(), Some(ip("10.244.1.9"))).unwrap(),
            ip("10.244.1.10")
        );
        assert_eq!(
            next_free(net, &BTreeSet::new(), Some(ip("10.244.1.254"))).unwrap(),
            ip("10.244.1.2")
        );
    }

    #[test]
    fn ipv6_networks_work_alike() {
        let net = parse("fd00:10:244:1::/64").unwrap();
        assert_eq!(gateway(net), ip("fd00:10:244:1::1"));
        assert_eq!(
            next_free(net, &BTreeSet::new(), None).unwrap(),
            ip("fd00:10:244:1::2")
        );
    }

    #[test]
    fn bad_networks_are_refused() {
        assert_eq!(
            parse("10.244.1.0"),
            Err(AddressError::Malformed("10.244.1.0".into()))
        );
        assert!(matches!(parse("10.244.1.0/31"), Err(AddressError::TooSmall(_))));
    }
}
