//! All that the agent does for the pod network, beside the runtime: routes, policies, announcements, the firewall.

use std::path::PathBuf;

use ipnet::IpNet;
use kube::Client;
use netfilter::Family;
use tokio_util::sync::CancellationToken;

use crate::{announce, firewall, policy, routes};

#[derive(Debug, Clone)]
pub struct Config {
    pub node_name: String,
    /// Destinations within these keep the pod's own address as their source.
    pub cluster_cidrs: Vec<IpNet>,
    /// Where the runtime's pod network keeps its records.
    pub pod_network_dir: PathBuf,
    /// Refuse what the table of openings does not name; what this rests on is kept here.
    pub host_firewall: Option<PathBuf>,
}

/// Runs until `shutdown`; what is in the kernel stays.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) {
    let Config {
        node_name,
        cluster_cidrs,
        pod_network_dir,
        host_firewall,
    } = config;
    let mut families: Vec<Family> = cluster_cidrs.iter().map(|cidr| Family::of(cidr.addr())).collect();
    families.sort();
    families.dedup();
    let policies = policy::PolicyConfig {
        node_name: node_name.clone(),
        families,
        pod_network_dir,
    };
    let routing = routes::RoutesConfig {
        node_name: node_name.clone(),
        cluster_cidrs: cluster_cidrs.clone(),
    };
    let firewall = async {
        if let Some(record) = host_firewall {
            let (client, node) = (client.clone(), node_name.clone());
            firewall::run(client, node, cluster_cidrs, record, shutdown.clone()).await;
        }
    };
    tokio::join!(
        routes::run_routes(client.clone(), routing, shutdown.clone()),
        policy::run_policies(client.clone(), policies, shutdown.clone()),
        announce::run(client.clone(), node_name.clone(), shutdown.clone()),
        firewall,
    );
}
