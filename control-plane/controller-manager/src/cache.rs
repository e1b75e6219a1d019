//! A watched copy of one kind of object, shared by all controllers, that also knows what this process wrote itself.
//!
//! Watches lag behind writes. A controller that acts on a copy from before its own last write would act twice, so the
//! result of every write enters the cache at once; when the watch catches up, it takes over. resourceVersions are
//! comparable numbers (KEP-5504), which tells the two apart.

use crate::key::Key;
use api::owner::controller_of;
use futures::{StreamExt, TryStreamExt};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::watch as flag;

/// A write the watch doesn't confirm within this time is forgotten (the object went away in between).
const CONFIRMATION: Duration = Duration::from_secs(30);

/// What a cache holds.
pub trait Object:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Object for K {}

/// One object's change; `new` is absent when it was deleted, `old` when it is new.
pub struct Change<'a, K> {
    pub key: &'a Key,
    pub old: Option<&'a K>,
    pub new: Option<&'a K>,
}

impl<K> Change<'_, K> {
    /// Old and new state, those that exist.
    pub fn sides(&self) -> impl Iterator<Item = &K> {
        self.old.into_iter().chain(self.new)
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;
type Difference<K> = (Key, Option<Arc<K>>, Option<Arc<K>>);

pub struct Cache<K> {
    state: RwLock<State<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: flag::Sender<bool>,
    trim: fn(&mut K),
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    by_controller: HashMap<String, BTreeSet<Key>>,
    /// The newest resourceVersion the watch has shown.
    seen: u64,
    unconfirmed: HashMap<Key, (u64, Instant)>,
    /// UIDs of objects this process deleted; the watch may still speak of them.
    deleted: HashMap<String, Instant>,
}

/// Feeds results of writes to the cache of their type.
pub trait Observer: Send + Sync {
    fn wrote(&self, object: Value);
    fn removed(&self, key: &Key, uid: &str);
}

impl<K: Object> Cache<K> {
    pub fn new(trim: fn(&mut K)) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            by_controller: HashMap::new(),
            seen: 0,
            unconfirmed: HashMap::new(),
            deleted: HashMap::new(),
        };
        Self {
            state: RwLock::new(state),
            handlers: RwLock::default(),
            synced: flag::Sender::new(false),
            trim,
        }
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read(|s| s.objects.get(key).cloned())
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        self.read(|s| s.objects.values().cloned().collect())
    }

    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Key::new(namespace, "");
        self.read(|s| {
            s.objects
                .range(from..)
                .take_while(|(k, _)| k.namespace == namespace)
                .map(|(_, o)| o.clone())
                .collect()
        })
    }

    /// Objects whose controller reference has this UID.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.read(|s| {
            s.by_controller
                .get(uid)
                .into_iter()
                .flatten()
                .filter_map(|k| s.objects.get(k).cloned())
                .collect()
        })
    }

    /// Calls `handler` for every change from now on, in order.
    pub fn on(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.handlers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(handler));
    }

    pub async fn wait_synced(&self) {
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Watches until the process ends; errors are retried with backoff.
    pub async fn run(&self, api: Api<K>, config: watcher::Config) {
        let stream = watch(api, config).default_backoff();
        let mut stream = std::pin::pin!(stream.inspect_err(|error| {
            tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again");
        }));
        let mut listed: Option<Vec<K>> = None;
        while let Some(event) = stream.next().await {
            let Ok(event) = event else { continue };
            let relisted = matches!(event, Event::InitDone);
            let changes = match event.modify(|object| self.strip(object)) {
                Event::Init => {
                    listed = Some(Vec::new());
                    continue;
                }
                Event::InitApply(object) => {
                    listed.get_or_insert_default().push(object);
                    continue;
                }
                Event::InitDone => self.write(|s| s.replace(listed.take().unwrap_or_default())),
                Event::Apply(object) => self.write(|s| s.watched(object)).into_iter().collect(),
                Event::Delete(object) => self.write(|s| s.watched_deletion(&object)).into_iter().collect(),
            };
            self.tell(&changes);
            if relisted {
                self.synced.send_replace(true);
            }
        }
    }

    fn strip(&self, object: &mut K) {
        object.meta_mut().managed_fields = None;
        (self.trim)(object);
    }

    fn tell(&self, changes: &[Difference<K>]) {
        let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
        for (key, old, new) in changes {
            for handler in handlers.iter() {
                handler(&Change {
                    key,
                    old: old.as_deref(),
                    new: new.as_deref(),
                });
            }
        }
    }

    fn read<T>(&self, f: impl FnOnce(&State<K>) -> T) -> T {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, f: impl FnOnce(&mut State<K>) -> T) -> T {
        f(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<K: Object> Observer for Cache<K> {
    fn wrote(&self, object: Value) {
        match serde_json::from_value::<K>(object) {
            Ok(mut object) => {
                self.strip(&mut object);
                let change = self.write(|s| s.written(object, Instant::now()));
                self.tell(change.as_slice());
            }
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "server's answer to a write is not an object")
            }
        }
    }

    fn removed(&self, key: &Key, uid: &str) {
        let change = self.write(|s| s.removed(key, uid, Instant::now()));
        self.tell(change.as_slice());
    }
}

impl<K: Object> State<K> {
    fn insert(&mut self, key: Key, object: K) -> Option<Difference<K>> {
        let new = Arc::new(object);
        let old = self.objects.insert(key.clone(), new.clone());
        let (before, after) = (
            old.as_ref().and_then(|o| controller_uid(o.as_ref())),
            controller_uid(new.as_ref()),
        );
        if before != after {
            self.unindex(&key, before);
            if let Some(uid) = after {
                self.by_controller.entry(uid).or_default().insert(key.clone());
            }
        }
        Some((key, old, Some(new)))
    }

    fn remove(&mut self, key: &Key) -> Option<Difference<K>> {
        let old = self.objects.remove(key)?;
        self.unconfirmed.remove(key);
        self.unindex(key, controller_uid(old.as_ref()));
        Some((key.clone(), Some(old), None))
    }

    fn unindex(&mut self, key: &Key, uid: Option<String>) {
        if let Some(uid) = uid
            && let Some(keys) = self.by_controller.get_mut(&uid)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_controller.remove(&uid);
            }
        }
    }

    fn watched(&mut self, object: K) -> Option<Difference<K>> {
        let (key, version) = (Key::of(object.meta()), version(&object));
        self.seen = self.seen.max(version);
        if uid(&object).is_some_and(|uid| self.deleted.contains_key(uid)) {
            return None;
        }
        match self.unconfirmed.get(&key) {
            Some((written, _)) if version < *written => return None,
            Some((written, _)) if version == *written => {
                self.unconfirmed.remove(&key);
                return None;
            }
            _ => self.unconfirmed.remove(&key),
        };
        self.insert(key, object)
    }

    fn watched_deletion(&mut self, object: &K) -> Option<Difference<K>> {
        let key = Key::of(object.meta());
        self.seen = self.seen.max(version(object));
        if let Some(uid) = uid(object) {
            self.deleted.remove(uid);
        }
        let same = self
            .objects
            .get(&key)
            .is_some_and(|o| o.meta().uid == object.meta().uid);
        if same { self.remove(&key) } else { None }
    }

    fn written(&mut self, object: K, now: Instant) -> Option<Difference<K>> {
        let (key, version) = (Key::of(object.meta()), version(&object));
        let known = self
            .objects
            .get(&key)
            .map(|o| self::version(o.as_ref()))
            .unwrap_or_default();
        if version <= self.seen || version <= known {
            return None;
        }
        self.unconfirmed.insert(key.clone(), (version, now));
        self.insert(key, object)
    }

    fn removed(&mut self, key: &Key, removed: &str, now: Instant) -> Option<Difference<K>> {
        self.forget_old(now);
        if self.objects.get(key).and_then(|o| uid(o.as_ref())) != Some(removed) {
            return None;
        }
        self.deleted.insert(removed.into(), now);
        self.remove(key)
    }

    /// A list is the truth, but for what this process wrote after it.
    fn replace(&mut self, list: Vec<K>) -> Vec<Difference<K>> {
        self.forget_old(Instant::now());
        let mut changes = Vec::new();
        let mut present = HashSet::new();
        for object in list {
            present.insert(Key::of(object.meta()));
            let unchanged = self
                .objects
                .get(&Key::of(object.meta()))
                .is_some_and(|old| old.meta().resource_version == object.meta().resource_version);
            if unchanged {
                self.seen = self.seen.max(version(&object));
                self.unconfirmed.remove(&Key::of(object.meta()));
            } else {
                changes.extend(self.watched(object));
            }
        }
        let gone: Vec<Key> = self
            .objects
            .keys()
            .filter(|k| {
                !present.contains(*k) && self.unconfirmed.get(*k).is_none_or(|(v, _)| *v <= self.seen)
            })
            .cloned()
            .collect();
        changes.extend(gone.iter().filter_map(|key| self.remove(key)));
        changes
    }

    fn forget_old(&mut self, now: Instant) {
        self.deleted
            .retain(|_, since| now.duration_since(*since) < CONFIRMATION);
        self.unconfirmed
            .retain(|_, (_, since)| now.duration_since(*since) < CONFIRMATION);
    }
}

