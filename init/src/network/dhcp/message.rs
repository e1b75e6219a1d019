//! DHCP messages: what we ask, and what of an answer we use.

use dhcproto::v4::{
    Decodable, Decoder, DhcpOption, DhcpOptions, Encodable, Encoder, Flags, HType, Message, MessageType,
    Opcode, OptionCode,
};
use std::{net::Ipv4Addr, time::Duration};

/// What the server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub server: Ipv4Addr,
    /// Destination and prefix, gateway; destination 0.0.0.0/0 is the default route.
    pub routes: Vec<((Ipv4Addr, u8), Ipv4Addr)>,
    pub nameservers: Vec<Ipv4Addr>,
    pub ntp: Vec<Ipv4Addr>,
    pub hostname: Option<String>,
    pub domain: Option<String>,
    pub mtu: Option<u32>,
    pub duration: Duration,
    pub renew_after: Duration,
    pub rebind_after: Duration,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub mac: Vec<u8>,
    /// Sent to the server, which may keep it as a name for the address.
    pub hostname: Option<String>,
}

/// Where the exchange stands when a request is sent (RFC 2131, table 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Discover,
    /// Accepts an offer.
    Select {
        address: Ipv4Addr,
        server: Ipv4Addr,
    },
    /// Asks for more time; the address is in use already.
    Extend {
        address: Ipv4Addr,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Offer(Lease),
    Acknowledge(Lease),
    Refuse,
}

/// No lease is shorter than this, whatever servers say: the network is not asked more often.
const SHORTEST_LEASE: Duration = Duration::from_secs(60);

pub fn encode(client: &Client, xid: u32, elapsed: Duration, request: &Request) -> Vec<u8> {
    let mut message = Message::default();
    message
        .set_opcode(Opcode::BootRequest)
        .set_htype(HType::Eth)
        .set_xid(xid)
        .set_chaddr(&client.mac[..client.mac.len().min(16)]);
    message.set_secs(u16::try_from(elapsed.as_secs()).unwrap_or(u16::MAX));
    let mut options = DhcpOptions::new();
    let (kind, address, server) = match *request {
        Request::Discover => (MessageType::Discover, None, None),
        Request::Select { address, server } => (MessageType::Request, Some(address), Some(server)),
        Request::Extend { address } => {
            message.set_ciaddr(address);
            (MessageType::Request, None, None)
        }
    };
    if matches!(request, Request::Discover | Request::Select { .. }) {
        message.set_flags(Flags::default().set_broadcast());
    }
    options.insert(DhcpOption::MessageType(kind));
    let mut identifier = vec![1];
    identifier.extend_from_slice(&client.mac);
    options.insert(DhcpOption::ClientIdentifier(identifier));
    let given = [
        address.map(DhcpOption::RequestedIpAddress),
        server.map(DhcpOption::ServerIdentifier),
        client.hostname.clone().map(DhcpOption::Hostname),
    ];
    for option in given.into_iter().flatten() {
        options.insert(option);
    }
    options.insert(DhcpOption::MaxMessageSize(1472));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::ClasslessStaticRoute,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::Hostname,
        OptionCode::DomainName,
        OptionCode::InterfaceMtu,
        OptionCode::NtpServers,
        OptionCode::AddressLeaseTime,
        OptionCode::Renewal,
        OptionCode::Rebinding,
        OptionCode::ServerIdentifier,
    ]));
    message.set_opts(options);
    let mut bytes = Vec::new();
    // Writing to memory fails only for options longer than we make.
    if message.encode(&mut Encoder::new(&mut bytes)).is_err() {
        bytes.clear();
    }
    // Old relays drop what is shorter than BOOTP's 300 bytes.
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

/// The answer to us, if the bytes are one.
pub fn decode(bytes: &[u8], mac: &[u8], xid: u32) -> Option<Reply> {
    let message = Message::decode(&mut Decoder::new(bytes)).ok()?;
    let to_us =
        message.opcode() == Opcode::BootReply && message.xid() == xid && message.chaddr().starts_with(mac);
    if !to_us {
        return None;
    }
    match message.opts().get(OptionCode::MessageType)? {
        DhcpOption::MessageType(MessageType::Offer) => Some(Reply::Offer(lease(&message)?)),
        DhcpOption::MessageType(MessageType::Ack) => Some(Reply::Acknowledge(lease(&message)?)),
        DhcpOption::MessageType(MessageType::Nak) => Some(Reply::Refuse),
        _ => None,
    }
}

