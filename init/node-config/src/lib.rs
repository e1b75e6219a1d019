//! The one place that knows the machine's command line: text to [`NodeConfig`], and back.
//!
//! [`parse`] never fails. What it cannot use comes back as [`ParameterError`]s for the console; everything
//! that belongs to the kernel or a boot loader is left alone. `NodeConfig`'s `Display` renders what
//! `parse` reads, so the image builder and the VM runner write command lines with the same table.

mod interface;
mod keys;
pub mod machine_state;
mod types;
mod words;

pub use interface::{Bond, IpExtra, IpMethod, IpParameter, StaticAddress, Vlan};
pub use types::{
    Cidr, ConfigSource, DiskSelector, Endpoint, InstallTarget, RegistryMirror, Role, StoreKind, Taint, Token,
};

use std::{fmt, net::IpAddr};

/// What the command line says of this machine. `None` or empty means "not said": defaults are the reader's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    pub role: Option<Role>,
    pub server: Option<Endpoint>,
    pub token: Option<Token>,
    /// kubeadm's format, `sha256:` and 64 hexadecimal digits.
    pub ca_hash: Option<String>,
    pub hostname: Option<String>,
    pub node_ip: Option<IpAddr>,
    pub node_labels: Vec<(String, String)>,
    pub node_taints: Vec<Taint>,
    pub pod_cidr: Vec<Cidr>,
    pub service_cidr: Vec<Cidr>,
    pub cluster_domain: Option<String>,
    pub store: Option<StoreKind>,
    pub disk: Option<DiskSelector>,
    pub install: Option<InstallTarget>,
    /// The disk that `install` names may hold data.
    pub wipe: bool,
    /// The installed system that was booted; the boot loader says it.
    pub slot: Option<String>,
    /// That system is tried for the first time; the boot loader says it.
    pub trial: bool,
    /// minisign's public key: without a signature by it no upgrade is taken.
    pub upgrade_key: Option<String>,
    pub registry_mirrors: Vec<RegistryMirror>,
    pub config: Option<ConfigSource>,
    pub ip: Vec<IpParameter>,
    pub nameservers: Vec<IpAddr>,
    pub bonds: Vec<Bond>,
    pub vlans: Vec<Vlan>,
    /// The kernel's `console=` values, in order.
    pub consoles: Vec<String>,
    /// The kernel's `panic=` seconds.
    pub panic: Option<i32>,
}

/// A parameter that was not understood. Its value is hidden where it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    #[error("{parameter}={value}: unknown parameter: expected {expected}")]
    Unknown {
        parameter: String,
        value: String,
        expected: String,
    },
    #[error("{parameter}={value}: bad value: expected {expected}")]
    BadValue {
        parameter: String,
        value: String,
        expected: String,
    },
}

/// Reads a kernel command line. A later value of a single-valued parameter replaces an earlier one.
pub fn parse(cmdline: &str) -> (NodeConfig, Vec<ParameterError>) {
    let mut config = NodeConfig::default();
    let mut errors = Vec::new();
    for word in words::split(cmdline) {
        let (name, value) = word.split_once('=').unwrap_or((&word, ""));
        let error = match keys::KEYS.iter().find(|key| key.name == name) {
            Some(key) => (key.set)(&mut config, value)
                .is_none()
                .then(|| ParameterError::BadValue {
                    parameter: name.to_owned(),
                    value: if key.secret {
                        "<hidden>".to_owned()
                    } else {
                        value.to_owned()
                    },
                    expected: key.expected.to_owned(),
                }),
            None if name.starts_with(keys::PREFIX) => Some(ParameterError::Unknown {
                parameter: name.to_owned(),
                value: value.to_owned(),
                expected: keys::suggestion(name),
            }),
            None => None,
        };
        errors.extend(error);
    }
    (config, errors)
}

impl fmt::Display for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for key in keys::KEYS {
            for value in (key.show)(self) {
                write!(f, "{separator}{}={}", key.name, words::quote(&value))?;
                separator = " ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
