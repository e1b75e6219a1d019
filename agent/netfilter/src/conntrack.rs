//! Connection tracking over netlink: entries are listed and deleted (linux/netfilter/nfnetlink_conntrack.h).

use std::io;
use std::net::IpAddr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::Family;

/// Subsystem and message, as nfnetlink's header wants them.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const NEW: u16 = 1 << 8;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// `struct nfgenmsg`.
const GENERIC: usize = 4;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
/// The flags of an attribute's type: nested, network byte order.
const TYPE_MASK: u16 = 0x3fff;

/// One tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    pub protocol: u8,
    pub destination: IpAddr,
    pub destination_port: u16,
    /// Who answers.
    pub reply_source: IpAddr,
    /// The original tuple as the kernel wrote it: what names the entry.
    tuple: Vec<u8>,
}

impl Flow {
    /// An entry that the kernel knows nothing of, to decide about.
    pub fn imagined(protocol: u8, destination: (IpAddr, u16), reply_source: IpAddr) -> Self {
        let (destination, destination_port) = destination;
        Self {
            protocol,
            destination,
            destination_port,
            reply_source,
            tuple: Vec::new(),
        }
    }
}

/// The entries of one family. Blocks while the kernel tells.
pub fn list(family: Family) -> io::Result<Vec<Flow>> {
    let socket = open()?;
    socket.send(&message(family, GET, REQUEST | DUMP, &[]), 0)?;
    let mut flows = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&bytes) {
            match kind {
                NEW => flows.extend(flow(body.get(GENERIC..).unwrap_or_default())),
                ERROR | DONE => return error(body).map(|()| flows),
                _ => {}
            }
        }
    }
}

/// Deletes the entries; those that ended meanwhile are no error. Blocks.
pub fn delete(family: Family, flows: &[Flow]) -> io::Result<()> {
    let socket = open()?;
    for flow in flows {
        socket.send(&message(family, DELETE, REQUEST | ACK, &flow.tuple), 0)?;
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&bytes) {
            match (kind, error(body)) {
                (ERROR, Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn message(family: Family, kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    const IPV4: u8 = 2;
    const IPV6: u8 = 10;
    let length = (HEADER + GENERIC + attributes.len()) as u32;
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([if family == Family::V4 { IPV4 } else { IPV6 }, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Type and body of each message of a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The error that a message of type ERROR or DONE carries; zero is none.
fn error(body: &[u8]) -> io::Result<()> {
    let code = body
        .get(..4)
        .and_then(|code| code.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// Type, value, and the whole of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        let whole = bytes.get(..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value, whole))
    })
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value, _)| (kind == wanted).then_some(value))
}

fn flow(bytes: &[u8]) -> Option<Flow> {
    let original = find(bytes, TUPLE_ORIGINAL)?;
    let (_, destination) = addresses(find(original, TUPLE_IP)?)?;
    let (reply_source, _) = addresses(find(find(bytes, TUPLE_REPLY)?, TUPLE_IP)?)?;
    let protocol = find(original, TUPLE_PROTOCOL)?;
    let port = find(protocol, 3)?.try_into().ok()?;
    let mut tuple = attributes(bytes)
        .find(|(kind, ..)| *kind == TUPLE_ORIGINAL)?
        .2
        .to_vec();
    tuple.resize(tuple.len().next_multiple_of(4), 0);
    Some(Flow {
        protocol: *find(protocol, 1)?.first()?,
        destination,
        destination_port: u16::from_be_bytes(port),
        reply_source,
        tuple,
    })
}

/// Source and destination: attributes 1 and 2 of IPv4, 3 and 4 of IPv6.
fn addresses(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let four = |kind| {
        find(bytes, kind)
            .and_then(|v| <[u8; 4]>::try_from(v).ok())
            .map(IpAddr::from)
    };
    let six = |kind| {
        find(bytes, kind)
            .and_then(|v| <[u8; 16]>::try_from(v).ok())
            .map(IpAddr::from)
    };
    Some((four(1).or_else(|| six(3))?, four(2).or_else(|| six(4))?))
}
