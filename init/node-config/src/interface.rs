//! dracut.cmdline(7)'s network parameters: `ip=`, `bond=` and `vlan=`.

use crate::types::{Malformed, is_dns_name};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

/// One `ip=`: how one interface (or, unnamed, any interface) gets its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpParameter {
    pub interface: Option<String>,
    pub method: IpMethod,
    pub hostname: Option<String>,
    pub extra: IpExtra,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpMethod {
    Dhcp,
    Off,
    Static(StaticAddress),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticAddress {
    pub address: IpAddr,
    pub prefix: u8,
    pub peer: Option<IpAddr>,
    pub gateway: Option<IpAddr>,
}

/// What may stand behind the method: link settings or name and time servers, never both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IpExtra {
    #[default]
    None,
    Link {
        mtu: Option<u32>,
        mac: Option<[u8; 6]>,
    },
    Servers {
        /// One or two.
        nameservers: Vec<IpAddr>,
        ntp: Option<IpAddr>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bond {
    pub name: String,
    pub members: Vec<String>,
    pub options: Vec<(String, String)>,
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlan {
    pub name: String,
    pub device: String,
    /// What the name ends with: `vlan0005`, `vlan5`, `eth0.0005` and `eth0.5` are all 5.
    pub id: u16,
}

/// The position of the method in `CLIENT:PEER:GATEWAY:MASK:HOSTNAME:INTERFACE:METHOD`.
const METHOD_FIELD: usize = 6;

impl FromStr for IpParameter {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let fields = fields(text)?;
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        match fields.as_slice() {
            [method] => Ok(Self {
                interface: None,
                method: automatic(method)?,
                hostname: None,
                extra: IpExtra::None,
            }),
            [client, peer, gateway, mask, hostname, interface, rest @ ..] => {
                full_form([client, peer, gateway, mask, hostname, interface], rest)
            }
            [device, method, extra @ ..] => Ok(Self {
                interface: Some(interface(device)?),
                method: automatic(method)?,
                hostname: None,
                extra: link_settings(extra)?,
            }),
            [] => Err(Malformed),
        }
    }
}

fn full_form(head: [&str; METHOD_FIELD], rest: &[&str]) -> Result<IpParameter, Malformed> {
    let [client, peer, gateway, mask, hostname, device] = head;
    // A MAC address behind `IFACE:METHOD:MTU` makes as many fields as the full form.
    if rest.len() >= 3 && automatic(peer).is_ok() && client.parse::<IpAddr>().is_err() && !client.is_empty() {
        let extra: Vec<&str> = head[2..].iter().chain(rest).copied().collect();
        return Ok(IpParameter {
            interface: Some(interface(client)?),
            method: automatic(peer)?,
            hostname: None,
            extra: link_settings(&extra)?,
        });
    }
    let method = rest.first().copied().unwrap_or("");
    let extra = rest.get(1..).unwrap_or(&[]);
    let method = if client.is_empty() {
        automatic(method)?
    } else {
        if !matches!(method, "" | "none" | "off" | "static") {
            return Err(Malformed);
        }
        let (client, suffix) = match client.split_once('/') {
            Some((client, prefix)) => (client, Some(prefix)),
            None => (client, None),
        };
        let address: IpAddr = client.parse().map_err(|_| Malformed)?;
        IpMethod::Static(StaticAddress {
            address,
            prefix: prefix(&address, suffix, mask)?,
            peer: optional(peer)?,
            gateway: optional(gateway)?,
        })
    };
    if !hostname.is_empty() && !is_dns_name(hostname) {
        return Err(Malformed);
    }
    Ok(IpParameter {
        interface: if device.is_empty() {
            None
        } else {
            Some(interface(device)?)
        },
        method,
        hostname: (!hostname.is_empty()).then(|| hostname.to_owned()),
        extra: if extra.first().is_some_and(|first| first.parse::<IpAddr>().is_ok()) {
            servers(extra)?
        } else {
            link_settings(extra)?
        },
    })
}

/// Splits at colons outside brackets, and takes the brackets off.
fn fields(text: &str) -> Result<Vec<String>, Malformed> {
    let mut fields = vec![String::new()];
    let mut bracketed = false;
    for c in text.chars() {
        match c {
            '[' if !bracketed => bracketed = true,
            ']' if bracketed => bracketed = false,
            '[' | ']' => return Err(Malformed),
            ':' if !bracketed => fields.push(String::new()),
            c if c.is_whitespace() => return Err(Malformed),
            c => fields.last_mut().ok_or(Malformed)?.push(c),
        }
    }
    if bracketed { Err(Malformed) } else { Ok(fields) }
}

/// The methods without an address. IPv6's (`auto6`, `dhcp6`, …) are not among them yet.
fn automatic(method: &str) -> Result<IpMethod, Malformed> {
    match method {
        "dhcp" | "on" | "any" => Ok(IpMethod::Dhcp),
        "off" | "none" => Ok(IpMethod::Off),
        _ => Err(Malformed),
    }
}

fn optional(text: &str) -> Result<Option<IpAddr>, Malformed> {
    if text.is_empty() {
        Ok(None)
    } else {
        text.parse().map(Some).map_err(|_| Malformed)
    }
}

/// The prefix length from `ADDRESS/PREFIX`, a prefix length or a netmask; a lone host's when none is said.
fn prefix(address: &IpAddr, suffix: Option<&str>, mask: &str) -> Result<u8, Malformed> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let text = match (suffix, mask) {
        (Some(suffix), "") => suffix,
        (Some(_), _) => return Err(Malformed),
        (None, "") => return Ok(longest),
        (None, mask) => mask,
    };
    if let Ok(mask) = text.parse::<Ipv4Addr>() {
        let bits = u32::from(mask);
        let contiguous = bits.leading_ones() + bits.trailing_zeros() >= 32;
        return if address.is_ipv4() && contiguous {
            Ok(bits.leading_ones() as u8)
        } else {
            Err(Malformed)
        };
    }
    text.parse()
        .ok()
        .filter(|prefix| *prefix <= longest)
        .ok_or(Malformed)
}

/// `[MTU][:MAC]`, where the MAC address brings colons of its own.
fn link_settings(fields: &[&str]) -> Result<IpExtra, Malformed> {
    let (mtu, mac) = match fields {
        [] | [""] => return Ok(IpExtra::None),
        [mtu] => (*mtu, None),
        [mtu, mac @ ..] => (*mtu, Some(mac_address(mac)?)),
    };
    let mtu = if mtu.is_empty() {
        None
    } else {
        Some(mtu.parse().map_err(|_| Malformed)?)
    };
    if mtu.is_some_and(|mtu: u32| !(68..=65_535).contains(&mtu)) {
        return Err(Malformed);
    }
    Ok(IpExtra::Link { mtu, mac })
}

fn mac_address(parts: &[&str]) -> Result<[u8; 6], Malformed> {
    let bytes: Vec<u8> = parts
        .iter()
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect::<Option<_>>()
        .ok_or(Malformed)?;
    bytes.try_into().map_err(|_| Malformed)
}

/// `DNS1[:DNS2[:NTP]]`.
fn servers(fields: &[&str]) -> Result<IpExtra, Malformed> {
    let all: Vec<Option<IpAddr>> = fields
        .iter()
        .map(|field| optional(field))
        .collect::<Result<_, _>>()?;
    if all.len() > 3 {
        return Err(Malformed);
    }
    Ok(IpExtra::Servers {
        nameservers: all.iter().take(2).flatten().copied().collect(),
        ntp: all.get(2).copied().flatten(),
    })
}

/// Upstream's `dev_valid_name` in the kernel: at most 15 bytes, no slash, colon or space.
fn interface(name: &str) -> Result<String, Malformed> {
    let forbidden = |c: char| matches!(c, '/' | ':' | ',') || c.is_whitespace();
    if (1..=15).contains(&name.len()) && name != "." && name != ".." && !name.contains(forbidden) {
        Ok(name.to_owned())
    } else {
        Err(Malformed)
    }
}

struct Bracketed<'a>(&'a IpAddr);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => v4.fmt(f),
            IpAddr::V6(v6) => write!(f, "[{v6}]"),
        }
    }
}

