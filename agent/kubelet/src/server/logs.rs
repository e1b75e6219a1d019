//! `/containerLogs`: finds the log of the wanted run and sends it, following it while the container lives.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use super::log_lines::{LogOptions, Printer, tail_offset};
use super::{Answer, query, streamed, text};
use crate::context::{Context, uid};
use crate::pod_executor::find_container;
use crate::pod_manager::Pods;
use crate::runtime::Runtime;
use crate::runtime_pod::{ContainerState, ObservedContainer, RuntimePod};

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);
const CHUNK: usize = 64 * 1024;

pub async fn answer(
    context: &Context,
    pods: &Pods,
    namespace: &str,
    pod_name: &str,
    container: &str,
    parameters: Option<&str>,
) -> Answer {
    let options = match LogOptions::parse(&query(parameters), Timestamp::now()) {
        Ok(options) => options,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let Some(pod) = pods.find(namespace, pod_name) else {
        return text(
            StatusCode::NOT_FOUND,
            format!("pod \"{pod_name}\" does not exist\n"),
        );
    };
    if find_container(&pod, container).is_none() {
        let message = format!("container \"{container}\" not found in pod \"{pod_name}\"\n");
        return text(StatusCode::NOT_FOUND, message);
    }
    let observed = match context.runtime.pod(uid(&pod)).await {
        Ok(observed) => observed,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let run = match choose_run(&pod, &observed, container, options.previous) {
        Ok(run) => run.clone(),
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let path = PathBuf::from(&run.log_path);
    let (sender, receiver) = mpsc::channel(16);
    let runtime = context.runtime.clone();
    match tokio::fs::File::open(&path).await {
        Ok(file) => {
            tokio::spawn(send(runtime, run.id, path, file, options, sender));
            streamed(receiver)
        }
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("failed to open log file {}: {error}", path.display()),
        ),
    }
}

/// Files of the node's own logs, `/logs/…` being `/var/log/…`.
pub async fn of_node(parts: &[&str]) -> Answer {
    let missing = || text(StatusCode::NOT_FOUND, "404 page not found\n");
    if parts.contains(&"..") {
        return missing();
    }
    let path = parts
        .iter()
        .fold(PathBuf::from("/var/log"), |path, part| path.join(part));
    let Ok(metadata) = tokio::fs::metadata(&path).await else {
        return missing();
    };
    if !metadata.is_dir() {
        return match tokio::fs::read(&path).await {
            Ok(bytes) => text(StatusCode::OK, String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        };
    }
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
        let slash = if entry.path().is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    let links = names
        .iter()
        .map(|name| format!("<a href=\"{name}\">{name}</a>\n"));
    let mut answer = text(
        StatusCode::OK,
        format!("<pre>\n{}</pre>\n", links.collect::<String>()),
    );
    let html = http::HeaderValue::from_static("text/html; charset=utf-8");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, html);
    answer
}

/// The run whose log is asked for, or upstream's words why there is none.
fn choose_run<'a>(
    pod: &Pod,
    observed: &'a RuntimePod,
    container: &str,
    previous: bool,
) -> Result<&'a ObservedContainer, String> {
    let pod_name = crate::context::name(pod);
    let mut runs = observed.containers.iter().filter(|run| run.name == container);
    let newest = runs.next();
    let reported = pod.status.iter().flat_map(|status| {
        status
            .container_statuses
            .iter()
            .chain(status.init_container_statuses.iter())
            .chain(status.ephemeral_container_statuses.iter())
            .flatten()
    });
    let waiting = reported
        .into_iter()
        .find(|status| status.name == container)
        .and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
    if previous {
        // While the container waits to be restarted, its newest run is the previous one.
        let run = newest
            .filter(|run| run.state == ContainerState::Exited && waiting.is_some())
            .or_else(|| runs.next());
        return run.ok_or_else(|| {
            format!("previous terminated container \"{container}\" in pod \"{pod_name}\" not found")
        });
    }
    newest
        .filter(|run| run.state != ContainerState::Created)
        .ok_or_else(|| {
            let reason = waiting.unwrap_or_else(|| "ContainerCreating".into());
            format!("container \"{container}\" in pod \"{pod_name}\" is waiting to start: {reason}")
        })
}

async fn send(
    runtime: Runtime,
    id: String,
    path: PathBuf,
    mut file: tokio::fs::File,
    options: LogOptions,
    sender: mpsc::Sender<Bytes>,
) {
    if let Some(count) = options.tail {
        let mut log = Vec::new();
        if file.read_to_end(&mut log).await.is_err() {
            return;
        }
        let start = tail_offset(&log, count) as u64;
        if file.seek(std::io::SeekFrom::Start(start)).await.is_err() {
            return;
        }
    }
    let follow = options.follow;
    let mut printer = Printer::new(options);
    let mut pending = Vec::new();
    let mut ended = false;
    loop {
        let mut chunk = vec![0; CHUNK];
        let Ok(count) = file.read(&mut chunk).await else {
            return;
        };
        if count > 0 {
            pending.extend_from_slice(&chunk[..count]);
            let whole = pending
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            let output = printer.print(&pending[..whole]);
            pending.drain(..whole);
            if !output.is_empty() && sender.send(output.into()).await.is_err() || printer.is_exhausted() {
                return;
            }
            continue;
        }
        if !follow || ended || sender.is_closed() {
            return;
        }
        if let Some(rotated) = reopen(&path, &file).await {
            file = rotated;
            continue;
        }
        // One more read after the end has been seen, for what was written in between.
        ended = !is_running(&runtime, &id).await;
        if !ended {
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The new file when the log has been rotated.
async fn reopen(path: &Path, file: &tokio::fs::File) -> Option<tokio::fs::File> {
    let open = file.metadata().await.ok()?;
    let present = tokio::fs::metadata(path).await.ok()?;
    if present.ino() == open.ino() {
        return None;
    }
    tokio::fs::File::open(path).await.ok()
}

async fn is_running(runtime: &Runtime, id: &str) -> bool {
    let running = cri_api::v1::ContainerState::ContainerRunning as i32;
    match runtime.container_status(id).await {
        Ok(status) => status.state == running,
        Err(error) => !error.is_not_found(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{
        ContainerState as ApiState, ContainerStateWaiting, ContainerStatus, PodStatus,
    };

    fn runs(states: &[ContainerState]) -> RuntimePod {
        let run = |(index, state): (usize, &ContainerState)| ObservedContainer {
            id: index.to_string(),
            name: "c".into(),
            state: *state,
            ..Default::default()
        };
        RuntimePod {
            containers: states.iter().enumerate().map(run).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_wanted_run() {
        use ContainerState::{Exited, Running};
        let waiting = ContainerStatus {
            name: "c".into(),
            state: Some(ApiState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some("CrashLoopBackOff".into()),
                    message: None,
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let plain = Pod::default();
        let crashing = Pod {
            status: Some(PodStatus {
                container_statuses: Some(vec![waiting]),
                ..Default::default()
            }),
            ..Default::default()
        };
        for (pod, states, previous, expected) in [
            (&plain, vec![Running, Exited], false, Some("0")),
            (&plain, vec![Running, Exited], true, Some("1")),
            (&plain, vec![Running], true, None),
            (&crashing, vec![Exited, Exited], true, Some("0")),
            (&crashing, vec![Exited], false, Some("0")),
            (&plain, vec![], false, None),
        ] {
            let observed = runs(&states);
            let run = choose_run(pod, &observed, "c", previous)
                .ok()
                .map(|run| run.id.as_str());
            assert_eq!(run, expected, "{states:?} previous={previous}");
        }
    }
}
