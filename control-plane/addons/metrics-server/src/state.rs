//! What the server knows: nodes and pods from their watches, usage from the last rounds of scrapes.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::PartialObjectMeta;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};

use crate::objects::{self, About, Item};
use crate::request::{Target, field_matches};
use crate::scrape::Kubelets;
use crate::storage::Storage;

type Metadata<K> = PartialObjectMeta<K>;

pub struct State {
    nodes: Store<Node>,
    pods: Store<Metadata<Pod>>,
    storage: RwLock<Storage>,
    /// When the last round of scrapes began.
    round: RwLock<Instant>,
    resolution: Duration,
}

/// Which objects of a list are wanted.
pub struct Selection {
    pub labels: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pub fields: String,
}

impl State {
    /// The state, and the watches that fill it.
    pub fn new(
        client: &Client,
        resolution: Duration,
    ) -> (Self, impl Future<Output = anyhow::Result<()>> + use<>) {
        let (nodes, writer) = reflector::store::<Node>();
        let watched = watcher(Api::<Node>::all(client.clone()), watcher::Config::default())
            .default_backoff()
            .modify(|node| {
                strip(&mut node.metadata);
                node.spec = None;
                if let Some(status) = &mut node.status {
                    (status.images, status.conditions, status.volumes_attached) = (None, None, None);
                }
            });
        let mut watched_nodes = reflector::reflector(writer, watched).boxed();
        let (pods, writer) = reflector::store::<Metadata<Pod>>();
        // Others use nothing.
        let running = watcher::Config::default().fields("status.phase=Running");
        let watched = watcher(Api::<Metadata<Pod>>::all(client.clone()), running)
            .default_backoff()
            .modify(|pod| strip(&mut pod.metadata));
        let mut watched_pods = reflector::reflector(writer, watched).boxed();
        let state = Self {
            nodes,
            pods,
            storage: RwLock::default(),
            round: RwLock::new(Instant::now()),
            resolution,
        };
        let filling = async move {
            loop {
                let error = tokio::select! {
                    Some(change) = watched_nodes.next() => change.err(),
                    Some(change) = watched_pods.next() => change.err(),
                    else => anyhow::bail!("the watches ended"),
                };
                if let Some(error) = error {
                    tracing::warn!(%error, "watch");
                }
            }
        };
        (state, filling)
    }

    /// Scrapes all kubelets, round after round.
    pub async fn scrape(&self, kubelets: &Kubelets) -> anyhow::Result<()> {
        self.nodes.wait_until_ready().await?;
        let mut rounds = tokio::time::interval(self.resolution);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            *self.round.write().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let answers = kubelets.scrape(&self.nodes.state()).await;
            let mut storage = self.storage.write().unwrap_or_else(PoisonError::into_inner);
            storage.store(answers, self.resolution);
        }
    }

    /// Rounds begin as often as they should.
    pub fn is_timely(&self) -> bool {
        let since = self
            .round
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed();
        since < self.resolution + self.resolution / 2
    }

    pub fn has_metrics(&self) -> bool {
        self.storage
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_ready()
    }

    /// Metrics of what `target` names and `wanted` selects.
    pub fn items(&self, target: &Target, wanted: &Selection) -> Result<Vec<Item>, String> {
        let storage = self.storage.read().unwrap_or_else(PoisonError::into_inner);
        let (namespace, name) = (target.namespace.as_deref(), target.name.as_deref());
        let now = Timestamp::now();
        let mut items = BTreeMap::new();
        let mut add = |meta: &ObjectMeta, make: &dyn Fn(&About<'_>) -> Option<Item>| {
            let own_name = meta.name.as_deref().unwrap_or_default();
            let own_namespace = meta.namespace.as_deref();
            let here = namespace.is_none_or(|wanted| own_namespace == Some(wanted))
                && name.is_none_or(|wanted| own_name == wanted)
                && api::selector::matches(&wanted.labels, meta.labels.as_ref())
                && field_matches(&wanted.fields, own_name, own_namespace)?;
            let about = About {
                namespace: own_namespace,
                name: own_name,
                labels: meta.labels.as_ref(),
            };
            if let Some(item) = here.then(|| make(&about)).flatten() {
                items.insert((own_namespace.map(str::to_owned), own_name.to_owned()), item);
            }
            Ok::<_, String>(())
        };
        let node_metrics = |about: &About<'_>| {
            let usage = storage.node(about.name)?;
            Some(objects::node_metrics(about, usage, now))
        };
        let pod_metrics = |about: &About<'_>| {
            let key = (
                about.namespace.unwrap_or_default().to_owned(),
                about.name.to_owned(),
            );
            let containers = storage.pod(&key)?;
            Some(objects::pod_metrics(about, &containers, now))
        };
        match (target.resource.as_str(), name) {
            ("nodes", Some(name)) => {
                if let Some(node) = self.nodes.get(&ObjectRef::new(name)) {
                    add(&node.metadata, &node_metrics)?;
                }
            }
            ("nodes", None) => {
                for node in self.nodes.state() {
                    add(&node.metadata, &node_metrics)?;
                }
            }
            (_, Some(name)) => {
                let key = ObjectRef::new(name).within(namespace.unwrap_or_default());
                if let Some(pod) = self.pods.get(&key) {
                    add(&pod.metadata, &pod_metrics)?;
                }
            }
            (_, None) => {
                for pod in self.pods.state() {
                    add(&pod.metadata, &pod_metrics)?;
                }
            }
        }
        Ok(items.into_values().collect())
    }
}

fn strip(meta: &mut ObjectMeta) {
    (meta.managed_fields, meta.annotations, meta.owner_references) = (None, None, None);
}
