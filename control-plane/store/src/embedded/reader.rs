//! Reads from a snapshot: the present directly, the past by undoing later changes.

use std::collections::BTreeMap;

use bytes::Bytes;
use fjall::{Readable, Snapshot};

use super::{Disk, engine, record};
use crate::{Event, KeyValue, Range, RangeResult, Result, Revision, StoreError};

pub fn revision(disk: &Disk) -> Result<Revision> {
    number(&disk.database.snapshot(), disk, record::REVISION, 1)
}

pub fn number(snapshot: &Snapshot, disk: &Disk, name: &[u8], absent: i64) -> Result<i64> {
    match snapshot.get(&disk.meta, name).map_err(engine("read"))? {
        Some(bytes) => record::decode_number(&bytes, "number"),
        None => Ok(absent),
    }
}

pub fn get(disk: &Disk, key: &Bytes) -> Result<(Option<KeyValue>, Revision)> {
    let snapshot = disk.database.snapshot();
    let revision = number(&snapshot, disk, record::REVISION, 1)?;
    let stored = snapshot.get(&disk.current, key).map_err(engine("read"))?;
    let kv = stored
        .map(|bytes| record::decode_current(key.clone(), &bytes))
        .transpose()?;
    Ok((kv, revision))
}

pub fn range(disk: &Disk, range: &Range) -> Result<RangeResult> {
    let snapshot = disk.database.snapshot();
    let now = number(&snapshot, disk, record::REVISION, 1)?;
    let compacted = number(&snapshot, disk, record::COMPACTED, 0)?;
    if range.revision > now {
        return Err(StoreError::FutureRevision(range.revision));
    }
    if range.revision > 0 && range.revision < compacted {
        return Err(StoreError::Compacted);
    }
    let mut undone = if range.revision == 0 || range.revision == now {
        BTreeMap::new()
    } else {
        undo(&snapshot, disk, range)?
    };
    let mut result = RangeResult {
        kvs: Vec::new(),
        more: false,
        count: 0,
        revision: now,
    };
    let mut push = |kv: Result<KeyValue>| -> Result<()> {
        result.count += 1;
        if range.limit == 0 || result.kvs.len() < range.limit {
            result.kvs.push(kv?);
        } else {
            result.more = true;
        }
        Ok(())
    };
    // A merge of two sorted sequences; where a key is in both, the undone state wins.
    for entry in snapshot.range(&disk.current, range.start.as_ref()..range.end.as_ref()) {
        let (key, value) = entry.into_inner().map_err(engine("scan"))?;
        while let Some(first) = undone.first_entry() {
            if first.key().as_ref() >= key.as_ref() {
                break;
            }
            if let Some(kv) = first.remove() {
                push(Ok(kv))?;
            }
        }
        match undone.remove(key.as_ref()) {
            Some(Some(kv)) => push(Ok(kv))?,
            Some(None) => {}
            None => push(record::decode_current(Bytes::copy_from_slice(&key), &value))?,
        }
    }
    for kv in undone.into_values().flatten() {
        push(Ok(kv))?;
    }
    Ok(result)
}

/// For every key changed after the range's revision: what it was then.
fn undo(snapshot: &Snapshot, disk: &Disk, range: &Range) -> Result<BTreeMap<Bytes, Option<KeyValue>>> {
    let mut undone = BTreeMap::new();
    let after = record::history_key(range.revision + 1, 0);
    for entry in snapshot.range(&disk.history, after..) {
        let value = entry.value().map_err(engine("scan history"))?;
        let event = record::decode_event(&value)?;
        let key = event.key().clone();
        if key < range.start || key >= range.end {
            continue;
        }
        let (Event::Put { prev, .. } | Event::Delete { prev, .. }) = event;
        undone.entry(key).or_insert(prev);
    }
    Ok(undone)
}

/// Changes in `from..=to` under `prefix`, oldest first, handed out in chunks of whole revisions.
pub fn history(
    snapshot: &Snapshot,
    disk: &Disk,
    prefix: &[u8],
    from: Revision,
    to: Revision,
    mut chunk: impl FnMut(Vec<Event>) -> bool,
) -> Result<()> {
    const CHUNK: usize = 256;
    let mut events: Vec<Event> = Vec::new();
    let bounds = record::history_key(from, 0)..record::history_key(to + 1, 0);
    for entry in snapshot.range(&disk.history, bounds) {
        let value = entry.value().map_err(engine("scan history"))?;
        let event = record::decode_event(&value)?;
        let new_revision = events
            .last()
            .is_some_and(|last| last.revision() != event.revision());
        if new_revision && events.len() >= CHUNK && !chunk(std::mem::take(&mut events)) {
            return Ok(());
        }
        if event.key().starts_with(prefix) {
            events.push(event);
        }
    }
    if !events.is_empty() {
        chunk(events);
    }
    Ok(())
}
