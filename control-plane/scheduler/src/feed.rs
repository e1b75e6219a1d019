//! Watches that keep the scheduler's picture of the cluster up to date.

use crate::state::Shared;
use crate::volumes::claim_key;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::watch as flag;
use tokio::task::JoinSet;

/// Starts the watches and returns when all that filters is known. What only helps to spread pods is not waited for.
pub async fn start(client: &Client, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) {
    let mut feed = Feed {
        client,
        shared,
        tasks,
        needed: Vec::new(),
    };
    feed.follow::<Pod>(uid, |s, pod| s.set_pod(pod), |s, uid| s.remove_pod(uid));
    feed.follow::<Node>(name, |s, node| s.set_node(node), |s, name| s.remove_node(name));
    feed.follow::<Namespace>(
        name,
        |s, namespace| s.set_namespace(namespace),
        |s, name| {
            s.with_cluster(|c| {
                c.namespaces.remove(name);
            });
        },
    );
    feed.follow::<PodDisruptionBudget>(
        path,
        |s, budget| {
            let key = split(&path(&budget));
            s.with_cluster(|c| {
                c.budgets.insert(key, Arc::new(budget));
            });
        },
        |s, key| {
            s.with_cluster(|c| {
                c.budgets.remove(&split(key));
            });
        },
    );
    feed.follow::<PersistentVolumeClaim>(
        path,
        |s, claim| {
            s.with_volumes(|v| {
                v.claims.insert(claim_key(&claim), Arc::new(claim));
            });
        },
        |s, key| {
            s.with_volumes(|v| {
                v.claims.remove(&split(key));
            });
        },
    );
    macro_rules! storage {
        ($($kind:ty: $field:ident;)*) => {$(
            feed.follow::<$kind>(
                path,
                |s, object| s.with_volumes(|v| { v.$field.insert(path(&object), Arc::new(object)); }),
                |s, key| s.with_volumes(|v| { v.$field.remove(key); }),
            );
        )*};
    }
    storage! {
        PersistentVolume: volumes;
        StorageClass: classes;
        CSIDriver: drivers;
        CSINode: csi_nodes;
        CSIStorageCapacity: capacities;
    }
    let needed = std::mem::take(&mut feed.needed);
    feed.follow::<Service>(
        path,
        |s, service| s.with_cluster(|c| c.set_service(&service)),
        |s, key| {
            let (namespace, name) = split(key);
            s.with_cluster(|c| c.remove_service(&namespace, &name));
        },
    );
    feed.follow_owner::<ReplicaSet>(|set| set.spec.as_ref().map(|s| s.selector.clone()));
    feed.follow_owner::<StatefulSet>(|set| set.spec.as_ref().map(|s| s.selector.clone()));
    feed.follow_owner::<ReplicationController>(|controller| {
        let labels = controller.spec.as_ref()?.selector.clone()?;
        Some(LabelSelector {
            match_labels: Some(labels),
            match_expressions: None,
        })
    });
    for mut synced in needed {
        let _ = synced.wait_for(|synced| *synced).await;
    }
}

trait Watched: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static> Watched for K {}

fn uid<K: Watched>(object: &K) -> String {
    object.uid().unwrap_or_default()
}

fn name<K: Watched>(object: &K) -> String {
    object.name_any()
}

/// Namespace, if any, and name.
fn path<K: Watched>(object: &K) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

fn split(path: &str) -> (String, String) {
    let (namespace, name) = path.split_once('/').unwrap_or_default();
    (namespace.to_owned(), name.to_owned())
}

struct Feed<'a> {
    client: &'a Client,
    shared: &'a Arc<Shared>,
    tasks: &'a mut JoinSet<()>,
    /// Each turns true with the first complete list.
    needed: Vec<flag::Receiver<bool>>,
}

impl Feed<'_> {
    fn follow_owner<K: Watched>(&mut self, selector: fn(&K) -> Option<LabelSelector>) {
        self.watch::<K>(
            uid,
            move |s, object| {
                s.with_cluster(|c| match selector(&object) {
                    Some(selector) => c.set_owner(&uid(&object), selector),
                    None => c.remove_owner(&uid(&object)),
                });
            },
            |s, uid| s.with_cluster(|c| c.remove_owner(uid)),
        );
    }

    fn follow<K: Watched>(&mut self, key: fn(&K) -> String, apply: fn(&Shared, K), gone: fn(&Shared, &str)) {
        self.watch(key, apply, gone);
    }

    /// Follows one kind for ever.
    fn watch<K: Watched>(
        &mut self,
        key: fn(&K) -> String,
        apply: impl Fn(&Shared, K) + Send + 'static,
        gone: fn(&Shared, &str),
    ) {
        let (synced, receiver) = flag::channel(false);
        self.needed.push(receiver);
        let shared = self.shared.clone();
        let stream = watch(Api::<K>::all(self.client.clone()), watcher::Config::default()).default_backoff();
        self.tasks.spawn(async move {
            let mut stream = std::pin::pin!(stream.inspect_err(|error| {
                tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again");
            }));
            let mut known: HashSet<String> = HashSet::new();
            let mut listed: HashSet<String> = HashSet::new();
            while let Some(event) = stream.next().await {
                match event.map(|e| e.modify(|o| o.meta_mut().managed_fields = None)) {
                    Err(_) => {}
                    Ok(Event::Init) => listed.clear(),
                    Ok(Event::InitApply(object)) => {
                        listed.insert(key(&object));
                        known.insert(key(&object));
                        apply(&shared, object);
                    }
                    Ok(Event::InitDone) => {
                        let vanished = known.iter().filter(|k| !listed.contains(*k));
                        vanished.for_each(|k| gone(&shared, k));
                        known = std::mem::take(&mut listed);
                        synced.send_replace(true);
                    }
                    Ok(Event::Apply(object)) => {
                        known.insert(key(&object));
                        apply(&shared, object);
                    }
                    Ok(Event::Delete(object)) => {
                        known.remove(&key(&object));
                        gone(&shared, &key(&object));
                    }
                }
            }
        });
    }
}
