//! Where a proxied request goes.

use serde_json::Value;

use crate::pipeline::ObjectReader;
use crate::status::ApiError;

const KUBELET_PORT: u16 = 10250;
/// As kubeadm sets `--kubelet-preferred-address-types`.
const ADDRESS_TYPES: [&str; 3] = ["InternalIP", "ExternalIP", "Hostname"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
    /// TLS to a kubelet: our client certificate is shown, its certificate is verified.
    Kubelet,
    /// The same, unverified because the request says so.
    UnverifiedKubelet,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub scheme: Scheme,
    /// Host name or address, without brackets.
    pub host: String,
    pub port: u16,
    /// Path and query, encoded.
    pub path: String,
}

impl Target {
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.scheme == Scheme::Http {
            "http"
        } else {
            "https"
        };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }
}

/// The kubelet of a node.
pub async fn kubelet(reader: &dyn ObjectReader, node: &str, path: String) -> Result<Target, ApiError> {
    let object = reader
        .get("", "nodes", "", node)
        .await?
        .ok_or_else(|| ApiError::not_found("nodes", node))?;
    let (host, port) = kubelet_address(&object).ok_or_else(|| {
        ApiError::internal(format!("node {node:?} has no address of types {ADDRESS_TYPES:?}"))
    })?;
    Ok(Target {
        scheme: Scheme::Kubelet,
        host,
        port,
        path,
    })
}

fn kubelet_address(node: &Value) -> Option<(String, u16)> {
    let addresses = node["status"]["addresses"].as_array()?;
    let host = ADDRESS_TYPES.iter().find_map(|wanted| {
        let found = addresses.iter().find(|address| address["type"] == *wanted)?;
        found["address"].as_str()
    })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0);
    Some((host.to_owned(), port.unwrap_or(KUBELET_PORT)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kubelets_are_found_by_their_nodes_status() {
        let node = |addresses: Value, port: Value| json!({"status": {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
        let both =
            json!([{"type": "Hostname", "address": "h"}, {"type": "InternalIP", "address": "1.2.3.4"}]);
        let host = json!([{"type": "Hostname", "address": "h"}]);
        assert_eq!(
            kubelet_address(&node(both, json!(10251))),
            Some(("1.2.3.4".into(), 10251))
        );
        assert_eq!(
            kubelet_address(&node(host, Value::Null)),
            Some(("h".into(), 10250))
        );
        assert_eq!(kubelet_address(&node(json!([]), json!(1))), None);
        assert_eq!(kubelet_address(&json!({})), None);
    }

    #[test]
    fn ipv6_hosts_are_bracketed() {
        let target = Target {
            scheme: Scheme::Https,
            host: "fd00::1".into(),
            port: 1,
            path: "/x?y=1".into(),
        };
        assert_eq!(target.url(), "https://[fd00::1]:1/x?y=1");
    }
}
