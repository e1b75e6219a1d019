//! Hollow nodes: Node objects that stay alive and pods that run in memory only, to try schedulers, controllers and
//! scale without machines.

mod kubelet;
mod node;
mod pod;
mod pods;
mod usage;

use anyhow::Context as _;
use clap::Parser;
use k8s_openapi::jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Registers nodes that exist in memory only and runs the pods bound to them there.
///
/// Pods become Running and Ready. Annotations tell more: `hollow.ironlet.dev/ready: "false"` keeps a pod unready;
/// `hollow.ironlet.dev/exit-codes: "1,0"` makes its containers exit, with the first code first and the last one from
/// then on, `exit-codes-N` those of completion index N; `hollow.ironlet.dev/exit-after: "5"` waits as many seconds.
/// `hollow.ironlet.dev/cpu: 250m` and `memory: 64Mi` are what each container is said to use.
#[derive(Parser, Debug)]
#[command(name = "agent hollow", version)]
pub struct Hollow {
    /// Credentials for the API server; an administrator's, as they act for many nodes
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// How many nodes
    #[arg(long, default_value_t = 1)]
    pub nodes: usize,
    /// Nodes are called PREFIX-0, PREFIX-1, …
    #[arg(long, value_name = "PREFIX", default_value = "hollow")]
    pub name_prefix: String,
    /// Zones that the nodes take turns to be in
    #[arg(long, default_value_t = 1)]
    pub zones: usize,
    /// CPUs of each node
    #[arg(long, default_value = "32")]
    pub cpu: String,
    /// Memory of each node
    #[arg(long, default_value = "64Gi")]
    pub memory: String,
    /// Pods each node has room for
    #[arg(long, default_value_t = 110)]
    pub pods: usize,
    /// Milliseconds a pod takes to start
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub start_delay: u64,
    /// Serve each node's /metrics/resource on a port of its own of this address, as kubelets do
    #[arg(long, value_name = "IP")]
    pub kubelet_address: Option<IpAddr>,
}

/// Until the process ends: nodes whose keeper is gone become NotReady, as machines would.
pub async fn run(options: Hollow) -> anyhow::Result<()> {
    let named = || format!("--kubeconfig {}", options.kubeconfig.display());
    let file = Kubeconfig::read_from(&options.kubeconfig).with_context(named)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(named)?;
    let client = Client::try_from(config).with_context(named)?;
    let start_delay = Duration::from_millis(options.start_delay);
    let mut kubelets = None;
    let mut listeners = Vec::new();
    if let Some(address) = options.kubelet_address {
        listeners = kubelet::listen(address, options.nodes)
            .await
            .with_context(|| format!("--kubelet-address {address}"))?;
        let ports: Result<_, _> = listeners.iter().map(|one| Ok(one.local_addr()?.port())).collect();
        let ports = ports.map_err(|error: std::io::Error| error)?;
        kubelets = Some(node::Kubelets { address, ports });
    }
    let nodes = Arc::new(node::Nodes::new(&options, kubelets));
    let meter = Arc::new(usage::Meter::new(Timestamp::now()));
    tokio::try_join!(
        node::keep(client.clone(), nodes.clone()),
        pods::run(client, nodes.clone(), meter.clone(), start_delay),
        kubelet::serve(listeners, nodes, meter),
    )?;
    Ok(())
}
