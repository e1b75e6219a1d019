//! What a request is about, read off its method and path alone: the input of authorization,
//! admission and dispatch. Upstream: `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`.

use std::time::Duration;

/// Upstream's `RequestInfo`. Strings that do not apply are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    pub path: String,
    /// get, list, watch, create, update, patch, delete, deletecollection; lower-case HTTP method for non-resources.
    pub verb: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// Path segments after the sub-resource (`proxy/...`).
    pub rest: String,
}

impl RequestInfo {
    pub fn parse(method: &http::Method, path: &str, query: &str) -> Self {
        let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        let mut info = Self {
            path: path.to_owned(),
            verb: method.as_str().to_ascii_lowercase(),
            ..Self::default()
        };
        let rest = match segments.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                rest
            }
            _ => return info,
        };
        info.is_resource = true;
        let (watch_prefix, rest) = match rest {
            ["watch", tail @ ..] if !tail.is_empty() => (true, tail),
            _ => (false, rest),
        };
        let rest = match rest {
            ["namespaces", namespace, "finalize" | "status"] => {
                info.namespace = (*namespace).to_owned();
                rest
            }
            ["namespaces", namespace, tail @ ..] => {
                info.namespace = (*namespace).to_owned();
                if tail.is_empty() { rest } else { tail }
            }
            _ => rest,
        };
        let mut parts = rest.iter();
        info.resource = parts.next().copied().unwrap_or_default().to_owned();
        info.name = parts.next().copied().unwrap_or_default().to_owned();
        info.subresource = parts.next().copied().unwrap_or_default().to_owned();
        info.rest = parts.copied().collect::<Vec<_>>().join("/");
        for part in [
            &mut info.namespace,
            &mut info.resource,
            &mut info.name,
            &mut info.subresource,
        ] {
            if part.contains('%') {
                *part = percent_decode(part, false);
            }
        }
        if info.subresource == "proxy" && path.ends_with('/') && !info.rest.is_empty() {
            info.rest.push('/');
        }
        info.verb = verb(method, &info, watch_prefix, query).to_owned();
        if info.name.is_empty() && matches!(info.verb.as_str(), "list" | "watch") {
            info.name = single_name(query).unwrap_or_default();
        }
        info
    }
}

fn verb(method: &http::Method, info: &RequestInfo, watch_prefix: bool, query: &str) -> &'static str {
    let named = !info.name.is_empty();
    match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if named => "delete",
        "DELETE" => "deletecollection",
        "GET" | "HEAD" if watch_prefix => "watch",
        "GET" | "HEAD" if named => "get",
        "GET" | "HEAD" if asks_watch(query) => "watch",
        "GET" | "HEAD" => "list",
        "OPTIONS" => "options",
        _ => "",
    }
}

fn asks_watch(query: &str) -> bool {
    query_values(query, "watch")
        .any(|v| matches!(v.as_str(), "" | "1" | "true" | "True" | "TRUE" | "t" | "T"))
}

/// A list restricted to one name by field selector is authorized for that name.
fn single_name(query: &str) -> Option<String> {
    let selector = query_values(query, "fieldSelector").next()?;
    selector.split(',').find_map(|term| {
        let name = term
            .strip_prefix("metadata.name==")
            .or_else(|| term.strip_prefix("metadata.name="))?;
        (!name.is_empty()).then(|| name.to_owned())
    })
}

/// How long the client gives this request: `timeout`, at most `longest`. None when it is no duration.
pub fn patience(query: &str, longest: Duration) -> Option<Duration> {
    let Some(text) = query_values(query, "timeout")
        .next()
        .filter(|text| !text.is_empty())
    else {
        return Some(longest);
    };
    let asked = text.parse::<jiff::SignedDuration>().ok()?;
    let asked = Duration::try_from(asked).ok()?;
    Some(if asked.is_zero() {
        longest
    } else {
        asked.min(longest)
    })
}

/// Decoded values of one query parameter.
pub fn query_values<'a>(query: &'a str, key: &'a str) -> impl Iterator<Item = String> + 'a {
    query_pairs(query).filter_map(move |(k, v)| (k == key).then_some(v))
}

/// Decoded pairs of a query string.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    query.split('&').filter(|p| !p.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode(key, true), percent_decode(value, true))
    })
}

