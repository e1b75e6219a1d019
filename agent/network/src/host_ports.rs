//! Host ports: the nat chain `IRONLET-HOSTPORTS` as a whole, rendered from all attachments.

use std::fmt::{self, Write};
use std::io;
use std::net::IpAddr;

use netfilter::Family;
use netfilter::conntrack;
use netfilter::iptables::{self, IptablesError, Jump};
use serde::{Deserialize, Serialize};

use crate::pod_network::Attachment;

pub const CHAIN: &str = "IRONLET-HOSTPORTS";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Its number, when it knows no connections.
    fn number(self) -> Option<u8> {
        match self {
            Self::Tcp => None,
            Self::Udp => Some(17),
            Self::Sctp => Some(132),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A container's `hostPort` (CRI PortMapping).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    /// Only connections to this address of the node; all of them when absent.
    pub host_ip: Option<IpAddr>,
}

/// The chain's content in iptables-save format.
pub fn render<'a>(family: Family, attachments: impl Iterator<Item = &'a Attachment>) -> String {
    let mut out = format!("*nat\n:{CHAIN} - [0:0]\n");
    for attachment in attachments {
        let Some(pod) = attachment.addresses.iter().find(|a| Family::of(**a) == family) else {
            continue;
        };
        for port in &attachment.port_mappings {
            if port.host_port == 0
                || port
                    .host_ip
                    .is_some_and(|ip| !ip.is_unspecified() && Family::of(ip) != family)
            {
                continue;
            }
            let to = match port.host_ip {
                Some(ip) if !ip.is_unspecified() => format!("-d {ip} "),
                _ => String::new(),
            };
            let target = std::net::SocketAddr::new(*pod, port.container_port);
            let PortMapping {
                protocol, host_port, ..
            } = port;
            let matched = format!("{to}-p {protocol} -m {protocol} --dport {host_port}");
            // A pod that reaches itself through its own host port, and the node's loopback, need a source to answer to.
            let masqueraded = [
                Some(pod.to_string()),
                pod.is_ipv4().then(|| "127.0.0.0/8".to_owned()),
            ];
            for source in masqueraded.into_iter().flatten() {
                let _ = writeln!(
                    out,
                    "-A {CHAIN} -s {source} {matched} -j MARK --set-xmark 0x4000/0x4000"
                );
            }
            let _ = writeln!(out, "-A {CHAIN} {matched} -j DNAT --to-destination {target}");
        }
    }
    out.push_str("COMMIT\n");
    out
}

/// Applies the chain and the jumps into it.
pub async fn apply(family: Family, attachments: &[Attachment]) -> Result<(), IptablesError> {
    iptables::restore(family, &render(family, attachments.iter())).await?;
    let jump = ["-m", "addrtype", "--dst-type", "LOCAL", "-j", CHAIN];
    let into = |chain| Jump {
        chain,
        first: false,
        rule: &jump,
    };
    iptables::ensure_jumps(family, "nat", &[into("PREROUTING"), into("OUTPUT")]).await
}

/// Makes the kernel forget datagram flows to these host ports that somebody else answered: they have no end of their
/// own. Blocks.
pub fn forget_flows(family: Family, attachment: &Attachment) -> io::Result<()> {
    let mut flows = conntrack::list(family)?;
    flows.retain(|flow| {
        attachment.port_mappings.iter().any(|mapping| {
            mapping.protocol.number() == Some(flow.protocol)
                && mapping.host_port == flow.destination_port
                && mapping
                    .host_ip
                    .is_none_or(|ip| ip.is_unspecified() || ip == flow.destination)
                && !attachment.addresses.contains(&flow.reply_source)
        })
    });
    conntrack::delete(family, &flows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(address: &str, port_mappings: Vec<PortMapping>) -> Attachment {
        Attachment {
            sandbox_id: "s".into(),
            pod: "default/p".into(),
            addresses: vec![address.parse().unwrap()],
            port_mappings,
            cni: None,
        }
    }

    #[test]
    fn the_chain_holds_every_mapping_of_its_family() {
        let web = PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: None,
        };
        let dns = PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port: 53,
            host_ip: Some("192.168.76.11".parse().unwrap()),
        };
        let unused = PortMapping {
            host_port: 0,
            ..web.clone()
        };
        let attachments = [
            attachment("10.244.1.2", vec![web.clone(), dns, unused]),
            attachment("fd00::2", vec![web]),
        ];
        assert_eq!(
            render(Family::V4, attachments.iter()),
            "*nat\n\
             :IRONLET-HOSTPORTS - [0:0]\n\
             -A IRONLET-HOSTPORTS -s 10.244.1.2 -p tcp -m tcp --dport 8080 -j MARK --set-xmark 0x4000/0x4000\n\
             -A IRONLET-HOSTPORTS -s 127.0.0.0/8 -p tcp -m tcp --dport 8080 -j MARK --set-xmark 0x4000/0x4000\n\
             -A IRONLET-HOSTPORTS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.1.2:80\n\
             -A IRONLET-HOSTPORTS -s 10.244.1.2 -d 192.168.76.11 -p udp -m udp --dport 53 -j MARK --set-xmark 0x4000/0x4000\n\
             -A IRONLET-HOSTPORTS -s 127.0.0.0/8 -d 192.168.76.11 -p udp -m udp --dport 53 -j MARK --set-xmark 0x4000/0x4000\n\
             -A IRONLET-HOSTPORTS -d 192.168.76.11 -p udp -m udp --dport 53 -j DNAT --to-destination 10.244.1.2:53\n\
             COMMIT\n"
        );
        assert!(render(Family::V6, attachments.iter()).contains("--to-destination [fd00::2]:80"));
    }
}
