//! The one thread that writes: it groups what is waiting, makes it durable, then tells everyone.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{OwnedWriteBatch, PersistMode, Readable};
use tokio::sync::oneshot;

use super::watchers::{Start, Watchers};
use super::{Disk, engine, holds, reader, record};
use crate::{Event, KeyValue, LeaseId, Result, Revision, StoreError, Txn, TxnResult, Watch, Write};

/// At most this many commands share one fsync.
const GROUP: usize = 512;
/// How many history records one batch forgets.
const COMPACTION_CHUNK: usize = 2_000;

type Reply<T> = oneshot::Sender<Result<T>>;

pub enum Command {
    Txn {
        txn: Txn,
        reply: Reply<TxnResult>,
    },
    Watch {
        prefix: Bytes,
        from: Revision,
        runtime: tokio::runtime::Handle,
        reply: Reply<Watch>,
    },
    Progress {
        reply: Reply<()>,
    },
    Compact {
        revision: Revision,
        reply: Reply<()>,
    },
    GrantLease {
        ttl_seconds: i64,
        reply: Reply<LeaseId>,
    },
    Close,
}

struct Lease {
    ends: Instant,
}

pub struct WriterState {
    disk: Disk,
    revision: Revision,
    compacted: Revision,
    leases: BTreeMap<LeaseId, Lease>,
    watchers: Watchers,
}

/// Writes gathered for one fsync, and what they will answer.
struct Group {
    batch: OwnedWriteBatch,
    /// Keys as they will be; consulted before the disk.
    pending: HashMap<Bytes, Option<KeyValue>>,
    events: Vec<Event>,
    revision: Revision,
    replies: Vec<(Reply<TxnResult>, TxnResult)>,
}

impl WriterState {
    /// Leases start anew with their full time, as etcd's do when a leader starts.
    pub fn load(disk: Disk) -> Result<Self> {
        let snapshot = disk.database.snapshot();
        let revision = reader::number(&snapshot, &disk, record::REVISION, 1)?;
        let compacted = reader::number(&snapshot, &disk, record::COMPACTED, 0)?;
        let mut leases = BTreeMap::new();
        for entry in snapshot.prefix(&disk.meta, record::LEASE_PREFIX) {
            let (name, ttl) = entry.into_inner().map_err(engine("read leases"))?;
            let id = record::decode_number(&name[record::LEASE_PREFIX.len()..], "lease id")?;
            let ttl = record::decode_number(&ttl, "lease time")?;
            leases.insert(id, Lease { ends: deadline(ttl) });
        }
        drop(snapshot);
        Ok(Self {
            disk,
            revision,
            compacted,
            leases,
            watchers: Watchers::default(),
        })
    }

