//! The string formats that custom resources may ask for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::validate::dns_subdomain_problem;

/// None for a format that upstream does not know either; those hold always.
pub(super) fn holds(format: &str, text: &str) -> Option<bool> {
    Some(match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => crate::time::parse_duration(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" => is_uuid(text, None),
        "uuid3" => is_uuid(text, Some('3')),
        "uuid4" => is_uuid(text, Some('4')),
        "uuid5" => is_uuid(text, Some('5')),
        "byte" => STANDARD.decode(text).is_ok(),
        "hostname" => dns_subdomain_problem(&text.to_lowercase()).is_none(),
        "email" => text
            .split_once('@')
            .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !text.contains(' ')),
        "uri" => text.split_once(':').is_some_and(|(scheme, _)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        }),
        "hexcolor" => text
            .strip_prefix('#')
            .is_some_and(|digits| matches!(digits.len(), 3 | 6) && is_hex(digits)),
        _ => return None,
    })
}

/// Whether a number fits its format.
pub(super) fn fits(format: &str, number: f64) -> bool {
    match format {
        "int32" => number >= f64::from(i32::MIN) && number <= f64::from(i32::MAX),
        "int64" => number >= i64::MIN as f64 && number <= i64::MAX as f64,
        _ => true,
    }
}

fn is_hex(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_hexdigit())
}

fn is_cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, length)| {
        let width = match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        length.parse::<u8>().is_ok_and(|length| length <= width)
    })
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(|part| part.len() == 2 && is_hex(part))
}

fn is_uuid(text: &str, version: Option<char>) -> bool {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let right_version = version.is_none_or(|version| digits.chars().nth(12) == Some(version));
    digits.len() == 32 && is_hex(&digits) && right_version
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_hold_or_not() {
        for (format, good, bad) in [
            ("date-time", "2026-01-01T00:00:00Z", "yesterday"),
            ("date", "2026-01-31", "2026-02-31"),
            ("duration", "1h30m", "1 hour"),
            ("ipv4", "10.0.0.1", "::1"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:11:22:aa:bb:cc", "00:11"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "x"),
            ("byte", "YQ==", "?"),
            ("hostname", "a.example.com", "-a"),
            ("email", "a@b", "ab"),
            ("uri", "https://x", "/x"),
        ] {
            assert_eq!(
                (holds(format, good), holds(format, bad)),
                (Some(true), Some(false)),
                "{format}"
            );
        }
        assert_eq!(holds("whatever", ""), None);
        assert!(fits("int32", 1.0) && !fits("int32", 3e9) && fits("int64", 3e9));
    }
}
