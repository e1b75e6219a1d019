//! `metrics-server`: what nodes and pods use now, scraped from the kubelets and served as `metrics.k8s.io` to
//! `kubectl top` and the horizontal pod autoscaler.

mod discovery;
mod objects;
mod request;
mod samples;
mod scrape;
mod server;
mod state;
mod storage;
mod trust;

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api_client::Reviews;
use clap::Parser;
use k8s_openapi::jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use pki::{CertificateAuthority, LeafRequest, Subject, SubjectAltNames};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use scrape::{Kubelets, Options};
use server::Server;
use state::State;

const NAME: &str = "metrics-server";

/// Serves what nodes and pods use. Finds the API as any pod does, or by $KUBECONFIG.
#[derive(Parser)]
#[command(name = "metrics-server", version, max_term_width = 110)]
struct Flags {
    /// Credentials for the API server and the kubelets [default: the pod's, or $KUBECONFIG]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Address to listen on [default: all addresses of both families]
    #[arg(long, value_name = "IP", default_value_t = Ipv6Addr::UNSPECIFIED.into(), hide_default_value = true)]
    bind_address: IpAddr,
    /// Port to listen on
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    secure_port: u16,
    /// Serving certificate [default: made and signed by itself]
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Seconds between two rounds of scrapes
    #[arg(long, value_name = "SECONDS", default_value = "15s", value_parser = seconds)]
    metric_resolution: Duration,
    /// Authority of the kubelets' certificates [default: the API server's]
    #[arg(long, value_name = "FILE")]
    kubelet_certificate_authority: Option<PathBuf>,
    /// Believe any certificate of a kubelet
    #[arg(long, conflicts_with = "kubelet_certificate_authority")]
    kubelet_insecure_tls: bool,
    /// Port of kubelets
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    kubelet_port: u16,
    /// Prefer the port the node's status names
    #[arg(long)]
    kubelet_use_node_status_port: bool,
    /// Types of node addresses, best first
    #[arg(
        long,
        value_name = "TYPE,…",
        value_delimiter = ',',
        default_value = "Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP"
    )]
    kubelet_preferred_address_types: Vec<String>,
}

/// `15s`; upstream takes no less than ten seconds, since usage over less says little.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse() {
        Ok(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err("want a number of seconds, as in 15s".to_owned()),
    }
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
    if ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider is installed already");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        outcome = run(flags) => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn run(flags: Flags) -> anyhow::Result<()> {
    let config = config(flags.kubeconfig.as_deref()).await?;
    let client = Client::try_from(config.clone()).context("client of the API server")?;
    let own = Arc::new(SingleCertAndKey::from(serving_certificate(&flags)?));
    let kubelets = Kubelets::new(
        Options {
            port: flags.kubelet_port,
            use_node_status_port: flags.kubelet_use_node_status_port,
            preferred_address_types: flags.kubelet_preferred_address_types.clone(),
            timeout: flags.metric_resolution.mul_f32(0.9),
        },
        kubelet_config(config, &flags)?,
    );
    let address = SocketAddr::new(flags.bind_address, flags.secure_port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("--bind-address, --secure-port: {address}"))?;
    tracing::info!(address = %listener.local_addr()?, "serving");

    let (state, filling) = State::new(&client, flags.metric_resolution);
    let state = Arc::new(state);
    let trust = trust::Current::default();
    let server = Server {
        state: state.clone(),
        reviews: Reviews::new(client.clone(), server::PATIENCE),
        trust: trust.clone(),
    };
    tokio::select! {
        ended = filling => ended,
        ended = state.scrape(&kubelets) => ended,
        ended = trust::follow(client, own, trust) => ended,
        () = server::serve(Arc::new(server), listener) => anyhow::bail!("the server ended"),
    }
}

async fn config(kubeconfig: Option<&Path>) -> anyhow::Result<Config> {
    let Some(path) = kubeconfig else {
        return Config::infer()
            .await
            .context("find the API: neither in a pod nor $KUBECONFIG");
    };
    let named = || format!("--kubeconfig {}", path.display());
    let file = Kubeconfig::read_from(path).with_context(named)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(named)
}

/// As for the API server, but for whom to believe.
fn kubelet_config(mut config: Config, flags: &Flags) -> anyhow::Result<Config> {
    config.tls_server_name = None;
    config.accept_invalid_certs |= flags.kubelet_insecure_tls;
    if let Some(path) = &flags.kubelet_certificate_authority {
        let named = || format!("--kubelet-certificate-authority {}", path.display());
        let text = fs::read(path).with_context(named)?;
        let roots = CertificateDer::pem_slice_iter(&text).map(|root| root.map(|root| root.to_vec()));
        config.root_cert = Some(roots.collect::<Result<_, _>>().with_context(named)?);
        config.root_cert_file = None;
    }
    Ok(config)
}

fn serving_certificate(flags: &Flags) -> anyhow::Result<CertifiedKey> {
    let (certificate, key) = match (&flags.tls_cert_file, &flags.tls_private_key_file) {
        (Some(certificate), Some(key)) => {
            let read = |name: &str, path: &Path| {
                fs::read_to_string(path).with_context(|| format!("{name} {}", path.display()))
            };
            (
                read("--tls-cert-file", certificate)?,
                read("--tls-private-key-file", key)?,
            )
        }
        _ => {
            let now = Timestamp::now();
            let authority = CertificateAuthority::generate(NAME, now)?;
            let names = SubjectAltNames {
                dns_names: ["", ".kube-system", ".kube-system.svc"]
                    .map(|rest| format!("{NAME}{rest}"))
                    .into(),
                ..SubjectAltNames::default()
            };
            let identity = authority.issue(&LeafRequest::server(Subject::new(NAME, &[]), names), now)?;
            (identity.certificate_pem, identity.key_pem)
        }
    };
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<_, _>>()
        .context("--tls-cert-file")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("--tls-private-key-file")?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .context("--tls-cert-file, --tls-private-key-file")
}
