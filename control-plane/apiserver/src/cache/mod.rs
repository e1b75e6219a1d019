//! The watch cache of one kind: its objects and the latest changes, fed by one store watch.
//!
//! Lists and watches are served from here. A reader that needs the newest state asks the store for
//! its revision and waits until the cache has seen it.

mod entry;
mod window;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::{Event, KeyValue, Range, Revision, Store, StoreError, WatchMessage};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use entry::{Entry, SelectableField, Selection};
pub use window::{Change, TooOld, Window};

use crate::status::ApiError;

const RETRY: Duration = Duration::from_millis(200);
/// How long a reader waits for a revision that the cache has not seen.
const FRESHNESS_PATIENCE: Duration = Duration::from_secs(3);
/// Watchers from which on an event is encoded once for all.
const CROWD: usize = 4;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// What the cache holds at one moment; cheap to clone.
#[derive(Default)]
struct State {
    entries: BTreeMap<Box<str>, Arc<Entry>>,
    window: Window,
}

pub struct WatchCache {
    prefix: String,
    pub selectable: Arc<[SelectableField]>,
    /// The kind is gone, or the server goes.
    pub ended: CancellationToken,
    store: Arc<dyn Store>,
    state: RwLock<State>,
    /// The revision up to which the cache is complete; 0 before the first list.
    revision: watch::Sender<Revision>,
}

