//! The VXLAN device and what it must know of each peer, over rtnetlink.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::NeighbourFlags;
use rtnetlink::{Handle, LinkUnspec, LinkVxlan};

use super::links::{add_address, find, handle, hardware_address, index, io_error};
use crate::overlay::{DEVICE, Local, PORT, Tunnel, VNI};

/// The device, up, sending from `local.underlay`; another address makes another device.
pub async fn ensure(local: &Local) -> io::Result<()> {
    let handle = handle()?;
    if let Some(link) = find(&handle, DEVICE).await? {
        if underlay(&link) == Some(local.underlay) {
            return set_mtu(&handle, link.header.index, local.mtu).await;
        }
        handle
            .link()
            .del(link.header.index)
            .execute()
            .await
            .map_err(io_error)?;
    }
    let device = LinkVxlan::new(DEVICE, VNI).port(PORT).learning(false);
    let device = match local.underlay {
        IpAddr::V4(address) => device.local(address),
        IpAddr::V6(address) => device.local6(address),
    };
    let hardware = hardware_address(local.addresses.first().map(|net| net.addr()));
    let device = device.address(hardware.to_vec()).mtu(local.mtu).up().build();
    handle.link().add(device).execute().await.map_err(io_error)?;
    let index = index(&handle, DEVICE).await?;
    for address in &local.addresses {
        add_address(&handle, index, *address).await?;
    }
    Ok(())
}

pub async fn remove() -> io::Result<()> {
    super::links::delete(DEVICE).await
}

/// Tells the device where the peer's pods are. Its hardware address says nothing new: it follows from the gateway.
pub async fn add(tunnel: &Tunnel) -> io::Result<u32> {
    let handle = handle()?;
    let index = index(&handle, DEVICE).await?;
    for gateway in &tunnel.gateways {
        let neighbour = handle.neighbours().add(index, *gateway);
        neighbour
            .link_layer_address(&tunnel.hardware())
            .replace()
            .execute()
            .await
            .map_err(io_error)?;
    }
    forwarding(&handle, index, tunnel).await?;
    Ok(index)
}

async fn forwarding(handle: &Handle, index: u32, tunnel: &Tunnel) -> io::Result<()> {
    let entry = handle.neighbours().add_bridge(index, &tunnel.hardware());
    let entry = entry.flags(NeighbourFlags::Own).destination(tunnel.endpoint);
    entry.replace().execute().await.map_err(io_error)
}

async fn set_mtu(handle: &Handle, index: u32, mtu: u32) -> io::Result<()> {
    let set = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
    handle.link().set(set).execute().await.map_err(io_error)
}

fn underlay(link: &LinkMessage) -> Option<IpAddr> {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => data.iter().find_map(|item| match item {
            InfoVxlan::Local(address) => Some(IpAddr::V4(*address)),
            InfoVxlan::Local6(address) => Some(IpAddr::V6(*address)),
            _ => None,
        }),
        _ => None,
    })
}
