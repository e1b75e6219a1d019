//! Logs and streams of a pod's containers, as requests to its kubelet.
//! Upstream: `pkg/registry/core/pod/strategy.go` (`LogLocation`, `streamLocation`).

use serde_json::Value;

use super::query::encode;
use super::target::{Scheme, Target, kubelet};
use crate::pipeline::ObjectReader;
use crate::request_info::{RequestInfo, query_pairs};
use crate::status::{ApiError, Cause};

/// `None`: the pod has no node yet.
pub async fn log(
    reader: &dyn ObjectReader,
    info: &RequestInfo,
    query: &str,
) -> Result<Option<Target>, ApiError> {
    let pod = get(reader, info).await?;
    let options: Vec<(String, String)> = query_pairs(query).collect();
    check_log_options(&info.name, &options)?;
    let container = container(&pod, &info.name, value(&options, "container"))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Ok(None);
    }
    let path = format!("/containerLogs/{}/{}/{container}", info.namespace, info.name);
    let mut target = kubelet(reader, node, with_query(path, &log_query(&options))).await?;
    if is_true(value(&options, "insecureSkipTLSVerifyBackend")) {
        target.scheme = Scheme::UnverifiedKubelet;
    }
    Ok(Some(target))
}

/// exec, attach and portforward.
pub async fn stream(
    reader: &dyn ObjectReader,
    info: &RequestInfo,
    subresource: &str,
    query: &str,
) -> Result<Target, ApiError> {
    let pod = get(reader, info).await?;
    let options: Vec<(String, String)> = query_pairs(query).collect();
    let (namespace, name) = (&info.namespace, &info.name);
    let path = if subresource == "portforward" {
        format!("/portForward/{namespace}/{name}")
    } else {
        let container = container(&pod, name, value(&options, "container"))?;
        format!("/{subresource}/{namespace}/{name}/{container}")
    };
    let query = if subresource == "portforward" {
        ports_query(&options)
    } else {
        stream_query(&options)?
    };
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(ApiError::bad_request(format!(
            "pod {name} does not have a host assigned"
        )));
    }
    kubelet(reader, node, with_query(path, &query)).await
}

async fn get(reader: &dyn ObjectReader, info: &RequestInfo) -> Result<Value, ApiError> {
    let pod = reader.get("", "pods", &info.namespace, &info.name).await?;
    pod.ok_or_else(|| ApiError::not_found("pods", &info.name))
}

fn value<'a>(options: &'a [(String, String)], key: &str) -> &'a str {
    options
        .iter()
        .find(|(name, _)| name == key)
        .map_or("", |(_, value)| value)
}

fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "True" | "TRUE")
}

fn with_query(path: String, query: &str) -> String {
    if query.is_empty() {
        path
    } else {
        format!("{path}?{query}")
    }
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let containers = pod["spec"][list]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    containers
        .iter()
        .filter_map(|container| container["name"].as_str().map(str::to_owned))
        .collect()
}

fn container(pod: &Value, pod_name: &str, asked: &str) -> Result<String, ApiError> {
    let containers = names(pod, "containers");
    let init = names(pod, "initContainers");
    if !asked.is_empty() {
        let ephemeral = names(pod, "ephemeralContainers");
        let known = containers
            .iter()
            .chain(&init)
            .chain(&ephemeral)
            .any(|name| name == asked);
        let unknown = || ApiError::bad_request(format!("container {asked} is not valid for pod {pod_name}"));
        return known.then(|| asked.to_owned()).ok_or_else(unknown);
    }
    let mut message = format!("a container name must be specified for pod {pod_name}");
    match containers.as_slice() {
        [only] => return Ok(only.clone()),
        [] => {}
        many => {
            message.push_str(&format!(", choose one of: [{}]", many.join(" ")));
            if !init.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
        }
    }
    Err(ApiError::bad_request(message))
}

const LOG_OPTIONS: [&str; 8] = [
    "follow",
    "limitBytes",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "stream",
    "tailLines",
    "timestamps",
];

