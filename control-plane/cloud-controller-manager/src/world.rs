//! Watched copies of what the controllers look at.

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::reflector::{Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::task::JoinSet;

pub struct World {
    changed: Arc<Notify>,
    nodes: Store<Node>,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    claims: Store<PersistentVolumeClaim>,
    volumes: Store<PersistentVolume>,
    classes: Store<StorageClass>,
}

/// One moment.
#[derive(Default)]
pub struct Snapshot {
    pub nodes: Vec<Arc<Node>>,
    pub services: Vec<Arc<Service>>,
    pub slices: Vec<Arc<EndpointSlice>>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub classes: Vec<Arc<StorageClass>>,
}

impl World {
    /// Returns when each kind has its first list.
    pub async fn start(client: &Client, tasks: &mut JoinSet<()>) -> Self {
        let changed = Arc::new(Notify::new());
        let world = Self {
            nodes: follow(client, tasks, &changed),
            services: follow(client, tasks, &changed),
            slices: follow(client, tasks, &changed),
            claims: follow(client, tasks, &changed),
            volumes: follow(client, tasks, &changed),
            classes: follow(client, tasks, &changed),
            changed,
        };
        // An error means that the watch has ended, with the process.
        let _ = world.nodes.wait_until_ready().await;
        let _ = world.services.wait_until_ready().await;
        let _ = world.slices.wait_until_ready().await;
        let _ = world.claims.wait_until_ready().await;
        let _ = world.volumes.wait_until_ready().await;
        let _ = world.classes.wait_until_ready().await;
        world
    }

    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            nodes: self.nodes.state(),
            services: self.services.state(),
            slices: self.slices.state(),
            claims: self.claims.state(),
            volumes: self.volumes.state(),
            classes: self.classes.state(),
        }
    }
}

fn follow<K>(client: &Client, tasks: &mut JoinSet<()>, changed: &Arc<Notify>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (reader, writer) = store();
    let stream = watcher(Api::<K>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .modify(|object| object.meta_mut().managed_fields = None)
        .reflect(writer);
    let changed = changed.clone();
    tasks.spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(_) => changed.notify_one(),
                Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again"),
            }
        }
    });
    reader
}
