//! The table of parameters: name, what it expects, how it is read and how it is written.

use crate::{
    NodeConfig,
    types::{is_dns_name, is_label_value, is_qualified_name},
};

/// Everything under this prefix is ours: an unknown name there is an error.
pub(crate) const PREFIX: &str = "ironlet.";

pub(crate) struct Key {
    pub name: &'static str,
    pub expected: &'static str,
    pub secret: bool,
    /// `None` when the value is not of the expected form; the configuration is then untouched.
    pub set: fn(&mut NodeConfig, &str) -> Option<()>,
    pub show: fn(&NodeConfig) -> Vec<String>,
}

macro_rules! key {
    ($name:literal, $expected:literal, one $field:ident) => {
        key!(@ $name, $expected, false, |c, v| { c.$field = Some(v.parse().ok()?); Some(()) },
            |c| c.$field.iter().map(ToString::to_string).collect())
    };
    ($name:literal, $expected:literal, secret $field:ident) => {
        key!(@ $name, $expected, true, |c, v| { c.$field = Some(v.parse().ok()?); Some(()) },
            |c| c.$field.iter().map(ToString::to_string).collect())
    };
    ($name:literal, $expected:literal, one $field:ident if $valid:path) => {
        key!(@ $name, $expected, false,
            |c, v| { c.$field = Some($valid(v).then(|| v.to_owned())?); Some(()) },
            |c| c.$field.iter().cloned().collect())
    };
    ($name:literal, $expected:literal, many $field:ident) => {
        key!(@ $name, $expected, false, |c, v| { c.$field.push(v.parse().ok()?); Some(()) },
            |c| c.$field.iter().map(ToString::to_string).collect())
    };
    ($name:literal, $expected:literal, list $field:ident) => {
        key!(@ $name, $expected, false, |c, v| { c.$field = list(v, |part| part.parse().ok())?; Some(()) },
            |c| joined(c.$field.iter().map(ToString::to_string).collect()))
    };
    ($name:literal, $expected:literal, flag $field:ident) => {
        key!(@ $name, $expected, false,
            |c, v| { c.$field = ["no", "yes"].iter().position(|word| *word == v)? == 1; Some(()) },
            |c| c.$field.then(|| "yes".to_owned()).into_iter().collect())
    };
    (@ $name:literal, $expected:literal, $secret:literal, $set:expr, $show:expr) => {
        Key { name: $name, expected: $expected, secret: $secret, set: $set, show: $show }
    };
}

pub(crate) const KEYS: &[Key] = &[
    key!("console", "a console device", many consoles),
    key!("panic", "seconds", one panic),
    key!("ip", "dhcp, INTERFACE:dhcp or CLIENT:PEER:GATEWAY:MASK:HOSTNAME:INTERFACE:none[:MTU]", many ip),
    key!("nameserver", "an IP address", many nameservers),
    key!("bond", "NAME[:MEMBER,…[:OPTION=VALUE,…[:MTU]]]", many bonds),
    key!("vlan", "NAME:DEVICE with a NAME of vlan and the number, or ending in a point and the number (1 to 4094)", many vlans),
    key!("ironlet.role", "worker or master", one role),
    key!("ironlet.server", "HOST[:PORT] of an API server", one server),
    key!("ironlet.token", "ID.SECRET: 6 and 16 of a-z, 0-9", secret token),
    key!("ironlet.ca-hash", "sha256: and 64 hexadecimal digits", one ca_hash if is_ca_hash),
    key!("ironlet.hostname", "a DNS name in lower case", one hostname if is_dns_name),
    key!("ironlet.node-ip", "an IP address", one node_ip),
    key!(@ "ironlet.node-labels", "KEY=VALUE[,KEY=VALUE…]", false,
        |c, v| { c.node_labels = list(v, label)?; Some(()) },
        |c| joined(c.node_labels.iter().map(|(key, value)| format!("{key}={value}")).collect())),
    key!("ironlet.node-taints", "KEY[=VALUE]:EFFECT[,…] with NoSchedule, PreferNoSchedule or NoExecute", list node_taints),
    key!("ironlet.pod-cidr", "ADDRESS/PREFIX[,ADDRESS/PREFIX]", list pod_cidr),
    key!("ironlet.service-cidr", "ADDRESS/PREFIX[,ADDRESS/PREFIX]", list service_cidr),
    key!("ironlet.cluster-domain", "a DNS name in lower case", one cluster_domain if is_dns_name),
    key!("ironlet.store", "etcd or embedded", one store),
    key!("ironlet.disk", "/dev/…, LABEL=… or none", one disk),
    key!("ironlet.install", "/dev/… or auto", one install),
    key!("ironlet.wipe", "yes or no", flag wipe),
    key!("ironlet.slot", "A, B or factory", one slot if is_slot),
    key!("ironlet.trial", "yes or no", flag trial),
    key!("ironlet.upgrade-key", "minisign's public key, 56 characters of base64", one upgrade_key if is_minisign_key),
    key!("ironlet.registry-mirror", "HOST=URL with http:// or https://", many registry_mirrors),
    key!("ironlet.config", "a URL or LABEL=…:PATH", one config),
];

fn list<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    text.split(',').map(parse).collect()
}

fn joined(values: Vec<String>) -> Vec<String> {
    if values.is_empty() {
        values
    } else {
        vec![values.join(",")]
    }
}

fn label(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    (is_qualified_name(key) && is_label_value(value)).then(|| (key.to_owned(), value.to_owned()))
}

fn is_slot(text: &str) -> bool {
    ["A", "B", "factory"].contains(&text)
}

/// 42 bytes: `Ed`, the key's number, the key.
fn is_minisign_key(text: &str) -> bool {
    text.len() == 56
        && text.starts_with("RW")
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

fn is_ca_hash(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What to say of an unknown name: the nearest known one when it is near, else all.
pub(crate) fn suggestion(name: &str) -> String {
    let ours = KEYS
        .iter()
        .map(|key| key.name)
        .filter(|known| known.starts_with(PREFIX));
    match ours.clone().map(|known| (distance(name, known), known)).min() {
        Some((near, known)) if near <= 3 => format!("{known}, perhaps"),
        _ => format!("one of {}", ours.collect::<Vec<_>>().join(", ")),
    }
}

/// The edit distance (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let cost = if x == y {
                diagonal
            } else {
                1 + diagonal.min(row[j]).min(row[j + 1])
            };
            diagonal = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}
