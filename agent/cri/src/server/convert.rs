//! Records as CRI messages, and CRI's filters.

use super::memory::Container;
use crate::state::{ImageRecord, SandboxRecord};
use cri_api::v1;
use std::collections::HashMap;

pub fn sandbox_state(sandbox: &SandboxRecord) -> v1::PodSandboxState {
    if sandbox.ready {
        v1::PodSandboxState::SandboxReady
    } else {
        v1::PodSandboxState::SandboxNotready
    }
}

pub fn namespace_options(sandbox: &SandboxRecord) -> v1::NamespaceOption {
    let security = sandbox
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    security
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_default()
}

pub fn sandbox_status(sandbox: &SandboxRecord) -> v1::PodSandboxStatus {
    let mut addresses = sandbox.addresses.iter().cloned();
    v1::PodSandboxStatus {
        id: sandbox.id.clone(),
        metadata: sandbox.config.metadata.clone(),
        state: sandbox_state(sandbox) as i32,
        created_at: sandbox.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(namespace_options(sandbox)),
            }),
        }),
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.runtime_handler.clone(),
    }
}

pub fn sandbox(sandbox: &SandboxRecord) -> v1::PodSandbox {
    v1::PodSandbox {
        id: sandbox.id.clone(),
        metadata: sandbox.config.metadata.clone(),
        state: sandbox_state(sandbox) as i32,
        created_at: sandbox.created_at,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.runtime_handler.clone(),
    }
}

pub fn container_state(container: &Container) -> v1::ContainerState {
    match &container.process {
        None => v1::ContainerState::ContainerCreated,
        Some(process) if process.running() => v1::ContainerState::ContainerRunning,
        Some(_) => v1::ContainerState::ContainerExited,
    }
}

pub fn container(container: &Container) -> v1::Container {
    let record = &container.record;
    v1::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        state: container_state(container) as i32,
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

pub fn container_status(container: &Container) -> v1::ContainerStatus {
    let record = &container.record;
    let process = container.process.clone().unwrap_or_default();
    let resources = record
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.clone());
    v1::ContainerStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: container_state(container) as i32,
        created_at: record.created_at,
        started_at: process.started_at,
        finished_at: process.finished_at,
        exit_code: process.exit_code,
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        reason: process.reason().to_owned(),
        message: process.start_error.clone().unwrap_or_default(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: record.config.mounts.clone(),
        log_path: record
            .log_path
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        resources: Some(v1::ContainerResources {
            linux: resources,
            windows: None,
        }),
        image_id: record.image_id.clone(),
        user: Some(v1::ContainerUser {
            linux: Some(record.user.clone()),
        }),
        stop_signal: cri_signal(record.stop_signal) as i32,
    }
}

pub fn image(image: &ImageRecord) -> v1::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_some() {
            String::new()
        } else {
            user.to_owned()
        },
        spec: None,
        pinned: image.pinned,
    }
}