fn lease(message: &Message) -> Option<Lease> {
    let options = message.opts();
    let address = message.yiaddr();
    if address.is_unspecified() {
        return None;
    }
    let Some(DhcpOption::ServerIdentifier(server)) = options.get(OptionCode::ServerIdentifier) else {
        return None;
    };
    let seconds = |option: Option<&DhcpOption>| match option {
        Some(DhcpOption::AddressLeaseTime(s) | DhcpOption::Renewal(s) | DhcpOption::Rebinding(s)) => {
            Some(Duration::from_secs((*s).into()))
        }
        _ => None,
    };
    let duration = seconds(options.get(OptionCode::AddressLeaseTime))?.max(SHORTEST_LEASE);
    let rebind_after = seconds(options.get(OptionCode::Rebinding))
        .filter(|t2| *t2 < duration)
        .unwrap_or(duration * 7 / 8);
    let renew_after = seconds(options.get(OptionCode::Renewal))
        .filter(|t1| *t1 < rebind_after)
        .unwrap_or(duration / 2);
    let text = |option: Option<&DhcpOption>| match option {
        Some(DhcpOption::Hostname(name) | DhcpOption::DomainName(name)) => {
            Some(name.trim_end_matches(['\0', '.']).to_lowercase()).filter(|name| is_name(name))
        }
        _ => None,
    };
    let addresses = |option: Option<&DhcpOption>| match option {
        Some(
            DhcpOption::DomainNameServer(list) | DhcpOption::NtpServers(list) | DhcpOption::Router(list),
        ) => list.clone(),
        _ => vec![],
    };
    // RFC 3442: with classless routes the router option is ignored.
    let routes = match options.get(OptionCode::ClasslessStaticRoute) {
        Some(DhcpOption::ClasslessStaticRoute(routes)) => routes
            .iter()
            .map(|(net, gateway)| ((net.network(), net.prefix_len()), *gateway))
            .collect(),
        _ => {
            let router = addresses(options.get(OptionCode::Router)).first().copied();
            router
                .map(|gateway| ((Ipv4Addr::UNSPECIFIED, 0), gateway))
                .into_iter()
                .collect()
        }
    };
    Some(Lease {
        address,
        prefix: match options.get(OptionCode::SubnetMask) {
            Some(DhcpOption::SubnetMask(mask)) => u32::from(*mask).leading_ones() as u8,
            _ => 24,
        },
        server: *server,
        routes,
        nameservers: addresses(options.get(OptionCode::DomainNameServer)),
        ntp: addresses(options.get(OptionCode::NtpServers)),
        hostname: text(options.get(OptionCode::Hostname)),
        domain: text(options.get(OptionCode::DomainName)),
        mtu: match options.get(OptionCode::InterfaceMtu) {
            Some(DhcpOption::InterfaceMtu(mtu)) if *mtu >= 576 => Some((*mtu).into()),
            _ => None,
        },
        duration,
        renew_after,
        rebind_after,
    })
}

