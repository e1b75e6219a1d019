//! Listening: TLS with optional client certificates, HTTP/1.1 and HTTP/2, orderly shutdown.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::RunError;
use crate::config::Config;
use crate::endpoints;
use crate::state::ApiServer;

const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Requests in flight may take this long once the server is told to stop.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const MAX_STREAMS: u32 = 250;

fn bad(field: &'static str) -> impl Fn(String) -> RunError {
    move |message| RunError::Config { field, message }
}

/// Clients may show a certificate of `client_ca`; who shows none is anonymous or has a token.
pub fn tls_config(config: &Config) -> Result<Arc<ServerConfig>, RunError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(config.client_ca.as_bytes()) {
        let certificate = certificate.map_err(|e| bad("client_ca")(e.to_string()))?;
        roots
            .add(certificate)
            .map_err(|e| bad("client_ca")(e.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| bad("client_ca")(e.to_string()))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(config.serving.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| bad("serving.certificate")(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(config.serving.key.as_bytes())
        .map_err(|e| bad("serving.key")(e.to_string()))?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("serving")(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| bad("serving")(e.to_string()))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// Accepts until shutdown, then drains.
pub async fn serve(server: Arc<ApiServer>, listener: TcpListener, tls: Arc<ServerConfig>) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (server, acceptor) = (server.clone(), acceptor.clone());
                connections.spawn(async move {
                    if let Err(error) = connection(server, acceptor, stream).await {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors: connections that end will free some.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    if tokio::time::timeout(DRAIN_PATIENCE, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(open = connections.len(), "connections were cut at shutdown");
    }
}

async fn connection(
    server: Arc<ApiServer>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> Result<(), endpoints::BoxError> {
    stream.set_nodelay(true)?;
    let tls = tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await??;
    let certificate = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let certificate = certificate.map(|leaf| Bytes::copy_from_slice(leaf));
    let shutdown = server.shutdown.clone();
    let service = service_fn(move |request| {
        let (server, certificate) = (server.clone(), certificate.clone());
        async move { Ok::<_, std::convert::Infallible>(endpoints::handle(server, request, certificate).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