/// Whether an object has every label asked for.
pub fn labels_match(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// An empty ID asks for all; a beginning is enough, as crictl's users expect.
pub fn id_matches(id: &str, wanted: &str) -> bool {
    id.starts_with(wanted)
}

pub fn sandbox_matches(sandbox: &SandboxRecord, filter: &v1::PodSandboxFilter) -> bool {
    id_matches(&sandbox.id, &filter.id)
        && filter
            .state
            .as_ref()
            .is_none_or(|state| state.state() == sandbox_state(sandbox))
        && labels_match(&sandbox.config.labels, &filter.label_selector)
}

pub fn container_matches(container: &Container, filter: &v1::ContainerFilter) -> bool {
    id_matches(&container.record.id, &filter.id)
        && id_matches(&container.record.sandbox_id, &filter.pod_sandbox_id)
        && filter
            .state
            .as_ref()
            .is_none_or(|state| state.state() == container_state(container))
        && labels_match(&container.record.config.labels, &filter.label_selector)
}

/// Linux signal numbers by name; CRI's enumeration has its own order.
const SIGNALS: [(&str, i32, v1::Signal); 34] = [
    ("SIGABRT", 6, v1::Signal::Sigabrt),
    ("SIGALRM", 14, v1::Signal::Sigalrm),
    ("SIGBUS", 7, v1::Signal::Sigbus),
    ("SIGCHLD", 17, v1::Signal::Sigchld),
    ("SIGCLD", 17, v1::Signal::Sigcld),
    ("SIGCONT", 18, v1::Signal::Sigcont),
    ("SIGFPE", 8, v1::Signal::Sigfpe),
    ("SIGHUP", 1, v1::Signal::Sighup),
    ("SIGILL", 4, v1::Signal::Sigill),
    ("SIGINT", 2, v1::Signal::Sigint),
    ("SIGIO", 29, v1::Signal::Sigio),
    ("SIGIOT", 6, v1::Signal::Sigiot),
    ("SIGKILL", 9, v1::Signal::Sigkill),
    ("SIGPIPE", 13, v1::Signal::Sigpipe),
    ("SIGPOLL", 29, v1::Signal::Sigpoll),
    ("SIGPROF", 27, v1::Signal::Sigprof),
    ("SIGPWR", 30, v1::Signal::Sigpwr),
    ("SIGQUIT", 3, v1::Signal::Sigquit),
    ("SIGSEGV", 11, v1::Signal::Sigsegv),
    ("SIGSTKFLT", 16, v1::Signal::Sigstkflt),
    ("SIGSTOP", 19, v1::Signal::Sigstop),
    ("SIGSYS", 31, v1::Signal::Sigsys),
    ("SIGTERM", 15, v1::Signal::Sigterm),
    ("SIGTRAP", 5, v1::Signal::Sigtrap),
    ("SIGTSTP", 20, v1::Signal::Sigtstp),
    ("SIGTTIN", 21, v1::Signal::Sigttin),
    ("SIGTTOU", 22, v1::Signal::Sigttou),
    ("SIGURG", 23, v1::Signal::Sigurg),
    ("SIGUSR1", 10, v1::Signal::Sigusr1),
    ("SIGUSR2", 12, v1::Signal::Sigusr2),
    ("SIGVTALRM", 26, v1::Signal::Sigvtalrm),
    ("SIGWINCH", 28, v1::Signal::Sigwinch),
    ("SIGXCPU", 24, v1::Signal::Sigxcpu),
    ("SIGXFSZ", 25, v1::Signal::Sigxfsz),
];

const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;
const SIGTERM: i32 = 15;

/// The signal that asks a container to end: the pod's, else the image's, else SIGTERM.
pub fn stop_signal(asked: v1::Signal, image: &str) -> Result<i32, String> {
    if asked != v1::Signal::RuntimeDefault {
        return Ok(linux_signal(asked));
    }
    if image.is_empty() {
        return Ok(SIGTERM);
    }
    let upper = image.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") {
        upper.clone()
    } else {
        format!("SIG{upper}")
    };
    let known = SIGNALS
        .iter()
        .find(|(other, ..)| *other == name)
        .map(|(_, number, _)| *number);
    let real_time = || {
        let offset = |text: &str, sign: char| {
            if text.is_empty() {
                Some(0)
            } else {
                text.strip_prefix(sign)?.parse::<i32>().ok()
            }
        };
        name.strip_prefix("SIGRTMIN")
            .and_then(|rest| Some(SIGRTMIN + offset(rest, '+')?))
            .or_else(|| {
                name.strip_prefix("SIGRTMAX")
                    .and_then(|rest| Some(SIGRTMAX - offset(rest, '-')?))
            })
    };
    upper
        .parse::<i32>()
        .ok()
        .or(known)
        .or_else(real_time)
        .filter(|number| (1..=SIGRTMAX).contains(number))
        .ok_or_else(|| format!("failed to parse stop signal {image:?}"))
}

fn linux_signal(signal: v1::Signal) -> i32 {
    let number = signal as i32;
    if number >= v1::Signal::Sigrtmin as i32 {
        // From SIGRTMIN on, CRI counts as Linux does.
        return number - v1::Signal::Sigrtmin as i32 + SIGRTMIN;
    }
    SIGNALS
        .iter()
        .find(|(_, _, other)| *other == signal)
        .map_or(SIGTERM, |(_, number, _)| *number)
}

fn cri_signal(number: i32) -> v1::Signal {
    if number >= SIGRTMIN {
        return v1::Signal::try_from(number - SIGRTMIN + v1::Signal::Sigrtmin as i32).unwrap_or_default();
    }
    SIGNALS
        .iter()
        .find(|(_, other, _)| *other == number)
        .map_or(v1::Signal::RuntimeDefault, |(_, _, signal)| *signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_come_from_the_pod_then_the_image() {
        for (asked, image, expected) in [
            (v1::Signal::RuntimeDefault, "", Ok(15)),
            (v1::Signal::RuntimeDefault, "SIGQUIT", Ok(3)),
            (v1::Signal::RuntimeDefault, "quit", Ok(3)),
            (v1::Signal::RuntimeDefault, "9", Ok(9)),
            (v1::Signal::RuntimeDefault, "SIGRTMIN+3", Ok(37)),
            (v1::Signal::RuntimeDefault, "SIGRTMAX-1", Ok(63)),
            (v1::Signal::Sigusr1, "SIGQUIT", Ok(10)),
            (v1::Signal::Sigrtminplus3, "", Ok(37)),
            (v1::Signal::Sigrtmax, "", Ok(64)),
            (
                v1::Signal::RuntimeDefault,
                "NOPE",
                Err("failed to parse stop signal \"NOPE\"".to_owned()),
            ),
        ] {
            assert_eq!(stop_signal(asked, image), expected, "{asked:?} {image}");
        }
        for number in [1, 9, 15, 34, 37, 50, 64] {
            assert_eq!(linux_signal(cri_signal(number)), number);
        }
    }
}