fn bracketed(address: Option<&IpAddr>) -> String {
    address
        .map(|address| Bracketed(address).to_string())
        .unwrap_or_default()
}

impl fmt::Display for IpParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = self.interface.as_deref().unwrap_or("");
        let hostname = self.hostname.as_deref().unwrap_or("");
        let short = hostname.is_empty() && !matches!(self.extra, IpExtra::Servers { .. });
        match &self.method {
            IpMethod::Static(address) => write!(
                f,
                "{}:{}:{}:{}:{hostname}:{interface}:none",
                Bracketed(&address.address),
                bracketed(address.peer.as_ref()),
                bracketed(address.gateway.as_ref()),
                address.prefix,
            )?,
            automatic => {
                let method = if *automatic == IpMethod::Dhcp {
                    "dhcp"
                } else {
                    "off"
                };
                match &self.interface {
                    Some(name) if short => write!(f, "{name}:{method}")?,
                    None if short && self.extra == IpExtra::None => f.write_str(method)?,
                    _ => write!(f, "::::{hostname}:{interface}:{method}")?,
                }
            }
        }
        match &self.extra {
            IpExtra::None => Ok(()),
            IpExtra::Link { mtu, mac } => {
                write!(f, ":{}", mtu.map(|mtu| mtu.to_string()).unwrap_or_default())?;
                mac.iter().flatten().try_for_each(|byte| write!(f, ":{byte:02x}"))
            }
            IpExtra::Servers { nameservers, ntp } => {
                let second = nameservers.get(1);
                write!(f, ":{}", bracketed(nameservers.first()))?;
                if second.is_some() || ntp.is_some() {
                    write!(f, ":{}", bracketed(second))?;
                }
                ntp.iter().try_for_each(|ntp| write!(f, ":{}", Bracketed(ntp)))
            }
        }
    }
}

