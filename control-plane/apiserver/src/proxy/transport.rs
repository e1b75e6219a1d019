//! Carries a request to its target and the answer back: bodies as streams, upgraded connections as bytes.

use std::io;

use http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::dial::{Kubelets, Stream, dial};
use super::target::Target;
use crate::connect::{Body, BoxError, ConnectResponse};
use crate::status::ApiError;

/// How much of a kubelet's error text is worth passing on.
const ERROR_LIMIT: usize = 50_000;
/// Meant for the next hop only (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 6] = [
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
];

pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let upgrade_wanted = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        });
    upgrade_wanted && headers.contains_key(UPGRADE)
}

/// To a kubelet, pod or service.
pub async fn forward(
    kubelets: Kubelets<'_>,
    target: Target,
    request: Request<Incoming>,
) -> Result<ConnectResponse, ApiError> {
    carry(dial(kubelets, &target), &target, request)
        .await
        .map_err(|error| unreachable_backend(&error))
}

/// The whole request goes on, and whatever comes back goes back; after `101 Switching Protocols`, bytes both ways.
pub async fn carry(
    connecting: impl Future<Output = io::Result<Box<dyn Stream>>>,
    target: &Target,
    mut request: Request<Incoming>,
) -> Result<ConnectResponse, BoxError> {
    let upgrade = is_upgrade(request.headers());
    let client = upgrade.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut onward = Request::builder()
        .method(parts.method)
        .uri(&target.path)
        .body(body.map_err(BoxError::from).boxed_unsync())?;
    *onward.headers_mut() = onward_headers(parts.headers, target, upgrade);
    let mut response = send(connecting, target, onward).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        strip(response.headers_mut());
        return Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()));
    }
    let Some(client) = client else {
        return Err("the backend switched protocols without being asked".into());
    };
    let backend = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let (client, backend) = match tokio::try_join!(client, backend) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "connection ended while it was upgraded");
                return;
            }
        };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
            tracing::debug!(%error, "upgraded connection broke");
        }
    });
    let headers = std::mem::take(response.headers_mut());
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    Ok(answer)
}

/// Upstream: `LocationStreamer` with `GenericHttpResponseChecker`.
pub async fn fetch_log(
    kubelets: Kubelets<'_>,
    target: &Target,
    pod: &str,
) -> Result<ConnectResponse, ApiError> {
    let request = Request::get(&target.path)
        .header(HOST, target.authority())
        .body(Empty::new().map_err(|never| match never {}).boxed_unsync())
        .map_err(ApiError::internal)?;
    let failed = |error: BoxError| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "",
            format!("Get {:?}: {error}", target.url()),
        )
    };
    let response = send(dial(kubelets, target), target, request)
        .await
        .map_err(failed)?;
    if !response.status().is_success() {
        return Err(kubelet_refusal(response, pod).await);
    }
    let mut answer = response.map(|body| body.map_err(BoxError::from).boxed_unsync());
    *answer.headers_mut() = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
    Ok(answer)
}

async fn kubelet_refusal(response: Response<Incoming>, pod: &str) -> ApiError {
    let status = response.status();
    let text = match Limited::new(response.into_body(), ERROR_LIMIT).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(error) => error.to_string(),
    };
    match status {
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::INTERNAL_SERVER_ERROR => ApiError::internal(text),
        StatusCode::NOT_FOUND => ApiError::new(
            status,
            "NotFound",
            format!("the server could not find the requested resource ( pods/log {pod})"),
        ),
        _ => ApiError::new(
            status,
            "",
            format!(
                "the server responded with the status code {} but did not return more information ( pods/log {pod}): {text}",
                status.as_u16()
            ),
        ),
    }
}

pub async fn send(
    connecting: impl Future<Output = io::Result<Box<dyn Stream>>>,
    target: &Target,
    request: Request<Body>,
) -> Result<Response<Incoming>, BoxError> {
    Ok(open(connecting, target).await?.send_request(request).await?)
}

pub async fn open(
    connecting: impl Future<Output = io::Result<Box<dyn Stream>>>,
    target: &Target,
) -> Result<http1::SendRequest<Body>, BoxError> {
    let stream = connecting
        .await
        .map_err(|error| format!("dial tcp {}: {}", target.authority(), dial_words(&error)))?;
    let (sender, connection) = http1::handshake::<_, Body>(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend ended");
        }
    });
    Ok(sender)
}

/// Go's words for the commonest failures.
fn dial_words(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        ErrorKind::HostUnreachable => "connect: no route to host".into(),
        ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        _ => error.to_string(),
    }
}

fn unreachable_backend(error: &BoxError) -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "",
        format!("error dialing backend: {error}"),
    )
}

/// Credentials stay here: the caller's are for us, not for the target.
fn onward_headers(mut headers: HeaderMap, target: &Target, upgrade: bool) -> HeaderMap {
    let host = headers.remove(HOST);
    let private: Vec<HeaderName> = headers
        .keys()
        .filter(|name| *name == AUTHORIZATION || name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in private {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if !upgrade {
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
        headers.remove(TRANSFER_ENCODING);
    }
    if let Some(host) = host {
        headers.insert("x-forwarded-host", host);
    }
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    if let Ok(authority) = HeaderValue::from_str(&target.authority()) {
        headers.insert(HOST, authority);
    }
    headers
}

/// Framing belongs to each hop.
fn strip(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
}

#[cfg(test)]
mod tests {
    use super::super::target::Scheme;
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&str, &str)| {
            (
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_str(value).unwrap(),
            )
        };
        pairs.iter().map(parse).collect()
    }

    #[test]
    fn upgrades_are_recognized() {
        assert!(is_upgrade(&headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket")
        ])));
        assert!(is_upgrade(&headers(&[
            ("connection", "upgrade"),
            ("upgrade", "SPDY/3.1")
        ])));
        assert!(!is_upgrade(&headers(&[
            ("connection", "keep-alive"),
            ("upgrade", "websocket")
        ])));
        assert!(!is_upgrade(&headers(&[("connection", "upgrade")])));
    }

    #[test]
    fn credentials_do_not_leave_and_upgrades_do() {
        let target = Target {
            scheme: Scheme::Kubelet,
            host: "n".into(),
            port: 1,
            path: "/".into(),
        };
        let given = || {
            headers(&[
                ("host", "api"),
                ("authorization", "Bearer x"),
                ("impersonate-user", "y"),
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-key", "k"),
            ])
        };
        let onward = onward_headers(given(), &target, true);
        assert_eq!(onward[HOST], "n:1");
        assert_eq!(onward[UPGRADE], "websocket");
        assert_eq!(onward["sec-websocket-key"], "k");
        assert!(!onward.contains_key(AUTHORIZATION) && !onward.contains_key("impersonate-user"));
        assert!(!onward_headers(given(), &target, false).contains_key(UPGRADE));
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod wire_tests;
