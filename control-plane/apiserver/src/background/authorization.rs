//! Feeds the authorizers with the objects they decide by, from the watch caches.

use std::collections::BTreeSet;
use std::sync::Arc;

use auth::Authorizer;
use store::Revision;

use crate::cache::{Entry, Selection, WatchCache};
use crate::state::ApiServer;

/// Returns when the first state of every kind has been fed.
pub async fn start(server: &Arc<ApiServer>) {
    for (group, resource) in Authorizer::WATCHED {
        let cache = server.cache(group, resource);
        let mut feeder = Feeder {
            server: server.clone(),
            cache,
            resource,
            known: BTreeSet::new(),
        };
        let revision = feeder.feed_all().await;
        tokio::spawn(async move {
            let shutdown = feeder.server.shutdown.clone();
            tokio::select! {
                () = feeder.follow(revision) => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

struct Feeder {
    server: Arc<ApiServer>,
    cache: Arc<WatchCache>,
    resource: &'static str,
    known: BTreeSet<Box<str>>,
}

impl Feeder {
    async fn feed_all(&mut self) -> Revision {
        let mut revisions = self.cache.revisions();
        // The sender lives in the cache, which we hold.
        let _ = revisions.wait_for(|revision| *revision > 0).await;
        let listed = self.cache.list(&Selection::default(), 0);
        let mut gone = std::mem::take(&mut self.known);
        for entry in &listed.entries {
            gone.remove(&entry.key);
            self.set(entry);
        }
        for key in gone {
            let (namespace, name) = key.split_once('/').unwrap_or(("", &key));
            self.server.authorizer.remove(self.resource, namespace, name);
        }
        listed.revision
    }

    fn set(&mut self, entry: &Entry) {
        self.known.insert(entry.key.clone());
        if let Err(error) = self.server.authorizer.set(self.resource, &entry.bytes) {
            tracing::error!(resource = self.resource, key = %entry.key, %error, "an object cannot be used for authorization");
        }
    }

    async fn follow(&mut self, mut last: Revision) {
        let mut revisions = self.cache.revisions();
        loop {
            match self.cache.changes_after(last) {
                Ok(changes) => {
                    for change in changes {
                        last = change.revision;
                        match (&change.now, &change.before) {
                            (Some(now), _) => self.set(now),
                            (None, Some(before)) => {
                                self.known.remove(&before.key);
                                self.server.authorizer.remove(
                                    self.resource,
                                    before.namespace(),
                                    before.name(),
                                );
                            }
                            (None, None) => {}
                        }
                    }
                }
                Err(_) => last = self.feed_all().await,
            }
            if revisions.changed().await.is_err() {
                return;
            }
        }
    }
}