impl FromStr for Bond {
    type Err = Malformed;

    /// `NAME[:MEMBER,…[:OPTION=VALUE,…[:MTU]]]`
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut fields = text.split(':');
        let name = interface(fields.next().unwrap_or(""))?;
        let members = comma_separated(fields.next())
            .map(interface)
            .collect::<Result<_, _>>()?;
        let options = comma_separated(fields.next())
            .map(|option| {
                let (key, value) = option.split_once('=').ok_or(Malformed)?;
                Ok((key.to_owned(), value.to_owned()))
            })
            .collect::<Result<_, _>>()?;
        let mtu = fields.next().map(str::parse).transpose().map_err(|_| Malformed)?;
        if fields.next().is_some() {
            Err(Malformed)
        } else {
            Ok(Self {
                name,
                members,
                options,
                mtu,
            })
        }
    }
}

fn comma_separated(field: Option<&str>) -> impl Iterator<Item = &str> {
    field.unwrap_or("").split(',').filter(|part| !part.is_empty())
}

impl fmt::Display for Bond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<String> = self
            .options
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        write!(
            f,
            "{}:{}:{}",
            self.name,
            self.members.join(","),
            options.join(",")
        )?;
        self.mtu.iter().try_for_each(|mtu| write!(f, ":{mtu}"))
    }
}

impl FromStr for Vlan {
    type Err = Malformed;

    /// `NAME:DEVICE`
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (name, device) = text.split_once(':').ok_or(Malformed)?;
        let digits = match name.strip_prefix("vlan") {
            Some(digits) => digits,
            None => name.rsplit_once('.').ok_or(Malformed)?.1,
        };
        let id = digits.parse().map_err(|_| Malformed)?;
        if !(1..=4094).contains(&id) {
            return Err(Malformed);
        }
        Ok(Self {
            name: interface(name)?,
            device: interface(device)?,
            id,
        })
    }
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.device)
    }
}
