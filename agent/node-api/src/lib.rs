//! The machine behind a node over gRPC: what it is and does, its logs, restarts. Its own process, so that it answers when
//! the kubelet does not; mutual TLS by the cluster's CA, and the cluster's RBAC says who may call what.

mod access;
mod disks;
mod etcd;
mod kernel_log;
mod links;
mod logs;
mod machine;
pub mod page;
mod processes;
mod server;
mod service;
mod status;
mod upgrade;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::server::ResolvesServerCert;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;
pub use upgrade::Settings as UpgradeSettings;

/// Everything of the protobuf package `ironlet.node.v1`.
#[allow(clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("ironlet.node.v1");
}

/// Where nodes serve it.
pub const PORT: u16 = 10270;

#[derive(Debug, Error)]
pub enum NodeApiError {
    #[error("listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    #[error("client CA: {0}")]
    ClientCa(String),
}

pub struct Config {
    pub node_name: String,
    pub listen: SocketAddr,
    /// Where init listens and keeps the services' logs.
    pub run_dir: PathBuf,
    /// Who may connect: holders of certificates that this CA signed for clients.
    pub client_ca_pem: String,
    pub serving_certificate: Arc<dyn ResolvesServerCert>,
    pub upgrade: UpgradeSettings,
    /// The control plane's certificates, on a master.
    pub control_plane_pki: PathBuf,
}

/// Serves until told to stop. `client` asks the API server with the node's own credentials.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> Result<(), NodeApiError> {
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| NodeApiError::Listen(config.listen, error))?;
    let address = listener
        .local_addr()
        .map_err(|error| NodeApiError::Listen(config.listen, error))?;
    info!(%address, "node API serves");
    server::serve(client, config, listener, stop).await
}
