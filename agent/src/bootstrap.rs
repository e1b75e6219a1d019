//! Joining a cluster: token-signed discovery of its CA, then a certificate of our own (kubeadm's TLS bootstrap).

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use pki::{BootstrapToken, Credentials, DiscoveryError, Kubeconfig, SubjectAltNames};
use thiserror::Error;
use tracing::{info, warn};

use crate::api_client::{self, ClientError};
use crate::certificate_request::{self, RequestError};

const SHORT_PAUSE: Duration = Duration::from_secs(1);
const LONG_PAUSE: Duration = Duration::from_secs(5);
/// So many attempts with the short pause between them.
const EAGER: u32 = 60;
/// An unchanged complaint is repeated after so many attempts.
const REMIND: u32 = 30;

#[derive(Debug, Error)]
pub enum JoinError {
    #[error("bootstrap token file {path}: {source}", path = path.display())]
    TokenFile { path: PathBuf, source: std::io::Error },
    #[error("bootstrap token file {path}: {source}", path = path.display())]
    TokenFormat { path: PathBuf, source: pki::TokenError },
    #[error("API server {server} cannot be reached: {reason}")]
    Unreachable { server: String, reason: String },
    #[error("API server {0} has no ConfigMap kube-public/cluster-info to join with")]
    NoClusterInfo(String),
    #[error(
        "bootstrap token {id:?} is not known to the cluster at {server}: cluster-info carries no signature of it"
    )]
    TokenUnknown { id: String, server: String },
    #[error("bootstrap token {id:?}: its secret is not the one known to the cluster at {server}")]
    TokenSecret { id: String, server: String },
    #[error(
        "the cluster at {server} does not accept bootstrap token {id:?} (expired, or not for authentication)"
    )]
    TokenRefused { id: String, server: String },
    #[error("cluster CA hash mismatch: expected {expected}, the cluster at {server} has {found}")]
    CaHash {
        expected: String,
        found: String,
        server: String,
    },
    #[error("cluster-info of {server}: {reason}")]
    ClusterInfo { server: String, reason: String },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

pub struct Join<'a> {
    pub server: &'a str,
    pub token_file: &'a Path,
    pub ca_hash: Option<&'a str>,
    pub node_name: &'a str,
}

impl Join<'_> {
    /// Tries until it succeeds: whatever is wrong may be put right at any time, on either side.
    pub async fn until_joined(&self) -> Kubeconfig {
        info!(server = self.server, node = self.node_name, "joining the cluster");
        let mut said = String::new();
        let mut attempts: u32 = 0;
        loop {
            match self.join().await {
                Ok(kubeconfig) => {
                    info!(server = self.server, node = self.node_name, "joined the cluster");
                    return kubeconfig;
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != said || attempts.is_multiple_of(REMIND) {
                        warn!("cannot join: {text}; trying on");
                        said = text;
                    }
                }
            }
            // Machines that start together wait for each other only briefly.
            attempts += 1;
            tokio::time::sleep(if attempts < EAGER { SHORT_PAUSE } else { LONG_PAUSE }).await;
        }
    }

    async fn join(&self) -> Result<Kubeconfig, JoinError> {
        let path = || self.token_file.to_owned();
        let text = std::fs::read_to_string(self.token_file);
        let text = text.map_err(|source| JoinError::TokenFile { path: path(), source })?;
        let token = BootstrapToken::parse(text.trim());
        let token = token.map_err(|source| JoinError::TokenFormat { path: path(), source })?;
        let cluster_info = self.fetch_cluster_info().await?;
        let ca_pem = self.verify(&cluster_info, &token)?;
        let client = api_client::with_token(self.server, &ca_pem, &token.reveal())?;
        let none = SubjectAltNames::default();
        let issued =
            certificate_request::obtain(&client, &certificate_request::CLIENT, self.node_name, &none).await;
        let issued = issued.map_err(|error| match error {
            RequestError::Api(api) if is_unauthorized(&api) => JoinError::TokenRefused {
                id: token.id().to_owned(),
                server: self.server.to_owned(),
            },
            other => other.into(),
        })?;
        Ok(Kubeconfig {
            cluster: "default-cluster".into(),
            user: format!("system:node:{}", self.node_name),
            server: self.server.to_owned(),
            ca_pem,
            credentials: Credentials::ClientCertificate {
                certificate_pem: issued.certificate_pem,
                key_pem: issued.key_pem,
            },
        })
    }

    /// `kube-public/cluster-info`, from a server that is not trusted yet.
    async fn fetch_cluster_info(&self) -> Result<ConfigMap, JoinError> {
        let client = api_client::unverified(self.server)?;
        let api: Api<ConfigMap> = Api::namespaced(client, "kube-public");
        let fetched = tokio::time::timeout(Duration::from_secs(20), api.get_opt("cluster-info")).await;
        let unreachable = |reason: String| JoinError::Unreachable {
            server: self.server.to_owned(),
            reason,
        };
        match fetched {
            Err(_) => Err(unreachable("no answer within 20 s".into())),
            Ok(Ok(Some(found))) => Ok(found),
            Ok(Ok(None)) => Err(JoinError::NoClusterInfo(self.server.to_owned())),
            Ok(Err(kube::Error::Api(status))) => Err(JoinError::ClusterInfo {
                server: self.server.to_owned(),
                reason: status.message.clone(),
            }),
            Ok(Err(error)) => Err(unreachable(::api_client::innermost(&error))),
        }
    }

    /// The cluster's CA, once the token has vouched for it and the pin, if any, matches.
    fn verify(&self, cluster_info: &ConfigMap, token: &BootstrapToken) -> Result<String, JoinError> {
        let server = || self.server.to_owned();
        let invalid = |reason: String| JoinError::ClusterInfo {
            server: server(),
            reason,
        };
        let data = cluster_info.data.clone().unwrap_or_default();
        let content = data
            .get("kubeconfig")
            .ok_or_else(|| invalid("it has no kubeconfig".into()))?;
        let id = || token.id().to_owned();
        let signature = data.get(&format!("jws-kubeconfig-{}", token.id()));
        let signature = signature.ok_or_else(|| JoinError::TokenUnknown {
            id: id(),
            server: server(),
        })?;
        pki::verify_cluster_info(content, signature, token).map_err(|error| match error {
            DiscoveryError::Mismatch => JoinError::TokenSecret {
                id: id(),
                server: server(),
            },
            DiscoveryError::Format => invalid(error.to_string()),
        })?;
        let kubeconfig = Kubeconfig::parse(content).map_err(|error| invalid(error.to_string()))?;
        if let Some(expected) = self.ca_hash {
            let pins = pki::split_bundle(&kubeconfig.ca_pem)
                .iter()
                .map(|pem| pki::ca_pin(pem))
                .collect::<Result<Vec<_>, _>>();
            let pins = pins.map_err(|error| invalid(error.to_string()))?;
            if !pins.iter().any(|pin| pin == expected) {
                let (expected, found) = (expected.to_owned(), pins.join(", "));
                return Err(JoinError::CaHash {
                    expected,
                    found,
                    server: server(),
                });
            }
        }
        Ok(kubeconfig.ca_pem)
    }
}

