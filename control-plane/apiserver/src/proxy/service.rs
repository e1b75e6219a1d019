//! The `proxy` sub-resources: HTTP to a pod, to an endpoint of a service, or to a kubelet.

use rand::seq::IndexedRandom as _;
use serde_json::Value;

use super::target::{Scheme, Target, kubelet};
use crate::object;
use crate::pipeline::ObjectReader;
use crate::request_info::RequestInfo;
use crate::status::ApiError;

/// `[scheme:]name[:port]` (upstream: `utilnet.SplitSchemeNamePort`).
fn split(id: &str) -> Option<(Scheme, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    let scheme = match scheme {
        "" | "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    (!name.is_empty()).then_some((scheme, name, port))
}

fn path(info: &RequestInfo, query: &str) -> String {
    let separator = if query.is_empty() { "" } else { "?" };
    format!("/{}{separator}{query}", info.rest)
}

pub async fn node(reader: &dyn ObjectReader, info: &RequestInfo, query: &str) -> Result<Target, ApiError> {
    let invalid = || ApiError::bad_request(format!("invalid node request {:?}", info.name));
    let (scheme, name, port) = split(&info.name).ok_or_else(invalid)?;
    let mut target = kubelet(reader, name, path(info, query)).await?;
    // Another port than the kubelet's is some other server of the node's.
    if !port.is_empty() {
        let port: u16 = port.parse().map_err(|_| invalid())?;
        if port != target.port {
            target.scheme = scheme;
        }
        target.port = port;
    }
    Ok(target)
}

pub async fn pod(reader: &dyn ObjectReader, info: &RequestInfo, query: &str) -> Result<Target, ApiError> {
    let invalid = || ApiError::bad_request(format!("invalid pod request {:?}", info.name));
    let (scheme, name, port) = split(&info.name).ok_or_else(invalid)?;
    let pod = reader.get("", "pods", &info.namespace, name).await?;
    let pod = pod.ok_or_else(|| ApiError::not_found("pods", name))?;
    let containers = pod["spec"]["containers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let first = containers
        .iter()
        .find_map(|container| container["ports"][0]["containerPort"].as_u64());
    let default = if scheme == Scheme::Https { 443 } else { 80 };
    let port = match port {
        "" => first.and_then(|port| u16::try_from(port).ok()).unwrap_or(default),
        port => port.parse().map_err(|_| invalid())?,
    };
    let host = pod["status"]["podIP"]
        .as_str()
        .filter(|address| !address.is_empty());
    let host = host.ok_or_else(|| ApiError::internal(format!("pod {name:?} has no address allocated")))?;
    Ok(Target {
        scheme,
        host: host.to_owned(),
        port,
        path: path(info, query),
    })
}

pub async fn service(reader: &dyn ObjectReader, info: &RequestInfo, query: &str) -> Result<Target, ApiError> {
    let invalid = || ApiError::bad_request(format!("invalid service request {:?}", info.name));
    let (scheme, name, port) = split(&info.name).ok_or_else(invalid)?;
    let service = reader.get("", "services", &info.namespace, name).await?;
    let service = service.ok_or_else(|| ApiError::not_found("services", name))?;
    let slices = reader
        .list("discovery.k8s.io", "endpointslices", &info.namespace)
        .await?;
    let (host, port) = endpoint(&service, &slices, port).map_err(ApiError::service_unavailable)?;
    Ok(Target {
        scheme,
        host,
        port,
        path: path(info, query),
    })
}

/// A ready endpoint behind a service's port, which is asked for by name or number.
pub fn endpoint(service: &Value, slices: &[Value], port: &str) -> Result<(String, u16), String> {
    let name = object::name(service);
    let port_name = port_name(service, port)
        .ok_or_else(|| format!("no service port {port:?} found for service {name:?}"))?;
    let candidates = endpoints(slices, name, &port_name);
    let chosen = candidates.choose(&mut rand::rng()).cloned();
    chosen.ok_or_else(|| format!("no endpoints available for service {name:?}"))
}

/// The name a service port goes by in the endpoint slices; asked for by name or number, or the only one.
pub fn port_name(service: &Value, asked: &str) -> Option<String> {
    let ports = service["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let name = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
    if asked.is_empty() {
        return ports
            .iter()
            .map(name)
            .find(String::is_empty)
            .or_else(|| match ports {
                [only] => Some(name(only)),
                _ => None,
            });
    }
    let number: Option<u64> = asked.parse().ok();
    ports
        .iter()
        .find(|port| name(port) == asked || (number.is_some() && port["port"].as_u64() == number))
        .map(name)
}

/// Whether an endpoint slice is of the service.
pub fn is_of(slice: &Value, service: &str) -> bool {
    slice["metadata"]["labels"]["kubernetes.io/service-name"] == service
}

pub fn endpoints(slices: &[Value], service: &str, port_name: &str) -> Vec<(String, u16)> {
    let of_service = slices.iter().filter(|slice| is_of(slice, service));
    let mut found = Vec::new();
    for slice in of_service {
        let items = |field: &str| slice[field].as_array().cloned().unwrap_or_default();
        let port = items("ports")
            .into_iter()
            .find(|port| port["name"].as_str().unwrap_or_default() == port_name);
        let Some(port) = port.and_then(|port| u16::try_from(port["port"].as_u64()?).ok()) else {
            continue;
        };
        for endpoint in items("endpoints") {
            // Not known counts as ready.
            let ready = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
            if let Some(address) = endpoint["addresses"][0].as_str().filter(|_| ready) {
                found.push((address.to_owned(), port));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_split_as_upstreams() {
        for (id, expected) in [
            ("a", Some((Scheme::Http, "a", ""))),
            ("a:80", Some((Scheme::Http, "a", "80"))),
            ("https:a:web", Some((Scheme::Https, "a", "web"))),
            ("http:a:", Some((Scheme::Http, "a", ""))),
            ("ftp:a:1", None),
            (":80", None),
            ("a:b:c:d", None),
        ] {
            assert_eq!(split(id), expected, "{id}");
        }
    }

    #[test]
    fn ports_are_found_by_name_number_or_being_alone() {
        let two = json!({"spec": {"ports": [{"name": "web", "port": 80}, {"name": "tls", "port": 443}]}});
        let one = json!({"spec": {"ports": [{"name": "web", "port": 80}]}});
        assert_eq!(port_name(&two, "443").as_deref(), Some("tls"));
        assert_eq!(port_name(&two, "web").as_deref(), Some("web"));
        assert_eq!(port_name(&two, ""), None);
        assert_eq!(port_name(&one, "").as_deref(), Some("web"));
        assert_eq!(port_name(&one, "81"), None);
    }

    #[test]
    fn only_ready_endpoints_of_the_service_are_used() {
        let slice = |service: &str| {
            json!({
                "metadata": {"labels": {"kubernetes.io/service-name": service}},
                "ports": [{"name": "web", "port": 8080}],
                "endpoints": [
                    {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                    {"addresses": ["10.0.0.3"]},
                ],
            })
        };
        let slices = [slice("a"), slice("b")];
        let expected = vec![("10.0.0.1".to_owned(), 8080), ("10.0.0.3".to_owned(), 8080)];
        assert_eq!(endpoints(&slices, "a", "web"), expected);
        assert!(endpoints(&slices, "a", "other").is_empty());
    }
}
