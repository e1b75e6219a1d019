//! `cluster-dns`: the name server of a Kubernetes cluster. It answers for the cluster's domain from what it watches in
//! the API, and asks the upstreams of resolv.conf for all else.

mod answer;
mod forward;
mod loops;
mod message;
mod metrics;
mod overrides;
mod records;
mod server;
mod watch;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use axum::{Router, http::StatusCode, routing::get};
use clap::Parser;
use server::Server;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The name server of a Kubernetes cluster. Finds the API as any pod does, or by $KUBECONFIG.
#[derive(Parser)]
#[command(name = "cluster-dns", version, max_term_width = 110)]
struct Flags {
    /// DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Address to listen on [default: all addresses of both families]
    #[arg(long, value_name = "IP", default_value_t = Ipv6Addr::UNSPECIFIED.into(), hide_default_value = true)]
    bind_address: IpAddr,
    /// Port for questions, UDP and TCP
    #[arg(long, value_name = "PORT", default_value_t = 53)]
    port: u16,
    /// Port of /health: the process lives
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    health_port: u16,
    /// Port of /ready: the cluster's names are known
    #[arg(long, value_name = "PORT", default_value_t = 8181)]
    ready_port: u16,
    /// Port of /metrics
    #[arg(long, value_name = "PORT", default_value_t = 9153)]
    metrics_port: u16,
    /// Namespace of the ConfigMap `cluster-dns`: hosts, stubDomains, upstreamNameservers
    #[arg(long, value_name = "NAME", default_value = "kube-system")]
    config_namespace: String,
    /// File that names the upstreams
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let filter = EnvFilter::try_from_env("LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider is installed already");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        outcome = serve(flags) => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&flags.resolv_conf)
        .with_context(|| format!("--resolv-conf {}", flags.resolv_conf.display()))?;
    let upstreams = forward::upstreams(&text);
    tracing::info!(?upstreams, "starting");
    let server = Arc::new(Server::new(forward::Forwarder::new(upstreams)));
    let client = kube::Client::try_default()
        .await
        .context("find the API: neither in a pod nor $KUBECONFIG")?;

    let address = |port| SocketAddr::new(flags.bind_address, port);
    let listener = async |name: &str, port| {
        server::listen(address(port))
            .await
            .with_context(|| format!("--{name} {port}"))
    };
    let (socket, streams) = server::bind(address(flags.port))
        .await
        .with_context(|| format!("--port {}", flags.port))?;
    let health = Router::new().route("/health", get(|| async { "OK" }));
    let state = server.clone();
    let ready = Router::new().route(
        "/ready",
        get(move || {
            let known = state.records().is_some();
            async move {
                if known {
                    (StatusCode::OK, "OK")
                } else {
                    (
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the cluster's names are not known yet",
                    )
                }
            }
        }),
    );
    let state = server.clone();
    let metrics = Router::new().route(
        "/metrics",
        get(move || {
            let names = state.records().map_or(0, |records| records.len());
            let text = state.metrics.render(names);
            async move { ([("content-type", "text/plain; version=0.0.4")], text) }
        }),
    );
    let health = axum::serve(listener("health-port", flags.health_port).await?, health);
    let ready = axum::serve(listener("ready-port", flags.ready_port).await?, ready);
    let metrics = axum::serve(listener("metrics-port", flags.metrics_port).await?, metrics);
    tokio::select! {
        ended = watch::run(client.clone(), flags.cluster_domain, server.clone()) => ended,
        ended = watch::overrides(client, flags.config_namespace, server.clone()) => ended,
        () = server::datagrams(server.clone(), socket) => anyhow::bail!("datagrams ended"),
        () = server::streams(server, streams) => anyhow::bail!("streams ended"),
        ended = async { health.await } => ended.context("--health-port"),
        ended = async { ready.await } => ended.context("--ready-port"),
        ended = async { metrics.await } => ended.context("--metrics-port"),
    }
}
