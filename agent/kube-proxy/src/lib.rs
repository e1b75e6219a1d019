//! kube-proxy in iptables mode: Services and EndpointSlices in, upstream's chains out.
//!
//! watches → [`tracker`] → [`service_map`] → [`ruleset`] → [`apply`]

mod apply;
mod conntrack;
mod endpoints;
mod health;
mod http;
mod metrics;
mod proxier;
mod ruleset;
mod service_map;
mod tracker;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use proxier::Proxier;
pub use tracker::Event;

/// Upstream's default ports: of `/healthz`, and of `/metrics` on loopback.
pub const HEALTH_PORT: u16 = 10256;
pub const METRICS_PORT: u16 = 10249;

/// Several events of one rollout make one change of the rules.
const COALESCE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(2);
/// How often somebody else's changes of our rules are looked for; less often when looking takes long.
const INSPECT: Duration = Duration::from_secs(30);
const INSPECT_SHARE: u32 = 300;
/// Lets connections to 127.0.0.1 be translated to pods: node ports of upstream's iptables mode answer there.
const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";

#[derive(Debug, Clone)]
pub struct Config {
    pub node_name: String,
    /// The pods' networks, one or one of each family: traffic from elsewhere is masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
    /// Node ports are open at the node's addresses in these networks; at all of them when empty.
    pub node_port_addresses: Vec<IpNet>,
    pub health_port: u16,
    pub metrics_port: u16,
}

/// Keeps the node's rules as Services and EndpointSlices say, until `shutdown`. Rules stay when it ends.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) {
    if let Err(error) = tokio::fs::write(ROUTE_LOCALNET, "1").await {
        warn!(%error, "node ports will not answer at 127.0.0.1");
    }
    let only_own = watcher::Config::default()
        .any_semantic()
        .fields(&format!("metadata.name={}", config.node_name));
    let proxied = watcher::Config::default()
        .any_semantic()
        .labels("!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless");
    let events = futures::stream::select_all([
        watch::<Service>(&client, proxied.clone())
            .map(|event| event.map(Event::Service))
            .boxed(),
        watch::<EndpointSlice>(&client, proxied)
            .map(|event| event.map(Event::Slice))
            .boxed(),
        watch::<Node>(&client, only_own)
            .map(|event| event.map(Event::Node))
            .boxed(),
    ]);
    let proxier = Proxier::new(&config);
    let (health, metrics) = (Arc::clone(&proxier.health), Arc::clone(&proxier.metrics));
    let at_all = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), config.health_port);
    let at_loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), config.metrics_port);
    let health_server = http::serve(
        at_all,
        Arc::new(move |path: &str| health.answer(path)),
        shutdown.clone(),
    );
    let metrics_handler = Arc::new(move |path: &str| health::metrics_answer(&metrics, path));
    let metrics_server = http::serve(at_loopback, metrics_handler, shutdown.clone());
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = health_server => {}
        () = metrics_server => {}
        () = keep_synced(proxier, events) => warn!("the watches ended"),
    }
}

fn watch<K>(
    client: &Client,
    config: watcher::Config,
) -> impl StreamExt<Item = watcher::Result<watcher::Event<K>>> + use<K>
where
    K: Resource + k8s_openapi::Metadata + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned,
    <K as Resource>::DynamicType: Default,
{
    watcher(Api::<K>::all(client.clone()), config)
        .modify(|object| object.managed_fields_mut().clear())
        .default_backoff()
}

async fn keep_synced(
    mut proxier: Proxier,
    mut events: impl StreamExt<Item = watcher::Result<Event>> + Unpin,
) {
    let mut retry = false;
    let mut next_look = Instant::now() + INSPECT;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(event) => take(&mut proxier, event),
                None => return,
            },
            () = tokio::time::sleep(RETRY), if retry => {}
            () = tokio::time::sleep_until(next_look.into()) => {
                let started = Instant::now();
                proxier.inspect().await;
                next_look = Instant::now() + INSPECT.max(started.elapsed() * INSPECT_SHARE);
            }
        }
        if !proxier.is_due() {
            continue;
        }
        let deadline = tokio::time::Instant::now() + COALESCE;
        while let Ok(Some(event)) = tokio::time::timeout_at(deadline, events.next()).await {
            take(&mut proxier, event);
        }
        retry = !proxier.sync().await;
    }
}

fn take(proxier: &mut Proxier, event: watcher::Result<Event>) {
    match event {
        Ok(event) => proxier.apply(event),
        Err(error) => warn!(%error, "watch failed"),
    }
}