    pub fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let first = match commands.recv_timeout(self.until_next_lease_end()) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.end_leases();
            let Some(first) = first else { continue };
            let mut waiting = vec![first];
            waiting.extend(commands.try_iter().take(GROUP));
            let mut group = self.new_group();
            for command in waiting {
                let other = match command {
                    Command::Txn { txn, reply } => {
                        self.stage(&mut group, &txn, Some(reply));
                        continue;
                    }
                    other => other,
                };
                // Anything but a transaction sees all transactions before it done.
                self.commit(std::mem::replace(&mut group, self.new_group()));
                group = self.new_group();
                if !self.handle(other) {
                    return;
                }
            }
            self.commit(group);
        }
    }

    fn handle(&mut self, command: Command) -> bool {
        match command {
            Command::Txn { .. } => {}
            Command::Watch {
                prefix,
                from,
                runtime,
                reply,
            } => {
                let start = Start {
                    prefix,
                    from,
                    now: self.revision,
                    compacted: self.compacted,
                    snapshot: self.disk.database.snapshot(),
                };
                let _ = reply.send(Ok(self.watchers.add(self.disk.clone(), start, &runtime)));
            }
            Command::Progress { reply } => {
                self.watchers.progress(self.revision);
                let _ = reply.send(Ok(()));
            }
            Command::Compact { revision, reply } => {
                let _ = reply.send(self.compact(revision));
            }
            Command::GrantLease { ttl_seconds, reply } => {
                let _ = reply.send(self.grant_lease(ttl_seconds));
            }
            Command::Close => return false,
        }
        true
    }

    fn new_group(&self) -> Group {
        Group {
            batch: self.disk.database.batch().durability(Some(PersistMode::SyncData)),
            pending: HashMap::new(),
            events: Vec::new(),
            revision: self.revision,
            replies: Vec::new(),
        }
    }

    fn read(&self, group: &Group, key: &Bytes) -> Result<Option<KeyValue>> {
        if let Some(pending) = group.pending.get(key) {
            return Ok(pending.clone());
        }
        let stored = self.disk.current.get(key).map_err(engine("read"))?;
        stored
            .map(|bytes| record::decode_current(key.clone(), &bytes))
            .transpose()
    }

    fn stage(&self, group: &mut Group, txn: &Txn, reply: Option<Reply<TxnResult>>) {
        let result = self.try_stage(group, txn);
        match (result, reply) {
            (Ok(result), Some(reply)) => group.replies.push((reply, result)),
            (Err(error), Some(reply)) => {
                let _ = reply.send(Err(error));
            }
            (Ok(_), None) => {}
            (Err(error), None) => tracing::error!(%error, "a lease's keys could not be deleted"),
        }
    }

    fn try_stage(&self, group: &mut Group, txn: &Txn) -> Result<TxnResult> {
        let mut current = Vec::with_capacity(txn.compares.len());
        for compare in &txn.compares {
            current.push(self.read(group, &compare.key)?);
        }
        if !txn
            .compares
            .iter()
            .zip(&current)
            .all(|(compare, kv)| holds(compare, kv.as_ref()))
        {
            return Ok(TxnResult::Conflict {
                current,
                revision: group.revision,
            });
        }
        let revision = group.revision + 1;
        let events = self.changes(group, txn, revision)?;
        if events.is_empty() {
            return Ok(TxnResult::Committed {
                revision: group.revision,
            });
        }
        for (event, index) in events.into_iter().zip(0..) {
            self.stage_event(group, event, index);
        }
        group.revision = revision;
        Ok(TxnResult::Committed { revision })
    }

    /// What the writes change; an error leaves the group untouched.
    fn changes(&self, group: &Group, txn: &Txn, revision: Revision) -> Result<Vec<Event>> {
        let mut events = Vec::with_capacity(txn.writes.len());
        for write in &txn.writes {
            match write {
                Write::Put { key, value, lease } => {
                    if *lease != 0 && !self.leases.contains_key(lease) {
                        return Err(StoreError::LeaseNotFound(*lease));
                    }
                    let prev = self.read(group, key)?;
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: prev.as_ref().map_or(revision, |kv| kv.create_revision),
                        mod_revision: revision,
                        lease: *lease,
                        stale: false,
                    };
                    events.push(Event::Put { kv, prev });
                }
                Write::Delete { key } => {
                    if let Some(prev) = self.read(group, key)? {
                        events.push(Event::Delete {
                            key: key.clone(),
                            revision,
                            prev: Some(prev),
                        });
                    }
                }
            }
        }
        Ok(events)
    }

    fn stage_event(&self, group: &mut Group, event: Event, index: u32) {
        let batch = &mut group.batch;
        batch.insert(
            &self.disk.history,
            record::history_key(event.revision(), index).as_slice(),
            record::encode_event(&event),
        );
        let (now, prev) = match &event {
            Event::Put { kv, prev } => (Some(kv), prev.as_ref()),
            Event::Delete { prev, .. } => (None, prev.as_ref()),
        };
        if let Some(old) = prev.filter(|kv| kv.lease != 0) {
            batch.remove(&self.disk.lease_keys, record::lease_key(old.lease, &old.key));
        }
        match now {
            Some(kv) => {
                batch.insert(&self.disk.current, kv.key.as_ref(), record::encode_current(kv));
                if kv.lease != 0 {
                    batch.insert(
                        &self.disk.lease_keys,
                        record::lease_key(kv.lease, &kv.key),
                        [].as_slice(),
                    );
                }
            }
            None => batch.remove(&self.disk.current, event.key().as_ref()),
        }
        group.pending.insert(event.key().clone(), now.cloned());
        group.events.push(event);
    }

    fn commit(&mut self, mut group: Group) {
        if !group.batch.is_empty() {
            group.batch.insert(
                &self.disk.meta,
                record::REVISION,
                group.revision.to_be_bytes().as_slice(),
            );
            if let Err(error) = group.batch.commit() {
                let message = error.to_string();
                tracing::error!(error = message, "the store cannot write");
                for (reply, _) in group.replies {
                    let _ = reply.send(Err(StoreError::Engine {
                        operation: "commit",
                        message: message.clone(),
                    }));
                }
                return;
            }
            self.revision = group.revision;
        }
        for (reply, result) in group.replies {
            let _ = reply.send(Ok(result));
        }
        self.watchers.publish(&group.events);
    }

    fn compact(&mut self, revision: Revision) -> Result<()> {
        if revision > self.revision {
            return Err(StoreError::FutureRevision(revision));
        }
        if revision <= self.compacted {
            return Err(StoreError::Compacted);
        }
        let mut batch = self.disk.database.batch().durability(Some(PersistMode::SyncData));
        batch.insert(
            &self.disk.meta,
            record::COMPACTED,
            revision.to_be_bytes().as_slice(),
        );
        batch.commit().map_err(engine("compact"))?;
        self.compacted = revision;
        let end = record::history_key(revision, 0);
        // Each chunk starts behind the last one's tombstones.
        let mut start = Vec::new();
        loop {
            let mut batch = self.disk.database.batch();
            for entry in self
                .disk
                .history
                .range(start.clone()..end.to_vec())
                .take(COMPACTION_CHUNK)
            {
                let key = entry.key().map_err(engine("compact"))?;
                start = key.to_vec();
                batch.remove(&self.disk.history, key);
            }
            if batch.is_empty() {
                return Ok(());
            }
            batch.commit().map_err(engine("compact"))?;
        }
    }

    fn grant_lease(&mut self, ttl_seconds: i64) -> Result<LeaseId> {
        let id = self.leases.last_key_value().map_or(1, |(last, _)| last + 1);
        let mut batch = self.disk.database.batch().durability(Some(PersistMode::SyncData));
        batch.insert(
            &self.disk.meta,
            record::lease_name(id),
            ttl_seconds.to_be_bytes().as_slice(),
        );
        batch.commit().map_err(engine("grant lease"))?;
        self.leases.insert(
            id,
            Lease {
                ends: deadline(ttl_seconds),
            },
        );
        Ok(id)
    }

    fn until_next_lease_end(&self) -> Duration {
        const IDLE: Duration = Duration::from_secs(3600);
        let next = self.leases.values().map(|lease| lease.ends).min();
        next.map_or(IDLE, |ends| {
            ends.saturating_duration_since(Instant::now()).min(IDLE)
        })
    }

    /// One revision per ended lease, whatever the number of its keys.
    fn end_leases(&mut self) {
        let now = Instant::now();
        let ended: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.ends <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            self.leases.remove(&id);
            let mut group = self.new_group();
            let mut writes = Vec::new();
            for entry in self.disk.lease_keys.prefix(id.to_be_bytes()) {
                match entry.key() {
                    Ok(name) => writes.push(Write::Delete {
                        key: Bytes::copy_from_slice(&name[8..]),
                    }),
                    Err(error) => tracing::error!(%error, lease = id, "a lease's keys could not be read"),
                }
            }
            self.stage(
                &mut group,
                &Txn {
                    compares: Vec::new(),
                    writes,
                },
                None,
            );
            group.batch.remove(&self.disk.meta, record::lease_name(id));
            self.commit(group);
        }
    }
}

fn deadline(ttl_seconds: i64) -> Instant {
    Instant::now() + Duration::from_secs(u64::try_from(ttl_seconds).unwrap_or(0))
}
