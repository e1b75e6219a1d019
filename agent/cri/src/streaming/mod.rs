//! Exec, attach and port-forward as streams: an HTTP server on loopback that only knows one-time addresses.

mod port_channels;
mod port_forward;
mod session;
mod spdy;
mod spdy_headers;
mod spdy_session;
mod websocket;

use crate::server::Runtime;
use bytes::Bytes;
use cri_api::v1;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use websocket::Dialect;

/// An address not used within this time is forgotten (upstream's streaming server does the same).
const LIFETIME: Duration = Duration::from_secs(60);
const MAX_WAITING: usize = 1000;

#[derive(Debug, Clone)]
pub enum Work {
    Exec(v1::ExecRequest),
    Attach(v1::AttachRequest),
    PortForward(v1::PortForwardRequest),
}

impl Work {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }

    /// Which of stdin, stdout, stderr and a terminal the client asked for.
    fn streams(&self) -> Streams {
        match self {
            Self::Exec(r) => Streams {
                stdin: r.stdin,
                stdout: r.stdout,
                stderr: r.stderr,
                tty: r.tty,
            },
            Self::Attach(r) => Streams {
                stdin: r.stdin,
                stdout: r.stdout,
                stderr: r.stderr,
                tty: r.tty,
            },
            Self::PortForward(_) => Streams::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("maximum number of in-flight requests exceeded")]
    TooMany,
    #[error("make a token: {0}")]
    Random(#[from] std::io::Error),
}

/// Work that waits for its client.
#[derive(Default)]
pub struct Tokens(Mutex<BTreeMap<String, (Instant, Work)>>);

impl Tokens {
    pub fn issue(&self, work: Work) -> Result<String, TokenError> {
        let token = crate::state::new_id()?;
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| since.elapsed() < LIFETIME);
        if waiting.len() >= MAX_WAITING {
            return Err(TokenError::TooMany);
        }
        waiting.insert(token.clone(), (Instant::now(), work));
        Ok(token)
    }

    fn redeem(&self, token: &str) -> Option<Work> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting
            .remove(token)
            .filter(|(since, _)| since.elapsed() < LIFETIME)
            .map(|(_, work)| work)
    }
}

pub async fn serve(listener: TcpListener, runtime: Arc<Runtime>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "streaming server cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let runtime = Arc::clone(&runtime);
        tokio::spawn(async move {
            // Small writes are what terminals are made of.
            let _ = stream.set_nodelay(true);
            let service = service_fn(move |request| answer(Arc::clone(&runtime), request));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "streaming connection");
            }
        });
    }
}

type Answer = Response<Full<Bytes>>;

fn plain(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(text.into())));
    *response.status_mut() = status;
    response
}

/// How the client wants to stream.
#[derive(Debug, PartialEq, Eq)]
enum Upgrade {
    WebSocket { key: String, protocol: &'static str },
    Spdy { protocol: &'static str },
}

/// Best first; a client that names none means the oldest.
const CHANNEL_PROTOCOLS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
const SPDY_CHANNEL_PROTOCOLS: [&str; 1] = ["v4.channel.k8s.io"];
const PORT_FORWARD_PROTOCOLS: [&str; 1] = ["portforward.k8s.io"];
const TUNNEL_PROTOCOLS: [&str; 4] = [
    "SPDY/3.1+portforward.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "",
];

/// Reads the upgrade out of the headers; the error is what the client is told.
fn negotiate(headers: &HeaderMap, port_forward: bool) -> Result<Upgrade, String> {
    let list = |name: &str| -> Vec<String> {
        let values = headers
            .get_all(name)
            .into_iter()
            .filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .map(|item| item.trim().to_owned())
            .collect()
    };
    let choose = |offered: &[String], known: &[&'static str]| {
        let chosen = known
            .iter()
            .find(|known| offered.iter().any(|offer| offer == *known))
            .copied();
        chosen.ok_or_else(|| {
            format!("unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}")
        })
    };
    let wants = |name: &str| {
        list("upgrade")
            .iter()
            .any(|offer| offer.eq_ignore_ascii_case(name))
    };
    if wants("websocket") {
        let key = headers
            .get("sec-websocket-key")
            .and_then(|key| key.to_str().ok())
            .ok_or("Sec-WebSocket-Key: required")?;
        let known: &[&str] = if port_forward {
            &TUNNEL_PROTOCOLS
        } else {
            &CHANNEL_PROTOCOLS
        };
        let mut offered = list("sec-websocket-protocol");
        if offered.is_empty() {
            offered.push(String::new());
        }
        Ok(Upgrade::WebSocket {
            key: key.to_owned(),
            protocol: choose(&offered, known)?,
        })
    } else if wants("SPDY/3.1") {
        let known: &[&str] = if port_forward {
            &PORT_FORWARD_PROTOCOLS
        } else {
            &SPDY_CHANNEL_PROTOCOLS
        };
        Ok(Upgrade::Spdy {
            protocol: choose(&list("x-stream-protocol-version"), known)?,
        })
    } else {
        Err("unable to upgrade: missing upgrade headers in request".into())
    }
}

async fn answer(
    runtime: Arc<Runtime>,
    mut request: Request<Incoming>,
) -> Result<Answer, std::convert::Infallible> {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST"));
    }
    let path: Vec<String> = request
        .uri()
        .path()
        .split('/')
        .skip(1)
        .map(str::to_owned)
        .collect();
    let [kind, token] = &path[..] else {
        return Ok(plain(StatusCode::NOT_FOUND, "no such stream"));
    };
    let upgrade = match negotiate(request.headers(), kind == "portforward") {
        Ok(upgrade) => upgrade,
        Err(message) => return Ok(plain(StatusCode::BAD_REQUEST, message)),
    };
    let Some(work) = runtime.tokens().redeem(token).filter(|work| work.kind() == kind) else {
        return Ok(plain(StatusCode::NOT_FOUND, "no such stream"));
    };
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    let fixed = http::HeaderValue::from_static;
    headers.insert(header::CONNECTION, fixed("Upgrade"));
    match &upgrade {
        Upgrade::WebSocket { key, protocol } => {
            let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            headers.insert(header::UPGRADE, fixed("websocket"));
            if !protocol.is_empty() {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, fixed(protocol));
            }
            if let Ok(accept) = accept.parse() {
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            }
        }
        Upgrade::Spdy { protocol } => {
            headers.insert(header::UPGRADE, fixed("SPDY/3.1"));
            headers.insert("x-stream-protocol-version", fixed(protocol));
        }
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(stream) => perform(runtime, work, upgrade, TokioIo::new(stream)).await,
            Err(error) => tracing::debug!(%error, "the client did not upgrade"),
        }
    });
    Ok(response)
}

