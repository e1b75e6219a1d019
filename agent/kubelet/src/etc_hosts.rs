//! The hosts file of a pod, which the kubelet writes and mounts over each container's `/etc/hosts`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, PodSpec};

/// The pod's host name and, where it has a subdomain, its fully qualified name.
pub fn host_names(pod_name: &str, namespace: &str, spec: &PodSpec, domain: &str) -> (String, Option<String>) {
    let host = spec
        .hostname
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or(pod_name);
    let host: String = host
        .chars()
        .take(63)
        .collect::<String>()
        .trim_end_matches(['-', '.'])
        .to_owned();
    if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return (name.to_owned(), None);
    }
    let subdomain = spec.subdomain.as_deref().filter(|name| !name.is_empty());
    let full = subdomain.map(|subdomain| format!("{host}.{subdomain}.{namespace}.svc.{domain}"));
    (host, full)
}

pub fn pod_hosts(ips: &[IpAddr], host: &str, full: Option<&str>, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        match full {
            Some(full) => text.push_str(&format!("{ip}\t{full}\t{host}\n")),
            None => text.push_str(&format!("{ip}\t{host}\n")),
        }
    }
    append_aliases(&mut text, aliases);
    text
}

/// Pods on the host's network see the node's file.
pub fn node_hosts(node: &str, aliases: &[HostAlias]) -> String {
    let mut text = format!("# Kubernetes-managed hosts file (host network).\n{node}");
    append_aliases(&mut text, aliases);
    text
}

fn append_aliases(text: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let spec = |hostname: Option<&str>, subdomain: Option<&str>| PodSpec {
            hostname: hostname.map(Into::into),
            subdomain: subdomain.map(Into::into),
            ..Default::default()
        };
        for (spec, host, full) in [
            (spec(None, None), "web-0", None),
            (spec(Some("h"), None), "h", None),
            (spec(Some("h"), Some("s")), "h", Some("h.s.ns.svc.cluster.local")),
        ] {
            assert_eq!(
                host_names("web-0", "ns", &spec, "cluster.local"),
                (host.into(), full.map(Into::into))
            );
        }
        let long = "a".repeat(62) + "-b";
        assert_eq!(host_names(&long, "ns", &spec(None, None), "d").0, "a".repeat(62));
    }

    #[test]
    fn file_contents() {
        let aliases = [HostAlias {
            ip: "1.2.3.4".into(),
            hostnames: Some(vec!["a".into(), "b".into()]),
        }];
        let text = pod_hosts(
            &["10.244.0.5".parse().unwrap()],
            "h",
            Some("h.s.ns.svc.d"),
            &aliases,
        );
        assert!(text.contains("\n10.244.0.5\th.s.ns.svc.d\th\n"));
        assert!(text.ends_with("\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        assert!(node_hosts("127.0.0.1 localhost\n", &[]).ends_with("127.0.0.1 localhost\n"));
    }
}
