//! `agent`: joins the cluster, then runs kubelet, kube-proxy, routes and the renewal of certificates together.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use pki::{Credentials, Kubeconfig, SubjectAltNames};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api_client;
use crate::args::Agent;
use crate::bootstrap::Join;
use crate::certificate_request::{CLIENT, SERVING};
use crate::identity::{self, Current, Renewal};

/// Nothing of a node depends on how the agent ends, so it does not wait longer for its loops.
const STOP_LIMIT: Duration = Duration::from_secs(1);

pub async fn run(args: Agent) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signal(&stop, "stopping; pods go on running")?;
    let node_name = match args.node_name.clone() {
        Some(name) => name,
        None => host_name()?,
    };
    let node_ip = match args.node_ip {
        Some(ip) => ip,
        None => default_address()
            .context("--node-ip is not given and there is no default route to take it from")?,
    };
    let kubeconfig = tokio::select! {
        kubeconfig = kubeconfig(&args, &node_name) => kubeconfig?,
        () = stop.cancelled() => return Ok(()),
    };
    let issued = identity::credentials(&kubeconfig).context("kubeconfig holds no client certificate")?;
    let current = Current::new(&issued)?;
    let client = api_client::with_certificate(&kubeconfig.server, &kubeconfig.ca_pem, current.clone())?;

    let renew_client = Renewal {
        client: client.clone(),
        node_name: node_name.clone(),
        kind: &CLIENT,
        names: SubjectAltNames::default(),
        current,
        certificate_pem: Some(issued.certificate_pem),
        store: store_in_kubeconfig(args.kubeconfig.clone(), kubeconfig.clone()),
    };
    let (renew_serving, serving) = serving_certificate(&args, &client, &node_name, node_ip)?;
    let settings = match &args.config {
        Some(path) => kubelet::Settings::read(path)?,
        None => kubelet::Settings::default(),
    };
    let config = kubelet::Config {
        node_name: node_name.clone(),
        node_ip,
        root_dir: args.root_dir.clone(),
        pod_logs_dir: args.pod_logs_dir,
        parameter_errors: args.parameter_errors,
        cri_endpoint: args.cri_endpoint,
        node_labels: args.node_labels.0,
        node_taints: args.node_taints.0,
        cluster_dns: args.cluster_dns,
        cluster_domain: args.cluster_domain,
        bind_address: args.address,
        port: args.port,
        cgroup_root: args.cgroup_root,
        client_ca_pem: kubeconfig.ca_pem,
        serving_certificate: serving,
        settings,
    };
    let proxy = kube_proxy::Config {
        node_name: node_name.clone(),
        cluster_cidrs: args.cluster_cidr.clone(),
        node_port_addresses: args.nodeport_addresses,
        health_port: args.proxy_healthz_port,
        metrics_port: args.proxy_metrics_port,
    };
    let pod_network = network::Config {
        node_name,
        cluster_cidrs: args.cluster_cidr,
        pod_network_dir: args.pod_network_dir,
        host_firewall: args.host_firewall.then(|| args.root_dir.join("firewall.json")),
    };
    let background = [
        tokio::spawn(renew_client.keep_fresh()),
        tokio::spawn(renew_serving.keep_fresh()),
        tokio::spawn(kube_proxy::run(client.clone(), proxy, stop.clone())),
        tokio::spawn(network::run(client.clone(), pod_network, stop.clone())),
    ];
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_LIMIT).await;
    };
    let result = tokio::select! {
        result = kubelet::run(client, config, stop.clone()) => result,
        () = overdue => Ok(()),
    };
    stop.cancel();
    background.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(result?)
}

/// The node's credentials: those on disk, or new ones by joining.
async fn kubeconfig(args: &Agent, node_name: &str) -> anyhow::Result<Kubeconfig> {
    let path = &args.kubeconfig;
    match identity::usable_kubeconfig(path, Timestamp::now()) {
        Ok(kubeconfig) => return Ok(kubeconfig),
        Err(reason) if path.exists() => warn!(path = %path.display(), reason, "kubeconfig is not usable"),
        Err(_) => {}
    }
    let (Some(server), Some(token_file)) = (&args.bootstrap_server, &args.bootstrap_token_file) else {
        bail!(
            "--kubeconfig {} is not usable, and joining needs --bootstrap-server and --bootstrap-token-file",
            path.display()
        );
    };
    let ca_hash = args.bootstrap_ca_hash.as_deref();
    let kubeconfig = Join {
        server,
        token_file,
        ca_hash,
        node_name,
    }
    .until_joined()
    .await;
    identity::write_private(path, &kubeconfig.render())?;
    Ok(kubeconfig)
}

fn store_in_kubeconfig(path: PathBuf, kubeconfig: Kubeconfig) -> identity::Store {
    Box::new(move |issued| {
        let credentials = Credentials::ClientCertificate {
            certificate_pem: issued.certificate_pem.clone(),
            key_pem: issued.key_pem.clone(),
        };
        identity::write_private(
            &path,
            &Kubeconfig {
                credentials,
                ..kubeconfig.clone()
            }
            .render(),
        )
    })
}

/// The certificate of the kubelet's API: the one on disk, or a self-signed one until the cluster has signed ours.
fn serving_certificate(
    args: &Agent,
    client: &kube::Client,
    node_name: &str,
    node_ip: IpAddr,
) -> anyhow::Result<(Renewal, Arc<Current>)> {
    let names = SubjectAltNames {
        dns_names: vec![node_name.to_owned()],
        ip_addresses: vec![node_ip],
        ..Default::default()
    };
    let path = args.root_dir.join("pki/kubelet-server-current.pem");
    let stored = identity::read_pair(&path, Timestamp::now());
    let certificate_pem = stored.as_ref().map(|issued| issued.certificate_pem.clone());
    let issued = match stored {
        Some(issued) => issued,
        None => identity::self_signed(node_name, &names)?,
    };
    let current = Current::new(&issued)?;
    let renewal = Renewal {
        client: client.clone(),
        node_name: node_name.to_owned(),
        kind: &SERVING,
        names,
        current: current.clone(),
        certificate_pem,
        store: Box::new(move |issued| {
            identity::write_private(&path, &format!("{}{}", issued.certificate_pem, issued.key_pem))
        }),
    };
    Ok((renewal, current))
}

fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("--node-name is not given")?;
    Ok(name.trim().to_lowercase())
}

/// The address that the kernel would send from; nothing is sent.
fn default_address() -> std::io::Result<IpAddr> {
    let remote: SocketAddr = ([192, 0, 2, 1], 9).into();
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

pub fn stop_on_signal(stop: &CancellationToken, farewell: &'static str) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("{farewell}");
        stop.cancel();
    });
    Ok(())
}
