//! Listening: TLS with optional client certificates, HTTP/1.1 and HTTP/2, orderly shutdown.

pub mod trust;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::endpoints;
use crate::state::ApiServer;

const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Requests in flight may take this long once the server is told to stop.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const MAX_STREAMS: u32 = 250;

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
                    if let Err(error) = connection(server, acceptor, stream, peer).await {
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
    from: SocketAddr,
) -> Result<(), endpoints::BoxError> {
    stream.set_nodelay(true)?;
    let tls = tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await??;
    let mut peer = server.trust.judge(tls.get_ref().1.peer_certificates());
    peer.address = Some(from.ip());
    let peer = Arc::new(peer);
    let shutdown = server.shutdown.clone();
    let service = service_fn(move |request| {
        let (server, peer) = (server.clone(), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(endpoints::handle(server, request, &peer).await) }
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
