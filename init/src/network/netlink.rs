//! Links, addresses and routes of the kernel, over one rtnetlink socket (rtnetlink(7)).

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::{io, net::IpAddr, path::Path};

/// The multicast group of link changes, RTNLGRP_LINK.
const LINK_CHANGES: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Vec<u8>,
    pub up: bool,
    /// An Ethernet device with hardware behind it, virtual machines' included; no bridge, tunnel or pair.
    pub physical: bool,
    /// The bond or bridge it belongs to.
    pub controller: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `None` is the default route.
    pub destination: Option<(IpAddr, u8)>,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub metric: u32,
}

pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(link(&message)),
                _ => None,
            })
            .collect())
    }

    /// Brings a link up, with a new MTU and hardware address where they are given.
    pub fn set_up(&mut self, index: u32, mtu: Option<u32>, mac: Option<[u8; 6]>) -> io::Result<()> {
        if let Some(mac) = mac {
            // A hardware address can be changed only while the link is down.
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes.push(LinkAttribute::Address(mac.to_vec()));
            self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK)?;
        }
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
            .map(drop)
    }

    /// Makes a link of a kind whose driver the kernel may load for it.
    fn add_link(&mut self, name: &str, on: Option<u32>, info: Vec<LinkInfo>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(on.map(LinkAttribute::Link));
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.request(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        )
        .map(drop)
    }

    pub fn add_bond(&mut self, name: &str) -> io::Result<()> {
        match self.add_link(name, None, vec![LinkInfo::Kind(InfoKind::Bond)]) {
            // The driver, loaded for the request, has made a bond0 of its own.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    pub fn add_vlan(&mut self, name: &str, id: u16, device: u32) -> io::Result<()> {
        let data = LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)]));
        self.add_link(name, Some(device), vec![LinkInfo::Kind(InfoKind::Vlan), data])
    }

    /// Makes a link a member of a bond, which takes it up by itself; it has to be down before.
    pub fn add_member(&mut self, bond: u32, member: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = member;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK)?;
        let mut message = LinkMessage::default();
        message.header.index = member;
        message.attributes.push(LinkAttribute::Controller(bond));
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
            .map(drop)
    }

    pub fn add_address(
        &mut self,
        index: u32,
        address: IpAddr,
        prefix: u8,
        peer: Option<IpAddr>,
    ) -> io::Result<()> {
        let mut message = address_message(index, address, prefix, peer);
        if let (IpAddr::V4(v4), None, 0..=30) = (address, peer, prefix) {
            let broadcast = u32::from(v4) | u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            message
                .attributes
                .push(AddressAttribute::Broadcast(broadcast.into()));
        }
        self.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map(drop)
    }

    pub fn remove_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let message = address_message(index, address, prefix, None);
        self.request(RouteNetlinkMessage::DelAddress(message), NLM_F_ACK)
            .map(drop)
    }

    pub fn add_route(&mut self, index: u32, route: &Route) -> io::Result<()> {
        let mut message = RouteMessage::default();
        let family = route.destination.map(|(address, _)| address).or(route.gateway);
        message.header = RouteHeader {
            address_family: if family.is_some_and(|a| a.is_ipv6()) {
                AddressFamily::Inet6
            } else {
                AddressFamily::Inet
            },
            destination_prefix_length: route.destination.map_or(0, |(_, prefix)| prefix),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Boot,
            scope: if route.gateway.is_some() {
                RouteScope::Universe
            } else {
                RouteScope::Link
            },
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        let destination = route
            .destination
            .map(|(address, _)| RouteAttribute::Destination(RouteAddress::from(address)));
        message.attributes.extend(destination);
        message.attributes.extend(
            route
                .gateway
                .map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))),
        );
        message.attributes.extend(
            route
                .source
                .map(|source| RouteAttribute::PrefSource(RouteAddress::from(source))),
        );
        message.attributes.push(RouteAttribute::Oif(index));
        message.attributes.push(RouteAttribute::Priority(route.metric));
        self.request(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map(drop)
    }

    /// Sends one request and collects its answers.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.content {
                    Content::Done => return Ok(answers),
                    Content::Result(0) => return Ok(answers),
                    Content::Result(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    Content::Message(answer) => answers.push(*answer),
                    Content::Unknown => {}
                }
            }
        }
    }
}

struct Received {
    sequence: u32,
    content: Content,
}

enum Content {
    Done,
    /// An error number, or 0: the acknowledgement.
    Result(i32),
    Message(Box<RouteNetlinkMessage>),
    /// A message this library cannot read, of a newer kernel perhaps.
    Unknown,
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The messages of a datagram. One that cannot be read does not hide the others.
fn messages(mut datagram: &[u8]) -> Vec<Received> {
    let mut messages = Vec::new();
    while let Ok(buffer) = NetlinkBuffer::new_checked(&datagram) {
        let length = buffer.length() as usize;
        let (kind, sequence) = (buffer.message_type(), buffer.sequence_number());
        let content = match kind {
            NLMSG_DONE => Content::Done,
            NLMSG_ERROR => match datagram.get(16..20) {
                Some(code) => Content::Result(-i32::from_ne_bytes([code[0], code[1], code[2], code[3]])),
                None => Content::Unknown,
            },
            _ => {
                let mut header = NetlinkHeader::default();
                header.message_type = kind;
                match RouteNetlinkMessage::deserialize(&header, datagram.get(16..length).unwrap_or(&[])) {
                    Ok(message) => Content::Message(Box::new(message)),
                    Err(_) => Content::Unknown,
                }
            }
        };
        messages.push(Received { sequence, content });
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    messages
}

fn address_message(index: u32, address: IpAddr, prefix: u8, peer: Option<IpAddr>) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.header.scope = if address.is_loopback() {
        AddressScope::Host
    } else {
        AddressScope::Universe
    };
    message.attributes.push(AddressAttribute::Local(address));
    message
        .attributes
        .push(AddressAttribute::Address(peer.unwrap_or(address)));
    message
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: Vec::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        physical: false,
        controller: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::Controller(index) => link.controller = Some(*index).filter(|index| *index != 0),
            _ => {}
        }
    }
    let device = Path::new("/sys/class/net").join(&link.name).join("device");
    link.physical = message.header.link_layer_type == LinkLayerType::Ether && device.exists();
    link
}

/// Tells that links have come, gone or changed.
pub struct LinkChanges(Socket);

impl LinkChanges {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, LINK_CHANGES))?;
        Ok(Self(socket))
    }

    /// Waits for the next change. Changes that came meanwhile and were lost count as one.
    pub fn wait(&self) -> io::Result<()> {
        match self.0.recv_from_full() {
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(error),
            _ => Ok(()),
        }
    }
}
