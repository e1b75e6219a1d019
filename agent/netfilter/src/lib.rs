//! The kernel's packet filter as kube-proxy and the pod network use it: iptables through its own programs, connection
//! tracking over netlink.

pub mod conntrack;
pub mod iptables;

use std::net::IpAddr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As the API and metrics name it (upstream: v1.IPFamily).
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}
