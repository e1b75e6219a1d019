//! What an API server needs to know before it starts, and the handle one gets back.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use auth::FrontProxyHeaders;
use store::Store;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::RunError;
use crate::access::AccessOptions;
use crate::admission::AdmissionOptions;
use crate::audit::AuditOptions;
use crate::server::trust::Trust;

/// A certificate chain and its key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    pub certificate: String,
    pub key: String,
}

/// How service-account tokens are made and checked.
#[derive(Clone)]
pub struct ServiceAccountKeys {
    /// PEM private key (ES256) that signs new tokens.
    pub signing_key: String,
    /// PEM public keys that are accepted.
    pub public_keys: Vec<String>,
    /// `iss`, also the default audience.
    pub issuer: String,
}

/// Proxies in front of us say in headers who asks; extension API servers believe us likewise.
#[derive(Clone, Default)]
pub struct FrontProxy {
    /// PEM bundle that vouches for such proxies; empty: none is believed.
    pub client_ca: String,
    /// Common names such a proxy may have; empty: any.
    pub allowed_names: Vec<String>,
    pub headers: FrontProxyHeaders,
    /// Our identity towards extension API servers.
    pub client: Option<KeyPair>,
}

/// Another component of the control plane in the server's process.
#[derive(Clone)]
pub struct Companion {
    /// `scheduler`, `controller-manager`
    pub name: &'static str,
    pub is_running: Arc<AtomicBool>,
}

/// Everything [`crate::run`] needs.
#[derive(Clone)]
pub struct Config {
    pub store: Arc<dyn Store>,
    /// Port 0 takes any free port; [`Handle::address`] tells which.
    pub bind_address: SocketAddr,
    /// The address other nodes reach this API server at (endpoint of the `kubernetes` Service).
    pub advertise_address: IpAddr,
    pub serving: KeyPair,
    /// PEM bundle that client certificates are verified against.
    pub client_ca: String,
    /// Identity towards kubelets (exec, logs, …) and the CA their serving certificates come from.
    pub kubelet_client: KeyPair,
    pub kubelet_ca: String,
    pub front_proxy: FrontProxy,
    pub service_account: ServiceAccountKeys,
    /// For example `10.96.0.0/12`; the first is the primary family.
    pub service_cidrs: Vec<String>,
    /// Inclusive; upstream's default is 30000–32767.
    pub node_port_range: (u16, u16),
    pub cluster_domain: String,
    /// The compressed prose of OpenAPI; documents carry no descriptions without it.
    pub openapi_descriptions: Option<PathBuf>,
    pub event_ttl_seconds: i64,
    /// How often history is forgotten; zero: never by us.
    pub compaction_interval: Duration,
    /// Who else runs in this process, for `componentstatuses`.
    pub companions: Vec<Companion>,
    pub audit: AuditOptions,
    pub access: AccessOptions,
    pub admission: AdmissionOptions,
    /// How long requests are still accepted once the server is to stop, while `/readyz` says that it leaves.
    pub shutdown_delay: Duration,
}

/// A running API server.
pub struct Handle {
    /// The bound address.
    pub address: SocketAddr,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) leaving: CancellationToken,
    pub(crate) shutdown_delay: Duration,
    pub(crate) shutdown: CancellationToken,
    pub(crate) trust: Arc<Trust>,
    pub(crate) task: JoinHandle<()>,
}

impl Handle {
    /// Returns once `/readyz` answers ok.
    pub async fn ready(&self) {
        let mut ready = self.ready.clone();
        // The sender lives as long as the server; when it is gone nothing will become ready.
        if ready.wait_for(|ready| *ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes another serving certificate and other authorities for clients, from the next connection on.
    pub fn replace_certificates(
        &self,
        serving: &KeyPair,
        client_ca: &str,
        front_proxy_ca: &str,
    ) -> Result<(), RunError> {
        self.trust.replace(serving, client_ca, front_proxy_ca)
    }

    /// Says that it leaves, waits for clients to notice, ends watches, finishes requests in flight, returns when all is done.
    pub async fn shutdown(self) {
        self.leaving.cancel();
        tokio::time::sleep(self.shutdown_delay).await;
        self.shutdown.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "API server task failed");
        }
    }
}
