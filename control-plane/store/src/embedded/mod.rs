//! The embedded engine: a local database (fjall) with etcd's semantics.
//!
//! One writer thread applies all writes ([`writer`]); reads use snapshots ([`reader`]); a transaction
//! is acknowledged after its group's fsync. [`record`] is the format on disk:
//! `current` holds every key's newest value, `history` every change since the last compaction
//! together with what it replaced, so the past is the present with changes undone.

mod reader;
mod record;
mod watchers;
mod writer;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tokio::sync::oneshot;

use crate::{
    Compare, KeyValue, LeaseId, Range, RangeResult, Result, Revision, Store, StoreError, Txn, TxnResult,
    Watch, Write,
};
use writer::Command;

const CACHE_BYTES: u64 = 8 << 20;
const MEMTABLE_BYTES: u64 = 8 << 20;
const JOURNAL_BYTES: u64 = 64 << 20;

/// The opened database and its parts.
#[derive(Clone)]
pub(crate) struct Disk {
    pub database: Database,
    pub current: Keyspace,
    pub history: Keyspace,
    /// `revision`, `compacted`, and `lease/<id>` → granted seconds.
    pub meta: Keyspace,
    /// `<lease id><key>` → nothing.
    pub lease_keys: Keyspace,
}

/// See the module documentation.
pub struct EmbeddedStore {
    disk: Disk,
    commands: std::sync::mpsc::Sender<Command>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens or creates the database in `directory`; one process at a time.
    pub fn open(directory: &Path) -> Result<Arc<Self>> {
        let disk = open_disk(directory).map_err(engine("open"))?;
        let state = writer::WriterState::load(disk.clone())?;
        let (commands, receiver) = std::sync::mpsc::channel();
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || state.run(&receiver))
            .map_err(engine("spawn writer"))?;
        Ok(Arc::new(Self {
            disk,
            commands,
            writer: Some(writer),
        }))
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Unavailable("the store is closed".into());
        self.commands.send(command(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // A dead receiver means the writer ended already.
        let _ = self.commands.send(Command::Close);
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

fn open_disk(directory: &Path) -> fjall::Result<Disk> {
    std::fs::create_dir_all(directory)?;
    let database = Database::builder(directory)
        .cache_size(CACHE_BYTES)
        .max_journaling_size(JOURNAL_BYTES)
        .worker_threads(1)
        .open()?;
    let keyspace = |name: &str| {
        database.keyspace(name, || {
            KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
        })
    };
    let disk = Disk {
        current: keyspace("current")?,
        history: keyspace("history")?,
        meta: keyspace("meta")?,
        lease_keys: keyspace("lease_keys")?,
        database: database.clone(),
    };
    database.persist(PersistMode::SyncAll)?;
    Ok(disk)
}

pub(crate) fn engine<E: std::fmt::Display>(operation: &'static str) -> impl Fn(E) -> StoreError {
    move |error| StoreError::Engine {
        operation,
        message: error.to_string(),
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: Bytes) -> Result<(Option<KeyValue>, Revision)> {
        reader::get(&self.disk, &key)
    }

    async fn range(&self, range: Range) -> Result<RangeResult> {
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || reader::range(&disk, &range))
            .await
            .map_err(engine("range"))?
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult> {
        reject_duplicates(&txn)?;
        self.ask(|reply| Command::Txn { txn, reply }).await
    }

    async fn watch(&self, prefix: Bytes, from: Revision) -> Result<Watch> {
        self.ask(|reply| Command::Watch {
            prefix,
            from,
            runtime: tokio::runtime::Handle::current(),
            reply,
        })
        .await
    }

    async fn request_progress(&self, _prefix: Bytes) -> Result<()> {
        self.ask(|reply| Command::Progress { reply }).await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.ask(|reply| Command::Compact { revision, reply }).await
    }

    async fn grant_lease(&self, ttl_seconds: i64) -> Result<LeaseId> {
        self.ask(|reply| Command::GrantLease { ttl_seconds, reply }).await
    }

    async fn revision(&self) -> Result<Revision> {
        reader::revision(&self.disk)
    }

    async fn size(&self) -> Result<u64> {
        self.disk.database.disk_space().map_err(engine("size"))
    }
}

/// etcd refuses a transaction that writes one key twice.
pub(crate) fn reject_duplicates(txn: &Txn) -> Result<()> {
    let mut keys: Vec<&Bytes> = txn
        .writes
        .iter()
        .map(|write| match write {
            Write::Put { key, .. } | Write::Delete { key } => key,
        })
        .collect();
    keys.sort_unstable();
    if keys.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(StoreError::DuplicateKey);
    }
    Ok(())
}

/// Whether a compare holds for what is stored.
pub(crate) fn holds(compare: &Compare, stored: Option<&KeyValue>) -> bool {
    compare.mod_revision == stored.map_or(0, |kv| kv.mod_revision)
}