fn version<K: Object>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or_default()
}

fn uid<K: Object>(object: &K) -> Option<&str> {
    object.meta().uid.as_deref()
}

fn controller_uid<K: Object>(object: &K) -> Option<String> {
    controller_of(object.meta()).map(|r| r.uid.clone())
}

/// Caches by the type they hold.
pub type Observers = HashMap<TypeId, Vec<Arc<dyn Observer>>>;

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {
            "name": name, "namespace": "n", "uid": uid, "resourceVersion": version.to_string()}}))
        .unwrap()
    }

    fn state() -> State<ConfigMap> {
        let cache = Cache::<ConfigMap>::new(|_| {});
        cache.state.into_inner().unwrap()
    }

    fn versions(state: &State<ConfigMap>) -> Vec<(String, u64)> {
        state
            .objects
            .iter()
            .map(|(k, o)| (k.name.clone(), version(o.as_ref())))
            .collect()
    }

    #[test]
    fn own_writes_are_seen_at_once_and_older_news_do_not_undo_them() {
        let mut s = state();
        s.watched(object("a", "1", 5));
        assert!(s.written(object("a", "1", 8), Instant::now()).is_some());
        assert!(s.watched(object("a", "1", 7)).is_none());
        assert_eq!(versions(&s), [("a".into(), 8)]);
        assert!(
            s.watched(object("a", "1", 8)).is_none(),
            "confirmation is no news"
        );
        assert!(s.watched(object("a", "1", 9)).is_some());
    }

    #[test]
    fn an_answer_that_the_watch_overtook_is_ignored() {
        let mut s = state();
        s.watched(object("a", "1", 5));
        s.watched_deletion(&object("a", "1", 6));
        assert!(s.written(object("a", "1", 5), Instant::now()).is_none());
        assert!(s.objects.is_empty());
    }

    #[test]
    fn own_deletions_are_final() {
        let mut s = state();
        s.watched(object("a", "1", 5));
        assert!(s.removed(&Key::new("n", "a"), "1", Instant::now()).is_some());
        assert!(s.watched(object("a", "1", 6)).is_none());
        assert!(s.objects.is_empty());
        s.watched_deletion(&object("a", "1", 7));
        assert!(s.watched(object("a", "2", 8)).is_some());
    }

    #[test]
    fn a_list_replaces_everything_but_younger_own_writes() {
        let mut s = state();
        s.watched(object("old", "1", 5));
        s.written(object("mine", "2", 20), Instant::now());
        let changes = s.replace(vec![object("b", "3", 10)]);
        assert_eq!(changes.len(), 2);
        assert_eq!(versions(&s), [("b".into(), 10), ("mine".into(), 20)]);
        s.replace(vec![object("b", "3", 10), object("c", "4", 21)]);
        assert_eq!(
            versions(&s),
            [("b".into(), 10), ("c".into(), 21)],
            "the list is younger now: mine is gone"
        );
    }
}
