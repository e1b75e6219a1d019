//! One try of a probe or a lifecycle handler: exec, HTTP, TCP or gRPC.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::time::timeout as within;

use super::{Target, grpc, http};
use crate::context::Context;

/// Upstream prints at most this much of a probe's output.
const MAX_OUTPUT: usize = 10 * 1024;

/// What a probe that did not fail warns of.
pub type Warning = Option<String>;

pub async fn probe(
    context: &Context,
    target: &Target,
    probe: &Probe,
    timeout: Duration,
) -> Result<Warning, String> {
    let ip = target.ip.map(|ip| ip.to_string()).unwrap_or_default();
    if let Some(action) = &probe.exec {
        let command = action.command.clone().unwrap_or_default();
        let command = expand(command, &target.container);
        return exec(context, &target.container_id, command, timeout)
            .await
            .map(|()| None);
    }
    if let Some(action) = &probe.http_get {
        return http_get(action, &target.container, &ip, timeout).await;
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action.host.clone().filter(|host| !host.is_empty()).unwrap_or(ip);
        let port = port(&action.port, &target.container)?;
        return tcp(&host, port, timeout).await.map(|()| None);
    }
    if let Some(action) = &probe.grpc {
        let port = u16::try_from(action.port).map_err(|_| format!("invalid port {}", action.port))?;
        let service = action.service.as_deref().unwrap_or_default();
        return grpc::check(&ip, port, service, timeout).await.map(|()| None);
    }
    Err("missing probe handler".into())
}

/// `$(VAR)` in probe commands sees the container's literal variables.
fn expand(command: Vec<String>, container: &Container) -> Vec<String> {
    let lookup = |name: &str| {
        container
            .env
            .iter()
            .flatten()
            .find(|variable| variable.name == name)
            .and_then(|v| v.value.clone())
    };
    command
        .iter()
        .map(|word| crate::env::expand(word, &lookup))
        .collect()
}

pub async fn exec(
    context: &Context,
    id: &str,
    command: Vec<String>,
    timeout: Duration,
) -> Result<(), String> {
    let answer = context.runtime.exec_sync(id, command.clone(), timeout).await;
    let answer =
        answer.map_err(|error| format!("command {command:?} timed out or could not be run: {error}"))?;
    if answer.exit_code == 0 {
        return Ok(());
    }
    let mut output = answer.stdout;
    output.extend(answer.stderr);
    output.truncate(MAX_OUTPUT);
    let output = String::from_utf8_lossy(&output).into_owned();
    if output.is_empty() {
        Err(format!("command exited with {}", answer.exit_code))
    } else {
        Err(output)
    }
}

pub async fn http_get(
    action: &HTTPGetAction,
    container: &Container,
    ip: &str,
    timeout: Duration,
) -> Result<Warning, String> {
    let host = action
        .host
        .as_deref()
        .filter(|host| !host.is_empty())
        .unwrap_or(ip);
    let path = action.path.as_deref().unwrap_or("/");
    let request = http::Get {
        tls: action.scheme.as_deref() == Some("HTTPS"),
        host,
        port: port(&action.port, container)?,
        path: if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        },
        headers: action.http_headers.as_deref().unwrap_or_default(),
    };
    let url = request.url();
    match within(timeout, http::fetch(&request)).await {
        Err(_) => Err(format!("Get \"{url}\": context deadline exceeded")),
        Ok(Err(error)) => Err(format!("Get \"{url}\": {error}")),
        Ok(Ok(answer)) => match answer.status {
            200..300 => Ok(None),
            300..400 => Ok(Some(format!(
                "Probe terminated redirects, Response body: {}",
                answer.body
            ))),
            status => Err(format!("HTTP probe failed with statuscode: {status}")),
        },
    }
}

pub async fn tcp(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    let address = http::join(host, port);
    match within(timeout, TcpStream::connect(&address)).await {
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", http::plain(&error))),
        Ok(Ok(_)) => Ok(()),
    }
}

/// A port by number, or by the name of one of the container's ports.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let named = ports
                .into_iter()
                .find(|candidate| candidate.name.as_deref() == Some(name));
            named
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok())
        }
    };
    let number = number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0);
    number.ok_or_else(|| match port {
        IntOrString::Int(number) => format!("invalid port number: {number}"),
        IntOrString::String(name) => {
            format!("couldn't find port: {name:?} in container {:?}", container.name)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ContainerPort;

    #[test]
    fn ports() {
        let named = ContainerPort {
            name: Some("http".into()),
            container_port: 8080,
            ..Default::default()
        };
        let container = Container {
            name: "c".into(),
            ports: Some(vec![named]),
            ..Default::default()
        };
        for (input, expected) in [
            (IntOrString::Int(80), Ok(80)),
            (IntOrString::Int(0), Err("invalid port number: 0")),
            (IntOrString::String("http".into()), Ok(8080)),
            (IntOrString::String("81".into()), Ok(81)),
            (
                IntOrString::String("x".into()),
                Err("couldn't find port: \"x\" in container \"c\""),
            ),
        ] {
            assert_eq!(port(&input, &container), expected.map_err(str::to_owned));
        }
    }

    #[tokio::test]
    async fn tcp_tells_refused_from_open() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(tcp("127.0.0.1", port, Duration::from_secs(5)).await, Ok(()));
        drop(listener);
        let error = tcp("127.0.0.1", port, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(
            error,
            format!("dial tcp 127.0.0.1:{port}: connect: connection refused")
        );
    }
}
