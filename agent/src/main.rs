//! The node's agent: `agent` is kubelet, kube-proxy and pod routes; `agent cri` is the container runtime,
//! `agent hollow` nodes in memory, `agent node-api` the API of the machine itself.

mod api_client;
mod args;
mod bootstrap;
mod certificate_request;
mod identity;
mod node;
mod node_api;
mod pod_network;
mod runtime;

use std::process::ExitCode;

use clap::Parser;
use tracing::error;
use tracing_subscriber::EnvFilter;

/// Discovery asks an API server whose CA it cannot know yet and checks a signature instead; kube warns of that.
const LOG: &str = "info,kube_client::client::tls=error";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    // The runtime's helpers clone and unshare: they must start before any thread does.
    match arguments.get(1).map(String::as_str) {
        Some("cri-shim") => return cri::shim_main(&arguments[2..]),
        Some("cri-helper") => return cri::helper_main(&arguments[2..]),
        _ => {}
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let result = match arguments.get(1).map(String::as_str) {
        Some("cri") => {
            let arguments = args::Cri::parse_from(&arguments[1..]);
            on_runtime(runtime::run(arguments))
        }
        Some("hollow") => on_runtime(hollow::run(hollow::Hollow::parse_from(&arguments[1..]))),
        Some("node-api") => on_runtime(node_api::run(args::NodeApi::parse_from(&arguments[1..]))),
        _ => on_runtime(node::run(args::Agent::parse())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

fn on_runtime(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // rustls must know its cryptography before the first connection; a second call would be an error of ours.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A thread that waits for the kernel or for a name must not hold up the end.
    runtime.shutdown_background();
    result
}
