//! The machine's network links with their addresses, from the kernel's routing socket.

use std::collections::HashMap;
use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkInfo, LinkMessage, State};
use thiserror::Error;
use tonic::Status;

use crate::v1::Link;

#[derive(Debug, Error)]
pub enum LinkError {
    #[error("routing socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("routing socket: {0}")]
    Netlink(#[from] rtnetlink::Error),
}

impl From<LinkError> for Status {
    fn from(error: LinkError) -> Self {
        Self::internal(error.to_string())
    }
}

pub async fn links() -> Result<Vec<Link>, LinkError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut addresses: HashMap<u32, Vec<String>> = HashMap::new();
    let mut found = handle.address().get().execute();
    while let Some(message) = found.try_next().await? {
        let length = message.header.prefix_len;
        // Of a link with a peer it is the local address; of others there is but one.
        let ip = |local: bool| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) if local => Some(*ip),
                AddressAttribute::Address(ip) if !local => Some(*ip),
                _ => None,
            })
        };
        let ip: Option<IpAddr> = ip(true).or_else(|| ip(false));
        let of_link = addresses.entry(message.header.index).or_default();
        of_link.extend(ip.map(|ip| format!("{ip}/{length}")));
    }
    let mut links = Vec::new();
    let mut found = handle.link().get().execute();
    while let Some(message) = found.try_next().await? {
        let addresses = addresses.remove(&message.header.index).unwrap_or_default();
        links.push(Link {
            addresses,
            ..link(&message)
        });
    }
    connection.abort();
    Ok(links)
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link::default();
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => {
                let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                link.mac = bytes.join(":");
            }
            LinkAttribute::OperState(state) => link.state = word(*state).to_owned(),
            LinkAttribute::Stats64(stats) => {
                link.received_bytes = stats.rx_bytes;
                link.sent_bytes = stats.tx_bytes;
                link.errors = stats.rx_errors + stats.tx_errors;
            }
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

fn word(state: State) -> &'static str {
    match state {
        State::Up => "up",
        State::Down => "down",
        State::LowerLayerDown | State::NotPresent => "no carrier",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_loopback_link_is_there_with_its_address() {
        let links = links().await.unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!(loopback.mac, "00:00:00:00:00:00");
        assert!(loopback.mtu >= 1500, "{loopback:?}");
    }
}
