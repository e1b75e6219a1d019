//! What the engine knows beyond schemas: where kinds are stored, which fields select, how they behave.

pub mod conversion;
pub mod custom;
pub mod deletion;

pub mod fields;
pub mod names;
pub mod service;
pub mod strategy;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use schema::Catalog;
use store::Store;
use tokio_util::sync::CancellationToken;

use crate::cache::WatchCache;

/// The live table of kinds and their caches.
pub struct Registry {
    catalog: RwLock<Arc<Catalog>>,
    caches: Mutex<HashMap<String, Arc<WatchCache>>>,
    store: Arc<dyn Store>,
    shutdown: CancellationToken,
}

impl Registry {
    pub fn new(catalog: Catalog, store: Arc<dyn Store>, shutdown: CancellationToken) -> Self {
        Self {
            catalog: RwLock::new(Arc::new(catalog)),
            caches: Mutex::default(),
            store,
            shutdown,
        }
    }

    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn set_catalog(&self, catalog: Catalog) {
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
    }

    /// Ends a kind's cache and everyone's watches of it.
    pub fn forget(&self, group: &str, plural: &str) {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = caches.remove(&prefix(group, plural)) {
            cache.ended.cancel();
        }
    }

    /// The kind's cache, started on first use.
    pub fn cache(&self, group: &str, plural: &str) -> Arc<WatchCache> {
        let catalog = self.catalog();
        let prefix = prefix(group, plural);
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let selectable = fields::of_kind(&catalog, group, plural);
            WatchCache::start(
                self.store.clone(),
                prefix.clone(),
                selectable,
                self.shutdown.child_token(),
            )
        };
        caches.entry(prefix.clone()).or_insert_with(start).clone()
    }
}

/// `/registry/pods/`, `/registry/apps/deployments/`. Both groups of events are one kind.
pub fn prefix(group: &str, plural: &str) -> String {
    match (group, plural) {
        ("", _) | ("events.k8s.io", "events") => format!("/registry/{plural}/"),
        _ => format!("/registry/{group}/{plural}/"),
    }
}

/// The part of a key behind the prefix.
pub fn relative_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    }
}

pub fn key(group: &str, plural: &str, namespace: &str, name: &str) -> Bytes {
    Bytes::from(prefix(group, plural) + &relative_key(namespace, name))
}
