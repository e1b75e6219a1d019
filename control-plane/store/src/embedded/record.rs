//! The format on disk: fixed-width big-endian numbers, then bytes.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{Event, KeyValue, LeaseId, Result, Revision, StoreError};

pub const REVISION: &[u8] = b"revision";
pub const COMPACTED: &[u8] = b"compacted";
pub const LEASE_PREFIX: &[u8] = b"lease/";

pub fn corrupt(what: &'static str) -> StoreError {
    StoreError::Engine {
        operation: "decode",
        message: format!("damaged record: {what}"),
    }
}

/// A cursor over a record; every read is checked.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count).ok_or_else(|| corrupt(what))?;
        self.0 = tail;
        Ok(head)
    }

    fn number(&mut self, what: &'static str) -> Result<i64> {
        decode_number(self.take(8, what)?, what)
    }

    fn bytes(&mut self, what: &'static str) -> Result<Bytes> {
        let length = self.number(what)?;
        let length = usize::try_from(length).map_err(|_| corrupt(what))?;
        Ok(Bytes::copy_from_slice(self.take(length, what)?))
    }
}

pub fn decode_number(bytes: &[u8], what: &'static str) -> Result<i64> {
    bytes
        .try_into()
        .map(i64::from_be_bytes)
        .map_err(|_| corrupt(what))
}

/// Value of `current`.
pub fn encode_current(kv: &KeyValue) -> Vec<u8> {
    let mut out = Vec::with_capacity(24 + kv.value.len());
    out.put_i64(kv.create_revision);
    out.put_i64(kv.mod_revision);
    out.put_i64(kv.lease);
    out.put_slice(&kv.value);
    out
}

pub fn decode_current(key: Bytes, record: &[u8]) -> Result<KeyValue> {
    let mut input = Input(record);
    Ok(KeyValue {
        key,
        create_revision: input.number("create revision")?,
        mod_revision: input.number("mod revision")?,
        lease: input.number("lease")?,
        value: Bytes::copy_from_slice(input.0),
        stale: false,
    })
}

/// Key of `history`: changes sort by revision, then by their place in the transaction.
pub fn history_key(revision: Revision, index: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&revision.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

/// Value of `history`.
pub fn encode_event(event: &Event) -> Vec<u8> {
    let mut out = BytesMut::new();
    let (now, prev) = match event {
        Event::Put { kv, prev } => (Some(kv), prev),
        Event::Delete { prev, .. } => (None, prev),
    };
    out.put_i64(event.revision());
    out.put_i64(i64::try_from(event.key().len()).unwrap_or(i64::MAX));
    out.put_slice(event.key());
    for state in [now, prev.as_ref()] {
        out.put_u8(u8::from(state.is_some()));
        if let Some(kv) = state {
            let record = encode_current(kv);
            out.put_i64(i64::try_from(record.len()).unwrap_or(i64::MAX));
            out.put_slice(&record);
        }
    }
    out.to_vec()
}

pub fn decode_event(record: &[u8]) -> Result<Event> {
    let mut input = Input(record);
    let revision = input.number("event revision")?;
    let key = input.bytes("event key")?;
    let mut state = || -> Result<Option<KeyValue>> {
        if input.take(1, "event state")? == [0] {
            return Ok(None);
        }
        let record = input.bytes("event value")?;
        decode_current(key.clone(), &record).map(Some)
    };
    let (now, prev) = (state()?, state()?);
    Ok(match now {
        Some(kv) => Event::Put { kv, prev },
        None => Event::Delete { key, revision, prev },
    })
}

pub fn lease_name(lease: LeaseId) -> Vec<u8> {
    [LEASE_PREFIX, &lease.to_be_bytes()].concat()
}

pub fn lease_key(lease: LeaseId, key: &[u8]) -> Vec<u8> {
    [&lease.to_be_bytes(), key].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(value: &'static str) -> KeyValue {
        KeyValue {
            key: Bytes::from_static(b"/k"),
            value: Bytes::from_static(value.as_bytes()),
            create_revision: 3,
            mod_revision: 9,
            lease: 7,
            stale: false,
        }
    }

    #[test]
    fn events_survive_the_disk() {
        let events = [
            Event::Put {
                kv: kv("new"),
                prev: Some(kv("old")),
            },
            Event::Put {
                kv: kv(""),
                prev: None,
            },
            Event::Delete {
                key: Bytes::from_static(b"/k"),
                revision: 12,
                prev: Some(kv("x")),
            },
        ];
        for event in events {
            assert_eq!(decode_event(&encode_event(&event)).unwrap(), event);
        }
    }

    #[test]
    fn damage_is_an_error() {
        let whole = encode_event(&Event::Put {
            kv: kv("new"),
            prev: Some(kv("old")),
        });
        for length in 0..whole.len() - 3 {
            assert!(decode_event(&whole[..length]).is_err(), "{length}");
        }
    }
}
