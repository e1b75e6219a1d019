//! Addresses of load balancers: the node that the cloud controller manager names in an annotation carries them.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::metal::ANNOUNCED_BY;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::routes::LinkAddress;
use crate::sys;

/// Links come and go without a word from the API server.
const RESYNC: Duration = Duration::from_secs(30);
/// One telling may get lost.
const TELLINGS: usize = 3;
const BETWEEN_TELLINGS: Duration = Duration::from_millis(500);

/// An address that a link carries for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub address: IpAddr,
    pub link: u32,
}

/// The addresses this node shall carry: each on the link whose network it is in, else on the default route's.
fn wanted<'a>(
    services: impl Iterator<Item = &'a Service>,
    node: &str,
    links: &[LinkAddress],
    default_link: Option<u32>,
) -> Vec<Held> {
    let ours = services.filter(|service| {
        service
            .annotations()
            .get(ANNOUNCED_BY)
            .is_some_and(|by| by == node)
    });
    let balancers = ours.filter_map(|service| service.status.as_ref()?.load_balancer.as_ref());
    let ingress = balancers.flat_map(|balancer| balancer.ingress.iter().flatten());
    let addresses = ingress
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.as_ref()?.parse().ok());
    let held = addresses.filter_map(|address: IpAddr| {
        // A network of one address is another such address, not a link's network.
        let spans = |l: &&LinkAddress| l.network.prefix_len() < l.network.max_prefix_len();
        let link = links
            .iter()
            .filter(spans)
            .find(|l| l.network.contains(&address))
            .map(|l| l.link);
        Some(Held {
            address,
            link: link.or(default_link)?,
        })
    });
    let mut held: Vec<Held> = held.collect();
    held.sort_by_key(|held| held.address);
    held.dedup();
    held
}

/// Carries what Services say, until `shutdown`; addresses stay when it ends, so that nobody notices a restart.
pub async fn run(client: Client, node: String, shutdown: CancellationToken) {
    let (reader, writer) = reflector::store::<Service>();
    let stream = watcher(
        Api::<Service>::all(client),
        watcher::Config::default().any_semantic(),
    )
    .modify(|service| service.managed_fields_mut().clear())
    .default_backoff()
    .reflect(writer);
    let mut stream = std::pin::pin!(stream);
    let mut resync = tokio::time::interval(RESYNC);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = stream.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => { warn!(%error, "watching services failed"); continue }
                None => return,
            },
            _ = resync.tick() => {}
        }
        if futures::FutureExt::now_or_never(reader.wait_until_ready()).is_none_or(|ready| ready.is_err()) {
            continue;
        }
        if let Err(error) = sync(&reader.state(), &node).await {
            warn!(%error, "cannot carry the addresses of load balancers");
        }
    }
}

/// Returns what tells the neighbours of the addresses that came.
pub async fn sync(services: &[Arc<Service>], node: &str) -> io::Result<Vec<JoinHandle<()>>> {
    let held = sys::announce::held().await?;
    let named = services
        .iter()
        .any(|service| service.annotations().contains_key(ANNOUNCED_BY));
    if held.is_empty() && !named {
        return Ok(Vec::new());
    }
    let links = sys::routes::link_addresses().await?;
    let default = sys::routes::default_link(&sys::links::handle()?).await?;
    let wanted = wanted(services.iter().map(AsRef::as_ref), node, &links, default);
    for gone in held.iter().filter(|held| !wanted.contains(held)) {
        sys::announce::drop(gone).await?;
        info!(address = %gone.address, "the load balancer's address is not here any more");
    }
    let mut told = Vec::new();
    for new in wanted.into_iter().filter(|wanted| !held.contains(wanted)) {
        sys::announce::take(&new).await?;
        info!(address = %new.address, link = new.link, "the load balancer's address is here");
        told.push(tokio::spawn(async move {
            for _ in 0..TELLINGS {
                if let Err(error) = sys::announce::tell(&new).await {
                    warn!(address = %new.address, %error, "neighbours learn of the address by and by");
                }
                tokio::time::sleep(BETWEEN_TELLINGS).await;
            }
        }));
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_carries_what_names_it() {
        let service = |by: &str, ip: &str, mode: &str| -> Service {
            serde_json::from_value(
                json!({"metadata": {"name": "s", "annotations": {ANNOUNCED_BY: by}},
                "status": {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": mode}]}}}),
            )
            .unwrap()
        };
        let services = [
            service("n1", "192.168.76.200", "VIP"),
            service("n1", "203.0.113.7", "VIP"),
            service("n1", "192.168.76.201", "Proxy"),
            service("n2", "192.168.76.202", "VIP"),
        ];
        let link = |link, network: &str| LinkAddress {
            link,
            network: network.parse().unwrap(),
        };
        let links = [
            link(9, "192.168.76.200/32"),
            link(2, "10.0.2.15/24"),
            link(3, "192.168.76.11/24"),
        ];
        let held = |address: &str, link| Held {
            address: address.parse().unwrap(),
            link,
        };
        assert_eq!(
            wanted(services.iter(), "n1", &links, Some(2)),
            [held("192.168.76.200", 3), held("203.0.113.7", 2)]
        );
        assert_eq!(
            wanted(services.iter(), "n1", &links[2..], None),
            [held("192.168.76.200", 3)]
        );
    }
}
