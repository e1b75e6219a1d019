//! Containers: created as files, run by the pod's shim, stopped with grace.

use super::memory::Container;
use super::{Runtime, blocking, convert, unknown};
use crate::host::CGROUP_ROOT;
use crate::shim::client as shim;
use crate::shim::protocol::{DeviceRule, Reply, Request, StartRequest};
use crate::spec::resources;
use crate::state::{self, ContainerRecord, new_id, now_nanos};
use crate::sys::device_filter;
use cri_api::v1::{self, ContainerEventType, NamespaceMode};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// How long a killed process may take to die before the caller is told.
const KILL_PATIENCE: Duration = Duration::from_secs(110);

impl Runtime {
    pub async fn create_container(
        self: &Arc<Self>,
        request: v1::CreateContainerRequest,
    ) -> Result<String, Status> {
        let mut config = request
            .config
            .ok_or_else(|| Status::invalid_argument("config: required"))?;
        for image in config.mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
            // ContainerStatus tells which image a volume's name stood for (KEP-5365).
            image.image_ref = self
                .find_whole_image(&image.image)
                .await?
                .map(|found| found.id)
                .unwrap_or_default();
        }
        // A pod that is being stopped gets no new containers.
        let _pod = self
            .memory
            .lock(&self.memory.sandbox(&request.pod_sandbox_id)?.id)
            .await;
        let sandbox = self.memory.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.ready {
            return Err(unknown(format!(
                "sandbox container {:?} is not running",
                sandbox.id
            )));
        }
        if config.metadata.is_none() {
            return Err(Status::invalid_argument("config.metadata: required"));
        }
        let wanted = config
            .image
            .as_ref()
            .map(|image| image.image.clone())
            .unwrap_or_default();
        let image = self
            .find_whole_image(&wanted)
            .await?
            .ok_or_else(|| Status::not_found(format!("failed to resolve image {wanted:?}: not found")))?;
        let id = new_id().map_err(unknown)?;
        let log_folder = PathBuf::from(&sandbox.config.log_directory);
        let has_log = !sandbox.config.log_directory.is_empty() && !config.log_path.is_empty();
        let mut record = ContainerRecord {
            id: id.clone(),
            sandbox_id: sandbox.id.clone(),
            image_id: image.id.clone(),
            image_ref: image
                .repo_digests
                .first()
                .cloned()
                .unwrap_or_else(|| image.id.clone()),
            layers: image.layers.clone(),
            created_at: now_nanos(),
            log_path: has_log.then(|| log_folder.join(&config.log_path)),
            user: v1::LinuxContainerUser::default(),
            stop_signal: convert::stop_signal(config.stop_signal(), &image.config.stop_signal)
                .map_err(unknown)?,
            cgroup: self.cgroup_of(&sandbox, &id),
            config,
        };
        let _lock = self.memory.lock(&id).await;
        let runtime = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || {
            let folder = runtime.layout.container(&record.id);
            fs::create_dir_all(&folder).map_err(unknown)?;
            let result = runtime.prepare(&record, &sandbox, &image).and_then(|prepared| {
                record.user = v1::LinuxContainerUser {
                    uid: i64::from(prepared.user.uid),
                    gid: i64::from(prepared.user.gid),
                    supplemental_groups: prepared
                        .user
                        .groups
                        .iter()
                        .map(|group| i64::from(*group))
                        .collect(),
                };
                state::save(&runtime.layout.container_record(&record.id), &record).map_err(unknown)
            });
            if let Err(error) = result {
                runtime.unmount(&record.id).map_err(unknown)?;
                state::remove_tree(&folder).map_err(unknown)?;
                return Err(error);
            }
            Ok::<_, Status>(record)
        });
        let record = made.await.map_err(unknown)??;
        self.memory.put_container(Container {
            record,
            process: None,
        });
        self.announce(&id, ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    pub async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let record = self.memory.container(id)?.record;
        let _pod = self.memory.lock(&record.sandbox_id).await;
        let id = record.id;
        let _lock = self.memory.lock(&id).await;
        let container = self.memory.container(&id)?;
        if container.process.is_some() {
            let state = convert::container_state(&container).as_str_name();
            return Err(unknown(format!("container {id:?} is in {state} state")));
        }
        let sandbox = self.memory.sandbox(&container.record.sandbox_id)?;
        if !sandbox.ready {
            return Err(unknown(format!(
                "sandbox container {:?} is not running",
                sandbox.id
            )));
        }
        let request = self.start_request(&container.record);
        match shim::ask(&self.layout.sandbox(&sandbox.id), &Request::Start(request)).await {
            Ok(Reply::Started { process }) => {
                self.memory.set_process(&id, process);
                self.announce(&id, ContainerEventType::ContainerStartedEvent);
                Ok(())
            }
            Ok(other) => Err(unknown(format!("the pod's shim answers {other:?}"))),
            Err(error) => {
                if let Ok(Some(process)) = state::load(&self.layout.process_record(&id)) {
                    self.memory.set_process(&id, process);
                }
                Err(unknown(format!("failed to start container {id:?}: {error}")))
            }
        }
    }

    fn start_request(&self, record: &ContainerRecord) -> StartRequest {
        let linux = record.config.linux.clone().unwrap_or_default();
        let security = linux.security_context.unwrap_or_default();
        let pid_mode = security
            .namespace_options
            .as_ref()
            .map_or(NamespaceMode::Pod, v1::NamespaceOption::pid);
        StartRequest {
            container_id: record.id.clone(),
            bundle: self.layout.container(&record.id),
            libcontainer_root: self.layout.libcontainer(),
            log_path: record.log_path.clone(),
            tty: record.config.tty,
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            uid: u32::try_from(record.user.uid).unwrap_or_default(),
            cgroup: cgroup_folder(&record.cgroup),
            own_pid_namespace: pid_mode == NamespaceMode::Container,
            pause: false,
            devices: (!security.privileged).then(|| device_rules(&record.config.devices)),
        }
    }

    /// Asks, waits, then kills. Idempotent.
    pub async fn stop_container(self: &Arc<Self>, id: &str, timeout: i64) -> Result<(), Status> {
        let Ok(container) = self.memory.container(id) else {
            return Ok(());
        };
        if !container.running() {
            return Ok(());
        }
        let id = container.record.id.as_str();
        if timeout > 0 {
            let patience = Duration::from_secs(timeout.unsigned_abs());
            self.signal(&container, container.record.stop_signal).await?;
            if tokio::time::timeout(patience, self.memory.wait_for_exit(id))
                .await
                .is_ok()
            {
                return Ok(());
            }
        }
        self.signal(&container, nix::libc::SIGKILL).await?;
        tokio::time::timeout(KILL_PATIENCE, self.memory.wait_for_exit(id))
            .await
            .map_err(|_| Status::deadline_exceeded(format!("container {id:?} does not die of SIGKILL")))
    }

    async fn signal(&self, container: &Container, signal: i32) -> Result<(), Status> {
        let folder = self.layout.sandbox(&container.record.sandbox_id);
        let request = Request::Kill {
            container_id: container.record.id.clone(),
            signal,
        };
        match shim::ask(&folder, &request).await {
            // Refused: it has ended, and the news is on its way. Gone: the watcher settles it.
            Ok(_) | Err(shim::ShimClientError::Refused { .. } | shim::ShimClientError::Gone) => Ok(()),
            Err(error) => Err(unknown(error)),
        }
    }

    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let Ok(container) = self.memory.container(id) else {
            return Ok(());
        };
        let id = container.record.id;
        self.stop_container(&id, 0).await?;
        let _lock = self.memory.lock(&id).await;
        let runtime = Arc::clone(self);
        let removed = id.clone();
        blocking(move || {
            runtime.unmount(&removed)?;
            // The record first: without it, what is left is removed at the next start.
            state::remove_record(&runtime.layout.container_record(&removed))?;
            state::remove_tree(&runtime.layout.libcontainer().join(&removed))?;
            state::remove_tree(&runtime.layout.container(&removed))
        })
        .await?;
        self.announce(&id, ContainerEventType::ContainerDeletedEvent);
        self.memory.forget_container(&id);
        if self.images.get(&container.record.image_id).is_none() {
            self.drop_unused_layers().await?;
        }
        Ok(())
    }

    pub async fn update_resources(&self, request: v1::UpdateContainerResourcesRequest) -> Result<(), Status> {
        let mut container = self.memory.container(&request.container_id)?;
        let _lock = self.memory.lock(&container.record.id).await;
        let Some(change) = request.linux else {
            return Ok(());
        };
        if container.running() {
            let folder = cgroup_folder(&container.record.cgroup);
            for (file, value) in resources::to_files(&change) {
                let controller = file.split('.').next().unwrap_or_default();
                if controller != "cgroup" && !self.host.controllers.contains(controller) {
                    tracing::warn!(
                        container = container.record.id,
                        controller,
                        "limit is not enforced: no such controller"
                    );
                    continue;
                }
                fs::write(folder.join(&file), &value)
                    .map_err(|error| unknown(format!("failed to update {file} to {value:?}: {error}")))?;
            }
        }
        let linux = container.record.config.linux.get_or_insert_default();
        resources::merge(linux.resources.get_or_insert_default(), &change);
        state::save(
            &self.layout.container_record(&container.record.id),
            &container.record,
        )
        .map_err(unknown)?;
        self.memory.put_container_record(container.record);
        Ok(())
    }

    pub async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let container = self.memory.container(id)?;
        if !container.running() {
            return Err(unknown(format!(
                "container {:?} is not running",
                container.record.id
            )));
        }
        let request = Request::ReopenLog {
            container_id: container.record.id.clone(),
        };
        shim::ask(&self.layout.sandbox(&container.record.sandbox_id), &request)
            .await
            .map(drop)
            .map_err(unknown)
    }

    /// The layers that containers stand on, whatever becomes of their images.
    pub fn layers_in_use(&self) -> BTreeSet<String> {
        self.memory
            .containers()
            .into_iter()
            .flat_map(|container| container.record.layers)
            .collect()
    }

    /// Tells the readers of GetContainerEvents.
    pub fn announce(&self, id: &str, kind: ContainerEventType) {
        let Ok(container) = self.memory.container(id) else {
            return;
        };
        let sandbox = self.memory.sandbox(&container.record.sandbox_id).ok();
        let containers = self.memory.containers_of(&container.record.sandbox_id);
        // Nobody listening is fine.
        let _ = self.events.send(v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: now_nanos(),
            pod_sandbox_status: sandbox.as_ref().map(convert::sandbox_status),
            containers_statuses: containers.iter().map(convert::container_status).collect(),
        });
    }
}

/// A cgroup below the mount point.
pub fn cgroup_folder(cgroup: &Path) -> PathBuf {
    Path::new(CGROUP_ROOT).join(cgroup.strip_prefix("/").unwrap_or(cgroup))
}

fn device_rules(devices: &[v1::Device]) -> Vec<DeviceRule> {
    devices
        .iter()
        .flat_map(|device| {
            let access = device.permissions.chars().fold(0, |access, letter| {
                access
                    | match letter {
                        'r' => device_filter::ACCESS_READ,
                        'w' => device_filter::ACCESS_WRITE,
                        'm' => device_filter::ACCESS_MKNOD,
                        _ => 0,
                    }
            });
            let nodes =
                crate::host::devices_at(Path::new(&device.host_path), Path::new(&device.container_path));
            nodes.into_iter().map(move |node| DeviceRule {
                block: node.block,
                major: node.major,
                minor: node.minor,
                access,
            })
        })
        .collect()
}