/// `%XX` is a byte, and in forms `+` a space; broken escapes stay as they are.
fn percent_decode(text: &str, form: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let escape = (bytes[i] == b'%')
            .then(|| bytes.get(i + 1..i + 3))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[i], escape) {
            (_, Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', None) if form => out.push(b' '),
            (byte, None) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::parse(&method.parse().unwrap(), path, query)
    }

    #[test]
    fn the_client_may_give_less_time() {
        let longest = Duration::from_secs(60);
        for (query, seconds) in [
            ("", Some(60.0)),
            ("timeout=", Some(60.0)),
            ("timeout=10s", Some(10.0)),
            ("timeout=1h0m0s", Some(60.0)),
            ("timeout=0s", Some(60.0)),
            ("timeout=500ms", Some(0.5)),
            ("timeout=x", None),
            ("timeout=-5s", None),
        ] {
            let told = patience(query, longest).map(|duration| duration.as_secs_f64());
            assert_eq!(told, seconds, "{query}");
        }
    }

    #[test]
    fn paths_become_upstreams_request_info() {
        // method, uri, verb, group, namespace, resource, name, subresource
        let cases = [
            ("GET", "/api/v1/pods", "list", "", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=true", "watch", "", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=0", "list", "", "", "pods", "", ""),
            (
                "GET",
                "/api/v1/watch/namespaces/a/pods",
                "watch",
                "",
                "a",
                "pods",
                "",
                "",
            ),
            ("GET", "/api/v1/namespaces", "list", "", "", "namespaces", "", ""),
            (
                "GET",
                "/api/v1/namespaces/a",
                "get",
                "",
                "a",
                "namespaces",
                "a",
                "",
            ),
            (
                "PUT",
                "/api/v1/namespaces/a/finalize",
                "update",
                "",
                "a",
                "namespaces",
                "a",
                "finalize",
            ),
            (
                "PATCH",
                "/api/v1/namespaces/a/status",
                "patch",
                "",
                "a",
                "namespaces",
                "a",
                "status",
            ),
            (
                "POST",
                "/api/v1/namespaces/a/pods/p/binding",
                "create",
                "",
                "a",
                "pods",
                "p",
                "binding",
            ),
            (
                "DELETE",
                "/api/v1/namespaces/a/pods",
                "deletecollection",
                "",
                "a",
                "pods",
                "",
                "",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments/d",
                "delete",
                "apps",
                "a",
                "deployments",
                "d",
                "",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "patch",
                "apps",
                "a",
                "deployments",
                "d",
                "scale",
            ),
            (
                "GET",
                "/api/v1/pods?fieldSelector=metadata.name%3Dx",
                "list",
                "",
                "",
                "pods",
                "x",
                "",
            ),
            (
                "GET",
                "/api/v1/nodes/n/proxy/stats/summary",
                "get",
                "",
                "",
                "nodes",
                "n",
                "proxy",
            ),
        ];
        for (method, uri, verb, group, namespace, resource, name, subresource) in cases {
            let info = parse(method, uri);
            assert!(info.is_resource, "{uri}");
            assert_eq!(
                (
                    info.verb.as_str(),
                    info.group.as_str(),
                    info.namespace.as_str(),
                    info.resource.as_str(),
                    info.name.as_str(),
                    info.subresource.as_str()
                ),
                (verb, group, namespace, resource, name, subresource),
                "{method} {uri}"
            );
        }
        let role = parse(
            "GET",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode+x",
        );
        assert_eq!(role.name, "system:node+x");
        assert_eq!(
            parse("GET", "/api/v1/nodes/n/proxy/stats/summary").rest,
            "stats/summary"
        );
    }

    #[test]
    fn other_paths_are_no_resources() {
        for uri in [
            "/",
            "/api",
            "/apis",
            "/api/v1",
            "/apis/apps/v1",
            "/healthz",
            "/openapi/v3/apis/apps/v1",
        ] {
            let info = parse("GET", uri);
            assert!(!info.is_resource, "{uri}");
            assert_eq!(info.verb, "get");
        }
    }

    #[test]
    fn query_strings_are_decoded() {
        let pairs: Vec<_> = query_pairs("a=1%2C2&b=x+y&c&d=%zz").collect();
        let expected = [("a", "1,2"), ("b", "x y"), ("c", ""), ("d", "%zz")];
        assert_eq!(pairs, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
}
