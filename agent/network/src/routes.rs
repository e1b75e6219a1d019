//! The agent's side: routes to the pods of the other nodes, directly where they share a link and through VXLAN where
//! not, and masquerading to the outside.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client, ResourceExt};
use netfilter::Family;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::addresses;
use crate::masquerade;
use crate::overlay::{self, Local, Tunnel};
use crate::sys;

/// Links and addresses change without a word from the API server, so look again now and then.
const RESYNC: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct RoutesConfig {
    pub node_name: String,
    /// Destinations within these keep the pod's own address as their source.
    pub cluster_cidrs: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkAddress {
    pub link: u32,
    pub network: IpNet,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNet,
    pub gateway: IpAddr,
    pub link: u32,
    /// The gateway is at the other end of the overlay, in no network of the link.
    pub on_link: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Replace(Route),
    Delete(Route),
}

/// The routes to the peers that share a link with this node; of the others, through the overlay.
fn wanted(peers: &[Peer], links: &[LinkAddress], overlay: Option<(u32, &[Tunnel])>) -> Vec<Route> {
    // A node is registered a moment before its addresses are known.
    let pairs = peers
        .iter()
        .flat_map(|peer| peer.pod_cidrs.iter().map(move |cidr| (peer, *cidr)));
    let mut routes: Vec<Route> = pairs
        .filter_map(|(peer, cidr)| direct(peer, cidr, links))
        .collect();
    for (link, tunnel) in overlay
        .into_iter()
        .flat_map(|(link, tunnels)| tunnels.iter().map(move |t| (link, t)))
    {
        let through = tunnel.routes(link);
        let missing: Vec<Route> = through
            .filter(|route| !routes.iter().any(|r| r.destination == route.destination))
            .collect();
        routes.extend(missing);
    }
    routes
}

/// What leads from the routes there are to the routes there should be.
fn plan(wanted: &[Route], existing: &[Route]) -> Vec<Action> {
    let stale = |r: &&Route| !wanted.iter().any(|w| w.destination == r.destination);
    let mut actions: Vec<Action> = existing
        .iter()
        .filter(stale)
        .cloned()
        .map(Action::Delete)
        .collect();
    let new = wanted.iter().filter(|w| !existing.contains(w)).cloned();
    actions.extend(new.map(Action::Replace));
    actions
}

pub fn direct(peer: &Peer, pod_cidr: IpNet, links: &[LinkAddress]) -> Option<Route> {
    let same_family = |a: &&IpAddr| a.is_ipv4() == pod_cidr.addr().is_ipv4();
    peer.addresses.iter().filter(same_family).find_map(|gateway| {
        let link = links
            .iter()
            .find(|l| l.network.contains(gateway) && l.network.addr() != *gateway)?;
        Some(Route {
            destination: pod_cidr,
            gateway: *gateway,
            link: link.link,
            on_link: false,
        })
    })
}

/// Keeps routes and masquerading as the Nodes of the cluster say, until `shutdown`.
pub async fn run_routes(client: Client, config: RoutesConfig, shutdown: CancellationToken) {
    let (reader, writer) = reflector::store::<Node>();
    let stream = watcher(
        Api::<Node>::all(client),
        watcher::Config::default().any_semantic(),
    )
    .modify(|node| {
        node.managed_fields_mut().clear();
        node.status
            .as_mut()
            .map(|s| (s.images.take(), s.conditions.take()));
    })
    .default_backoff()
    .reflect(writer)
    .touched_objects();
    let mut stream = std::pin::pin!(stream);
    let mut resync = tokio::time::interval(RESYNC);
    let mut state = Synced::default();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = stream.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => { warn!(%error, "watching nodes failed"); continue }
                None => return,
            },
            _ = resync.tick() => {}
        }
        if reader.is_empty() {
            continue;
        }
        let nodes: Vec<_> = reader.state();
        state
            .sync(&config, &nodes.iter().map(AsRef::as_ref).collect::<Vec<_>>())
            .await;
    }
}

/// What has been applied, so that a heartbeat of a Node costs no system call.
#[derive(Default)]
struct Synced {
    peers: Vec<Peer>,
    links: Vec<LinkAddress>,
    pod_cidrs: Vec<IpNet>,
    masqueraded: Vec<IpNet>,
}

impl Synced {
    async fn sync(&mut self, config: &RoutesConfig, nodes: &[&Node]) {
        let own = nodes.iter().find(|n| n.name_any() == config.node_name);
        let pod_cidrs = own.map(|n| pod_cidrs(n)).unwrap_or_default();
        let mut peers: Vec<Peer> = nodes
            .iter()
            .filter(|n| n.name_any() != config.node_name)
            .map(|n| peer(n))
            .collect();
        peers.sort_by(|a, b| a.node.cmp(&b.node));
        let links = match sys::routes::link_addresses().await {
            Ok(links) => links,
            Err(error) => return warn!(%error, "cannot read the addresses of this node"),
        };
        let underlay = own.and_then(|n| peer(n).addresses.first().copied());
        if peers != self.peers || links != self.links || pod_cidrs != self.pod_cidrs {
            if let Err(error) = sync_routes(&peers, &links, underlay, &pod_cidrs).await {
                return warn!(%error, "cannot change routes");
            }
            self.peers = peers;
            self.links = links;
            self.pod_cidrs.clone_from(&pod_cidrs);
        }
        if !pod_cidrs.is_empty() && pod_cidrs != self.masqueraded {
            for family in families(&pod_cidrs) {
                if let Err(error) = masquerade::apply(family, &pod_cidrs, &config.cluster_cidrs).await {
                    return warn!(%error, "cannot masquerade pod traffic");
                }
            }
            self.masqueraded = pod_cidrs;
        }
    }
}

