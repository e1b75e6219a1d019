//! Carries out what the state machine decides, on one interface, for ever.

use super::{
    frame,
    message::{self, Client, Lease, Reply, Request},
    state::{Action, Machine},
};
use crate::{
    console,
    network::netlink::Link,
    sys::{clock, packet_socket::PacketSocket},
};
use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

/// What the client tells the network about its lease.
pub enum Change {
    Use(Lease),
    Drop(Lease),
}

/// Runs the client until its socket fails, as when the interface goes away.
pub fn run(link: &Link, hostname: Option<String>, mut changed: impl FnMut(Change)) -> io::Result<()> {
    let client = Client {
        mac: link.mac.clone(),
        hostname,
    };
    let started = clock::since_boot();
    let mut machine = Machine::new(started);
    let mut exchange = Exchange {
        link,
        client,
        xid: new_xid()?,
        packets: Some(PacketSocket::open(link.index)?),
        udp: None,
        started,
    };
    loop {
        let now = clock::since_boot();
        let actions = match exchange.receive(machine.next().saturating_sub(now))? {
            Some(reply) => machine.reply(reply, clock::since_boot()),
            None => machine.time(clock::since_boot()),
        };
        for action in actions {
            match action {
                Action::Broadcast(request) => exchange.broadcast(&request)?,
                Action::Unicast(request, server) => exchange.unicast(&request, server)?,
                Action::Report(text) => console::say(format_args!("{}: {text}", link.name)),
                Action::Use(lease) => {
                    exchange.end();
                    changed(Change::Use(lease));
                }
                Action::Drop(lease) => changed(Change::Drop(lease)),
            }
        }
    }
}

/// The sockets of one exchange; while a lease is held none is open.
struct Exchange<'a> {
    link: &'a Link,
    client: Client,
    xid: u32,
    packets: Option<PacketSocket>,
    udp: Option<UdpSocket>,
    started: Duration,
}

fn new_xid() -> io::Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::INSECURE)?;
    Ok(u32::from_ne_bytes(bytes))
}

impl Exchange<'_> {
    fn encode(&self, request: &Request) -> Vec<u8> {
        message::encode(
            &self.client,
            self.xid,
            clock::since_boot().saturating_sub(self.started),
            request,
        )
    }

    fn broadcast(&mut self, request: &Request) -> io::Result<()> {
        let source = match request {
            Request::Extend { address } => *address,
            Request::Discover | Request::Select { .. } => Ipv4Addr::UNSPECIFIED,
        };
        let packet = frame::to_servers(source, &self.encode(request));
        if self.packets.is_none() {
            self.packets = Some(PacketSocket::open(self.link.index)?);
        }
        match self.packets.as_ref().map(|packets| packets.broadcast(&packet)) {
            // A link that is down or a full queue mends; the next try comes anyway.
            Some(Err(error)) if matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENOBUFS)) => {
                Ok(())
            }
            Some(result) => result,
            None => Ok(()),
        }
    }

    fn unicast(&mut self, request: &Request, server: Ipv4Addr) -> io::Result<()> {
        let Request::Extend { address } = *request else {
            return Ok(());
        };
        let bytes = self.encode(request);
        if self.udp.is_none() {
            self.udp = Some(UdpSocket::bind((address, frame::CLIENT_PORT))?);
        }
        if let Some(Err(error)) = self
            .udp
            .as_ref()
            .map(|udp| udp.send_to(&bytes, (server, frame::SERVER_PORT)))
        {
            console::say(format_args!(
                "{}: asking {server} for more time: {error}",
                self.link.name
            ));
        }
        Ok(())
    }

    /// The lease is had: listening to the whole link would be a waste.
    fn end(&mut self) {
        self.packets = None;
        self.udp = None;
    }

    fn receive(&self, limit: Duration) -> io::Result<Option<Reply>> {
        let deadline = clock::since_boot() + limit;
        loop {
            let left = deadline.saturating_sub(clock::since_boot());
            if left.is_zero() {
                return Ok(None);
            }
            let datagram = match (&self.udp, &self.packets) {
                (_, Some(packets)) => match packets.receive(left) {
                    Ok(packet) => packet.and_then(|packet| frame::to_client(&packet).map(<[u8]>::to_vec)),
                    // Said once when the link goes down; it may come up again.
                    Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => None,
                    Err(error) => return Err(error),
                },
                (Some(udp), None) => receive_udp(udp, left)?,
                (None, None) => {
                    std::thread::sleep(left);
                    None
                }
            };
            if let Some(reply) =
                datagram.and_then(|bytes| message::decode(&bytes, &self.client.mac, self.xid))
            {
                return Ok(Some(reply));
            }
        }
    }
}

fn receive_udp(udp: &UdpSocket, limit: Duration) -> io::Result<Option<Vec<u8>>> {
    udp.set_read_timeout(Some(limit))?;
    let mut bytes = vec![0; 1600];
    match udp.recv(&mut bytes) {
        Ok(length) => Ok(Some(bytes[..length].to_vec())),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
        // An ICMP error for a request of ours: as good as silence.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Err(error) => Err(error),
    }
}
