//! Bridge, veth pairs and addresses over rtnetlink.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
};

use super::{namespace, shaping};
use crate::bandwidth::{Bandwidth, Bucket};

/// A netlink socket in the namespace of the calling thread. Must be called inside a runtime.
pub fn handle() -> io::Result<Handle> {
    let (connection, handle, _) = new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

pub async fn find(handle: &Handle, name: &str) -> io::Result<Option<LinkMessage>> {
    match handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await
    {
        Ok(link) => Ok(link),
        Err(rtnetlink::Error::NetlinkError(e))
            if e.raw_code() == -rustix::io::Errno::NODEV.raw_os_error() =>
        {
            Ok(None)
        }
        Err(e) => Err(io_error(e)),
    }
}

pub async fn index(handle: &Handle, name: &str) -> io::Result<u32> {
    let link = find(handle, name).await?;
    link.map(|l| l.header.index)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no link {name}")))
}

pub fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// The bridge `name`, up, with these addresses and no others of ours.
pub async fn ensure_bridge(name: &str, addresses: &[IpNet], mtu: u32) -> io::Result<()> {
    let handle = handle()?;
    if find(&handle, name).await?.is_none() {
        handle
            .link()
            .add(LinkBridge::new(name).build())
            .execute()
            .await
            .map_err(io_error)?;
    }
    let index = index(&handle, name).await?;
    skip_duplicate_detection(name);
    // Without an address of its own the bridge takes that of some port, and changes it when the port goes.
    let hardware = hardware_address(addresses.first().map(IpNet::addr));
    let up = LinkUnspec::new_with_index(index)
        .address(hardware.to_vec())
        .mtu(mtu)
        .up()
        .build();
    handle.link().set(up).execute().await.map_err(io_error)?;
    for address in addresses {
        add_address(&handle, index, *address).await?;
    }
    Ok(())
}

/// A locally administered hardware address that tells the IP address it stands for.
pub fn hardware_address(of: Option<IpAddr>) -> [u8; 6] {
    let last = match of {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => {
            let halves = address.octets();
            std::array::from_fn(|i| halves[i + 4] ^ halves[i + 12])
        }
        None => [0; 4],
    };
    [0x0a, 0x58, last[0], last[1], last[2], last[3]]
}

/// Nobody could be asked for a neighbour before the link's own address has passed. A kernel without IPv6 has no such
/// file.
fn skip_duplicate_detection(link: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/accept_dad"), "0");
}

/// Without duplicate address detection, which would keep a new IPv6 address from use for a second: who has which
/// address is decided here.
pub async fn add_address(handle: &Handle, link: u32, address: IpNet) -> io::Result<()> {
    let mut add = handle
        .address()
        .add(link, address.addr(), address.prefix_len())
        .replace();
    if address.addr().is_ipv6() {
        add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    add.execute().await.map_err(io_error)
}

/// The MTU of the link that the default route leaves by; Ethernet's when there is none.
pub async fn uplink_mtu() -> io::Result<u32> {
    const ETHERNET: u32 = 1500;
    let handle = handle()?;
    let Some(oif) = super::routes::default_link(&handle).await? else {
        return Ok(ETHERNET);
    };
    let link = handle
        .link()
        .get()
        .match_index(oif)
        .execute()
        .try_next()
        .await
        .map_err(io_error)?;
    Ok(link.as_ref().and_then(mtu).unwrap_or(ETHERNET))
}

/// One pod's pair: `host_side` on the bridge, `eth0` in the pod's namespace.
pub struct Pair<'a> {
    pub host_side: &'a str,
    pub bridge: &'a str,
    pub netns: &'a Path,
    pub mtu: u32,
    /// The pod's addresses with their networks' prefix lengths, and the gateway of each.
    pub addresses: Vec<(IpNet, IpAddr)>,
    pub bandwidth: Bandwidth,
}

pub async fn create_pair(pair: Pair<'_>) -> io::Result<()> {
    let handle = handle()?;
    let bridge = index(&handle, pair.bridge).await?;
    let pod_side = format!("p{}", &pair.host_side[1..]);
    delete(pair.host_side).await?;
    let veth = LinkVeth::new(pair.host_side, &pod_side).mtu(pair.mtu).build();
    handle.link().add(veth).execute().await.map_err(io_error)?;

    let netns = File::open(pair.netns)?;
    let pod_index = index(&handle, &pod_side).await?;
    let moved = LinkUnspec::new_with_index(pod_index)
        .setns_by_fd(netns.as_raw_fd())
        .build();
    handle.link().set(moved).execute().await.map_err(io_error)?;

    let host_index = index(&handle, pair.host_side).await?;
    let attached = LinkUnspec::new_with_index(host_index)
        .controller(bridge)
        .mtu(pair.mtu)
        .up()
        .build();
    handle.link().set(attached).execute().await.map_err(io_error)?;
    // A pod that reaches itself through its own Service leaves and enters by the same port.
    handle
        .link()
        .set_port(LinkBridgePort::new(host_index).hairpin(true).build())
        .execute()
        .await
        .map_err(io_error)?;

    // What the pod receives, the host's side sends; what it sends waits within its own namespace.
    if let Some(bits) = pair.bandwidth.ingress {
        shaping::limit(&handle, host_index, Bucket::of(bits)).await?;
    }
    let Pair {
        mtu,
        addresses,
        bandwidth,
        ..
    } = pair;
    namespace::within(pair.netns, move || async move {
        configure_pod_side(&pod_side, mtu, &addresses, bandwidth.egress).await
    })
    .await
}

async fn configure_pod_side(
    name: &str,
    mtu: u32,
    addresses: &[(IpNet, IpAddr)],
    egress_bits: Option<u64>,
) -> io::Result<()> {
    let handle = handle()?;
    let lo = index(&handle, "lo").await?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(lo).up().build())
        .execute()
        .await
        .map_err(io_error)?;
    let eth0 = index(&handle, name).await?;
    skip_duplicate_detection(name);
    let named = LinkUnspec::new_with_index(eth0)
        .name("eth0".to_owned())
        .mtu(mtu)
        .build();
    handle.link().set(named).execute().await.map_err(io_error)?;
    if let Some(bits) = egress_bits {
        shaping::limit(&handle, eth0, Bucket::of(bits)).await?;
    }
    for (address, _) in addresses {
        add_address(&handle, eth0, *address).await?;
    }
    handle
        .link()
        .set(LinkUnspec::new_with_index(eth0).up().build())
        .execute()
        .await
        .map_err(io_error)?;
    for (_, gateway) in addresses {
        let builder = RouteMessageBuilder::<IpAddr>::new().output_interface(eth0);
        let default = match gateway {
            IpAddr::V4(_) => builder.destination_prefix(IpAddr::from([0u8; 4]), 0),
            IpAddr::V6(_) => builder.destination_prefix(IpAddr::from([0u8; 16]), 0),
        };
        let default = default
            .and_then(|b| b.gateway(*gateway))
            .map_err(io::Error::other)?;
        handle
            .route()
            .add(default.build())
            .execute()
            .await
            .map_err(io_error)?;
    }
    Ok(())
}

/// Deletes the link (and, of a veth pair, its peer with it) if it is there.
pub async fn delete(name: &str) -> io::Result<()> {
    let handle = handle()?;
    match find(&handle, name).await? {
        Some(link) => handle
            .link()
            .del(link.header.index)
            .execute()
            .await
            .map_err(io_error),
        None => Ok(()),
    }
}

pub fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(e) => e.to_io(),
        other => io::Error::other(other),
    }
}