/// Brings routes and overlay to what the peers and our own links need.
pub async fn sync_routes(
    peers: &[Peer],
    links: &[LinkAddress],
    underlay: Option<IpAddr>,
    pod_cidrs: &[IpNet],
) -> std::io::Result<()> {
    let tunnels = underlay
        .map(|underlay| overlay::tunnels(peers, links, underlay))
        .unwrap_or_default();
    let mut device = None;
    match underlay {
        Some(underlay) if !tunnels.is_empty() && !pod_cidrs.is_empty() => {
            let mtu = sys::links::uplink_mtu().await?;
            sys::overlay::ensure(&Local::new(underlay, pod_cidrs, mtu)).await?;
            for tunnel in &tunnels {
                device = Some(sys::overlay::add(tunnel).await?);
            }
        }
        _ => sys::overlay::remove().await?,
    }
    let wanted = wanted(peers, links, device.map(|device| (device, tunnels.as_slice())));
    for action in plan(&wanted, &sys::routes::ours().await?) {
        match action {
            Action::Replace(route) => {
                sys::routes::replace(&route).await?;
                info!(destination = %route.destination, gateway = %route.gateway, overlay = route.on_link, "route to pods");
            }
            Action::Delete(route) => sys::routes::delete(&route).await?,
        }
    }
    Ok(())
}

fn families(nets: &[IpNet]) -> Vec<Family> {
    let mut families: Vec<Family> = nets.iter().map(|n| Family::of(n.addr())).collect();
    families.dedup();
    families
}

fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.as_ref();
    let cidrs = spec.and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
    cidrs.iter().filter_map(|c| addresses::parse(c).ok()).collect()
}

pub fn peer(node: &Node) -> Peer {
    let addresses = node
        .status
        .as_ref()
        .and_then(|s| s.addresses.as_deref())
        .unwrap_or_default();
    let internal = addresses
        .iter()
        .filter(|a| a.type_ == "InternalIP")
        .filter_map(|a| a.address.parse().ok());
    Peer {
        node: node.name_any(),
        addresses: internal.collect(),
        pod_cidrs: pod_cidrs(node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: &str, address: &str, cidr: &str) -> Peer {
        Peer {
            node: node.into(),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: vec![cidr.parse().unwrap()],
        }
    }

    fn route(destination: &str, gateway: &str, link: u32) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
            link,
            on_link: false,
        }
    }

    fn links() -> Vec<LinkAddress> {
        let link = |link, network: &str| LinkAddress {
            link,
            network: network.parse().unwrap(),
        };
        vec![link(2, "10.0.2.15/24"), link(3, "192.168.76.11/24")]
    }

    #[test]
    fn peers_on_a_common_link_get_a_route_and_stale_routes_go() {
        let peers = [
            peer("w1", "192.168.76.21", "10.244.1.0/24"),
            peer("far", "172.16.0.9", "10.244.2.0/24"),
        ];
        let old = route("10.244.9.0/24", "192.168.76.99", 3);
        let near = route("10.244.1.0/24", "192.168.76.21", 3);
        let without_overlay = wanted(&peers, &links(), None);
        assert_eq!(
            plan(&without_overlay, std::slice::from_ref(&old)),
            [Action::Delete(old), Action::Replace(near.clone())]
        );
        let tunnels = overlay::tunnels(&peers, &links(), "192.168.76.11".parse().unwrap());
        let far = Route {
            on_link: true,
            ..route("10.244.2.0/24", "10.244.2.0", 9)
        };
        assert_eq!(
            wanted(&peers, &links(), Some((9, &tunnels))),
            [near.clone(), far.clone()]
        );
        assert_eq!(plan(&[near.clone(), far.clone()], &[far, near]), []);
    }

    #[test]
    fn a_peer_that_moved_is_replaced_not_deleted() {
        let peers = [peer("w1", "192.168.76.22", "10.244.1.0/24")];
        let wanted = wanted(&peers, &links(), None);
        assert_eq!(
            plan(&wanted, &[route("10.244.1.0/24", "192.168.76.21", 3)]),
            [Action::Replace(route("10.244.1.0/24", "192.168.76.22", 3))]
        );
    }

    #[test]
    fn an_address_of_our_own_is_no_way_to_a_peer() {
        let peers = [peer("clone", "192.168.76.11", "10.244.3.0/24")];
        assert_eq!(wanted(&peers, &links(), None), []);
    }
}
