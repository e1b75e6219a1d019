//! Addresses that a node takes over from another: carried by the kernel, which answers ARP and NDP for them, and made
//! known at once to those who remember the former owner.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol};
use netlink_packet_route::link::LinkAttribute;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket, sockopt};

use super::links::{handle, io_error};
use crate::announce::Held;

/// Ours among the kernel's origins of addresses (IFA_PROTO): what carries it is ours to take away.
const ORIGIN: AddressProtocol = AddressProtocol::Other(73);

/// The addresses that carry our mark.
pub async fn held() -> io::Result<Vec<Held>> {
    let messages: Vec<AddressMessage> = handle()?
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(io_error)?;
    Ok(messages.iter().filter(|m| is_ours(m)).filter_map(of).collect())
}

fn is_ours(message: &AddressMessage) -> bool {
    message.attributes.contains(&AddressAttribute::Protocol(ORIGIN))
}

fn of(message: &AddressMessage) -> Option<Held> {
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    })?;
    Some(Held {
        address,
        link: message.header.index,
    })
}

pub async fn take(held: &Held) -> io::Result<()> {
    let prefix = if held.address.is_ipv4() { 32 } else { 128 };
    let mut add = handle()?.address().add(held.link, held.address, prefix).replace();
    let message = add.message_mut();
    message.attributes.push(AddressAttribute::Protocol(ORIGIN));
    if held.address.is_ipv6() {
        message.header.flags |= AddressHeaderFlags::Nodad;
    }
    add.execute().await.map_err(io_error)
}

pub async fn drop(held: &Held) -> io::Result<()> {
    let handle = handle()?;
    let messages: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(io_error)?;
    for message in messages
        .into_iter()
        .filter(|m| is_ours(m) && of(m).as_ref() == Some(held))
    {
        handle.address().del(message).execute().await.map_err(io_error)?;
    }
    Ok(())
}

/// Tells everybody on the link that the address is here now: gratuitous ARP (RFC 5227), unsolicited neighbour
/// advertisement (RFC 4861).
pub async fn tell(held: &Held) -> io::Result<()> {
    let handle = handle()?;
    let mut links = handle.link().get().match_index(held.link).execute();
    let link = links.try_next().await.map_err(io_error)?;
    let hardware = link
        .iter()
        .flat_map(|link| &link.attributes)
        .find_map(|a| match a {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
    let Some(hardware) = hardware else { return Ok(()) };
    match held.address {
        IpAddr::V4(address) => gratuitous_arp(held.link, hardware, address),
        IpAddr::V6(address) => neighbour_advertisement(held.link, hardware, address),
    }
}

fn gratuitous_arp(link: u32, hardware: [u8; 6], address: Ipv4Addr) -> io::Result<()> {
    const ARP: u16 = 0x0806;
    let mut frame = Vec::with_capacity(28);
    // Ethernet, IPv4, their lengths, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(hardware);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    // SAFETY: no pointers are passed; the new descriptor is owned by nobody else.
    let socket = unsafe {
        let fd = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            i32::from(ARP.to_be()),
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ARP.to_be(),
        sll_ifindex: link as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    };
    // SAFETY: both pointers are valid for the lengths that go with them until the call returns.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            mem::size_of_val(&to) as u32,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn neighbour_advertisement(link: u32, hardware: [u8; 6], address: Ipv6Addr) -> io::Result<()> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let socket = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))?;
    // Receivers believe only what no router has forwarded.
    sockopt::set_ipv6_multicast_hops(&socket, 255)?;
    // Advertisement, checksum by the kernel, flag override, target, option target link-layer address.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(hardware);
    let to = SocketAddrV6::new(ALL_NODES, 0, 0, link);
    sendto(&socket, &message, SendFlags::empty(), &to)?;
    Ok(())
}
