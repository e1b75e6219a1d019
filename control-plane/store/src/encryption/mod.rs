//! Encryption at rest: values of chosen kinds pass through ciphers on their way to and from the engine. What is
//! stored looks as upstream stores it, so that either server reads the other's.

mod cipher;
mod config;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Event, KeyValue, LeaseId, Range, RangeResult, Result, Revision, Store, StoreError, Txn, TxnResult, Watch,
    WatchMessage, Write,
};
use cipher::Cipher;

pub use config::{ConfigError, EncryptionConfiguration};

/// What every encrypted value begins with.
const MARK: &[u8] = b"k8s:enc:";
const OUTPUT_QUEUE: usize = 64;

/// The ciphers of the keys that a pattern covers; the first writes.
struct Rule {
    prefixes: Vec<String>,
    /// Everything that no earlier rule covers.
    all: bool,
    ciphers: Vec<Cipher>,
}

struct Rules(Vec<Rule>);

impl Rules {
    fn of(&self, key: &[u8]) -> Option<&Rule> {
        self.0.iter().find(|rule| {
            rule.all
                || rule
                    .prefixes
                    .iter()
                    .any(|prefix| key.starts_with(prefix.as_bytes()))
        })
    }

    fn seal(&self, key: &[u8], value: Bytes) -> Result<Bytes> {
        match self.of(key).and_then(|rule| rule.ciphers.first()) {
            Some(cipher) => cipher
                .seal(key, value)
                .map_err(|why| unreadable("encrypt", key, why)),
            None => Ok(value),
        }
    }

    fn open(&self, mut kv: KeyValue) -> Result<KeyValue> {
        let Some(rule) = self.of(&kv.key) else {
            return Ok(kv);
        };
        let place = rule.ciphers.iter().position(|cipher| cipher.wrote(&kv.value));
        let Some(place) = place else {
            return Err(unreadable("decrypt", &kv.key, "no matching prefix found"));
        };
        kv.value = rule.ciphers[place]
            .open(&kv.key, &kv.value)
            .map_err(|why| unreadable("decrypt", &kv.key, why))?;
        kv.stale = place > 0;
        Ok(kv)
    }

    fn open_event(&self, event: Event) -> Result<Event> {
        Ok(match event {
            Event::Put { kv, prev } => Event::Put {
                kv: self.open(kv)?,
                // What was before may have been written with a key that is gone.
                prev: prev.and_then(|prev| self.open(prev).ok()),
            },
            Event::Delete { key, revision, prev } => Event::Delete {
                key,
                revision,
                prev: prev.and_then(|prev| self.open(prev).ok()),
            },
        })
    }

    fn open_message(&self, message: WatchMessage) -> WatchMessage {
        match message {
            WatchMessage::Events(events) => {
                let opened: Result<_> = events.into_iter().map(|event| self.open_event(event)).collect();
                opened.map_or_else(
                    |error| WatchMessage::Lost(error.to_string()),
                    WatchMessage::Events,
                )
            }
            other => other,
        }
    }
}

fn unreadable(operation: &'static str, key: &[u8], why: &str) -> StoreError {
    StoreError::Engine {
        operation,
        message: format!("{}: {why}", String::from_utf8_lossy(key)),
    }
}

/// See the module documentation.
pub struct EncryptedStore {
    inner: Arc<dyn Store>,
    rules: Arc<Rules>,
}

impl EncryptedStore {
    pub fn new(inner: Arc<dyn Store>, config: &EncryptionConfiguration) -> Result<Arc<Self>, ConfigError> {
        Ok(Arc::new(Self {
            inner,
            rules: Arc::new(config.rules()?),
        }))
    }
}

#[async_trait]
impl Store for EncryptedStore {
    async fn get(&self, key: Bytes) -> Result<(Option<KeyValue>, Revision)> {
        let (kv, revision) = self.inner.get(key).await?;
        Ok((kv.map(|kv| self.rules.open(kv)).transpose()?, revision))
    }

    async fn range(&self, range: Range) -> Result<RangeResult> {
        let mut found = self.inner.range(range).await?;
        let opened: Result<_> = found.kvs.into_iter().map(|kv| self.rules.open(kv)).collect();
        found.kvs = opened?;
        Ok(found)
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnResult> {
        for write in &mut txn.writes {
            if let Write::Put { key, value, .. } = write {
                *value = self.rules.seal(key, std::mem::take(value))?;
            }
        }
        Ok(match self.inner.txn(txn).await? {
            TxnResult::Conflict { current, revision } => {
                let opened: Result<_> = current
                    .into_iter()
                    .map(|kv| kv.map(|kv| self.rules.open(kv)).transpose())
                    .collect();
                TxnResult::Conflict {
                    current: opened?,
                    revision,
                }
            }
            committed @ TxnResult::Committed { .. } => committed,
        })
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<Watch> {
        let mut inner = self.inner.watch(prefix, from).await?;
        let (output, receiver) = mpsc::channel(OUTPUT_QUEUE);
        let token = CancellationToken::new();
        let (rules, dropped) = (self.rules.clone(), token.clone());
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    () = dropped.cancelled() => return,
                    message = inner.next() => message,
                };
                let Some(message) = message else { return };
                let message = rules.open_message(message);
                let last = matches!(message, WatchMessage::Lost(_) | WatchMessage::Compacted { .. });
                if output.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Watch {
            receiver,
            _guard: Some(token.drop_guard()),
        })
    }

    async fn request_progress(&self, prefix: Bytes) -> Result<()> {
        self.inner.request_progress(prefix).await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.inner.compact(revision).await
    }

    async fn grant_lease(&self, ttl_seconds: i64) -> Result<LeaseId> {
        self.inner.grant_lease(ttl_seconds).await
    }

    async fn revision(&self) -> Result<Revision> {
        self.inner.revision().await
    }

    async fn size(&self) -> Result<u64> {
        self.inner.size().await
    }
}
