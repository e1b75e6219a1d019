//! Clients of the API server: anonymous and unverified for discovery, with a token for joining, and with a
//! certificate that may be replaced at any time for everything after.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::{Client, Config};
use rustls::client::ResolvesClientCert;
use thiserror::Error;
use tower::{BoxError, ServiceBuilder};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that vanished without a word is noticed after this time, also on idle watches.
const KEEPALIVE: Duration = Duration::from_secs(10);
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

#[derive(Debug, Error)]
pub enum ClientError {
    #[error("server {0:?} is not a URL")]
    Server(String),
    #[error("CA certificates: {0}")]
    Ca(String),
    #[error("API client: {0}")]
    Build(#[from] Box<kube::Error>),
}

fn config(server: &str) -> Result<Config, ClientError> {
    Ok(Config::new(
        server
            .parse()
            .map_err(|_| ClientError::Server(server.to_owned()))?,
    ))
}

fn trusting(server: &str, ca_pem: &str) -> Result<Config, ClientError> {
    let mut config = config(server)?;
    let mut roots = Vec::new();
    for pem in pki::split_bundle(ca_pem) {
        let der = <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::from_pem_slice(
            pem.as_bytes(),
        );
        roots.push(der.map_err(|error| ClientError::Ca(error.to_string()))?.to_vec());
    }
    config.root_cert = Some(roots);
    Ok(config)
}

/// Trusts whoever answers: only for data that is verified by other means.
pub fn unverified(server: &str) -> Result<Client, ClientError> {
    let mut config = config(server)?;
    config.accept_invalid_certs = true;
    build(&config, None)
}

pub fn with_token(server: &str, ca_pem: &str, token: &str) -> Result<Client, ClientError> {
    let mut config = trusting(server, ca_pem)?;
    config.auth_info.token = Some(token.to_owned().into());
    build(&config, None)
}

pub fn with_certificate(
    server: &str,
    ca_pem: &str,
    certificate: Arc<dyn ResolvesClientCert>,
) -> Result<Client, ClientError> {
    build(&trusting(server, ca_pem)?, Some(certificate))
}

fn build(config: &Config, certificate: Option<Arc<dyn ResolvesClientCert>>) -> Result<Client, ClientError> {
    let mut tls = config.rustls_client_config().map_err(Box::new)?;
    if let Some(certificate) = certificate {
        tls.client_auth_cert_resolver = certificate;
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(3));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    connector.set_nodelay(true);
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .wrap_connector(connector);
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(Box::new)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, "default"))
}
