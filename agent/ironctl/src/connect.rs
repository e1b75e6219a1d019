//! From a kubeconfig and a node's name to a connection.

use std::error::Error as _;
use std::io::{self, Cursor};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Node;
use kube::config::{AuthInfo, Cluster, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use node_api::v1::node_client::NodeClient;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// The least time between two signs of life on a quiet stream.
const KEEPALIVE: Duration = Duration::from_secs(20);

#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("kubeconfig: {0}")]
    Kubeconfig(String),
    #[error("kubeconfig: {0}")]
    Credentials(String),
    #[error("which node? --node names it, or --endpoint says where it is")]
    NoTarget,
    #[error("--endpoint {0:?} is not HOST[:PORT]")]
    Endpoint(String),
    #[error(
        "node {node}: {reason}; when the API server is away, --endpoint says where the node is, beside --node"
    )]
    Lookup { node: String, reason: String },
    #[error("node {0} has no InternalIP yet: --endpoint says where it is")]
    NoAddress(String),
    #[error("{address}: {reason}")]
    Connect { address: String, reason: String },
}

/// What the command line says of the node and of who asks.
pub struct Target {
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    pub node: Option<String>,
    pub endpoint: Option<String>,
}

pub type Connection = NodeClient<Channel>;

/// The parts of a kubeconfig's context that matter here.
struct Identity {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Target {
    pub async fn connect(&self) -> Result<Connection, ConnectError> {
        let identity = self.identity()?;
        let (host, port) = match (&self.endpoint, &self.node) {
            (Some(endpoint), _) => parse_endpoint(endpoint)?,
            (None, Some(node)) => (self.look_up(node).await?, node_api::PORT),
            (None, None) => return Err(ConnectError::NoTarget),
        };
        // The node's certificate bears its name, however it is reached.
        let name = self.node.clone().unwrap_or_else(|| host.clone());
        let tls = identity.tls()?;
        let address = format_address(&host, port);
        let fail = |reason: String| ConnectError::Connect {
            address: address.clone(),
            reason,
        };
        let name =
            ServerName::try_from(name.clone()).map_err(|_| fail(format!("{name:?} is no host name")))?;
        let dialled = tokio::time::timeout(CONNECT_WITHIN, dial(&address, name, tls)).await;
        let stream = dialled
            .map_err(|_| fail(format!("no connection within {} s", CONNECT_WITHIN.as_secs())))?
            .map_err(|error| fail(explain(&error)))?;
        let mut stream = Some(TokioIo::new(stream));
        let channel = Endpoint::from_static("http://node")
            .http2_keep_alive_interval(KEEPALIVE)
            .connect_with_connector(service_fn(move |_| {
                let stream = stream.take().ok_or(io::Error::from(io::ErrorKind::NotConnected));
                async move { stream }
            }))
            .await;
        channel
            .map(NodeClient::new)
            .map_err(|error| fail(api_client::innermost(&error)))
    }

    /// A client of the API server, with the same kubeconfig.
    pub async fn api(&self) -> Result<Client, ConnectError> {
        let invalid = |error: String| ConnectError::Kubeconfig(error);
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(self.read()?, &options).await;
        let config = config.map_err(|error| invalid(error.to_string()))?;
        Client::try_from(config).map_err(|error| invalid(error.to_string()))
    }

    fn read(&self) -> Result<Kubeconfig, ConnectError> {
        let read = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path).map_err(|error| format!("{}: {error}", path.display())),
            None => Kubeconfig::read().map_err(|error| error.to_string()),
        };
        read.map_err(ConnectError::Kubeconfig)
    }

    fn identity(&self) -> Result<Identity, ConnectError> {
        let kubeconfig = self.read()?;
        let invalid = |reason: String| ConnectError::Kubeconfig(reason);
        let name = self.context.as_ref().or(kubeconfig.current_context.as_ref());
        let name = name.ok_or_else(|| invalid("it has no current context; --context names one".into()))?;
        let context = kubeconfig.contexts.iter().find(|context| context.name == *name);
        let context = context
            .and_then(|named| named.context.clone())
            .ok_or_else(|| invalid(format!("it has no context {name:?}")))?;
        let cluster = kubeconfig
            .clusters
            .iter()
            .find(|named| named.name == context.cluster);
        let cluster = cluster
            .and_then(|named| named.cluster.clone())
            .ok_or_else(|| invalid(format!("it has no cluster {:?}", context.cluster)))?;
        let user = context.user.unwrap_or_default();
        let auth = kubeconfig.auth_infos.iter().find(|named| named.name == user);
        let auth = auth
            .and_then(|named| named.auth_info.clone())
            .ok_or_else(|| invalid(format!("it has no user {user:?}")))?;
        let ca = certificate_authority(&cluster)?.ok_or_else(|| {
            invalid(format!(
                "cluster {:?} has no certificate authority",
                context.cluster
            ))
        })?;
        let (certificate, key) = client_certificate(&auth)?.ok_or_else(|| {
            ConnectError::Credentials(format!(
                "user {user:?} has no client certificate, and nodes take nothing else"
            ))
        })?;
        Ok(Identity { ca, certificate, key })
    }

    async fn look_up(&self, name: &str) -> Result<String, ConnectError> {
        let nodes: Api<Node> = Api::all(self.api().await?);
        let lookup = |reason: String| ConnectError::Lookup {
            node: name.to_owned(),
            reason,
        };
        let found = tokio::time::timeout(CONNECT_WITHIN, nodes.get(name)).await;
        let found = found.map_err(|_| lookup("the API server does not answer".into()))?;
        let node = found.map_err(|error| match error {
            kube::Error::Api(status) => lookup(status.message),
            error => lookup(api_client::innermost(&error)),
        })?;
        let addresses = node
            .status
            .and_then(|status| status.addresses)
            .unwrap_or_default();
        let internal = addresses
            .into_iter()
            .find(|address| address.type_ == "InternalIP");
        internal
            .map(|address| address.address)
            .ok_or_else(|| ConnectError::NoAddress(name.to_owned()))
    }
}

