//! The values that parameters take, each with its one text form.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

/// The text is not a value of the type; the caller names the parameter and says what it expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a value of this type")]
pub struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Worker,
    Master,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    Etcd,
    Embedded,
}

/// `HOST[:PORT]` of an API server; an IPv6 address stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}

/// A bootstrap token, `ID.SECRET`. `Debug` hides it; `Display` is the command line's text and shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// `KEY[=VALUE]:EFFECT`, kubectl's and the kubelet's notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

/// Where the state disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSelector {
    Device(PathBuf),
    Label(String),
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstallTarget {
    Auto,
    Device(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryMirror {
    pub host: String,
    pub url: String,
}

/// Where a configuration file is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    Url(String),
    Labelled { label: String, path: String },
}

/// Kubernetes' port for an API server that names none.
const API_SERVER_PORT: u16 = 6443;

impl FromStr for Role {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text {
            "worker" => Ok(Self::Worker),
            "master" => Ok(Self::Master),
            _ => Err(Malformed),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Master => "master",
        })
    }
}

impl FromStr for StoreKind {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text {
            "etcd" => Ok(Self::Etcd),
            "embedded" => Ok(Self::Embedded),
            _ => Err(Malformed),
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Etcd => "etcd",
            Self::Embedded => "embedded",
        })
    }
}

impl FromStr for Endpoint {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, port) = rest.split_once(']').ok_or(Malformed)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| Malformed)?;
            (host, port)
        } else {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            if !is_dns_name(host) {
                return Err(Malformed);
            }
            (host, port)
        };
        let port = match port.strip_prefix(':') {
            Some(number) => number.parse().ok().filter(|n| *n != 0).ok_or(Malformed)?,
            None if port.is_empty() => API_SERVER_PORT,
            None => return Err(Malformed),
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Token {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (id, secret) = text.split_once('.').ok_or(Malformed)?;
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Malformed)
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}.<hidden>)", &self.0[..6])
    }
}

impl FromStr for Taint {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (pair, effect) = text.rsplit_once(':').ok_or(Malformed)?;
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let effect_known = ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect);
        if effect_known && is_qualified_name(key) && is_label_value(value) {
            Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
                effect: effect.to_owned(),
            })
        } else {
            Err(Malformed)
        }
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{}", self.key, self.value, self.effect)
    }
}

impl FromStr for Cidr {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (address, prefix) = text.split_once('/').ok_or(Malformed)?;
        let address: IpAddr = address.parse().map_err(|_| Malformed)?;
        let prefix: u8 = prefix.parse().map_err(|_| Malformed)?;
        let host_bits_clear = match address {
            IpAddr::V4(v4) if prefix <= 32 => u32::from(v4).checked_shl(prefix.into()).unwrap_or(0) == 0,
            IpAddr::V6(v6) if prefix <= 128 => u128::from(v6).checked_shl(prefix.into()).unwrap_or(0) == 0,
            _ => false,
        };
        if host_bits_clear {
            Ok(Self { address, prefix })
        } else {
            Err(Malformed)
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for DiskSelector {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text.strip_prefix("LABEL=") {
            // ext4 labels hold 16 bytes.
            Some(label) if !label.is_empty() && label.len() <= 16 => Ok(Self::Label(label.to_owned())),
            Some(_) => Err(Malformed),
            None if text == "none" => Ok(Self::None),
            None => Ok(Self::Device(device(text)?)),
        }
    }
}

impl fmt::Display for DiskSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::Label(label) => write!(f, "LABEL={label}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl FromStr for InstallTarget {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text == "auto" {
            Ok(Self::Auto)
        } else {
            Ok(Self::Device(device(text)?))
        }
    }
}

impl fmt::Display for InstallTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Device(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for RegistryMirror {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (host, url) = text.split_once('=').ok_or(Malformed)?;
        let (name, port) = host.split_once(':').unwrap_or((host, "443"));
        if is_dns_name(name) && port.parse::<u16>().is_ok() && is_http_url(url) {
            Ok(Self {
                host: host.to_owned(),
                url: url.to_owned(),
            })
        } else {
            Err(Malformed)
        }
    }
}

impl fmt::Display for RegistryMirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.host, self.url)
    }
}

impl FromStr for ConfigSource {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        if is_http_url(text) {
            return Ok(Self::Url(text.to_owned()));
        }
        let (label, path) = text
            .strip_prefix("LABEL=")
            .and_then(|rest| rest.split_once(':'))
            .ok_or(Malformed)?;
        if label.is_empty() || path.is_empty() {
            return Err(Malformed);
        }
        Ok(Self::Labelled {
            label: label.to_owned(),
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Labelled { label, path } => write!(f, "LABEL={label}:{path}"),
        }
    }
}

fn device(text: &str) -> Result<PathBuf, Malformed> {
    match text.strip_prefix("/dev/") {
        Some(name) if !name.is_empty() && !name.split('/').any(|part| part.is_empty() || part == "..") => {
            Ok(PathBuf::from(text))
        }
        _ => Err(Malformed),
    }
}

fn is_http_url(text: &str) -> bool {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// Upstream's IsDNS1123Subdomain.
pub(crate) fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn is_dns_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Upstream's IsQualifiedName: `[PREFIX/]NAME`.
pub(crate) fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_name(prefix) && !name.is_empty() && is_label_value(name),
        None => !text.is_empty() && is_label_value(text),
    }
}

/// Upstream's IsValidLabelValue.
pub(crate) fn is_label_value(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    text.len() <= 63
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.as_bytes().first())
        && edge(text.as_bytes().last())
}
