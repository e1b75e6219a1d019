//! Name resolution of pods: what the CRI server writes into `/etc/resolv.conf`.

use std::net::IpAddr;

use cri_api::v1::DnsConfig;
use k8s_openapi::api::core::v1::PodSpec;

/// The node's own resolver settings.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(Into::into)),
            Some("search" | "domain") => config.searches = words.map(Into::into).collect(),
            Some("options") => config.options = words.map(Into::into).collect(),
            _ => {}
        }
    }
    config
}

pub fn pod_dns(
    spec: &PodSpec,
    namespace: &str,
    cluster_dns: &[IpAddr],
    cluster_domain: &str,
    node: &DnsConfig,
) -> DnsConfig {
    let host_network = spec.host_network.unwrap_or(false);
    let mut config = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => DnsConfig::default(),
        "ClusterFirstWithHostNet" if !cluster_dns.is_empty() => {
            cluster_first(namespace, cluster_dns, cluster_domain, node)
        }
        "ClusterFirst" if !host_network && !cluster_dns.is_empty() => {
            cluster_first(namespace, cluster_dns, cluster_domain, node)
        }
        _ => node.clone(),
    };
    if let Some(own) = &spec.dns_config {
        append(&mut config.servers, own.nameservers.iter().flatten());
        append(&mut config.searches, own.searches.iter().flatten());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            config
                .options
                .retain(|existing| existing.split(':').next() != Some(name));
            config.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    config
}

fn cluster_first(namespace: &str, cluster_dns: &[IpAddr], domain: &str, node: &DnsConfig) -> DnsConfig {
    let mut searches = vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.to_owned(),
    ];
    append(&mut searches, node.searches.iter());
    let servers = cluster_dns.iter().map(ToString::to_string).collect();
    DnsConfig {
        servers,
        searches,
        options: vec!["ndots:5".into()],
    }
}

fn append<'a>(list: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption};

    fn render(spec: &PodSpec) -> String {
        let node = parse_resolv_conf("# comment\nnameserver 10.0.2.3\nsearch lan\noptions edns0\n");
        let config = pod_dns(
            spec,
            "ns",
            &["10.96.0.10".parse().unwrap()],
            "cluster.local",
            &node,
        );
        [
            config.servers.join(","),
            config.searches.join(","),
            config.options.join(","),
        ]
        .join(" | ")
    }

    #[test]
    fn policies() {
        let spec = |policy: &str, host| PodSpec {
            dns_policy: Some(policy.into()),
            host_network: Some(host),
            ..Default::default()
        };
        let cluster = "10.96.0.10 | ns.svc.cluster.local,svc.cluster.local,cluster.local,lan | ndots:5";
        let node = "10.0.2.3 | lan | edns0";
        for (policy, host, expected) in [
            ("ClusterFirst", false, cluster),
            ("ClusterFirst", true, node),
            ("ClusterFirstWithHostNet", true, cluster),
            ("Default", false, node),
            ("None", false, " |  | "),
        ] {
            assert_eq!(render(&spec(policy, host)), expected, "{policy}");
        }
    }

    #[test]
    fn own_options_override() {
        let option = |name: &str, value: &str| PodDNSConfigOption {
            name: Some(name.into()),
            value: Some(value.into()),
        };
        let spec = PodSpec {
            dns_config: Some(PodDNSConfig {
                nameservers: Some(vec!["1.1.1.1".into()]),
                options: Some(vec![option("ndots", "2")]),
                searches: None,
            }),
            ..Default::default()
        };
        let expected =
            "10.96.0.10,1.1.1.1 | ns.svc.cluster.local,svc.cluster.local,cluster.local,lan | ndots:2";
        assert_eq!(render(&spec), expected);
    }
}
