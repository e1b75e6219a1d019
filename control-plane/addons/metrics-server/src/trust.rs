//! Whom the server believes: what `kube-system/extension-apiserver-authentication` says about client certificates and
//! about the front proxy, through which most requests come.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use auth::{FrontProxyHeaders, UserInfo};
use futures::StreamExt;
use http::HeaderMap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{key}: {reason}")]
    Unreadable { key: &'static str, reason: String },
}

fn unreadable(key: &'static str) -> impl Fn(String) -> TrustError {
    move |reason| TrustError::Unreadable { key, reason }
}

/// What holds for a connection that begins now.
pub struct Trust {
    pub tls: Arc<ServerConfig>,
    front_proxies: Option<Arc<dyn ClientCertVerifier>>,
    allowed_names: Vec<String>,
    headers: FrontProxyHeaders,
}

/// Who a connection's certificate belongs to.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Peer {
    #[default]
    Unknown,
    FrontProxy,
    User(UserInfo),
}

impl Trust {
    /// From the ConfigMap's data.
    pub fn new(
        data: &BTreeMap<String, String>,
        own: Arc<dyn ResolvesServerCert>,
    ) -> Result<Self, TrustError> {
        let mut everybody = certificates(data, "client-ca-file")?;
        let proxies = certificates(data, "requestheader-client-ca-file")?;
        everybody.extend(proxies.iter().cloned());
        let tls = match verifier(everybody).map_err(unreadable("client-ca-file"))? {
            Some(verifier) => ServerConfig::builder().with_client_cert_verifier(verifier),
            None => ServerConfig::builder().with_no_client_auth(),
        };
        let mut tls = tls.with_cert_resolver(own);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let defaults = FrontProxyHeaders::default();
        Ok(Self {
            tls: Arc::new(tls),
            front_proxies: verifier(proxies).map_err(unreadable("requestheader-client-ca-file"))?,
            allowed_names: names(data, "requestheader-allowed-names", Vec::new())?,
            headers: FrontProxyHeaders {
                username: names(data, "requestheader-username-headers", defaults.username)?,
                uid: names(data, "requestheader-uid-headers", defaults.uid)?,
                group: names(data, "requestheader-group-headers", defaults.group)?,
                extra_prefix: names(data, "requestheader-extra-headers-prefix", defaults.extra_prefix)?,
            },
        })
    }

    /// `chain` has been verified by the handshake.
    pub fn peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Peer {
        let Some((leaf, others)) = chain.and_then(<[_]>::split_first) else {
            return Peer::Unknown;
        };
        let Ok(user) = auth::certificate_user(leaf) else {
            return Peer::Unknown;
        };
        let vouched = self
            .front_proxies
            .as_ref()
            .is_some_and(|by| by.verify_client_cert(leaf, others, UnixTime::now()).is_ok());
        match vouched {
            false => Peer::User(user),
            true if self.allowed_names.is_empty() || self.allowed_names.contains(&user.name) => {
                Peer::FrontProxy
            }
            true => Peer::Unknown,
        }
    }

    /// Whom the front proxy speaks for.
    pub fn named(&self, headers: &HeaderMap) -> Option<UserInfo> {
        let text = headers
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let text: Vec<_> = text.collect();
        self.headers.user(text.iter().copied())
    }
}

fn certificates(
    data: &BTreeMap<String, String>,
    key: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let text = data.get(key).map(String::as_str).unwrap_or_default();
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(key)(error.to_string()))
}

fn verifier(roots: Vec<CertificateDer<'static>>) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    if roots.is_empty() {
        return Ok(None);
    }
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root).map_err(|error| error.to_string())?;
    }
    WebPkiClientVerifier::builder(Arc::new(store))
        .allow_unauthenticated()
        .build()
        .map(Some)
        .map_err(|error| error.to_string())
}

/// A JSON list of strings.
fn names(
    data: &BTreeMap<String, String>,
    key: &'static str,
    default: Vec<String>,
) -> Result<Vec<String>, TrustError> {
    let Some(text) = data.get(key) else {
        return Ok(default);
    };
    serde_json::from_str(text).map_err(|error| unreadable(key)(error.to_string()))
}

/// The trust of now; nothing is believed before the ConfigMap was read.
pub type Current = Arc<RwLock<Option<Arc<Trust>>>>;

pub fn current(trust: &Current) -> Option<Arc<Trust>> {
    trust.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Follows the ConfigMap; while it is wrong or gone, what was right before stays.
pub async fn follow(client: Client, own: Arc<dyn ResolvesServerCert>, trust: Current) -> anyhow::Result<()> {
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let maps = Api::<ConfigMap>::namespaced(client, NAMESPACE);
    let mut changes = watcher(maps, only).default_backoff().applied_objects().boxed();
    while let Some(change) = changes.next().await {
        let read = match change {
            Ok(map) => Trust::new(&map.data.unwrap_or_default(), own.clone()),
            Err(error) => {
                tracing::warn!(%error, "watch of the ConfigMap {NAMESPACE}/{NAME}");
                continue;
            }
        };
        match read {
            Ok(read) => {
                *trust.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(read));
                tracing::info!("the ConfigMap {NAMESPACE}/{NAME} says whom to believe");
            }
            Err(error) => tracing::error!(%error, "the ConfigMap {NAMESPACE}/{NAME} is wrong"),
        }
    }
    anyhow::bail!("the watch of the ConfigMap {NAMESPACE}/{NAME} ended")
}
