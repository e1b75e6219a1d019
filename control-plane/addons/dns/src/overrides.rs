//! What an administrator decides about names, in the ConfigMap `cluster-dns`: hosts, stub domains, upstreams (the keys
//! of the last two, and their JSON, are those of the kube-dns ConfigMap).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::serde_json;

use crate::records::{Data, reverse};

pub const CONFIG_MAP: &str = "cluster-dns";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OverrideError {
    #[error("{key}: {problem}")]
    Json { key: &'static str, problem: String },
    #[error("{key}: {text:?} is not an IP address with or without a port")]
    Address { key: &'static str, text: String },
    #[error("hosts line {line}: expected an IP address and names")]
    Hosts { line: usize },
}

/// Names are lower case and without the final dot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub hosts: HashMap<String, Vec<Data>>,
    /// The longest domain first.
    stubs: Vec<(String, Vec<SocketAddr>)>,
    upstreams: Option<Vec<SocketAddr>>,
}

impl Overrides {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, OverrideError> {
        let mut parsed = Self::default();
        if let Some(text) = data.get("hosts") {
            parsed.hosts = hosts(text)?;
        }
        if let Some(text) = data.get("stubDomains") {
            let stubs: BTreeMap<String, Vec<String>> = json("stubDomains", text)?;
            for (domain, servers) in stubs {
                let servers = addresses("stubDomains", &servers)?;
                parsed.stubs.push((key(&domain), servers));
            }
            parsed
                .stubs
                .sort_by_key(|(domain, _)| std::cmp::Reverse(domain.len()));
        }
        if let Some(text) = data.get("upstreamNameservers") {
            let servers: Vec<String> = json("upstreamNameservers", text)?;
            parsed.upstreams = Some(addresses("upstreamNameservers", &servers)?);
        }
        Ok(parsed)
    }

    /// Who is to be asked about `name`, when not the upstreams of resolv.conf.
    pub fn servers_of(&self, name: &str) -> Option<&[SocketAddr]> {
        let within = |domain: &str| {
            let above = name.strip_suffix(domain);
            above.is_some_and(|rest| domain.is_empty() || rest.is_empty() || rest.ends_with('.'))
        };
        let stub = self.stubs.iter().find(|(domain, _)| within(domain));
        let stub = stub.map(|(_, servers)| servers.as_slice());
        stub.or(self.upstreams.as_deref())
    }

    /// All servers named here.
    pub fn servers(&self) -> impl Iterator<Item = SocketAddr> {
        let stubs = self.stubs.iter().flat_map(|(_, servers)| servers);
        stubs.chain(self.upstreams.iter().flatten()).copied()
    }
}

fn key(name: &str) -> String {
    name.trim_matches('.').to_ascii_lowercase()
}

fn json<T: k8s_openapi::serde::de::DeserializeOwned>(
    key: &'static str,
    text: &str,
) -> Result<T, OverrideError> {
    serde_json::from_str(text).map_err(|error| OverrideError::Json {
        key,
        problem: error.to_string(),
    })
}

fn addresses(key: &'static str, texts: &[String]) -> Result<Vec<SocketAddr>, OverrideError> {
    let address = |text: &String| {
        let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        plain
            .or_else(|_| text.parse())
            .map_err(|_| OverrideError::Address {
                key,
                text: text.clone(),
            })
    };
    texts.iter().map(address).collect()
}

/// The format of hosts(5).
fn hosts(text: &str) -> Result<HashMap<String, Vec<Data>>, OverrideError> {
    let mut hosts: HashMap<String, Vec<Data>> = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(first) = words.next() else { continue };
        let malformed = OverrideError::Hosts { line: index + 1 };
        let Ok(address) = first.parse::<IpAddr>() else {
            return Err(malformed);
        };
        let names: Vec<String> = words.map(key).collect();
        let Some(canonical) = names.first() else {
            return Err(malformed);
        };
        let pointer = Data::Pointer(canonical.clone());
        hosts.entry(reverse(address)).or_default().push(pointer);
        for name in names {
            hosts.entry(name).or_default().push(Data::Address(address));
        }
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    #[test]
    fn the_longest_stub_domain_wins() {
        let overrides = Overrides::parse(&data(&[
            (
                "stubDomains",
                r#"{"corp": ["10.0.0.1"], "lab.corp.": ["10.0.0.2:5353", "fd00::2"]}"#,
            ),
            ("upstreamNameservers", r#"["10.0.0.9"]"#),
        ]))
        .unwrap();
        for (name, want) in [
            ("x.lab.corp", "[10.0.0.2:5353, [fd00::2]:53]"),
            ("lab.corp", "[10.0.0.2:5353, [fd00::2]:53]"),
            ("x.corp", "[10.0.0.1:53]"),
            ("xcorp", "[10.0.0.9:53]"),
        ] {
            assert_eq!(
                format!("{:?}", overrides.servers_of(name).unwrap()),
                want,
                "{name}"
            );
        }
        assert_eq!(Overrides::default().servers_of("x.corp"), None);
        assert_eq!(overrides.servers().count(), 4);
    }

    #[test]
    fn hosts_have_names_and_pointers() {
        let text = "# lab\n10.0.0.5 Printer.lan printer # second floor\n\nfd00::5 printer.lan\n";
        let hosts = Overrides::parse(&data(&[("hosts", text)])).unwrap().hosts;
        assert_eq!(hosts["printer.lan"].len(), 2);
        assert_eq!(hosts["printer"], [Data::Address("10.0.0.5".parse().unwrap())]);
        assert_eq!(
            hosts["5.0.0.10.in-addr.arpa"],
            [Data::Pointer("printer.lan".into())]
        );
    }

    #[test]
    fn mistakes_name_the_key() {
        for (key, value, want) in [
            ("stubDomains", "[]", "stubDomains: "),
            (
                "stubDomains",
                r#"{"a": ["b"]}"#,
                "stubDomains: \"b\" is not an IP",
            ),
            (
                "upstreamNameservers",
                r#"["1.2.3"]"#,
                "upstreamNameservers: \"1.2.3\"",
            ),
            ("hosts", "\n10.0.0.1", "hosts line 2: "),
            ("hosts", "name 10.0.0.1", "hosts line 1: "),
        ] {
            let error = Overrides::parse(&data(&[(key, value)])).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
