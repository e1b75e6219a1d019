//! Every node gets a network for its pods, cut out of the cluster's.

mod cidr;
mod reconcile;

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use cidr::Cidr;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Pool, reconcile};
use std::sync::Arc;

struct NodeIpam {
    caches: Arc<Caches>,
    pools: Vec<Pool>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let config = &context.config;
    let parse = |flag: &'static str, list: &[String]| -> Result<Vec<Cidr>, StartError> {
        list.iter()
            .map(|value| {
                value.parse().map_err(|reason| StartError::InvalidCidr {
                    flag,
                    value: value.clone(),
                    reason,
                })
            })
            .collect()
    };
    let services = parse("--service-cluster-ip-range", &config.service_cluster_ip_range)?;
    let pools: Vec<Pool> = parse("--cluster-cidr", &config.cluster_cidr)?
        .into_iter()
        .map(|network| Pool {
            mask: if network.is_v4() {
                config.node_cidr_mask_size_ipv4
            } else {
                config.node_cidr_mask_size_ipv6
            },
            excluded: services.clone(),
            network,
        })
        .collect();
    let misfit = |p: &&Pool| p.mask < p.network.length || p.mask > p.network.bits();
    if let Some(pool) = pools.iter().find(misfit) {
        return Err(StartError::InvalidCidr {
            flag: "--cluster-cidr",
            value: pool.network.to_string(),
            reason: format!("node networks of size /{} don't fit into it", pool.mask),
        });
    }
    if pools.is_empty() {
        return Ok(Box::pin(std::future::pending()));
    }
    let queue = Arc::new(Queue::default());
    let (to, nodes) = (queue.clone(), context.caches.nodes.clone());
    context.caches.nodes.on(move |change| {
        to.add(change.key.clone());
        if change.new.is_none() {
            // Its network is free now: for a node that went without, perhaps.
            nodes
                .list()
                .iter()
                .filter(|n| api::node::pod_cidrs(n).is_empty())
                .for_each(|n| to.add(Key::of(&n.metadata)));
        }
    });
    Ok(super::spawn(
        context,
        NodeIpam {
            caches: context.caches.clone(),
            pools,
        },
        queue,
    ))
}

impl Controller for NodeIpam {
    const NAME: &'static str = "node-ipam-controller";
    const SOURCE: &'static str = "cidrAllocator";
    /// One after the other, each seeing what the one before took.
    const WORKERS: usize = 1;

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let nodes = self.caches.nodes.list();
        Ok(self
            .caches
            .nodes
            .get(key)
            .map(|node| reconcile(&node, &nodes, &self.pools))
            .unwrap_or_default())
    }
}
