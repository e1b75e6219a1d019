//! IPv4 datagrams on an interface that has no address yet (packet(7), cooked mode).
#![allow(unsafe_code)]

use rustix::{
    fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Timespec,
};
use std::{io, mem, time::Duration};

const ETH_P_IP: u16 = 0x0800;

pub struct PacketSocket {
    socket: OwnedFd,
    index: i32,
}

impl PacketSocket {
    pub fn open(interface_index: u32) -> io::Result<Self> {
        // SAFETY: a plain call; the result is checked before it becomes an owned descriptor.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` was just opened and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let index = i32::try_from(interface_index).map_err(io::Error::other)?;
        let this = Self { socket, index };
        let address = this.address([0; 6]);
        // SAFETY: `address` is a `sockaddr_ll` and the length is its size.
        let result = unsafe { libc::bind(raw, (&raw const address).cast(), ADDRESS_SIZE) };
        if result == 0 {
            Ok(this)
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn address(&self, to: [u8; 6]) -> libc::sockaddr_ll {
        // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETH_P_IP.to_be();
        address.sll_ifindex = self.index;
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&to);
        address
    }

    /// Sends an IP packet to everybody on the link.
    pub fn broadcast(&self, packet: &[u8]) -> io::Result<()> {
        let address = self.address([0xff; 6]);
        // SAFETY: buffer and address are valid for the lengths given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                ADDRESS_SIZE,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// The next IP packet, or `None` when none came in time.
    pub fn receive(&self, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        use rustix::event::{PollFd, PollFlags, poll};
        let limit = Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: limit.subsec_nanos().into(),
        };
        if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit))? == 0 {
            return Ok(None);
        }
        let mut packet = vec![0; 1600];
        let length = rustix::io::read(&self.socket, &mut packet[..])?;
        packet.truncate(length);
        Ok(Some(packet))
    }
}

const ADDRESS_SIZE: u32 = mem::size_of::<libc::sockaddr_ll>() as u32;
