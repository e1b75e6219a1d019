//! What the server knows of sandboxes and containers; the files are the truth, this is their mirror.

use crate::state::{ContainerRecord, ProcessRecord, SandboxRecord};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedMutexGuard, watch};
use tonic::Status;

#[derive(Debug, Clone)]
pub struct Container {
    pub record: ContainerRecord,
    /// `None` until it has been started.
    pub process: Option<ProcessRecord>,
}

impl Container {
    pub fn running(&self) -> bool {
        self.process.as_ref().is_some_and(ProcessRecord::running)
    }
}

#[derive(Default)]
struct Inner {
    sandboxes: BTreeMap<String, SandboxRecord>,
    containers: BTreeMap<String, Container>,
    locks: BTreeMap<String, Arc<tokio::sync::Mutex<()>>>,
}

pub struct Memory {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            changes: watch::channel(0).0,
        }
    }
}

impl Memory {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One operation at a time on a sandbox or container.
    pub async fn lock(&self, id: &str) -> OwnedMutexGuard<()> {
        let lock = Arc::clone(self.inner().locks.entry(id.to_owned()).or_default());
        lock.lock_owned().await
    }

    pub fn put_sandbox(&self, record: SandboxRecord) {
        self.inner().sandboxes.insert(record.id.clone(), record);
    }

    pub fn put_container(&self, container: Container) {
        self.inner()
            .containers
            .insert(container.record.id.clone(), container);
        self.changes.send_modify(|generation| *generation += 1);
    }

    /// The container as it was updated; its process is whatever has been heard of it by now.
    pub fn put_container_record(&self, record: ContainerRecord) {
        if let Some(container) = self.inner().containers.get_mut(&record.id) {
            container.record = record;
        }
    }

    /// Takes news of a known container's process. It begins once and ends once, and either may be heard of late:
    /// says whether it was news.
    pub fn set_process(&self, id: &str, process: ProcessRecord) -> bool {
        {
            let mut inner = self.inner();
            let Some(container) = inner.containers.get_mut(id) else {
                return false;
            };
            if let Some(known) = &container.process
                && (process.running() || !known.running())
            {
                return false;
            }
            container.process = Some(process);
        }
        self.changes.send_modify(|generation| *generation += 1);
        true
    }

    pub fn forget_sandbox(&self, id: &str) {
        let mut inner = self.inner();
        inner.sandboxes.remove(id);
        inner.locks.remove(id);
    }

    pub fn forget_container(&self, id: &str) {
        let mut inner = self.inner();
        inner.containers.remove(id);
        inner.locks.remove(id);
    }

    pub fn sandboxes(&self) -> Vec<SandboxRecord> {
        self.inner().sandboxes.values().cloned().collect()
    }

    pub fn containers(&self) -> Vec<Container> {
        self.inner().containers.values().cloned().collect()
    }

    pub fn containers_of(&self, sandbox_id: &str) -> Vec<Container> {
        self.inner()
            .containers
            .values()
            .filter(|c| c.record.sandbox_id == sandbox_id)
            .cloned()
            .collect()
    }

    /// By whole ID, or by the beginning of exactly one.
    pub fn sandbox(&self, id: &str) -> Result<SandboxRecord, Status> {
        let inner = self.inner();
        find(&inner.sandboxes, id).cloned().ok_or_else(|| {
            Status::not_found(format!(
                "an error occurred when try to find sandbox {id:?}: not found"
            ))
        })
    }

    pub fn container(&self, id: &str) -> Result<Container, Status> {
        let inner = self.inner();
        find(&inner.containers, id).cloned().ok_or_else(|| {
            Status::not_found(format!(
                "an error occurred when try to find container {id:?}: not found"
            ))
        })
    }

    /// Waits until the container does not run (any more).
    pub async fn wait_for_exit(&self, id: &str) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if !self.inner().containers.get(id).is_some_and(Container::running) {
                return;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

fn find<'a, T>(map: &'a BTreeMap<String, T>, id: &str) -> Option<&'a T> {
    if let Some(exact) = map.get(id) {
        return Some(exact);
    }
    let mut matches = map
        .range(id.to_owned()..)
        .take_while(|(key, _)| key.starts_with(id));
    match (matches.next(), matches.next()) {
        (Some((_, only)), None) if !id.is_empty() => Some(only),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_does_not_run_again() {
        let running = ProcessRecord {
            started_at: 1,
            ..ProcessRecord::default()
        };
        let ended = ProcessRecord {
            finished_at: 2,
            ..running.clone()
        };
        let record = ContainerRecord {
            id: "a".into(),
            ..ContainerRecord::default()
        };
        let cases: [(&[&ProcessRecord], &[bool], &ProcessRecord); 4] = [
            (&[&running], &[true], &running),
            (&[&running, &running, &ended], &[true, false, true], &ended),
            (&[&ended, &running], &[true, false], &ended),
            (&[&running, &ended, &ended], &[true, true, false], &ended),
        ];
        for (news, accepted, expected) in cases {
            let memory = Memory::default();
            assert!(!memory.set_process("a", running.clone()));
            memory.put_container(Container {
                record: record.clone(),
                process: None,
            });
            let told: Vec<bool> = news
                .iter()
                .map(|process| memory.set_process("a", (*process).clone()))
                .collect();
            memory.put_container_record(record.clone());
            assert_eq!(told, accepted);
            assert_eq!(memory.container("a").unwrap().process.as_ref(), Some(expected));
        }
    }

    #[test]
    fn a_beginning_finds_only_what_is_unique() {
        let map: BTreeMap<String, i32> = [("abc", 1), ("abd", 2), ("x", 3)]
            .map(|(k, v)| (k.to_owned(), v))
            .into();
        for (id, expected) in [
            ("abc", Some(1)),
            ("ab", None),
            ("x", Some(3)),
            ("", None),
            ("abe", None),
        ] {
            assert_eq!(find(&map, id).copied(), expected, "{id}");
        }
    }
}
