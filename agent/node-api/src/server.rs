//! Connections: TLS with certificates on both sides, and one gate before all calls.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::Client;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use crate::access::{Access, User};
use crate::service::Machine;
use crate::upgrade::Upgrader;
use crate::upgrade::trial::Judge;
use crate::v1::node_server::NodeServer;
use crate::{Config, NodeApiError};

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// A peer that vanished is noticed after this time.
const KEEPALIVE: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(100);

fn tls(config: &Config) -> Result<ServerConfig, NodeApiError> {
    let invalid = |error: &dyn std::fmt::Display| NodeApiError::ClientCa(error.to_string());
    let mut roots = RootCertStore::empty();
    for pem in pki::split_bundle(&config.client_ca_pem) {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| invalid(&error))?;
        roots.add(der).map_err(|error| invalid(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
    let mut tls = ServerConfig::builder()
        .with_client_cert_verifier(verifier.map_err(|error| invalid(&error))?)
        .with_cert_resolver(config.serving_certificate.clone());
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

struct Gate {
    access: Access,
    routes: Routes,
}

pub async fn serve(
    client: Client,
    config: Config,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), NodeApiError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(&config)?));
    let upgrader = Upgrader::new(config.upgrade.clone());
    let (node_name, run_dir) = (config.node_name.clone(), config.run_dir.clone());
    let gate = Arc::new(Gate {
        access: Access::new(client.clone(), &config.node_name),
        routes: Routes::new(NodeServer::new(Machine::new(
            client.clone(),
            config,
            upgrader.clone(),
        )))
        .prepare(),
    });
    let judge = Judge {
        upgrader,
        client,
        node_name,
        run_dir,
    };
    tokio::spawn(judge.run());
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "connection not accepted");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            },
            () = stop.cancelled() => return Ok(()),
        };
        let (gate, acceptor) = (gate.clone(), acceptor.clone());
        tokio::spawn(async move {
            if let Err(error) = gate.connection(stream, acceptor).await {
                debug!(%peer, error, "connection ended");
            }
        });
    }
}

impl Gate {
    async fn connection(self: Arc<Self>, stream: TcpStream, acceptor: TlsAcceptor) -> Result<(), String> {
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let stream = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream))
            .await
            .map_err(|_| "no TLS handshake".to_owned())?
            .map_err(|error| error.to_string())?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let user = certificate
            .and_then(|der| User::of_certificate(der))
            .ok_or("the client's certificate names no user")?;
        let service = service_fn(move |request| {
            let (gate, user) = (self.clone(), user.clone());
            async move { Ok::<_, std::convert::Infallible>(gate.answer(user, request).await) }
        });
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(|error| error.to_string())
    }

    async fn answer(&self, user: User, mut request: Request<Incoming>) -> Response<tonic::body::Body> {
        let path = request.uri().path().to_owned();
        if let Err(status) = self.access.permit(&user, &path).await {
            info!(
                user = user.name,
                call = path,
                reason = status.message(),
                "refused"
            );
            return status.into_http();
        }
        debug!(user = user.name, call = path, "call");
        request.extensions_mut().insert(user);
        match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