async fn perform(
    runtime: Arc<Runtime>,
    work: Work,
    upgrade: Upgrade,
    stream: TokioIo<hyper::upgrade::Upgraded>,
) {
    match (work, upgrade) {
        (Work::PortForward(request), Upgrade::Spdy { .. }) => {
            port_forward::serve(&runtime, &request, stream).await
        }
        (Work::PortForward(request), Upgrade::WebSocket { protocol, .. })
            if protocol != TUNNEL_PROTOCOLS[0] =>
        {
            port_channels::serve(&runtime, &request, stream, Dialect(protocol)).await;
        }
        (Work::PortForward(request), Upgrade::WebSocket { .. }) => {
            port_forward::serve(&runtime, &request, websocket::tunnel(stream).await).await;
        }
        (work, Upgrade::WebSocket { protocol, .. }) => {
            websocket::serve(&runtime, &work, stream, Dialect(protocol)).await;
        }
        (work, Upgrade::Spdy { .. }) => spdy_session::serve(&runtime, &work, stream).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_known_protocol_is_chosen() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect::<HeaderMap>()
        };
        let socket = |protocols: &'static str| {
            headers(&[
                ("upgrade", "WebSocket"),
                ("sec-websocket-key", "k"),
                ("sec-websocket-protocol", protocols),
            ])
        };
        let chosen = |headers: &HeaderMap, port_forward| negotiate(headers, port_forward).ok();
        let web = |protocol| {
            Some(Upgrade::WebSocket {
                key: "k".into(),
                protocol,
            })
        };
        assert_eq!(
            chosen(&socket("v4.channel.k8s.io, v5.channel.k8s.io"), false),
            web("v5.channel.k8s.io")
        );
        assert_eq!(
            chosen(&socket("v4.channel.k8s.io"), false),
            web("v4.channel.k8s.io")
        );
        assert_eq!(
            chosen(&socket("SPDY/3.1+portforward.k8s.io"), true),
            web("SPDY/3.1+portforward.k8s.io")
        );
        assert_eq!(chosen(&socket("channel.k8s.io"), false), web("channel.k8s.io"));
        let silent = headers(&[("upgrade", "websocket"), ("sec-websocket-key", "k")]);
        assert_eq!(chosen(&silent, false), web(""));
        assert_eq!(chosen(&socket("v9"), false), None);
        let spdy = headers(&[
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "portforward.k8s.io"),
        ]);
        assert_eq!(
            chosen(&spdy, true),
            Some(Upgrade::Spdy {
                protocol: "portforward.k8s.io"
            })
        );
        assert_eq!(chosen(&HeaderMap::new(), false), None);
    }

    #[test]
    fn a_token_works_once() {
        let tokens = Tokens::default();
        let token = tokens
            .issue(Work::PortForward(v1::PortForwardRequest::default()))
            .unwrap();
        assert!(tokens.redeem("other").is_none());
        assert!(tokens.redeem(&token).is_some());
        assert!(tokens.redeem(&token).is_none());
    }
}
