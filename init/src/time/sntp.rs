//! One question to a time server and what its answer says of our clock (RFC 4330).

use crate::sys::clock;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

pub const PORT: u16 = 123;
const PACKET: usize = 48;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Seconds from NTP's first era (1900) to 1970.
const UNIX_EPOCH: u64 = 2_208_988_800;

/// How far our calendar is behind the server's, in seconds.
pub fn ask(server: SocketAddr) -> io::Result<f64> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(ANSWER_WITHIN))?;
    // Instead of our time, which is nobody's business: a number only the asked server can echo.
    let mut nonce = [0; 8];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())?;
    let sent = clock::calendar();
    socket.send(&question(nonce))?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    offset(&answer[..length], nonce, sent, clock::calendar()).map_err(io::Error::other)
}

fn question(nonce: [u8; 8]) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    // No warning, version 4, client.
    packet[0] = 4 << 3 | 3;
    packet[40..].copy_from_slice(&nonce);
    packet
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum AnswerError {
    #[error("not an answer to our question")]
    NotOurs,
    #[error("the server is not synchronised itself")]
    Unsynchronised,
}

/// The clock offset from the four times of an exchange.
fn offset(answer: &[u8], nonce: [u8; 8], sent: Duration, received: Duration) -> Result<f64, AnswerError> {
    if answer.len() < PACKET || answer[0] & 7 != 4 || answer[24..32] != nonce {
        return Err(AnswerError::NotOurs);
    }
    let transmitted = timestamp(&answer[40..48]);
    if answer[0] >> 6 == 3 || !(1..=15).contains(&answer[1]) || transmitted == 0.0 {
        return Err(AnswerError::Unsynchronised);
    }
    let arrived = timestamp(&answer[32..40]);
    Ok(((arrived - sent.as_secs_f64()) + (transmitted - received.as_secs_f64())) / 2.0)
}

/// Seconds since 1970. The 32-bit count wraps in 2036: small numbers belong to the second era.
fn timestamp(bytes: &[u8]) -> f64 {
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let (seconds, fraction) = (number(&bytes[..4]), number(&bytes[4..8]));
    if seconds == 0 && fraction == 0 {
        return 0.0;
    }
    let seconds = if seconds < UNIX_EPOCH {
        seconds + (1 << 32)
    } else {
        seconds
    };
    (seconds - UNIX_EPOCH) as f64 + fraction as f64 / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: [u8; 8] = *b"question";

    fn answer(arrived: (u32, u32), transmitted: (u32, u32)) -> [u8; PACKET] {
        let mut packet = [0; PACKET];
        packet[0] = 4 << 3 | 4;
        packet[1] = 2;
        packet[24..32].copy_from_slice(&NONCE);
        for (at, value) in [
            (32, arrived.0),
            (36, arrived.1),
            (40, transmitted.0),
            (44, transmitted.1),
        ] {
            packet[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        packet
    }

    /// NTP's count for a Unix time of the first era.
    fn ntp(unix: u64) -> u32 {
        u32::try_from(unix + UNIX_EPOCH).unwrap()
    }

    #[test]
    fn the_offset_is_the_mean_of_both_ways() {
        let packet = answer((ntp(1_700_000_100), 0), (ntp(1_700_000_100), 1 << 31));
        let offset = offset(
            &packet,
            NONCE,
            Duration::from_secs(1_700_000_000),
            Duration::from_millis(1_700_000_001_500),
        );
        assert!((offset.unwrap() - 99.5).abs() < 1e-6);
    }

    #[test]
    fn a_server_is_asked_and_understood() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let mut asked = [0; 512];
            let (length, client) = server.recv_from(&mut asked).unwrap();
            assert_eq!((length, asked[0]), (PACKET, 0x23));
            let an_hour_ahead = ntp(clock::calendar().as_secs() + 3600);
            let mut packet = answer((an_hour_ahead, 0), (an_hour_ahead, 0));
            packet[24..32].copy_from_slice(&asked[40..48]);
            server.send_to(&packet, client).unwrap();
        });
        let offset = ask(address).unwrap();
        serving.join().unwrap();
        assert!((offset - 3600.0).abs() < 10.0, "{offset}");
    }

    #[test]
    fn the_second_era_begins_in_2036() {
        assert_eq!(timestamp(&[0, 0, 0, 16, 0, 0, 0, 0]), 2_085_978_512.0);
    }

    #[test]
    fn forged_and_useless_answers_are_refused() {
        let good = answer((ntp(1), 0), (ntp(1), 0));
        let check = |packet: &[u8], nonce| offset(packet, nonce, Duration::ZERO, Duration::ZERO);
        assert!(check(&good, NONCE).is_ok());
        assert_eq!(check(&good, *b"anothers"), Err(AnswerError::NotOurs));
        assert_eq!(check(&good[..47], NONCE), Err(AnswerError::NotOurs));
        assert_eq!(check(&question(NONCE), NONCE), Err(AnswerError::NotOurs));
        let mut unsynchronised = good;
        unsynchronised[0] |= 0xc0;
        assert_eq!(check(&unsynchronised, NONCE), Err(AnswerError::Unsynchronised));
        let mut kiss_of_death = good;
        kiss_of_death[1] = 0;
        assert_eq!(check(&kiss_of_death, NONCE), Err(AnswerError::Unsynchronised));
    }
}
