//! NetworkPolicy on this node: watches of policies, namespaces and pods, and the pod network's own records, which know
//! a pod's address before its first process runs.

mod apply;
mod attached;
mod rules;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use netfilter::Family;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::addresses;
use crate::pod_network::BRIDGE;
use apply::Applied;
pub use world::Attached;
use world::World;

/// Changes come in bursts; one pass does for all that arrive within this.
const GATHER: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_secs(2);
/// Without an API server no pod starts; one that answers all but us must not keep a new machine's pods silent for ever.
const PATIENCE: Duration = Duration::from_secs(15);
/// Everything is written anew now and then, whatever somebody else did to it.
const RESYNC: Duration = Duration::from_secs(300);

#[derive(Debug, Clone)]
pub struct PolicyConfig {
    pub node_name: String,
    pub families: Vec<Family>,
    /// Where the runtime's pod network keeps its records.
    pub pod_network_dir: PathBuf,
}

struct Stores {
    policies: reflector::Store<NetworkPolicy>,
    namespaces: reflector::Store<Namespace>,
    pods: reflector::Store<Pod>,
    nodes: reflector::Store<Node>,
}

/// Keeps this node's packet filter as the cluster's NetworkPolicies say, until `shutdown`. Rules stay when it ends.
pub async fn run_policies(client: Client, config: PolicyConfig, shutdown: CancellationToken) {
    let mut closed = false;
    for family in &config.families {
        match apply::close_until_known(*family, BRIDGE).await {
            Ok(newly) => closed |= newly,
            Err(error) => {
                warn!(?family, %error, "cannot close the pod network until its policies are known");
            }
        }
    }
    let own = watcher::Config::default()
        .any_semantic()
        .fields(&format!("metadata.name={}", config.node_name));
    let all = || watcher::Config::default().any_semantic();
    let (policies, policy_events) = watch::<NetworkPolicy>(&client, all());
    let (namespaces, namespace_events) = watch::<Namespace>(&client, all());
    let (pods, pod_events) = watch::<Pod>(&client, all());
    let (nodes, node_events) = watch::<Node>(&client, own);
    let attached_events = attached::changes(&config.pod_network_dir).unwrap_or_else(|error| {
        warn!(%error, "new pods wait for the API to tell their addresses: cannot follow the pod network's records");
        stream::pending().boxed()
    });
    let stores = Stores {
        policies,
        namespaces,
        pods,
        nodes,
    };
    let events = stream::select_all([
        policy_events,
        namespace_events,
        pod_events,
        node_events,
        attached_events,
    ]);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keep_synced(&config, &stores, events, closed) => warn!("the watches ended"),
    }
}

type Events = stream::BoxStream<'static, ()>;

fn watch<K>(client: &Client, config: watcher::Config) -> (reflector::Store<K>, Events)
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let events = watcher(Api::<K>::all(client.clone()), config)
        .modify(|object| object.managed_fields_mut().clear())
        .default_backoff()
        .reflect(writer)
        .filter_map(|event| {
            if let Err(error) = &event {
                warn!(kind = %K::kind(&()), %error, "watch failed");
            }
            futures::future::ready(event.is_ok().then_some(()))
        });
    (store, events.boxed())
}

/// `closed`: no policies of an earlier process hold.
async fn keep_synced(
    config: &PolicyConfig,
    stores: &Stores,
    mut events: impl StreamExt<Item = ()> + Unpin,
    closed: bool,
) {
    let mut policies = Policies::new(&config.families);
    let mut resync = tokio::time::interval(RESYNC);
    resync.reset();
    let mut failed = false;
    let mut known = false;
    let patience = tokio::time::sleep(PATIENCE);
    tokio::pin!(patience);
    loop {
        tokio::select! {
            event = events.next() => if event.is_none() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
            _ = resync.tick() => policies.forget(),
            () = &mut patience, if closed && !known => {
                error!("network policies cannot be read: pods are not protected until they can");
                policies.sync(&config.node_name, &Observed::default()).await;
                known = true;
            }
        }
        let deadline = tokio::time::Instant::now() + GATHER;
        while let Ok(Some(())) = tokio::time::timeout_at(deadline, events.next()).await {}
        if let Some(observed) = stores.observed(config) {
            known = true;
            failed = !policies.sync(&config.node_name, &observed).await;
        }
    }
}

/// What policies depend on.
#[derive(Default)]
pub struct Observed {
    pub policies: Vec<Arc<NetworkPolicy>>,
    pub namespaces: Vec<Arc<Namespace>>,
    pub pods: Vec<Arc<Pod>>,
    /// This node.
    pub nodes: Vec<Arc<Node>>,
    pub attached: Attached,
}

/// The policies of this node in the kernel.
pub struct Policies(Vec<(Family, Applied)>);

impl Policies {
    pub fn new(families: &[Family]) -> Self {
        Self(
            families
                .iter()
                .map(|family| (*family, Applied::new(*family)))
                .collect(),
        )
    }

    /// Makes the next sync write everything anew.
    pub fn forget(&mut self) {
        self.0.iter_mut().for_each(|(_, applied)| applied.forget());
    }

    /// Makes the kernel enforce what is observed; false when that failed.
    pub async fn sync(&mut self, node: &str, observed: &Observed) -> bool {
        let world = observed.world(node);
        let mut worked = true;
        for (family, applied) in &mut self.0 {
            match applied.sync(rules::render(*family, &world, BRIDGE)).await {
                Ok(true) => info!(
                    ?family,
                    policies = world.policies.len(),
                    "network policies are in place"
                ),
                Ok(false) => {}
                Err(error) => {
                    warn!(?family, %error, "cannot enforce network policies; trying again");
                    worked = false;
                }
            }
        }
        worked
    }
}

impl Observed {
    fn world(&self, node: &str) -> World {
        let cidrs = self
            .nodes
            .iter()
            .filter_map(|node| node.spec.as_ref()?.pod_cidrs.clone())
            .flatten();
        let pod_cidrs: Vec<_> = cidrs.filter_map(|cidr| addresses::parse(&cidr).ok()).collect();
        World {
            namespaces: world::namespaces(self.namespaces.iter().map(AsRef::as_ref)),
            pods: self
                .pods
                .iter()
                .filter_map(|pod| world::Pod::of(pod, node, &self.attached))
                .collect(),
            policies: world::policies(self.policies.iter().map(AsRef::as_ref)),
            gateways: pod_cidrs.iter().map(|cidr| addresses::gateway(*cidr)).collect(),
            pod_cidrs,
        }
    }
}

impl Stores {
    /// `None` until everything has been heard of once.
    fn observed(&self, config: &PolicyConfig) -> Option<Observed> {
        let stores: [&dyn IsReady; 4] = [&self.policies, &self.namespaces, &self.pods, &self.nodes];
        stores.iter().all(|store| store.is_ready()).then(|| Observed {
            policies: self.policies.state(),
            namespaces: self.namespaces.state(),
            pods: self.pods.state(),
            nodes: self.nodes.state(),
            attached: attached::read(&config.pod_network_dir),
        })
    }
}

trait IsReady {
    fn is_ready(&self) -> bool;
}

impl<K> IsReady for reflector::Store<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    fn is_ready(&self) -> bool {
        futures::FutureExt::now_or_never(self.wait_until_ready()).is_some_and(|ready| ready.is_ok())
    }
}
