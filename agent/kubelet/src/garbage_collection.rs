//! Removes what pods leave behind: earlier runs of containers, replaced sandboxes, directories and logs of pods that
//! are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::{Container, ContainerState, PodSandbox, PodSandboxState};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::{Context, uid};
use crate::pod_manager::Pods;
use crate::runtime::{self, identity};
use crate::volumes;

const PERIOD: Duration = Duration::from_secs(60);

/// Dead containers to remove: all but the newest of each name (upstream's `MaxPerPodContainer` of 1), counting the
/// one that may be running.
fn stale_containers(containers: &[Container]) -> Vec<String> {
    let mut by_name: BTreeMap<(String, String), Vec<&Container>> = BTreeMap::new();
    for container in containers {
        let Some(pod) = identity(&container.labels) else {
            continue;
        };
        let name = container
            .metadata
            .as_ref()
            .map(|metadata| metadata.name.clone())
            .unwrap_or_default();
        by_name.entry((pod.uid, name)).or_default().push(container);
    }
    let mut stale = Vec::new();
    for runs in by_name.values_mut() {
        runs.retain(|run| run.state == ContainerState::ContainerExited as i32);
        runs.sort_by_key(|run| std::cmp::Reverse(run.created_at));
        stale.extend(runs.iter().skip(1).map(|run| run.id.clone()));
    }
    stale
}

/// Sandboxes to remove: not ready, and neither the newest of their pod nor home to a container.
fn stale_sandboxes(sandboxes: &[PodSandbox], containers: &[Container]) -> Vec<String> {
    let occupied: BTreeSet<&str> = containers
        .iter()
        .map(|container| container.pod_sandbox_id.as_str())
        .collect();
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    for sandbox in sandboxes {
        if let Some(pod) = identity(&sandbox.labels) {
            let entry = newest.entry(pod.uid).or_insert(sandbox.created_at);
            *entry = (*entry).max(sandbox.created_at);
        }
    }
    let stale = sandboxes.iter().filter(|sandbox| {
        let Some(pod) = identity(&sandbox.labels) else {
            return false;
        };
        sandbox.state == PodSandboxState::SandboxNotready as i32
            && newest.get(&pod.uid) != Some(&sandbox.created_at)
            && !occupied.contains(sandbox.id.as_str())
    });
    stale.map(|sandbox| sandbox.id.clone()).collect()
}

pub async fn run(context: Arc<Context>, pods: Pods, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = collect(&context, &pods).await {
            warn!(%error, "garbage collection interrupted");
        }
    }
}

pub async fn collect(context: &Context, pods: &Pods) -> Result<(), runtime::RuntimeError> {
    let containers = context.runtime.list_containers().await?;
    for id in stale_containers(&containers) {
        context.runtime.remove_container(&id).await?;
    }
    let containers = context.runtime.list_containers().await?;
    let sandboxes = context.runtime.list_sandboxes().await?;
    for id in stale_sandboxes(&sandboxes, &containers) {
        context.runtime.remove_sandbox(&id).await?;
    }
    let mut wanted: BTreeSet<String> = pods.all().iter().map(|pod| uid(pod).to_owned()).collect();
    wanted.extend(
        sandboxes
            .iter()
            .filter_map(|sandbox| identity(&sandbox.labels))
            .map(|pod| pod.uid),
    );
    remove_directories(context, &wanted).await;
    Ok(())
}

async fn remove_directories(context: &Context, wanted: &BTreeSet<String>) {
    for entry in std::fs::read_dir(context.config.root_dir.join("pods"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let uid = entry.file_name().to_string_lossy().into_owned();
        if !wanted.contains(&uid) {
            info!(uid, "removing the directory of a pod that is gone");
            if let Err(error) = volumes::tear_down(context, &entry.path()).await {
                warn!(uid, error, "pod directory not removed");
            }
            context.cgroups.remove(&uid);
        }
    }
    for entry in std::fs::read_dir(&context.config.pod_logs_dir)
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let uid = name.rsplit('_').next().unwrap_or_default();
        if name.matches('_').count() == 2 && !wanted.contains(uid) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri_api::v1::ContainerMetadata;
    use std::collections::HashMap;

    fn labels() -> HashMap<String, String> {
        [runtime::POD_UID, runtime::POD_NAME, runtime::POD_NAMESPACE]
            .map(|key| (key.to_owned(), "p".to_owned()))
            .into()
    }

    fn container(id: &str, name: &str, state: ContainerState, created_at: i64, sandbox: &str) -> Container {
        Container {
            id: id.into(),
            pod_sandbox_id: sandbox.into(),
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            state: state as i32,
            created_at,
            labels: labels(),
            ..Default::default()
        }
    }

    #[test]
    fn the_newest_dead_run_is_kept() {
        use ContainerState::{ContainerExited as Exited, ContainerRunning as Running};
        let containers = [
            container("a1", "a", Exited, 1, "s"),
            container("a2", "a", Exited, 2, "s"),
            container("a3", "a", Running, 3, "s"),
            container("b1", "b", Exited, 1, "s"),
        ];
        assert_eq!(stale_containers(&containers), ["a1"]);
    }

    #[test]
    fn replaced_empty_sandboxes_go() {
        let sandbox = |id: &str, created_at, state: PodSandboxState| PodSandbox {
            id: id.into(),
            created_at,
            state: state as i32,
            labels: labels(),
            ..Default::default()
        };
        let sandboxes = [
            sandbox("empty", 1, PodSandboxState::SandboxNotready),
            sandbox("occupied", 2, PodSandboxState::SandboxNotready),
            sandbox("newest", 3, PodSandboxState::SandboxNotready),
        ];
        let containers = [container(
            "a",
            "a",
            ContainerState::ContainerExited,
            1,
            "occupied",
        )];
        assert_eq!(stale_sandboxes(&sandboxes, &containers), ["empty"]);
    }
}
