//! Addresses and networks in text.

use std::net::IpAddr;

pub(super) fn address_problem(text: &str) -> Option<String> {
    text.parse::<IpAddr>()
        .is_err()
        .then(|| "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned())
}

pub(super) fn cidr_problem(text: &str) -> Option<String> {
    parse(text)
        .is_none()
        .then(|| "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned())
}

/// The address as bits from the top, how many of them count, and how many there are.
fn parse(cidr: &str) -> Option<(u128, u32, u32)> {
    let (address, length) = cidr.split_once('/')?;
    let (bits, width) = match address.parse().ok()? {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let length: u32 = length.parse().ok().filter(|length| *length <= width)?;
    Some((bits, length, width))
}

/// Whether `inner` is a smaller network in `outer`.
pub(super) fn strictly_within(inner: &str, outer: &str) -> bool {
    let (Some((inner, smaller, width)), Some((outer, larger, outer_width))) = (parse(inner), parse(outer))
    else {
        return false;
    };
    let mask = u128::MAX.checked_shl(128 - larger).unwrap_or(0);
    width == outer_width && smaller > larger && inner & mask == outer & mask
}

/// 4 or 6.
pub(super) fn family(cidr: &str) -> Option<u8> {
    parse(cidr).map(|(_, _, width)| if width == 32 { 4 } else { 6 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_smaller_ones() {
        for (inner, outer, within) in [
            ("10.1.0.0/16", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.0.0.0/8", false),
            ("11.0.0.0/16", "10.0.0.0/8", false),
            ("1.0.0.0/8", "0.0.0.0/0", true),
            ("2001:db8:1::/48", "2001:db8::/32", true),
            ("2001:db8::/48", "0.0.0.0/0", false),
        ] {
            assert_eq!(strictly_within(inner, outer), within, "{inner} in {outer}");
        }
        assert!(cidr_problem("10.0.0.0/33").is_some() && cidr_problem("10.0.0.0").is_some());
        assert_eq!(
            (family("10.0.0.0/8"), family("::/0"), family("x")),
            (Some(4), Some(6), None)
        );
    }
}
