//! The one page of a kubelet that others live on: what the node and its pods use. It tells nothing of value, so anybody
//! may read it.

use crate::node::Nodes;
use crate::usage::Meter;
use anyhow::Context as _;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use pki::{CertificateAuthority, LeafRequest, Subject, SubjectAltNames};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

const PAGE: &str = "/metrics/resource";

pub async fn listen(address: IpAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        listeners.push(TcpListener::bind((address, 0)).await?);
    }
    Ok(listeners)
}

/// Until the process ends; the listeners are those of the nodes, in order.
pub async fn serve(listeners: Vec<TcpListener>, nodes: Arc<Nodes>, meter: Arc<Meter>) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls()?));
    let mut tasks = JoinSet::new();
    for (index, listener) in listeners.into_iter().enumerate() {
        let (acceptor, meter, node) = (acceptor.clone(), meter.clone(), nodes.name(index));
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                let (acceptor, meter, node) = (acceptor.clone(), meter.clone(), node.clone());
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, &acceptor, &meter, &node).await {
                        tracing::debug!(node, error, "connection ended");
                    }
                });
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        let ended: io::Result<()> = ended?;
        ended.context("a kubelet's listener")?;
    }
    Ok(())
}

fn tls() -> anyhow::Result<ServerConfig> {
    let now = Timestamp::now();
    let authority = CertificateAuthority::generate("hollow", now)?;
    let names = SubjectAltNames {
        dns_names: vec!["hollow".into()],
        ..SubjectAltNames::default()
    };
    let own = authority.issue(&LeafRequest::server(Subject::new("hollow", &[]), names), now)?;
    let chain = vec![CertificateDer::from_pem_slice(own.certificate_pem.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes())?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(config)
}

async fn connection(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    meter: &Meter,
    node: &str,
) -> Result<(), String> {
    let stream = acceptor.accept(stream).await.map_err(|error| error.to_string())?;
    let service = service_fn(|request: Request<Incoming>| async move {
        let (status, text) = match request.uri().path() {
            PAGE => (StatusCode::OK, meter.page(node, Timestamp::now())),
            _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
        };
        let mut response = Response::new(text);
        *response.status_mut() = status;
        Ok::<_, Infallible>(response)
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|error| error.to_string())
}
