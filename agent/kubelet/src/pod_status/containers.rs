//! Container statuses: the newest run is the state, the one before it the last state.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, Pod, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Inputs;
use crate::pod_actions::{is_sidecar, should_restart};
use crate::runtime_pod::{self, ObservedContainer, RuntimePod};

pub(super) fn statuses(
    pod: &Pod,
    containers: &[Container],
    init: bool,
    old: Option<&[ContainerStatus]>,
    observed: &RuntimePod,
    inputs: &Inputs,
) -> Vec<ContainerStatus> {
    let has_init = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.init_containers.as_ref())
        .is_some_and(|c| !c.is_empty());
    let mut statuses: Vec<ContainerStatus> = containers
        .iter()
        .map(|container| {
            let old = old
                .into_iter()
                .flatten()
                .find(|status| status.name == container.name);
            let mut status = observed_status(pod, container, has_init, old, observed, inputs);
            apply_waiting(pod, container, init, observed, inputs, &mut status);
            apply_readiness(container, init, observed, inputs, &mut status);
            apply_resources(container, old, inputs, &mut status);
            status
        })
        .collect();
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    if init {
        let position = |name: &str| containers.iter().position(|container| container.name == name);
        statuses.sort_by_key(|status| position(&status.name));
    }
    statuses
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message,
        }),
        ..Default::default()
    }
}

fn observed_status(
    pod: &Pod,
    container: &Container,
    has_init: bool,
    old: Option<&ContainerStatus>,
    observed: &RuntimePod,
    inputs: &Inputs,
) -> ContainerStatus {
    let mut runs = observed
        .containers
        .iter()
        .filter(|run| run.name == container.name);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        ..Default::default()
    };
    let Some(newest) = runs.next() else {
        vanished(pod, has_init, old, &mut status);
        return status;
    };
    status.container_id = Some(container_id(&newest.id, inputs));
    status.image = if newest.image.is_empty() {
        status.image
    } else {
        newest.image.clone()
    };
    status.image_id = newest.image_id.clone();
    status.restart_count = newest.restart_count;
    status.state = Some(state(newest, inputs));
    status.volume_mounts = volume_mounts(container);
    status.user = newest.user.as_ref().map(|user| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: Some(user.supplemental_groups.clone()).filter(|groups| !groups.is_empty()),
        }),
    });
    status.last_state = runs
        .next()
        .map(|previous| state(previous, inputs))
        .filter(|state| state.terminated.is_some());
    // Garbage collection may have removed the previous run: what was reported once stays reported.
    if status.last_state.is_none() {
        status.last_state = old
            .filter(|old| old.restart_count == newest.restart_count)
            .and_then(|o| o.last_state.clone());
    }
    status
}

/// A container CRI does not know: not yet created, or gone together with what it left.
fn vanished(pod: &Pod, has_init: bool, old: Option<&ContainerStatus>, status: &mut ContainerStatus) {
    let default_reason = if has_init {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    status.state = Some(waiting(default_reason, None));
    let Some(old) = old else { return };
    status.restart_count = old.restart_count;
    status.last_state = old.last_state.clone();
    let old_state = old.state.clone().unwrap_or_default();
    if old_state.terminated.is_some() {
        *status = old.clone();
    } else if let Some(running) = old_state.running {
        let deleting = pod.metadata.deletion_timestamp.is_some();
        let message = if deleting {
            "The container could not be located when the pod was deleted.  The container used to be Running"
        } else {
            "The container could not be located when the pod was terminated"
        };
        let terminated = ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some(message.into()),
                started_at: running.started_at,
                container_id: old.container_id.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        status.container_id.clone_from(&old.container_id);
        status.image_id.clone_from(&old.image_id);
        if deleting {
            status.state = Some(terminated);
        } else {
            status.last_state = Some(terminated);
            status.restart_count += 1;
        }
    }
}

/// Ids are reported with the runtime's name.
fn container_id(id: &str, inputs: &Inputs) -> String {
    format!("{}://{id}", inputs.runtime_name)
}

fn state(run: &ObservedContainer, inputs: &Inputs) -> ContainerState {
    match run.state {
        runtime_pod::ContainerState::Running => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: Some(Time(run.started_at)),
            }),
            ..Default::default()
        },
        runtime_pod::ContainerState::Created => waiting("ContainerCreating", None),
        runtime_pod::ContainerState::Exited | runtime_pod::ContainerState::Unknown => {
            let reason = match (run.reason.as_str(), run.exit_code) {
                ("", 0) => "Completed",
                ("", _) => "Error",
                (given, _) => given,
            };
            let message = inputs.messages.get(&run.id).cloned();
            let message = message.or_else(|| (!run.message.is_empty()).then(|| run.message.clone()));
            ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: run.exit_code,
                    reason: Some(reason.into()),
                    message,
                    started_at: Some(Time(run.started_at)),
                    finished_at: Some(Time(run.finished_at)),
                    container_id: Some(container_id(&run.id, inputs)),
                    signal: None,
                }),
                ..Default::default()
            }
        }
    }
}

fn apply_waiting(
    pod: &Pod,
    container: &Container,
    init: bool,
    observed: &RuntimePod,
    inputs: &Inputs,
    status: &mut ContainerStatus,
) {
    let succeeded = observed
        .container(&container.name)
        .is_some_and(|run| run.state == runtime_pod::ContainerState::Exited && run.exit_code == 0);
    if init && !is_sidecar(container) && succeeded || !should_restart(container, pod, observed) {
        return;
    }
    let Some(why) = inputs.waiting.get(&container.name) else {
        return;
    };
    if status
        .state
        .as_ref()
        .is_some_and(|state| state.terminated.is_some())
    {
        status.last_state = status.state.take();
    }
    status.state = Some(waiting(
        &why.reason,
        Some(why.message.clone()).filter(|message| !message.is_empty()),
    ));
}

fn apply_readiness(
    container: &Container,
    init: bool,
    observed: &RuntimePod,
    inputs: &Inputs,
    status: &mut ContainerStatus,
) {
    let state = status.state.clone().unwrap_or_default();
    let run = observed
        .container(&container.name)
        .filter(|_| state.running.is_some());
    let started = run.is_some_and(|run| inputs.started.contains(&run.id));
    status.started = Some(started);
    status.ready = if init && !is_sidecar(container) {
        state.terminated.is_some_and(|ended| ended.exit_code == 0)
    } else {
        started && run.is_some_and(|run| inputs.ready.contains(&run.id))
    };
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container
        .volume_mounts
        .as_ref()?
        .iter()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|read_only| *read_only),
            recursive_read_only: match mount.recursive_read_only.as_deref() {
                Some("Enabled" | "IfPossible") => Some("Enabled".into()),
                other => other.map(Into::into).filter(|_| mount.read_only == Some(true)),
            },
            ..Default::default()
        });
    Some(mounts.collect())
}

/// What the container was promised, and what it runs with.
fn apply_resources(
    container: &Container,
    old: Option<&ContainerStatus>,
    inputs: &Inputs,
    status: &mut ContainerStatus,
) {
    let promised = inputs.allocation.allocated.get(&container.name);
    let Some(promised) = promised else {
        status.allocated_resources = old.and_then(|old| old.allocated_resources.clone());
        status.resources = old.and_then(|old| old.resources.clone());
        return;
    };
    let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
    let actuated = inputs
        .allocation
        .actuated
        .get(&container.name)
        .filter(|_| running);
    status.allocated_resources = promised.requests.clone();
    status.resources = Some(actuated.unwrap_or(promised).clone());
}
