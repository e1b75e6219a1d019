//! After a start: takes over what the last server left running, and settles what has ended since.

use super::Runtime;
use super::memory::Container;
use crate::shim::client::ShimConnection;
use crate::shim::protocol::{Reply, Request};
use crate::state::{self, ContainerRecord, ProcessRecord, SandboxRecord, now_nanos};
use cri_api::v1::ContainerEventType;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The exit code of a container whose end nobody saw (as containerd reports it).
const LOST_EXIT_CODE: i32 = 255;
/// How long, and how often, to wait for killed processes.
const DEATH: std::time::Duration = std::time::Duration::from_millis(10);
const DEATHS: u32 = 500;

impl Runtime {
    /// Reads the records and connects to every shim that lives.
    pub async fn adopt(self: &Arc<Self>) {
        for (_, sandbox) in records::<SandboxRecord>(&self.layout.sandboxes(), "sandbox.json") {
            self.memory.put_sandbox(sandbox);
        }
        for (folder, record) in records::<ContainerRecord>(&self.layout.containers(), "container.json") {
            let process = load(&folder.join(state::layout::PROCESS_RECORD));
            self.memory.put_container(Container { record, process });
        }
        let (mut adopted, mut lost) = (0, 0);
        for sandbox in self.memory.sandboxes() {
            if sandbox.ready && sandbox.boot_id == self.boot_id && self.subscribe(&sandbox.id).await.is_some()
            {
                adopted += 1;
                self.watch(&sandbox.id);
            } else if sandbox.ready {
                lost += 1;
                self.settle_lost(&sandbox.id).await;
            }
        }
        self.drop_orphaned_state();
        if adopted + lost > 0 {
            tracing::info!(
                adopted,
                lost,
                containers = self.memory.containers().len(),
                "took over sandboxes"
            );
        }
    }

    async fn subscribe(&self, sandbox_id: &str) -> Option<ShimConnection> {
        let mut connection = ShimConnection::open(&self.layout.sandbox(sandbox_id)).ok()?;
        connection.send(&Request::Subscribe, &[]).await.ok()?;
        matches!(connection.receive().await, Ok(Reply::Done)).then_some(connection)
    }

    /// Follows a sandbox's shim in the background until one of them ends.
    pub fn watch(self: &Arc<Self>, sandbox_id: &str) {
        let (runtime, sandbox_id) = (Arc::clone(self), sandbox_id.to_owned());
        tokio::spawn(async move {
            if let Some(mut connection) = runtime.subscribe(&sandbox_id).await {
                // What happened before the subscription is in the records.
                for container in runtime.memory.containers_of(&sandbox_id) {
                    let id = &container.record.id;
                    match load::<ProcessRecord>(&runtime.layout.process_record(id)) {
                        Some(process) if process.running() => {
                            runtime.memory.set_process(id, process);
                        }
                        Some(process) => runtime.exited(id, process),
                        None => {}
                    }
                }
                while let Ok(reply) = connection.receive().await {
                    match reply {
                        Reply::Began {
                            container_id,
                            process,
                        } => {
                            runtime.memory.set_process(&container_id, process);
                        }
                        Reply::Exited {
                            container_id,
                            process,
                        } => runtime.exited(&container_id, process),
                        _ => {}
                    }
                }
            }
            // A stopped sandbox has let its shim go; anything else is a loss.
            if runtime
                .memory
                .sandbox(&sandbox_id)
                .is_ok_and(|sandbox| sandbox.ready)
            {
                tracing::error!(sandbox = sandbox_id, "the pod's shim died");
                runtime.settle_lost(&sandbox_id).await;
            }
        });
    }

    fn exited(&self, container_id: &str, process: ProcessRecord) {
        let (exit_code, reason) = (process.exit_code, process.reason());
        if self.memory.set_process(container_id, process) {
            tracing::info!(container = container_id, exit_code, reason, "container ended");
            self.announce(container_id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// libcontainer's folders of what a crash left half removed.
    fn drop_orphaned_state(&self) {
        for entry in fs::read_dir(self.layout.libcontainer())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let id = name.to_string_lossy();
            let orphaned = self.memory.container(&id).is_err() && self.memory.sandbox(&id).is_err();
            if orphaned && let Err(error) = state::remove_tree(&entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove an orphaned state");
            }
        }
    }

    /// No shim, so nobody saw the end: what still runs is killed, and all is recorded as ended.
    async fn settle_lost(&self, sandbox_id: &str) {
        for container in self.memory.containers_of(sandbox_id) {
            let id = &container.record.id;
            let cgroup = super::container::cgroup_folder(&container.record.cgroup);
            let oom_killed = crate::shim::oom_killed(&cgroup);
            end_cgroup(&cgroup).await;
            let recorded =
                load::<ProcessRecord>(&self.layout.process_record(id)).or(container.process.clone());
            let Some(mut process) = recorded else { continue };
            if process.running() {
                process = ProcessRecord {
                    finished_at: now_nanos(),
                    exit_code: LOST_EXIT_CODE,
                    oom_killed,
                    lost: true,
                    ..process
                };
                if let Err(error) = state::save(&self.layout.process_record(id), &process) {
                    tracing::error!(container = id, %error, "cannot record a lost container");
                }
            }
            self.exited(id, process);
        }
        // Only now: whoever stops this sandbox may have waited for the ends told above.
        let _lock = self.memory.lock(sandbox_id).await;
        if let Ok(mut sandbox) = self.memory.sandbox(sandbox_id)
            && sandbox.ready
        {
            self.end_pause(&sandbox).await;
            sandbox.ready = false;
            if let Err(error) = self.save_sandbox(sandbox) {
                tracing::error!(sandbox = sandbox_id, %error, "cannot record a lost sandbox");
            }
        }
    }
}

/// Kills what is in a cgroup and removes it once all have died.
pub async fn end_cgroup(cgroup: &Path) {
    crate::shim::kill_cgroup(cgroup);
    for _ in 0..DEATHS {
        match crate::shim::remove_cgroup(cgroup) {
            Ok(true) => return,
            Ok(false) => tokio::time::sleep(DEATH).await,
            Err(error) => return tracing::warn!(cgroup = %cgroup.display(), %error, "cannot remove a cgroup"),
        }
    }
    tracing::warn!(cgroup = %cgroup.display(), "the processes of a cgroup do not die");
}

fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    state::load(path).unwrap_or_else(|error| {
        tracing::error!(%error, "unreadable record");
        None
    })
}

/// The records of a folder of folders; a folder without one is what a crash left of a creation, and goes.
fn records<T: DeserializeOwned>(parent: &Path, name: &str) -> Vec<(PathBuf, T)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let folder = entry.path();
        match load(&folder.join(name)) {
            Some(record) => found.push((folder, record)),
            None => {
                tracing::warn!(folder = %folder.display(), "removing a half-made object");
                let unmounted = crate::namespaces::unmount_below(&folder);
                if let Err(error) = unmounted.and_then(|()| state::remove_tree(&folder)) {
                    tracing::error!(folder = %folder.display(), %error, "cannot remove it");
                }
            }
        }
    }
    found
}
