//! Networks as numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    v4: bool,
    /// Left-aligned in 128 bits for IPv6, in the low 32 for IPv4; host bits are zero.
    base: u128,
    pub length: u8,
}

impl Cidr {
    pub fn is_v4(&self) -> bool {
        self.v4
    }

    pub fn bits(&self) -> u8 {
        if self.v4 { 32 } else { 128 }
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        let length = self.length.min(other.length);
        self.v4 == other.v4 && self.prefix(length) == other.prefix(length)
    }

    /// The `n`th network of `length` bits inside this one.
    pub fn part(&self, length: u8, n: u128) -> Option<Self> {
        let count = 1u128
            .checked_shl((length - self.length).into())
            .unwrap_or(u128::MAX);
        let step = 1u128.checked_shl((self.bits() - length).into())?;
        (n < count).then(|| Self {
            base: self.base + n * step,
            length,
            ..*self
        })
    }

    fn prefix(&self, length: u8) -> u128 {
        self.base
            .checked_shr((self.bits() - length).into())
            .unwrap_or_default()
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = text.split_once('/').ok_or("no prefix length")?;
        let address: IpAddr = address.parse().map_err(|_| "not an IP address")?;
        let length: u8 = length.parse().map_err(|_| "the prefix length is not a number")?;
        let (v4, base) = match address {
            IpAddr::V4(a) => (true, u128::from(a.to_bits())),
            IpAddr::V6(a) => (false, a.to_bits()),
        };
        let whole = Self { v4, base, length };
        if length > whole.bits() {
            return Err(format!("the prefix length is more than {}", whole.bits()));
        }
        let host = u32::from(whole.bits() - length);
        Ok(Self {
            base: base
                .checked_shr(host)
                .unwrap_or_default()
                .checked_shl(host)
                .unwrap_or_default(),
            ..whole
        })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = match u32::try_from(self.base) {
            Ok(base) if self.v4 => IpAddr::from(Ipv4Addr::from_bits(base)),
            _ => IpAddr::from(Ipv6Addr::from_bits(self.base)),
        };
        write!(f, "{address}/{}", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_overlaps() {
        let net: Cidr = "10.244.3.7/16".parse().unwrap();
        assert_eq!(net.to_string(), "10.244.0.0/16");
        assert_eq!(net.part(24, 255).unwrap().to_string(), "10.244.255.0/24");
        assert_eq!(net.part(24, 256), None);
        assert!(net.overlaps(&"10.244.9.0/24".parse().unwrap()));
        assert!(!net.overlaps(&"10.245.0.0/24".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().overlaps(&net));
        let six: Cidr = "fd00:1::/48".parse().unwrap();
        assert_eq!(six.part(64, 2).unwrap().to_string(), "fd00:1:0:2::/64");
        assert!(!six.overlaps(&net));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/x"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