/// A server's name is used in files and as the node's name: only a DNS name will do.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    /// A server's answer with the given options on top of the usual ones.
    pub(in super::super) fn answer(kind: MessageType, xid: u32, extra: Vec<DhcpOption>) -> Vec<u8> {
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootReply)
            .set_xid(xid)
            .set_chaddr(&MAC)
            .set_yiaddr(Ipv4Addr::new(10, 0, 2, 15));
        let usual = [
            DhcpOption::MessageType(kind),
            DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 2, 2)),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::Router(vec![Ipv4Addr::new(10, 0, 2, 2)]),
            DhcpOption::DomainNameServer(vec![Ipv4Addr::new(10, 0, 2, 3)]),
            DhcpOption::AddressLeaseTime(86_400),
        ];
        for option in usual.into_iter().chain(extra) {
            message.opts_mut().insert(option);
        }
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        bytes
    }

    fn acknowledged(extra: Vec<DhcpOption>) -> Lease {
        match decode(&answer(MessageType::Ack, 7, extra), &MAC, 7) {
            Some(Reply::Acknowledge(lease)) => lease,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_usual_answer_is_understood() {
        let lease = acknowledged(vec![
            DhcpOption::Hostname("Node-1\0".to_owned()),
            DhcpOption::NtpServers(vec![Ipv4Addr::new(10, 0, 2, 4)]),
            DhcpOption::InterfaceMtu(1450),
        ]);
        assert_eq!((lease.address, lease.prefix), (Ipv4Addr::new(10, 0, 2, 15), 24));
        assert_eq!(
            lease.routes,
            [((Ipv4Addr::UNSPECIFIED, 0), Ipv4Addr::new(10, 0, 2, 2))]
        );
        assert_eq!(lease.hostname.as_deref(), Some("node-1"));
        assert_eq!(lease.mtu, Some(1450));
        assert_eq!(
            (lease.renew_after.as_secs(), lease.rebind_after.as_secs()),
            (43_200, 75_600)
        );
    }

    #[test]
    fn classless_routes_replace_the_router() {
        let net = "10.9.0.0/16".parse().unwrap();
        let lease = acknowledged(vec![DhcpOption::ClasslessStaticRoute(vec![(
            net,
            Ipv4Addr::new(10, 0, 2, 9),
        )])]);
        assert_eq!(
            lease.routes,
            [((Ipv4Addr::new(10, 9, 0, 0), 16), Ipv4Addr::new(10, 0, 2, 9))]
        );
    }

    #[test]
    fn absurd_times_and_names_are_mended() {
        let lease = acknowledged(vec![
            DhcpOption::AddressLeaseTime(1),
            DhcpOption::Renewal(500),
            DhcpOption::Rebinding(400),
            DhcpOption::Hostname("../etc".to_owned()),
        ]);
        assert_eq!(lease.duration, SHORTEST_LEASE);
        assert!(lease.renew_after < lease.rebind_after && lease.rebind_after < lease.duration);
        assert_eq!(lease.hostname, None);
    }

    #[test]
    fn answers_to_others_and_garbage_are_ignored() {
        let offer = answer(MessageType::Offer, 7, vec![]);
        assert!(matches!(decode(&offer, &MAC, 7), Some(Reply::Offer(_))));
        assert_eq!(decode(&offer, &MAC, 8), None);
        assert_eq!(decode(&offer, &[2; 6], 7), None);
        for length in 0..offer.len() {
            // Any prefix: no panic, and never somebody else's lease.
            decode(&offer[..length], &MAC, 8);
        }
    }

    #[test]
    fn requests_carry_what_the_rfc_asks_for() {
        let client = Client {
            mac: MAC.to_vec(),
            hostname: Some("node-1".to_owned()),
        };
        let address = Ipv4Addr::new(10, 0, 2, 15);
        let server = Ipv4Addr::new(10, 0, 2, 2);
        for (request, kind, ciaddr, requested, identified) in [
            (
                Request::Discover,
                MessageType::Discover,
                Ipv4Addr::UNSPECIFIED,
                false,
                false,
            ),
            (
                Request::Select { address, server },
                MessageType::Request,
                Ipv4Addr::UNSPECIFIED,
                true,
                true,
            ),
            (
                Request::Extend { address },
                MessageType::Request,
                address,
                false,
                false,
            ),
        ] {
            let bytes = encode(&client, 7, Duration::from_secs(3), &request);
            assert!(bytes.len() >= 300);
            let message = Message::decode(&mut Decoder::new(&bytes)).unwrap();
            assert_eq!(message.opts().msg_type(), Some(kind));
            assert_eq!(
                (message.xid(), message.secs(), message.ciaddr()),
                (7, 3, ciaddr),
                "{request:?}"
            );
            assert_eq!(
                message.opts().contains(OptionCode::RequestedIpAddress),
                requested,
                "{request:?}"
            );
            assert_eq!(
                message.opts().contains(OptionCode::ServerIdentifier),
                identified,
                "{request:?}"
            );
        }
    }
}
