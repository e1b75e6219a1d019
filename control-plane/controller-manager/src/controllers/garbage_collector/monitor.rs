//! Keeps the graph true to the cluster: metadata watches for every kind that no cache of ours watches already.

use super::graph::{Graph, Item};
use crate::cache::{Cache, Object};
use crate::caches::Caches;
use crate::discovery::{self, Kind};
use crate::key::Key;
use crate::queue::Queue;
use futures::StreamExt;
use kube::api::{Api, DynamicObject, PartialObjectMeta, ResourceExt};
use kube::discovery::ApiResource;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch as flag;
use tokio::task::AbortHandle;

/// How often to look for kinds that came or went.
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
/// Nobody owns events, and there are many.
const IGNORED: [&str; 1] = ["events"];

pub struct Monitor {
    pub graph: Mutex<Graph>,
    pub kinds: Mutex<HashMap<(String, String), Arc<Kind>>>,
    queue: Arc<Queue>,
    /// Kinds whose objects reach the graph through a cache.
    cached: Mutex<HashSet<(String, String)>>,
    /// Every kind has been listed once: the absence of a dependent means something.
    synced: flag::Sender<bool>,
}

impl Monitor {
    pub fn new(caches: &Caches, queue: Arc<Queue>) -> Arc<Self> {
        let monitor = Arc::new(Self {
            graph: Mutex::default(),
            kinds: Mutex::default(),
            queue,
            cached: Mutex::default(),
            synced: flag::Sender::new(false),
        });
        monitor.follow_cache(&caches.pods, true);
        monitor.follow_cache(&caches.nodes, false);
        monitor.follow_cache(&caches.namespaces, false);
        monitor.follow_cache(&caches.service_accounts, true);
        monitor.follow_cache(&caches.services, true);
        monitor.follow_cache(&caches.endpoint_slices, true);
        monitor.follow_cache(&caches.endpoints, true);
        monitor.follow_cache(&caches.deployments, true);
        monitor.follow_cache(&caches.replica_sets, true);
        monitor.follow_cache(&caches.signing_requests, false);
        monitor
    }

    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// The kind an owner reference names, if the server has it.
    pub fn kind(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds
            .values()
            .find(|k| k.resource.group == group && k.resource.kind == kind)
            .cloned()
    }

    fn follow_cache<K: Object>(self: &Arc<Self>, cache: &Cache<K>, namespaced: bool) {
        let resource = ApiResource::erase::<K>(&());
        let id = (resource.group.clone(), resource.plural.clone());
        self.cached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id);
        let kind = Arc::new(Kind {
            resource,
            namespaced,
            collectively: true,
            watchable: true,
        });
        let monitor = self.clone();
        cache.on(move |change| {
            if let Some(old) = change
                .old
                .filter(|old| change.new.is_none_or(|new| new.meta().uid != old.meta().uid))
            {
                monitor.removed(old.meta().uid.as_deref().unwrap_or_default());
            }
            if let Some(new) = change.new {
                monitor.seen(Item::new(&kind, new.meta()));
            }
        });
    }

    fn seen(&self, item: Item) {
        let look = self
            .graph
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set(item);
        self.enqueue(look);
    }

    fn removed(&self, uid: &str) {
        let look = self
            .graph
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
        self.enqueue(look);
    }

    pub fn enqueue(&self, uids: Vec<String>) {
        uids.into_iter()
            .for_each(|uid| self.queue.add(Key::new("", &uid)));
    }

    /// Starts and stops watches as kinds come and go, until the task is dropped.
    pub async fn run(self: Arc<Self>, client: kube::Client) {
        let mut watches: HashMap<(String, String), AbortHandle> = HashMap::new();
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            match discovery::deletable(&client).await {
                Ok(found) => {
                    let started = self.adjust(&client, found, &mut watches, &mut tasks);
                    for mut listed in started {
                        let _ = listed.wait_for(|listed| *listed).await;
                    }
                    self.synced.send_replace(true);
                }
                Err(error) => tracing::warn!(%error, "kinds not refreshed"),
            }
            while tasks.try_join_next().is_some() {}
            tokio::time::sleep(DISCOVERY_PERIOD).await;
        }
    }

    fn adjust(
        self: &Arc<Self>,
        client: &kube::Client,
        found: Vec<Kind>,
        watches: &mut HashMap<(String, String), AbortHandle>,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> Vec<flag::Receiver<bool>> {
        let found: HashMap<(String, String), Arc<Kind>> = found
            .into_iter()
            .filter(|k| k.watchable && !IGNORED.contains(&k.resource.plural.as_str()))
            .map(|k| ((k.resource.group.clone(), k.resource.plural.clone()), Arc::new(k)))
            .collect();
        watches.retain(|id, handle| {
            let stays = found.contains_key(id);
            if !stays {
                handle.abort();
            }
            stays
        });
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let mut started = Vec::new();
        for (id, kind) in found.iter().filter(|(id, _)| !cached.contains(*id)) {
            watches.entry(id.clone()).or_insert_with(|| {
                let (sender, receiver) = flag::channel(false);
                started.push(receiver);
                tasks.spawn(self.clone().follow(client.clone(), kind.clone(), sender))
            });
        }
        *self.kinds.lock().unwrap_or_else(PoisonError::into_inner) = found;
        started
    }

    async fn follow(self: Arc<Self>, client: kube::Client, kind: Arc<Kind>, listed: flag::Sender<bool>) {
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &kind.resource);
        let mut stream = std::pin::pin!(watcher(api, Config::default()).default_backoff());
        let mut known: HashSet<String> = HashSet::new();
        let mut fresh: HashSet<String> = HashSet::new();
        while let Some(event) = stream.next().await {
            match event {
                Err(error) => {
                    tracing::warn!(kind = %kind.title(), %error, "metadata watch failed, trying again");
                }
                Ok(Event::Init) => fresh.clear(),
                Ok(Event::InitApply(object)) => {
                    fresh.insert(object.uid().unwrap_or_default());
                    known.insert(object.uid().unwrap_or_default());
                    self.seen(Item::new(&kind, &object.metadata));
                }
                Ok(Event::InitDone) => {
                    known
                        .iter()
                        .filter(|uid| !fresh.contains(*uid))
                        .for_each(|uid| self.removed(uid));
                    known = std::mem::take(&mut fresh);
                    listed.send_replace(true);
                }
                Ok(Event::Apply(object)) => {
                    known.insert(object.uid().unwrap_or_default());
                    self.seen(Item::new(&kind, &object.metadata));
                }
                Ok(Event::Delete(object)) => {
                    let uid = object.uid().unwrap_or_default();
                    known.remove(&uid);
                    self.removed(&uid);
                }
            }
        }
    }
}
