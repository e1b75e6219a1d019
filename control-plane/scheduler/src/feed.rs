//! Watches that keep the scheduler's picture of the cluster up to date.

use crate::state::Shared;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ReplicationController, Service};
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

/// Starts the watches and returns when pods, nodes and namespaces are known. What only helps to spread pods is not
/// waited for.
pub async fn start(client: &Client, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) {
    let s = || shared.clone();
    let needed = [
        follow(
            tasks,
            client,
            uid,
            {
                let s = s();
                move |pod: Pod| s.set_pod(pod)
            },
            {
                let s = s();
                move |k| s.remove_pod(k)
            },
        ),
        follow(
            tasks,
            client,
            name,
            {
                let s = s();
                move |node: Node| s.set_node(node)
            },
            {
                let s = s();
                move |k| s.remove_node(k)
            },
        ),
        follow(
            tasks,
            client,
            name,
            {
                let s = s();
                move |namespace: Namespace| s.set_namespace(namespace)
            },
            {
                let s = s();
                move |k| s.remove_namespace(k)
            },
        ),
    ];
    follow(
        tasks,
        client,
        |service: &Service| {
            format!(
                "{}/{}",
                service.namespace().unwrap_or_default(),
                service.name_any()
            )
        },
        {
            let s = s();
            move |service: Service| s.set_service(&service)
        },
        {
            let s = s();
            move |k| {
                if let Some((namespace, name)) = k.split_once('/') {
                    s.remove_service(namespace, name)
                }
            }
        },
    );
    follow_owner(tasks, client, shared, |set: &ReplicaSet| {
        set.spec.as_ref().map(|s| s.selector.clone())
    });
    follow_owner(tasks, client, shared, |set: &StatefulSet| {
        set.spec.as_ref().map(|s| s.selector.clone())
    });
    follow_owner(tasks, client, shared, |controller: &ReplicationController| {
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

fn follow_owner<K: Watched>(
    tasks: &mut JoinSet<()>,
    client: &Client,
    shared: &Arc<Shared>,
    selector: fn(&K) -> Option<LabelSelector>,
) {
    let (set, gone) = (shared.clone(), shared.clone());
    let apply = move |object: K| match selector(&object) {
        Some(selector) => set.set_owner(&uid(&object), selector),
        None => set.remove_owner(&uid(&object)),
    };
    follow(tasks, client, uid, apply, move |k| gone.remove_owner(k));
}

/// Follows one kind for ever; the flag turns true with the first complete list.
fn follow<K: Watched>(
    tasks: &mut JoinSet<()>,
    client: &Client,
    key: fn(&K) -> String,
    apply: impl Fn(K) + Send + 'static,
    gone: impl Fn(&str) + Send + 'static,
) -> flag::Receiver<bool> {
    let (synced, receiver) = flag::channel(false);
    let stream = watch(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff();
    tasks.spawn(async move {
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
                    apply(object);
                }
                Ok(Event::InitDone) => {
                    known
                        .iter()
                        .filter(|k| !listed.contains(*k))
                        .for_each(|k| gone(k));
                    known = std::mem::take(&mut listed);
                    synced.send_replace(true);
                }
                Ok(Event::Apply(object)) => {
                    known.insert(key(&object));
                    apply(object);
                }
                Ok(Event::Delete(object)) => {
                    known.remove(&key(&object));
                    gone(&key(&object));
                }
            }
        }
    });
    receiver
}
