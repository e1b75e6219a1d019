//! `fieldRef`: the values of a pod's own fields, for environments and downward API volumes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

/// Addresses that are known to the kubelet before the API has them.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    pub pod: Vec<IpAddr>,
    pub host: Vec<IpAddr>,
}

/// The value at `path`, or none when the path is not a supported one.
pub fn pod_field(pod: &Pod, path: &str, addresses: &Addresses) -> Option<String> {
    let metadata = &pod.metadata;
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return None,
        };
        return Some(
            map.as_ref()
                .and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default(),
        );
    }
    let spec = pod.spec.as_ref();
    let joined = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    Some(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(metadata.labels.as_ref()),
        "metadata.annotations" => format_map(metadata.annotations.as_ref()),
        "spec.nodeName" => spec?.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec?.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&addresses.host),
        "status.hostIPs" => joined(&addresses.host),
        "status.podIP" => first(&addresses.pod),
        "status.podIPs" => joined(&addresses.pod),
        _ => return None,
    })
}

fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.labels =
            Some([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into());
        let addresses = Addresses {
            pod: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            host: vec![],
        };
        for (path, expected) in [
            ("metadata.name", Some("p")),
            ("metadata.labels", Some("a=\"1\"\nb=\"2\"")),
            ("metadata.labels['b']", Some("2")),
            ("metadata.annotations['x']", Some("")),
            ("status.podIP", Some("10.0.0.2")),
            ("status.podIPs", Some("10.0.0.2,fd00::2")),
            ("status.phase", None),
        ] {
            assert_eq!(pod_field(&pod, path, &addresses).as_deref(), expected, "{path}");
        }
    }
}
