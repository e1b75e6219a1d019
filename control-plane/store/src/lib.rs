//! The API server's only memory: a revisioned key-value store with etcd's semantics.
//!
//! Two engines implement [`Store`]: [`etcd`] (a real etcd cluster) and [`embedded`] (a local
//! database). Every promise in the trait's documentation is kept by both; `tests/suite` proves it.

pub mod embedded;
mod encryption;
pub mod etcd;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;

pub use embedded::EmbeddedStore;
pub use encryption::{EncryptedStore, EncryptionConfiguration};
pub use etcd::{EtcdConfig, EtcdStore};

/// A point in the store's history. Every successful writing transaction makes a new one.
pub type Revision = i64;

/// Names a lease; 0 is "no lease".
pub type LeaseId = i64;

/// One key with its value and its place in history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub lease: LeaseId,
    /// It should be written again, even unchanged: what encrypts it is to be given up.
    pub stale: bool,
}

/// What [`Store::range`] looks at: keys in `start..end`, as they were at `revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub start: Bytes,
    pub end: Bytes,
    /// 0 is "now".
    pub revision: Revision,
    /// 0 is "all".
    pub limit: usize,
}

impl Range {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = prefix_end(&start);
        Self {
            start,
            end,
            revision: 0,
            limit: 0,
        }
    }
}

/// The smallest key greater than every key with this prefix.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Bytes::from(end);
        }
    }
    Bytes::from_static(&[0])
}

/// The answer to [`Store::range`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeResult {
    pub kvs: Vec<KeyValue>,
    /// Keys in the range beyond `limit` exist.
    pub more: bool,
    /// How many keys the range holds, disregarding `limit`.
    pub count: u64,
    /// The store's revision when it answered (not the requested one).
    pub revision: Revision,
}

/// A condition on one key's modification revision; 0 is "the key does not exist".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    pub key: Bytes,
    pub mod_revision: Revision,
}

/// One write of a transaction. A key may appear in one write only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put {
        key: Bytes,
        value: Bytes,
        lease: LeaseId,
    },
    Delete {
        key: Bytes,
    },
}

/// All compares hold, then all writes happen at one new revision; else nothing happens and the
/// current values of the compared keys come back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub writes: Vec<Write>,
}

/// The outcome of [`Store::txn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnResult {
    /// The writes are durable, at this revision (the current one when they changed nothing).
    Committed { revision: Revision },
    /// A compare failed; `current` answers `compares` in order.
    Conflict {
        current: Vec<Option<KeyValue>>,
        revision: Revision,
    },
}

/// One change, with what was there before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put {
        kv: KeyValue,
        prev: Option<KeyValue>,
    },
    Delete {
        key: Bytes,
        /// Revision of the deletion.
        revision: Revision,
        prev: Option<KeyValue>,
    },
}

impl Event {
    pub fn key(&self) -> &Bytes {
        match self {
            Event::Put { kv, .. } => &kv.key,
            Event::Delete { key, .. } => key,
        }
    }

    pub fn revision(&self) -> Revision {
        match self {
            Event::Put { kv, .. } => kv.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }
}

/// What a watch delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchMessage {
    /// Changes in order; all changes of one revision arrive in one message.
    Events(Vec<Event>),
    /// Everything up to and including this revision has been delivered.
    Progress(Revision),
    /// The watch is over: its revision has been compacted. Nothing follows.
    Compacted { compact_revision: Revision },
    /// The watch is over: the engine lost it. Watch again from the last delivered revision + 1.
    Lost(String),
}

/// A running watch; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    pub receiver: mpsc::Receiver<WatchMessage>,
    /// Held by engines that must tell a server the watch is gone.
    pub(crate) _guard: Option<DropGuard>,
}

impl Watch {
    pub async fn next(&mut self) -> Option<WatchMessage> {
        self.receiver.recv().await
    }
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the requested revision has been compacted")]
    Compacted,
    #[error("the requested revision {0} is a future revision")]
    FutureRevision(Revision),
    #[error("lease {0} not found")]
    LeaseNotFound(LeaseId),
    #[error("key given more than once in one transaction")]
    DuplicateKey,
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    #[error("store {operation} failed: {message}")]
    Engine {
        operation: &'static str,
        message: String,
    },
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A revisioned key-value store with etcd's semantics.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The key's current value, linearizable, and the store's revision.
    async fn get(&self, key: Bytes) -> Result<(Option<KeyValue>, Revision)>;

    /// Keys of a range in byte order, at one revision.
    /// Errors: [`StoreError::Compacted`], [`StoreError::FutureRevision`].
    async fn range(&self, range: Range) -> Result<RangeResult>;

    /// Compare and write, atomically and durably: when this returns `Committed`, a power cut loses nothing.
    async fn txn(&self, txn: Txn) -> Result<TxnResult>;

    /// Changes to keys with `prefix` from revision `from` on (inclusive; 0 is "after now").
    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<Watch>;

    /// Asks the running watches of this very prefix for a [`WatchMessage::Progress`]. An engine may leave out the
    /// answer while it is busy with an earlier one: who waits for a revision asks again.
    async fn request_progress(&self, prefix: Bytes) -> Result<()>;

    /// Forgets history before `revision`. Reads and watches from before it fail afterwards.
    async fn compact(&self, revision: Revision) -> Result<()>;

    /// A lease that ends after `ttl_seconds` unless kept alive; its keys are then deleted.
    async fn grant_lease(&self, ttl_seconds: i64) -> Result<LeaseId>;

    /// The current revision, linearizable.
    async fn revision(&self) -> Result<Revision>;

    /// Bytes used by the database.
    async fn size(&self) -> Result<u64>;
}
