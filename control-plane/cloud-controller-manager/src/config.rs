//! What the cloud-controller-manager is told when it starts.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Upstream's flag names, where they exist.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--load-balancer-pool`: addresses for Services of type LoadBalancer. Empty: the nodes' own.
    pub pool: Vec<Pool>,
    /// `--leader-elect`.
    pub leader_elect: bool,
    /// This instance's name in the Lease; must differ between masters.
    pub identity: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pool: Vec::new(),
            leader_elect: true,
            identity: "cloud-controller-manager".into(),
        }
    }
}

/// Why [`crate::run`] ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    LeadershipLost(#[from] api_client::LeadershipLost),
}

/// A row of addresses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    first: IpAddr,
    last: IpAddr,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl Pool {
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4()
            && (number(self.first)..=number(self.last)).contains(&number(address))
    }

    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.is_ipv4();
        (number(self.first)..=number(self.last)).map(move |n| match u32::try_from(n) {
            Ok(n) if v4 => IpAddr::V4(Ipv4Addr::from(n)),
            _ => IpAddr::V6(Ipv6Addr::from(n)),
        })
    }
}

/// `10.0.0.0/28` (without network and broadcast address), `10.0.0.10-10.0.0.20` or one address.
impl FromStr for Pool {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = |text: &str| {
            text.trim()
                .parse::<IpAddr>()
                .map_err(|_| format!("{text:?} is not an IP address"))
        };
        let (first, last) = if text.contains('/') {
            let net: IpNet = text.parse().map_err(|_| format!("{text:?} is not a CIDR"))?;
            let hosts = match net {
                IpNet::V4(v4) => (
                    v4.hosts().next().map(IpAddr::V4),
                    v4.hosts().next_back().map(IpAddr::V4),
                ),
                IpNet::V6(v6) => (Some(IpAddr::V6(v6.network())), Some(IpAddr::V6(v6.broadcast()))),
            };
            (
                hosts.0.unwrap_or(net.network()),
                hosts.1.unwrap_or(net.broadcast()),
            )
        } else if let Some((first, last)) = text.split_once('-') {
            (address(first)?, address(last)?)
        } else {
            (address(text)?, address(text)?)
        };
        if first.is_ipv4() != last.is_ipv4() || number(first) > number(last) {
            return Err(format!(
                "{text:?} is not a range: it must start before it ends, in one address family"
            ));
        }
        Ok(Self { first, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_read_and_walked() {
        for (text, expected) in [
            ("10.0.0.0/30", vec!["10.0.0.1", "10.0.0.2"]),
            ("10.0.0.7", vec!["10.0.0.7"]),
            ("10.0.0.255-10.0.1.0", vec!["10.0.0.255", "10.0.1.0"]),
            ("fd00::a-fd00::b", vec!["fd00::a", "fd00::b"]),
        ] {
            let pool: Pool = text.parse().unwrap();
            let all: Vec<String> = pool.addresses().map(|a| a.to_string()).collect();
            assert_eq!(all, expected, "{text}");
            assert!(pool.addresses().all(|a| pool.contains(a)));
        }
        for bad in ["", "x", "10.0.0.2-10.0.0.1", "10.0.0.1-fd00::1", "10.0.0.0/33"] {
            assert!(bad.parse::<Pool>().is_err(), "{bad}");
        }
    }
}
