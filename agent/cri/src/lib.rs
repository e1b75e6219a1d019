//! The container runtime: a CRI v1 server on libcontainer, one shim process a pod.

mod helper;
mod host;
mod image;
mod namespaces;
pub mod network;
mod server;
mod shim;
mod snapshot;
mod spec;
mod state;
mod streaming;
mod sys;
#[cfg(test)]
mod test_support;

pub use network::{PodAttachment, PodNetwork, PodNetworkError, PortMapping};
pub use server::run;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// A registry host and the URL to try before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryMirror {
    pub host: String,
    pub url: String,
}

/// What the CRI server is told by its command line.
pub struct Config {
    /// The unix socket to serve on (`unix:///…` already stripped).
    pub listen: PathBuf,
    /// Where images, snapshots and records live.
    pub root_dir: PathBuf,
    /// A folder of OCI archives to import at start, when it exists.
    pub image_archives: Option<PathBuf>,
    pub registry_mirrors: Vec<RegistryMirror>,
    pub network: Arc<dyn PodNetwork>,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Start(String),
}

/// `agent cri-shim …`: one process a pod; call before any thread is started.
pub fn shim_main(args: &[String]) -> ExitCode {
    shim::main(args)
}

/// `agent cri-helper …`: one libcontainer call; call before any thread is started.
pub fn helper_main(args: &[String]) -> ExitCode {
    helper::main(args)
}
