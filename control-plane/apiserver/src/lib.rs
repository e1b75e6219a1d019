//! The Kubernetes API server: one engine, driven by the catalog of kinds.
//!
//! A request runs through `server` (TLS, accept) → `request_info` → authentication and
//! authorization (crate `auth`) → `endpoints` (verbs) → `pipeline` (admission) → `registry`
//! (strategies, storage) → store. Reads are served by `cache`.

pub mod config;
pub mod connect;
pub mod pipeline;
pub mod request_info;
pub mod status;

pub use config::{Config, Handle, KeyPair, ServiceAccountKeys};
pub use status::ApiError;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {address}: {source}")]
    Bind {
        address: std::net::SocketAddr,
        source: std::io::Error,
    },
    #[error("{field}: {message}")]
    Config {
        field: &'static str,
        message: String,
    },
    #[error("store: {0}")]
    Store(#[from] store::StoreError),
}

/// Starts serving; returns when the port is bound (readiness: [`Handle::ready`]).
pub async fn run(config: Config) -> Result<Handle, RunError> {
    let _ = config;
    Err(RunError::Config { field: "store", message: "not started".into() })
}
