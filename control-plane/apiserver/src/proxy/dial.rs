//! A connection to a target: TCP, and TLS where the target speaks it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::belief::{AnyCertificate, Believed};
use super::target::{Scheme, Target};
use crate::config::{Config, KeyPair};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How to be known to kubelets, and how to know them.
#[derive(Clone, Copy)]
pub struct Kubelets<'a> {
    pub client: &'a KeyPair,
    /// PEM; empty when they are not verified.
    pub ca: &'a str,
}

impl<'a> From<&'a Config> for Kubelets<'a> {
    fn from(config: &'a Config) -> Self {
        Self {
            client: &config.kubelet_client,
            ca: &config.kubelet_ca,
        }
    }
}

pub async fn dial(kubelets: Kubelets<'_>, target: &Target) -> io::Result<Box<dyn Stream>> {
    let config = match target.scheme {
        Scheme::Http => return connect(target, None).await,
        Scheme::Https => client_config(None, None)?,
        Scheme::Kubelet | Scheme::UnverifiedKubelet => {
            let verified = target.scheme == Scheme::Kubelet && !kubelets.ca.trim().is_empty();
            client_config(verified.then_some(kubelets.ca), Some(kubelets.client))?
        }
    };
    tls(target, &target.host, config).await
}

/// TLS to a target whose certificate has the name `host`.
pub async fn tls(target: &Target, host: &str, config: ClientConfig) -> io::Result<Box<dyn Stream>> {
    connect(target, Some((host, config))).await
}

pub async fn connect(target: &Target, tls: Option<(&str, ClientConfig)>) -> io::Result<Box<dyn Stream>> {
    let connecting = async {
        let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
        tcp.set_nodelay(true)?;
        let Some((host, tls)) = tls else {
            return Ok(Box::new(tcp) as Box<dyn Stream>);
        };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
        Ok(Box::new(stream) as Box<dyn Stream>)
    };
    let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "i/o timeout");
    tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(timed_out)?
}

/// Whom to believe (PEM; None: anyone), and what to show.
pub fn client_config(ca: Option<&str>, client: Option<&KeyPair>) -> io::Result<ClientConfig> {
    let Some(ca) = ca else {
        return shows(unverified(), client);
    };
    let provider = Arc::new(ring::default_provider());
    let verifier = Believed::new(certificates(ca)?, provider.clone()).map_err(io::Error::other)?;
    shows(
        verified_by(provider, Arc::new(verifier)).map_err(io::Error::other)?,
        client,
    )
}

/// Believes whom the machine believes.
pub fn system_config(client: Option<&KeyPair>) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    shows(builder, client)
}

fn shows(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    client: Option<&KeyPair>,
) -> io::Result<ClientConfig> {
    let Some(client) = client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(&client.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).map_err(io::Error::other)?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(io::Error::other)
}

fn certificates(pem: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(io::Error::other)
}

fn unverified() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let provider = Arc::new(ring::default_provider());
    verified_by(provider.clone(), Arc::new(AnyCertificate(provider)))
        .expect("ring supports the default protocol versions")
}

fn verified_by(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, rustls::Error> {
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}
