//! Routes over rtnetlink. Ours carry a protocol number of their own, so that we never touch others'.

use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::links::{handle, io_error};
use crate::routes::{LinkAddress, Route};

/// Free in the kernel's list of routing daemons (linux/rtnetlink.h, RTPROT_*).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(73);

/// The addresses of the node's links.
pub async fn link_addresses() -> io::Result<Vec<LinkAddress>> {
    let handle = handle()?;
    let messages: Vec<_> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(io_error)?;
    let of = |m: &netlink_packet_route::address::AddressMessage| {
        let address = m.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })?;
        let network = IpNet::new(address, m.header.prefix_len).ok()?;
        Some(LinkAddress {
            link: m.header.index,
            network,
        })
    };
    Ok(messages.iter().filter_map(of).collect())
}

/// The routes that carry our protocol number.
pub async fn ours() -> io::Result<Vec<Route>> {
    let handle = handle()?;
    Ok(all(&handle)
        .await?
        .iter()
        .filter(|m| m.header.protocol == PROTOCOL)
        .filter_map(route)
        .collect())
}

/// The link of the IPv4 default route.
pub async fn default_link(handle: &Handle) -> io::Result<Option<u32>> {
    let routes = dump(handle, RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()).await?;
    Ok(routes
        .iter()
        .find(|m| m.header.destination_prefix_length == 0)
        .and_then(output_link))
}

pub async fn replace(route: &Route) -> io::Result<()> {
    handle()?
        .route()
        .add(message(route)?)
        .replace()
        .execute()
        .await
        .map_err(io_error)
}

pub async fn delete(route: &Route) -> io::Result<()> {
    handle()?
        .route()
        .del(message(route)?)
        .execute()
        .await
        .map_err(io_error)
}

fn message(route: &Route) -> io::Result<RouteMessage> {
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .protocol(PROTOCOL)
        .output_interface(route.link);
    let builder = if route.on_link { builder.onlink() } else { builder };
    builder
        .destination_prefix(route.destination.addr(), route.destination.prefix_len())
        .and_then(|b| b.gateway(route.gateway))
        .map(RouteMessageBuilder::build)
        .map_err(io::Error::other)
}

async fn all(handle: &Handle) -> io::Result<Vec<RouteMessage>> {
    let mut routes = dump(handle, RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()).await?;
    routes.extend(dump(handle, RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()).await?);
    Ok(routes)
}

async fn dump(handle: &Handle, of: RouteMessage) -> io::Result<Vec<RouteMessage>> {
    handle
        .route()
        .get(of)
        .execute()
        .try_collect()
        .await
        .map_err(io_error)
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut destination = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => destination = address(a),
            RouteAttribute::Gateway(a) => gateway = address(a),
            _ => {}
        }
    }
    let unspecified = match message.header.address_family {
        AddressFamily::Inet6 => IpAddr::from([0u8; 16]),
        _ => IpAddr::from([0u8; 4]),
    };
    let destination = IpNet::new(
        destination.unwrap_or(unspecified),
        message.header.destination_prefix_length,
    )
    .ok()?;
    Some(Route {
        destination,
        gateway: gateway?,
        link: output_link(message)?,
        on_link: message.header.flags.contains(RouteFlags::Onlink),
    })
}

fn output_link(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}
