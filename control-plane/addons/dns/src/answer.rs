//! The answer to one question, decided from the records alone.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::RecordType;

use crate::records::{Data, Records};

/// Aliases that are followed inside the cluster; a longer chain is a loop.
const ALIASES: usize = 8;

#[derive(Debug, Clone)]
pub struct Question {
    /// Lower case, without the final dot.
    pub name: String,
    pub kind: RecordType,
}

/// A name and what it holds.
pub type Held = (String, Data);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Not the cluster's name: ask the upstreams.
    Forward,
    /// Aliases of ours that lead to a name that is not: these, and then what the upstreams say of the name.
    Continue {
        aliases: Vec<Held>,
        name: String,
    },
    Found {
        answers: Vec<Held>,
        additionals: Vec<Held>,
    },
    /// The domain's own start of authority.
    Authority,
    /// The domain's own name servers.
    NameServers,
    /// The name exists, without data of this type.
    NoData,
    NoName,
}

/// `hosts` come before all else.
pub fn answer(records: &Records, hosts: &HashMap<String, Vec<Data>>, question: &Question) -> Answer {
    let mut aliases = Vec::new();
    let mut name = question.name.clone();
    for _ in 0..ALIASES {
        if let Some(held) = hosts.get(&name) {
            return found(records, &name, held, question.kind, aliases);
        }
        if !inside(records, &name) {
            // A private address that is no Service's may be known to the upstreams.
            let ours = records.get(&name).filter(|_| aliases.is_empty());
            return match ours {
                Some(held) => found(records, &name, held, question.kind, aliases),
                None if aliases.is_empty() => Answer::Forward,
                None => Answer::Continue { aliases, name },
            };
        }
        if name == records.domain {
            match question.kind {
                RecordType::SOA => return Answer::Authority,
                RecordType::NS => return Answer::NameServers,
                _ => {}
            }
        }
        let pod = pod(records, &name);
        let held = match pod.as_deref().or_else(|| records.get(&name)) {
            Some(held) => held,
            None if aliases.is_empty() => return Answer::NoName,
            None => {
                return Answer::Found {
                    answers: aliases,
                    additionals: Vec::new(),
                };
            }
        };
        match held {
            [Data::Alias(target)] if question.kind != RecordType::CNAME => {
                aliases.push((name.clone(), held[0].clone()));
                name = target.clone();
            }
            _ => return found(records, &name, held, question.kind, aliases),
        }
    }
    Answer::Found {
        answers: aliases,
        additionals: Vec::new(),
    }
}

fn found(records: &Records, name: &str, held: &[Data], kind: RecordType, aliases: Vec<Held>) -> Answer {
    let mut answers = aliases;
    let matching = held.iter().filter(|data| is(data, kind));
    answers.extend(matching.map(|data| (name.to_owned(), data.clone())));
    if answers.is_empty() {
        return Answer::NoData;
    }
    let mut additionals: Vec<Held> = Vec::new();
    for (_, data) in &answers {
        let Data::Service { target, .. } = data else {
            continue;
        };
        if additionals.iter().any(|(known, _)| known == target) {
            continue;
        }
        let addresses = records.get(target).unwrap_or_default().iter();
        let addresses = addresses.filter(|data| matches!(data, Data::Address(_)));
        additionals.extend(addresses.map(|data| (target.clone(), data.clone())));
    }
    Answer::Found { answers, additionals }
}

fn is(data: &Data, kind: RecordType) -> bool {
    kind == RecordType::ANY
        || kind
            == match data {
                Data::Address(IpAddr::V4(_)) => RecordType::A,
                Data::Address(IpAddr::V6(_)) => RecordType::AAAA,
                Data::Service { .. } => RecordType::SRV,
                Data::Alias(_) => RecordType::CNAME,
                Data::Pointer(_) => RecordType::PTR,
                Data::Text(_) => RecordType::TXT,
            }
}