fn is_unauthorized(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 401)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::CertificateAuthority;

    const SERVER: &str = "https://10.0.0.1:6443";

    fn cluster_info(ca_pem: &str, signer: &BootstrapToken) -> ConfigMap {
        let kubeconfig = Kubeconfig {
            cluster: String::new(),
            user: String::new(),
            server: SERVER.into(),
            ca_pem: ca_pem.into(),
            credentials: Credentials::Anonymous,
        };
        let content = kubeconfig.render();
        let signature = pki::cluster_info_signature(&content, signer);
        let data = [
            ("kubeconfig".to_owned(), content),
            (format!("jws-kubeconfig-{}", signer.id()), signature),
        ];
        ConfigMap {
            data: Some(data.into()),
            ..Default::default()
        }
    }

    #[test]
    fn discovery_tells_what_is_wrong() {
        let ca = CertificateAuthority::generate("kubernetes", jiff::Timestamp::now()).unwrap();
        let token = |text| BootstrapToken::parse(text).unwrap();
        let ours = token("abcdef.0123456789abcdef");
        let info = cluster_info(ca.certificate_pem(), &ours);
        let pin = pki::ca_pin(ca.certificate_pem()).unwrap();
        let verify = |token: &BootstrapToken, ca_hash: Option<&str>| {
            let join = Join {
                server: SERVER,
                token_file: Path::new("/t"),
                ca_hash,
                node_name: "n",
            };
            join.verify(&info, token).map_err(|error| error.to_string())
        };
        assert_eq!(verify(&ours, None), Ok(ca.certificate_pem().to_owned()));
        assert!(verify(&ours, Some(&pin)).is_ok());
        let other = format!("sha256:{}", "0".repeat(64));
        for (token, pin_given, expected) in [
            (
                &token("zzzzzz.0123456789abcdef"),
                None,
                "is not known to the cluster".to_owned(),
            ),
            (
                &token("abcdef.0000000000000000"),
                None,
                "its secret is not the one".to_owned(),
            ),
            (
                &ours,
                Some(other.as_str()),
                format!("expected {other}, the cluster at {SERVER} has {pin}"),
            ),
        ] {
            let error = verify(token, pin_given).unwrap_err();
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[tokio::test]
    async fn an_unreachable_server_is_named() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let server = format!("https://127.0.0.1:{port}");
        let join = Join {
            server: &server,
            token_file: Path::new("/t"),
            ca_hash: None,
            node_name: "n",
        };
        let error = join.fetch_cluster_info().await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("API server {server} cannot be reached: ")),
            "{error}"
        );
        assert!(error.to_lowercase().contains("refused"), "{error}");
    }
}
