//! The Kubernetes API server: one engine, driven by the catalog of kinds.
//!
//! A request runs through `server` (TLS, accept) → `request_info` → authentication and
//! authorization (crate `auth`) → `endpoints` (verbs) → `pipeline` (admission) → `registry`
//! (strategies, storage) → store. Reads are served by `cache`.

pub mod access;
pub mod admission;
mod aggregation;
pub mod audit;
mod background;
mod cache;
mod cached;
pub mod config;
mod configuration;
pub mod connect;
mod endpoints;
mod flow_control;
mod metrics;
mod negotiate;
pub mod object;
mod options;
pub mod pipeline;
pub mod proxy;
mod registry;
pub mod request_info;
pub mod selectors;
mod server;
mod state;
pub mod status;
mod warnings;
mod webhook;
mod wire;

use std::sync::Arc;

use auth::{Authenticator, Authorizer, TokenIssuer};
use pki::{ServiceAccountKey, ServiceAccountVerifier};
use schema::Catalog;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

pub use access::AccessOptions;
pub use admission::AdmissionOptions;
pub use audit::AuditOptions;
pub use auth::FrontProxyHeaders;
pub use config::{Companion, Config, FrontProxy, Handle, KeyPair, ServiceAccountKeys};
pub use status::ApiError;

use registry::Registry;
use registry::service::Allocator;
use state::ApiServer;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {address}: {source}")]
    Bind {
        address: std::net::SocketAddr,
        source: std::io::Error,
    },
    #[error("{field}: {message}")]
    Config { field: &'static str, message: String },
    #[error("store: {0}")]
    Store(#[from] store::StoreError),
}

/// Starts serving; returns when the port is bound (readiness: [`Handle::ready`]).
pub async fn run(mut config: Config) -> Result<Handle, RunError> {
    let trust = server::trust::Trust::new(&config)?;
    let tls = trust.server_config()?;
    let services = Allocator::new(&config.service_cidrs, config.node_port_range).map_err(|message| {
        RunError::Config {
            field: "service_cidrs",
            message,
        }
    })?;
    let issuer = config.service_account.issuer.clone();
    let signing = ServiceAccountKey::from_pem(&config.service_account.signing_key).map_err(|error| {
        RunError::Config {
            field: "service_account.signing_key",
            message: error.to_string(),
        }
    })?;
    let verifier = ServiceAccountVerifier::from_pem(&config.service_account.public_keys.join("\n")).map_err(
        |error| RunError::Config {
            field: "service_account.public_keys",
            message: error.to_string(),
        },
    )?;
    let bind = |source| RunError::Bind {
        address: config.bind_address,
        source,
    };
    let listener = TcpListener::bind(config.bind_address).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    config.bind_address = address;
    let authorizer = Arc::new(Authorizer::default());
    let (leaving, shutdown) = (CancellationToken::new(), CancellationToken::new());
    let shutdown_delay = config.shutdown_delay;
    let auditor = audit::Auditor::new(&config.audit, &shutdown).map_err(|message| RunError::Config {
        field: "audit",
        message,
    })?;
    let access = |message| RunError::Config {
        field: "access",
        message,
    };
    let authentication = config.access.authentication(&issuer).map_err(access)?;
    config.access.authorization(&authorizer).map_err(access)?;
    let store = config.store.clone();
    let admission =
        admission::chain(&config.admission, authorizer.clone(), store.clone()).map_err(|message| {
            RunError::Config {
                field: "admission",
                message,
            }
        })?;
    let server = Arc::new(ApiServer {
        registry: Registry::new(Catalog::builtin(), store.clone(), shutdown.clone()),
        admission,
        authenticator: Authenticator::new(verifier, issuer.clone()).with(authentication.tokens),
        anonymous: authentication.anonymous,
        authorizer,
        tokens: TokenIssuer::new(signing, issuer),
        services,
        auditor,
        aggregator: aggregation::Aggregator::default(),
        flow_control: flow_control::FlowControl::default(),
        trust: trust.clone(),
        openapi: std::sync::Mutex::new(None),
        metrics: metrics::Metrics::default(),
        ready: watch::Sender::new(false),
        leaving: leaving.clone(),
        shutdown: shutdown.clone(),
        event_lease: Mutex::new(None),
        config: Arc::new(config),
        store,
    });
    let ready = server.ready.subscribe();
    let task = tokio::spawn(async move {
        tokio::join!(
            server::serve(server.clone(), listener, tls),
            background::run(server, address.port())
        );
    });
    Ok(Handle {
        address,
        ready,
        leaving,
        shutdown_delay,
        shutdown,
        trust,
        task,
    })
}