fn log_query(options: &[(String, String)]) -> String {
    let kept = options
        .iter()
        .filter(|(name, _)| LOG_OPTIONS.contains(&name.as_str()));
    encode(kept.map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Upstream: `ValidatePodLogOptions`.
fn check_log_options(pod: &str, options: &[(String, String)]) -> Result<(), ApiError> {
    const MINIMA: [(&str, i64, &str); 3] = [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ];
    let mut causes = Vec::new();
    for (name, minimum, words) in MINIMA {
        let text = value(options, name);
        if text.is_empty() {
            continue;
        }
        let number: i64 = text.parse().map_err(|_| {
            ApiError::bad_request(format!(
                "{name}: strconv.ParseInt: parsing {text:?}: invalid syntax"
            ))
        })?;
        if number < minimum {
            causes.push(Cause {
                reason: "FieldValueInvalid",
                message: format!("Invalid value: {number}: {words}"),
                field: name.into(),
            });
        }
    }
    if !value(options, "sinceTime").is_empty() && !value(options, "sinceSeconds").is_empty() {
        causes.push(Cause {
            reason: "FieldValueForbidden",
            message: "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".into(),
            field: String::new(),
        });
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid("", "PodLogOptions", pod, causes))
    }
}

/// The kubelet's names for the streams. Without any, upstream's defaults: stdout and stderr.
fn stream_query(options: &[(String, String)]) -> Result<String, ApiError> {
    const STREAMS: [(&str, &str); 3] = [("stdin", "input"), ("stdout", "output"), ("stderr", "error")];
    let has = |name: &str| options.iter().any(|(key, _)| key == name);
    let wanted =
        |name: &str| is_true(value(options, name)) || (!has(name) && matches!(name, "stdout" | "stderr"));
    let tty = is_true(value(options, "tty"));
    let mut pairs: Vec<(&str, &str)> = STREAMS
        .iter()
        // A terminal has one output.
        .filter(|(name, _)| wanted(name) && !(tty && *name == "stderr"))
        .map(|(_, kubelet)| (*kubelet, "1"))
        .collect();
    if pairs.is_empty() {
        return Err(ApiError::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    if tty {
        pairs.push(("tty", "1"));
    }
    let commands = options.iter().filter(|(name, _)| name == "command");
    pairs.extend(commands.map(|(name, value)| (name.as_str(), value.as_str())));
    Ok(encode(pairs))
}

fn ports_query(options: &[(String, String)]) -> String {
    let ports = options.iter().filter(|(name, _)| name == "ports");
    encode(ports.map(|(_, value)| ("port", value.as_str())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(query: &str) -> Vec<(String, String)> {
        query_pairs(query).collect()
    }

    #[test]
    fn the_container_is_chosen_as_upstream_does() {
        let one = json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        for (pod, asked, expected) in [
            (&one, "", Ok("a")),
            (&one, "i", Ok("i")),
            (&one, "x", Err("container x is not valid for pod p")),
            (&two, "b", Ok("b")),
            (
                &two,
                "",
                Err(
                    "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]",
                ),
            ),
        ] {
            let chosen = container(pod, "p", asked).map_err(|error| error.message);
            assert_eq!(chosen.as_deref().map_err(String::as_str), expected);
        }
    }

    #[test]
    fn stream_options_become_the_kubelets() {
        for (query, expected) in [
            (
                "command=ls&command=-l%20x&stdout=true&stderr=true",
                Ok("output=1&error=1&command=ls&command=-l%20x"),
            ),
            (
                "stdin=true&stdout=true&tty=true&command=sh",
                Ok("input=1&output=1&tty=1&command=sh"),
            ),
            ("command=ls", Ok("output=1&error=1&command=ls")),
            (
                "stdout=false&stderr=false",
                Err("you must specify at least 1 of stdin, stdout, stderr"),
            ),
        ] {
            let built = stream_query(&options(query)).map_err(|error| error.message);
            assert_eq!(built.as_deref().map_err(String::as_str), expected, "{query}");
        }
        assert_eq!(ports_query(&options("ports=80&ports=443")), "port=80&port=443");
    }

    #[test]
    fn log_options_are_checked_and_passed_on() {
        let query = "follow=true&tailLines=5&container=c&pretty=1";
        assert_eq!(log_query(&options(query)), "follow=true&tailLines=5");
        assert!(check_log_options("p", &options(query)).is_ok());
        for (query, words) in [
            ("tailLines=-1", "greater than or equal to 0"),
            ("limitBytes=0", "must be greater than 0"),
            ("tailLines=x", "invalid syntax"),
            (
                "sinceSeconds=1&sinceTime=2026-01-01T00%3A00%3A00Z",
                "at most one of",
            ),
        ] {
            let error = check_log_options("p", &options(query)).unwrap_err();
            assert!(error.message.contains(words), "{query}: {}", error.message);
        }
    }
}
