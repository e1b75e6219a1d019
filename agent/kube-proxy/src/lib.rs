//! kube-proxy in iptables mode: Services and EndpointSlices in, upstream's chains out.
//!
//! watch → [`service_map::build`] → [`ruleset::render`] → [`apply::Applied::sync`]

mod apply;
mod health;
mod ruleset;
mod service_map;

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use apply::Applied;
use health::Health;
use service_map::Family;

/// Upstream's default port of `/healthz`.
pub const HEALTH_PORT: u16 = 10256;

/// Several events of one rollout make one change of the rules.
const COALESCE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(2);
const CANARY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Config {
    pub node_name: String,
    /// The pods' networks, one or one of each family: traffic from elsewhere is masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
    pub health_port: u16,
}

/// Keeps the node's rules as Services and EndpointSlices say, until `shutdown`. Rules stay when it ends.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let (services, services_task) = watch::<Service>(&client, &changed);
    let (slices, slices_task) = watch::<EndpointSlice>(&client, &changed);
    let health = Arc::new(Health::default());
    let proxy = Proxy {
        services,
        slices,
        config: &config,
        health: &health,
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = services_task => warn!("the watch of Services ended"),
        () = slices_task => warn!("the watch of EndpointSlices ended"),
        () = health::serve(Arc::clone(&health), config.health_port, shutdown.clone()) => {}
        () = proxy.keep_synced(&changed) => {}
    }
}

fn watch<K>(
    client: &Client,
    changed: &Arc<Notify>,
) -> (reflector::Store<K>, impl Future<Output = ()> + use<K>)
where
    K: Resource<Scope = kube::core::NamespaceResourceScope> + k8s_openapi::Metadata + Clone + std::fmt::Debug,
    K: serde::de::DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + std::hash::Hash + Clone,
{
    let (reader, writer) = reflector::store::<K>();
    let stream = watcher(
        Api::<K>::all(client.clone()),
        watcher::Config::default().any_semantic(),
    )
    .modify(|object| object.managed_fields_mut().clear())
    .default_backoff()
    .reflect(writer);
    (reader, notify_on_events(stream, Arc::clone(changed)))
}

async fn notify_on_events<T>(stream: impl Stream<Item = Result<T, watcher::Error>>, changed: Arc<Notify>) {
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(_) => changed.notify_one(),
            Err(error) => warn!(%error, "watch failed"),
        }
    }
}

struct Proxy<'a> {
    services: reflector::Store<Service>,
    slices: reflector::Store<EndpointSlice>,
    config: &'a Config,
    health: &'a Health,
}

impl Proxy<'_> {
    async fn keep_synced(&self, changed: &Notify) {
        // Rules from half a picture would cut running connections' Services off.
        if self.services.wait_until_ready().await.is_err() || self.slices.wait_until_ready().await.is_err() {
            return;
        }
        let mut families = self.families();
        let mut canary = tokio::time::interval(CANARY);
        canary.reset();
        let mut failed = self.sync(&mut families).await;
        loop {
            tokio::select! {
                () = changed.notified() => {
                    self.health.pending();
                    tokio::time::sleep(COALESCE).await;
                }
                () = tokio::time::sleep(RETRY), if failed => {}
                _ = canary.tick() => if !self.forget_flushed(&mut families).await { continue },
            }
            failed = self.sync(&mut families).await;
        }
    }

    fn families(&self) -> Vec<Applied> {
        let of = |family| {
            self.config
                .cluster_cidrs
                .iter()
                .any(|c| Family::of(c.addr()) == family)
        };
        let mut families = Vec::new();
        if of(Family::V4) || self.config.cluster_cidrs.is_empty() {
            families.push(Applied::new(Family::V4));
        }
        if of(Family::V6) {
            families.push(Applied::new(Family::V6));
        }
        families
    }

    /// Applies the current picture to every family; true when one of them failed.
    async fn sync(&self, families: &mut [Applied]) -> bool {
        let (services, slices) = (self.services.state(), self.slices.state());
        let mut failed = false;
        for applied in families {
            let family = applied.family();
            let (services, slices) = (
                services.iter().map(AsRef::as_ref),
                slices.iter().map(AsRef::as_ref),
            );
            let map = service_map::build(family, &self.config.node_name, services, slices);
            let cidr = self
                .config
                .cluster_cidrs
                .iter()
                .find(|c| Family::of(c.addr()) == family)
                .copied();
            match applied.sync(ruleset::render(family, &map, cidr)).await {
                Ok(()) => debug!(?family, ports = map.len(), "rules are in place"),
                Err(error) => {
                    warn!(?family, %error, "cannot apply the rules of Services; trying again");
                    failed = true;
                }
            }
        }
        if !failed {
            self.health.updated();
        }
        failed
    }

    /// True when somebody flushed the tables and the rules must be written anew.
    async fn forget_flushed(&self, families: &mut [Applied]) -> bool {
        let mut flushed = false;
        for applied in families {
            match applied.canary_lives().await {
                Ok(true) => {}
                Ok(false) => {
                    warn!(family = ?applied.family(), "the rules of Services were flushed by somebody else");
                    applied.forget();
                    flushed = true;
                }
                Err(error) => warn!(%error, "cannot look for the canary chain"),
            }
        }
        flushed
    }
}
