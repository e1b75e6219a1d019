//! The kubelet's own API on port 10250: logs, exec, attach, port-forward, pods, health and metrics, over TLS and with
//! every request authorized by the API server.

mod auth;
mod checkpoint;
mod log_lines;
mod logs;
mod metrics;
mod stats;
mod streaming;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::context::Context;
use crate::pod_manager::Pods;

pub use stats::Rates;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;
pub type Answer = Response<Body>;

#[derive(Debug, Error)]
pub enum ServerError {
    #[error("listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    #[error("client CA: {0}")]
    ClientCa(String),
}

pub fn text(status: StatusCode, message: impl Into<String>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(message.into())).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

pub fn json(value: &serde_json::Value) -> Answer {
    let mut response = text(StatusCode::OK, value.to_string());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

/// A body that grows as chunks arrive.
pub fn streamed(chunks: tokio::sync::mpsc::Receiver<Bytes>) -> Answer {
    let frames = futures::stream::unfold(chunks, |mut chunks| async move {
        Some((chunks.recv().await?, chunks))
    });
    let body = StreamBody::new(frames.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk))));
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain"),
    );
    response
}

pub async fn bind(context: &Context) -> Result<TcpListener, ServerError> {
    let address = SocketAddr::new(context.config.bind_address, context.config.port);
    TcpListener::bind(address)
        .await
        .map_err(|error| ServerError::Listen(address, error))
}

fn tls(context: &Context) -> Result<ServerConfig, ServerError> {
    let mut roots = RootCertStore::empty();
    for pem in pki::split_bundle(&context.config.client_ca_pem) {
        let der = <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(
            pem.as_bytes(),
        );
        let der = der.map_err(|error| ServerError::ClientCa(error.to_string()))?;
        roots
            .add(der)
            .map_err(|error| ServerError::ClientCa(error.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build();
    let verifier = verifier.map_err(|error| ServerError::ClientCa(error.to_string()))?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(context.config.serving_certificate.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

pub async fn serve(
    context: Arc<Context>,
    pods: Pods,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(&context)?));
    let server = Arc::new(Server {
        authorizer: auth::Authorizer::new(context.client.clone()),
        context,
        pods,
    });
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "connection not accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stop.cancelled() => return Ok(()),
        };
        let (server, acceptor) = (server.clone(), acceptor.clone());
        tokio::spawn(async move {
            if let Err(error) = server.connection(stream, acceptor).await {
                debug!(%peer, error, "connection ended");
            }
        });
    }
}

struct Server {
    context: Arc<Context>,
    pods: Pods,
    authorizer: auth::Authorizer,
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream, acceptor: TlsAcceptor) -> Result<(), String> {
        let handshake =
            tokio::time::timeout(std::time::Duration::from_secs(10), acceptor.accept(stream)).await;
        let stream = handshake
            .map_err(|_| "TLS handshake timed out")?
            .map_err(|error| error.to_string())?;
        let peer = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first());
        let certificate_user = peer.and_then(|der| auth::certificate_user(der));
        let service = service_fn(|request| {
            let (server, user) = (self.clone(), certificate_user.clone());
            async move { Ok::<_, Infallible>(server.handle(request, user).await) }
        });
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        connection
            .with_upgrades()
            .await
            .map_err(|error| error.to_string())
    }

    async fn handle(&self, request: Request<Incoming>, certificate_user: Option<auth::User>) -> Answer {
        let user = match certificate_user {
            Some(user) => Some(user),
            None => self.authorizer.token_user(request.headers()).await,
        };
        let Some(user) = user else {
            return text(StatusCode::UNAUTHORIZED, "Unauthorized");
        };
        let path = request.uri().path().to_owned();
        if let Err(reason) = self
            .authorizer
            .authorize(&self.context, &user, request.method(), &path)
            .await
        {
            return text(StatusCode::FORBIDDEN, reason);
        }
        let parts: Vec<String> = path
            .trim_start_matches('/')
            .split('/')
            .map(str::to_owned)
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let get = request.method() == Method::GET;
        match parts.as_slice() {
            ["healthz" | "livez" | "readyz"] => text(StatusCode::OK, "ok"),
            ["pods"] if get => json(&serde_json::json!({
                "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.pods.all(),
            })),
            ["metrics"] if get => metrics::kubelet(&self.context, &self.pods),
            ["metrics", "resource"] if get => metrics::resource(&self.context, &self.pods).await,
            ["metrics", "cadvisor"] if get => metrics::cadvisor(&self.context, &self.pods).await,
            ["metrics", "probes"] if get => metrics::probes(&self.context),
            ["stats", "summary"] if get => {
                let pairs = query(request.uri().query());
                let narrow = pairs
                    .iter()
                    .any(|(key, value)| key == "only_cpu_and_memory" && value == "true");
                stats::summary(&self.context, &self.pods, narrow).await
            }
            ["configz"] if get => json(&serde_json::json!({ "kubeletconfig": self.context.config.settings })),
            ["logs", rest @ ..] if get => logs::of_node(rest).await,
            ["containerLogs", namespace, pod, container] if get => {
                logs::answer(
                    &self.context,
                    &self.pods,
                    namespace,
                    pod,
                    container,
                    request.uri().query(),
                )
                .await
            }
            [kind @ ("exec" | "attach"), namespace, pod, container]
            | [kind @ ("exec" | "attach"), namespace, pod, _, container] => {
                let target = streaming::Target {
                    namespace,
                    pod,
                    container: Some(container),
                };
                streaming::answer(&self.context, &self.pods, kind, target, request).await
            }
            ["checkpoint", namespace, pod, container] if request.method() == Method::POST => {
                checkpoint::answer(
                    &self.context,
                    &self.pods,
                    namespace,
                    pod,
                    container,
                    request.uri().query(),
                )
                .await
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                let target = streaming::Target {
                    namespace,
                    pod,
                    container: None,
                };
                streaming::answer(&self.context, &self.pods, "portForward", target, request).await
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }
}

/// Decoded query parameters in order.
pub fn query(query: Option<&str>) -> Vec<(String, String)> {
    let pairs = query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let pairs = query(Some(
            "command=sh&command=-c&command=echo+a%20b%26%C3%A9&tty&x=%zz",
        ));
        let expected = [
            ("command", "sh"),
            ("command", "-c"),
            ("command", "echo a b&é"),
            ("tty", ""),
            ("x", "%zz"),
        ];
        assert_eq!(
            pairs,
            expected.map(|(key, value)| (key.to_owned(), value.to_owned()))
        );
    }
}