impl Identity {
    fn tls(&self) -> Result<ClientConfig, ConnectError> {
        let invalid =
            |what: &str, error: &dyn std::fmt::Display| ConnectError::Credentials(format!("{what}: {error}"));
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(&self.ca) {
            let der = der.map_err(|error| invalid("certificate authority", &error))?;
            roots
                .add(der)
                .map_err(|error| invalid("certificate authority", &error))?;
        }
        let chain = CertificateDer::pem_slice_iter(&self.certificate).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| invalid("client certificate", &error))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| invalid("client key", &error))?;
        let mut tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| invalid("client certificate", &error))?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(tls)
    }
}

async fn dial(
    address: &str,
    name: ServerName<'static>,
    tls: ClientConfig,
) -> io::Result<impl AsyncRead + AsyncWrite + use<>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
    // With TLS 1.3 a server refuses a certificate after the handshake; one that takes it sends its settings at once.
    let mut first = Vec::with_capacity(1024);
    if stream.read_buf(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (read, write) = tokio::io::split(stream);
    Ok(tokio::io::join(Cursor::new(first).chain(read), write))
}

/// What a failed connection means to a person.
fn explain(error: &io::Error) -> String {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        // All clusters' authorities are named alike: then it is the signature that does not fit.
        Some(rustls::Error::InvalidCertificate(
            rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature,
        )) => {
            "the node's certificate is not signed by the kubeconfig's certificate authority: another cluster's node, or \
             another cluster's kubeconfig"
                .to_owned()
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("the node refuses the kubeconfig's client certificate ({alert:?})")
        },
        Some(tls) => tls.to_string(),
        None => error.to_string(),
    }
}

/// What a failed call means to a person.
pub fn explain_status(status: &tonic::Status) -> String {
    use tonic::Code::{Internal, Unavailable, Unknown};
    match (status.code(), status.source().map(api_client::innermost)) {
        (Unknown | Internal | Unavailable, Some(deepest)) => format!("{}: {deepest}", status.message()),
        (Unknown | Internal | Unavailable, None) => status.message().to_owned(),
        (code, _) => format!("{code:?}: {}", status.message()),
    }
}

fn certificate_authority(cluster: &Cluster) -> Result<Option<Vec<u8>>, ConnectError> {
    material(
        "certificate-authority",
        cluster.certificate_authority_data.as_deref(),
        cluster.certificate_authority.as_deref(),
    )
}

fn client_certificate(auth: &AuthInfo) -> Result<Option<(Vec<u8>, Vec<u8>)>, ConnectError> {
    // The key is hidden from all but serialization.
    let fields = serde_json::to_value(auth).unwrap_or_default();
    let certificate = material(
        "client-certificate",
        auth.client_certificate_data.as_deref(),
        auth.client_certificate.as_deref(),
    )?;
    let key = material(
        "client-key",
        fields["client-key-data"].as_str(),
        auth.client_key.as_deref(),
    )?;
    Ok(certificate.zip(key))
}

/// Inline data goes before a file, as in kubectl.
fn material(what: &str, data: Option<&str>, file: Option<&str>) -> Result<Option<Vec<u8>>, ConnectError> {
    let invalid = |reason: String| ConnectError::Credentials(reason);
    if let Some(data) = data {
        let decoded = STANDARD.decode(data.trim());
        return decoded
            .map(Some)
            .map_err(|error| invalid(format!("{what}-data: {error}")));
    }
    let read = |path| std::fs::read(path).map_err(|error| invalid(format!("{what} {path}: {error}")));
    file.map(read).transpose()
}

fn parse_endpoint(text: &str) -> Result<(String, u16), ConnectError> {
    let malformed = || ConnectError::Endpoint(text.to_owned());
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok((ip.to_string(), node_api::PORT));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| malformed())?),
        None => (text, node_api::PORT),
    };
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    if host.is_empty() || host.contains(['/', ' ']) {
        return Err(malformed());
    }
    Ok((host.to_owned(), port))
}

fn format_address(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, host, port) in [
            ("10.0.0.1", "10.0.0.1", 10270),
            ("10.0.0.1:7", "10.0.0.1", 7),
            ("node-1:7", "node-1", 7),
            ("node-1", "node-1", 10270),
            ("fd00::1", "fd00::1", 10270),
            ("[fd00::1]:7", "fd00::1", 7),
        ] {
            assert_eq!(parse_endpoint(text).unwrap(), (host.to_owned(), port), "{text}");
        }
        for text in ["", ":7", "h:port", "https://h:7"] {
            let error = parse_endpoint(text).unwrap_err().to_string();
            assert!(error.contains("--endpoint"), "{error}");
        }
        assert_eq!(format_address("fd00::1", 7), "[fd00::1]:7");
    }
}
