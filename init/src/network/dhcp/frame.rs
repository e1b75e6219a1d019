//! IPv4 and UDP headers around a DHCP message, for an interface without an address (RFC 791, RFC 768).

use std::net::Ipv4Addr;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;
pub const SERVER_PORT: u16 = 67;
pub const CLIENT_PORT: u16 = 68;

/// A datagram from `source` to everybody's DHCP servers.
pub fn to_servers(source: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let udp_length = UDP_HEADER + payload.len();
    let mut packet = vec![0x45, 0];
    packet.extend(((IP_HEADER + udp_length) as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(Ipv4Addr::BROADCAST.octets());
    let sum = checksum(&packet, 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());

    packet.extend(CLIENT_PORT.to_be_bytes());
    packet.extend(SERVER_PORT.to_be_bytes());
    packet.extend((udp_length as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let pseudo_header: u32 = packet[12..IP_HEADER]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = checksum(
        &packet[IP_HEADER..],
        pseudo_header + u32::from(UDP) + udp_length as u32,
    );
    // Zero means "no checksum" (RFC 768).
    let sum = if sum == 0 { 0xffff } else { sum };
    packet[IP_HEADER + 6..IP_HEADER + 8].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The payload, when the packet is a whole UDP datagram to a DHCP client. The checksum is not looked at: virtual
/// interfaces leave it unfinished, and the transaction number and hardware address are.
pub fn to_client(packet: &[u8]) -> Option<&[u8]> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let whole = packet[0] >> 4 == 4
        && packet.get(9) == Some(&UDP)
        && packet.get(6)? & 0x3f == 0
        && packet.get(7) == Some(&0);
    let udp = packet.get(header..).filter(|_| whole && header >= IP_HEADER)?;
    let length = usize::from(u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]));
    if udp.get(0..2)? != SERVER_PORT.to_be_bytes() || udp.get(2..4)? != CLIENT_PORT.to_be_bytes() {
        return None;
    }
    udp.get(UDP_HEADER..length)
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_complete_and_correct() {
        for payload in [&b"odd"[..], b"even", &[0xff; 300]] {
            let packet = to_servers(Ipv4Addr::UNSPECIFIED, payload);
            assert_eq!(packet.len(), 28 + payload.len());
            assert_eq!(
                checksum(&packet[..20], 0),
                0,
                "a header summed with its checksum gives zero"
            );
            let pseudo = 0xffff_u32 * 2 + 17 + (8 + payload.len()) as u32;
            assert_eq!(checksum(&packet[20..], pseudo), 0);
        }
    }

    #[test]
    fn the_known_example_of_a_checksum() {
        let header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7,
        ];
        assert_eq!(checksum(&header, 0), 0xb861);
    }

    #[test]
    fn only_whole_datagrams_to_a_client_are_taken() {
        let mut packet = to_servers(Ipv4Addr::UNSPECIFIED, b"hello");
        assert_eq!(to_client(&packet), None, "that is a client's own");
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet.extend(b"ethernet padding");
        assert_eq!(to_client(&packet), Some(&b"hello"[..]));
        let mut fragment = packet.clone();
        fragment[6] = 0x20;
        assert_eq!(to_client(&fragment), None);
        for length in 0..33 {
            assert_eq!(to_client(&packet[..length]), None, "{length}");
        }
    }
}