fn inside(records: &Records, name: &str) -> bool {
    name.strip_suffix(&records.domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// `10-244-1-7.NAMESPACE.pod.DOMAIN` says its own address.
fn pod(records: &Records, name: &str) -> Option<Vec<Data>> {
    let rest = name.strip_suffix(&records.domain)?.strip_suffix(".pod.")?;
    let (label, namespace) = rest.split_once('.')?;
    if !records.has_namespace(namespace) {
        return None;
    }
    let four = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    let address = four.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6));
    Some(vec![Data::Address(address.ok()?)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use k8s_openapi::serde_json::{self, json};

    fn records() -> Records {
        let services: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"name": "web", "namespace": "a"}, "spec": {"clusterIP": "10.96.0.7",
                "clusterIPs": ["10.96.0.7", "fd00::7"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"port": 81}]}},
            {"metadata": {"name": "db", "namespace": "a"}, "spec": {"clusterIP": "None"}},
            {"metadata": {"name": "slow", "namespace": "a"},
                "spec": {"clusterIP": "None", "publishNotReadyAddresses": true}},
            {"metadata": {"name": "out", "namespace": "a"},
                "spec": {"type": "ExternalName", "externalName": "Example.org."}},
            {"metadata": {"name": "in", "namespace": "a"},
                "spec": {"type": "ExternalName", "externalName": "web.a.svc.cluster.local"}},
            {"metadata": {"name": "loop", "namespace": "a"},
                "spec": {"type": "ExternalName", "externalName": "loop.a.svc.cluster.local"}},
        ]))
        .unwrap();
        let slice = |service: &str| {
            json!({"metadata": {"name": service, "namespace": "a",
                "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.1.2"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.1.3"], "conditions": {}},
                {"addresses": ["10.244.1.4"], "conditions": {"ready": false}},
            ]})
        };
        let slices: Vec<EndpointSlice> =
            serde_json::from_value(json!([slice("db"), slice("slow"), slice("web")])).unwrap();
        Records::build("Cluster.Local", ["a", "empty"], &services, &slices)
    }

    fn ask(name: &str, kind: RecordType) -> String {
        let question = Question {
            name: name.into(),
            kind,
        };
        let show = |held: &[Held]| {
            let mut lines: Vec<String> = held
                .iter()
                .map(|(_, data)| match data {
                    Data::Address(address) => address.to_string(),
                    Data::Service { port, target } => format!("{port} {target}"),
                    Data::Alias(name) | Data::Pointer(name) | Data::Text(name) => name.clone(),
                })
                .collect();
            lines.sort();
            lines.join(", ")
        };
        let hosts = [
            ("printer.lan", "10.0.0.5"),
            ("pinned.a.svc.cluster.local", "10.0.0.6"),
        ];
        let hosts = hosts.map(|(name, ip)| (name.to_owned(), vec![Data::Address(ip.parse().unwrap())]));
        match answer(&records(), &HashMap::from(hosts), &question) {
            Answer::Found { answers, additionals } if additionals.is_empty() => show(&answers),
            Answer::Found { answers, additionals } => format!("{} + {}", show(&answers), show(&additionals)),
            Answer::Continue { aliases, name } => format!("{} -> {name}", show(&aliases)),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn every_shape_of_name_has_its_answer() {
        use RecordType::{A, AAAA, ANY, CNAME, NS, PTR, SOA, SRV, TXT};
        for (name, kind, want) in [
            ("web.a.svc.cluster.local", A, "10.96.0.7"),
            ("web.a.svc.cluster.local", AAAA, "fd00::7"),
            ("web.a.svc.cluster.local", ANY, "10.96.0.7, fd00::7"),
            ("web.a.svc.cluster.local", TXT, "NoData"),
            (
                "_http._tcp.web.a.svc.cluster.local",
                SRV,
                "80 web.a.svc.cluster.local + 10.96.0.7, fd00::7",
            ),
            ("_tcp.web.a.svc.cluster.local", SRV, "NoData"),
            ("_http._udp.web.a.svc.cluster.local", SRV, "NoName"),
            ("7.0.96.10.in-addr.arpa", PTR, "web.a.svc.cluster.local"),
            (
                "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
                PTR,
                "web.a.svc.cluster.local",
            ),
            ("8.0.96.10.in-addr.arpa", PTR, "Forward"),
            ("db.a.svc.cluster.local", A, "10.244.1.2, 10.244.1.3"),
            ("db.a.svc.cluster.local", AAAA, "NoData"),
            ("db-0.db.a.svc.cluster.local", A, "10.244.1.2"),
            ("10-244-1-3.db.a.svc.cluster.local", A, "10.244.1.3"),
            ("10-244-1-4.db.a.svc.cluster.local", A, "NoName"),
            (
                "slow.a.svc.cluster.local",
                A,
                "10.244.1.2, 10.244.1.3, 10.244.1.4",
            ),
            (
                "_sql._tcp.db.a.svc.cluster.local",
                SRV,
                "5432 10-244-1-3.db.a.svc.cluster.local, 5432 db-0.db.a.svc.cluster.local + 10.244.1.2, 10.244.1.3",
            ),
            ("db-0.web.a.svc.cluster.local", A, "NoName"),
            ("out.a.svc.cluster.local", CNAME, "example.org"),
            ("out.a.svc.cluster.local", A, "example.org -> example.org"),
            ("in.a.svc.cluster.local", A, "10.96.0.7, web.a.svc.cluster.local"),
            ("10-244-1-9.a.pod.cluster.local", A, "10.244.1.9"),
            ("fd00--9.a.pod.cluster.local", AAAA, "fd00::9"),
            ("fd00--9.a.pod.cluster.local", A, "NoData"),
            ("10-244-1-9.b.pod.cluster.local", A, "NoName"),
            ("what.a.pod.cluster.local", A, "NoName"),
            ("empty.svc.cluster.local", A, "NoData"),
            ("svc.cluster.local", A, "NoData"),
            ("cluster.local", A, "NoData"),
            ("cluster.local", SOA, "Authority"),
            ("cluster.local", NS, "NameServers"),
            ("dns-version.cluster.local", TXT, "1.1.0"),
            ("nobody.a.svc.cluster.local", A, "NoName"),
            ("mycluster.local", A, "Forward"),
            ("example.org", A, "Forward"),
            ("printer.lan", A, "10.0.0.5"),
            ("printer.lan", AAAA, "NoData"),
            ("pinned.a.svc.cluster.local", A, "10.0.0.6"),
        ] {
            assert_eq!(ask(name, kind), want, "{name} {kind}");
        }
    }

    #[test]
    fn a_loop_of_aliases_ends() {
        let answer = ask("loop.a.svc.cluster.local", RecordType::A);
        assert_eq!(answer.matches("loop.a.svc.cluster.local").count(), ALIASES);
    }
}