impl WatchCache {
    /// Starts filling; ends with `ended`.
    pub fn start(
        store: Arc<dyn Store>,
        prefix: String,
        selectable: Arc<[SelectableField]>,
        ended: CancellationToken,
    ) -> Arc<Self> {
        let cache = Arc::new(Self {
            prefix,
            selectable,
            ended: ended.clone(),
            store,
            state: RwLock::default(),
            revision: watch::Sender::new(0),
        });
        let filler = cache.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = filler.follow() => {}
                () = filler.forget() => {}
                () = ended.cancelled() => {}
            }
        });
        cache
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// So many watch that what they are sent is worth keeping.
    pub fn is_crowded(&self) -> bool {
        self.revision.receiver_count() > CROWD
    }

    pub fn current_revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Asks the store for news, or that there are none.
    pub async fn request_progress(&self) -> Result<(), StoreError> {
        self.store
            .request_progress(Bytes::from(self.prefix.clone()))
            .await
    }

    /// Waits for the newest state the store has.
    pub async fn wait_for_newest(&self) -> Result<Revision, ApiError> {
        let newest = self.store.revision().await.map_err(store_error)?;
        self.wait_for(newest).await
    }

    /// Waits until the cache is complete up to `wanted`.
    pub async fn wait_for(&self, wanted: Revision) -> Result<Revision, ApiError> {
        let mut revisions = self.revisions();
        let arrival = async {
            loop {
                let now = *revisions.borrow_and_update();
                if now >= wanted.max(1) {
                    return Ok(now);
                }
                if now > 0 {
                    self.request_progress().await.map_err(store_error)?;
                }
                // The next message may be an event or the progress asked for.
                let changed = tokio::time::timeout(PROGRESS_INTERVAL, revisions.changed()).await;
                if let Ok(Err(_)) = changed {
                    return Err(ApiError::service_unavailable("the server is shutting down"));
                }
            }
        };
        match tokio::time::timeout(FRESHNESS_PATIENCE, arrival).await {
            Ok(result) => result,
            Err(_) => Err(too_large(wanted, self.current_revision())),
        }
    }

    /// Matching objects in key order, and the revision they are at. `limit` 0 is all; the flag says
    /// that more follow.
    pub fn list(&self, selection: &Selection, limit: usize) -> Listed {
        let state = self.read();
        let start: String = match selection.namespace.as_str() {
            "" => String::new(),
            namespace => format!("{namespace}/"),
        };
        let mut listed = Listed {
            revision: self.current_revision(),
            ..Listed::default()
        };
        for (key, entry) in state.entries.range::<str, _>((
            std::ops::Bound::Included(start.as_str()),
            std::ops::Bound::Unbounded,
        )) {
            if !key.starts_with(&start) {
                break;
            }
            if !selection.matches(entry, &self.selectable) {
                continue;
            }
            if limit > 0 && listed.entries.len() == limit {
                listed.remaining += 1;
                listed.next.get_or_insert_with(|| key.to_string());
                continue;
            }
            listed.entries.push(entry.clone());
        }
        listed
    }

    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.read().entries.get(key).cloned()
    }

    /// Changes after `revision`, or that they are no longer known.
    pub fn changes_after(&self, revision: Revision) -> Result<Vec<Arc<Change>>, TooOld> {
        self.read().window.after(revision)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn forget(&self) {
        loop {
            tokio::time::sleep(window::FRESH).await;
            self.write().window.forget_stale(Instant::now());
        }
    }

    async fn follow(&self) {
        loop {
            let listed = match self
                .store
                .range(Range::prefix(Bytes::from(self.prefix.clone())))
                .await
            {
                Ok(listed) => listed,
                Err(error) => {
                    tracing::warn!(prefix = self.prefix, %error, "cannot fill the watch cache");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            {
                let mut state = self.write();
                state.entries = listed
                    .kvs
                    .iter()
                    .map(|kv| Arc::new(Entry::new(self.prefix.len(), kv, &self.selectable)))
                    .map(|entry| (entry.key.clone(), entry))
                    .collect();
                state.window = Window::starting_at(listed.revision);
                self.revision.send_replace(listed.revision);
            }
            self.follow_from(listed.revision).await;
        }
    }

    /// Applies changes until history is lost.
    async fn follow_from(&self, mut last: Revision) {
        loop {
            let mut changes = match self.store.watch(Bytes::from(self.prefix.clone()), last + 1).await {
                Ok(changes) => changes,
                Err(error) => {
                    tracing::warn!(prefix = self.prefix, %error, "cannot watch the store");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            loop {
                match changes.next().await {
                    Some(WatchMessage::Events(events)) => {
                        if let Some(event) = events.last() {
                            last = event.revision();
                        }
                        self.apply(events, last);
                    }
                    Some(WatchMessage::Progress(revision)) => {
                        last = last.max(revision);
                        self.revision.send_if_modified(|now| {
                            let newer = last > *now;
                            *now = last.max(*now);
                            newer
                        });
                    }
                    Some(WatchMessage::Compacted { .. }) => return,
                    Some(WatchMessage::Lost(reason)) => {
                        tracing::warn!(
                            prefix = self.prefix,
                            reason,
                            "the store watch ended, watching again"
                        );
                        tokio::time::sleep(RETRY).await;
                        break;
                    }
                    None => {
                        tokio::time::sleep(RETRY).await;
                        break;
                    }
                }
            }
        }
    }

    fn entry(&self, kv: &KeyValue) -> Arc<Entry> {
        Arc::new(Entry::new(self.prefix.len(), kv, &self.selectable))
    }

    /// A change out of the store's history.
    fn past(&self, event: &Event) -> Change {
        let (now, prev) = match event {
            Event::Put { kv, prev } => (Some(self.entry(kv)), prev),
            Event::Delete { prev, .. } => (None, prev),
        };
        Change::new(event.revision(), now, prev.as_ref().map(|prev| self.entry(prev)))
    }

    /// Changes after `from` that the window has forgotten, from the store's history, up to the
    /// window. None when the store has forgotten them, too.
    pub async fn replay(&self, from: Revision, until: Revision) -> Option<Vec<Change>> {
        let mut history = self
            .store
            .watch(Bytes::from(self.prefix.clone()), from + 1)
            .await
            .ok()?;
        let mut changes = Vec::new();
        let read = async {
            loop {
                self.request_progress().await.ok()?;
                let message = tokio::time::timeout(PROGRESS_INTERVAL, history.next()).await;
                match message {
                    Ok(Some(WatchMessage::Events(events))) => {
                        for event in events {
                            if event.revision() > until {
                                return Some(());
                            }
                            changes.push(self.past(&event));
                        }
                    }
                    Ok(Some(WatchMessage::Progress(revision))) if revision >= until => return Some(()),
                    Ok(Some(WatchMessage::Progress(_))) | Err(_) => {}
                    Ok(Some(WatchMessage::Compacted { .. } | WatchMessage::Lost(_)) | None) => return None,
                }
            }
        };
        tokio::time::timeout(FRESHNESS_PATIENCE, read).await.ok()??;
        Some(changes)
    }

    fn apply(&self, events: Vec<Event>, revision: Revision) {
        // Parsed before readers have to wait.
        let parsed: Vec<(Event, Option<Arc<Entry>>)> = events
            .into_iter()
            .map(|event| {
                let now = match &event {
                    Event::Put { kv, .. } => Some(self.entry(kv)),
                    Event::Delete { .. } => None,
                };
                (event, now)
            })
            .collect();
        let mut state = self.write();
        for (event, now) in parsed {
            let known = match &now {
                Some(entry) => state.entries.insert(entry.key.clone(), entry.clone()),
                None => {
                    let key = event.key().get(self.prefix.len()..).unwrap_or_default();
                    state.entries.remove(String::from_utf8_lossy(key).as_ref())
                }
            };
            let (Event::Put { prev, .. } | Event::Delete { prev, .. }) = &event;
            let before = known.or_else(|| prev.as_ref().map(|prev| self.entry(prev)));
            state.window.push(Change::new(event.revision(), now, before));
        }
        // Readers woken by the revision must find the changes.
        self.revision.send_replace(revision);
    }
}

/// What [`WatchCache::list`] found.
#[derive(Default)]
pub struct Listed {
    pub entries: Vec<Arc<Entry>>,
    pub revision: Revision,
    /// The first key that did not fit.
    pub next: Option<String>,
    pub remaining: usize,
}

pub fn too_large(wanted: Revision, current: Revision) -> ApiError {
    let mut error = ApiError::timeout(format!(
        "Too large resource version: {wanted}, current: {current}"
    ));
    *error.details = serde_json::json!({
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    });
    error
}

pub fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted => ApiError::expired("The resourceVersion for the provided list is too old."),
        StoreError::FutureRevision(revision) => too_large(revision, 0),
        StoreError::Unavailable(message) => ApiError::service_unavailable(message),
        other => ApiError::internal(other),
    }
}
