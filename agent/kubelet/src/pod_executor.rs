//! Carries out pod actions through CRI: sandboxes, containers, hooks, and killing with grace.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use cri_api::v1::{ImageSpec, PodSandboxConfig, UserNamespace};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::Api;
use tracing::{info, warn};

use crate::container_config::{self, Prepared};
use crate::context::{Context, name, namespace, uid};
use crate::events::{container_reference, pod_reference};
use crate::field_path::Addresses;
use crate::pod_actions::ProbeFailure;
use crate::pod_status::Waiting;
use crate::runtime_pod::{ObservedContainer, RuntimePod};
use crate::sandbox_config::sandbox_config;
use crate::security_context::verify_non_root;
use crate::volumes::Volumes;
use crate::{ephemeral, etc_hosts, lifecycle};

/// A container always gets this long after its `preStop` hook (upstream's minimum).
const MINIMUM_GRACE: Duration = Duration::from_secs(2);

/// The container called `name` and the specification's list that holds it.
pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<(&'static str, Cow<'a, Container>)> {
    let spec = pod.spec.as_ref()?;
    let init = spec
        .init_containers
        .iter()
        .flatten()
        .map(|container| ("initContainers", container));
    let regular = spec.containers.iter().map(|container| ("containers", container));
    let found = init.chain(regular).find(|(_, container)| container.name == name);
    if let Some((list, container)) = found {
        return Some((list, Cow::Borrowed(container)));
    }
    let debugger = ephemeral::of(pod).find(|container| container.name == name)?;
    Some((ephemeral::LIST, Cow::Owned(ephemeral::container(debugger))))
}

/// Creates the sandbox; errors have been told as events.
pub async fn create_sandbox(context: &Context, pod: &Pod, attempt: u32) -> Result<String, String> {
    let log_dir = context.pod_log_dir(pod);
    let result = async {
        fs::create_dir_all(&log_dir).map_err(|error| format!("create {}: {error}", log_dir.display()))?;
        let handler = runtime_handler(context, pod).await?;
        let config = sandbox_config(context, pod, attempt)?;
        let sandbox = context.runtime.run_sandbox(config, handler).await;
        sandbox.map_err(|error| error.to_string())
    }
    .await;
    match &result {
        Ok(sandbox) => {
            info!(pod = name(pod), namespace = namespace(pod), %sandbox, attempt, "sandbox running")
        }
        Err(error) => {
            let message = format!("Failed to create pod sandbox: {error}");
            context
                .events
                .warning(pod_reference(pod), "FailedCreatePodSandBox", message);
        }
    }
    result
}

/// What the pod's RuntimeClass calls its runtime.
async fn runtime_handler(context: &Context, pod: &Pod) -> Result<String, String> {
    let class = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.runtime_class_name.as_deref());
    let Some(class) = class.filter(|class| !class.is_empty()) else {
        return Ok(String::new());
    };
    let classes: Api<RuntimeClass> = Api::all(context.client.clone());
    let found = classes.get(class).await;
    let found = found.map_err(|error| format!("failed to get sandbox runtime: {error}"))?;
    Ok(found.handler)
}

pub struct ContainerStart<'a> {
    pub container: &'a Container,
    pub list: &'static str,
    pub sandbox_id: &'a str,
    pub sandbox_attempt: u32,
    pub attempt: u32,
    pub addresses: Addresses,
    pub volumes: &'a Volumes,
    /// The running container whose processes an ephemeral one is to see.
    pub target_id: Option<String>,
}

/// Pulls, creates and starts one container; the error is its new waiting state.
pub async fn start_container(context: &Context, pod: &Pod, start: ContainerStart<'_>) -> Result<(), Waiting> {
    let container = start.container;
    let about = container_reference(pod, start.list, &container.name);
    let events = &context.events;
    let fail = |reason: &str, message: String| {
        events.warning(about.clone(), "Failed", format!("Error: {message}"));
        Waiting {
            reason: reason.into(),
            message,
        }
    };
    let sandbox = sandbox_config(context, pod, start.sandbox_attempt);
    let sandbox = sandbox.map_err(|message| fail("CreateContainerConfigError", message))?;
    let image = context
        .images
        .ensure(context, pod, container, &about, sandbox.clone())
        .await?;
    verify_non_root(pod, container, &image.user)
        .map_err(|message| fail("CreateContainerConfigError", message))?;
    let images = image_volumes(context, pod, container, &about, &sandbox).await?;
    let pod_dir = context.pod_dir(uid(pod));
    let env = container_config::environment(context, pod, container, &start.addresses, start.volumes).await;
    let env = env.map_err(|message| fail("CreateContainerConfigError", message))?;
    let files = write_files(context, pod, container, start.attempt, &start.addresses.pod);
    let (hosts_file, message_file) = files.map_err(|message| fail("CreateContainerConfigError", message))?;
    let given = context.devices.allocate(pod, container).await;
    let given = given.map_err(|message| fail("CreateContainerConfigError", message))?;
    let prepared = Prepared {
        attempt: start.attempt,
        image_ref: image.reference,
        image_user: image.user,
        env,
        volumes: start.volumes,
        images,
        given,
        pod_dir: &pod_dir,
        users: users_of(&sandbox),
        hosts_file: &hosts_file,
        message_file: &message_file,
        target_id: start.target_id,
    };
    let config = container_config::container_config(context, pod, container, &prepared);
    let config = config.map_err(|error| fail("CreateContainerConfigError", error.to_string()))?;
    let log_dir = context.pod_log_dir(pod).join(&container.name);
    fs::create_dir_all(&log_dir).map_err(|error| {
        fail(
            "CreateContainerError",
            format!("create {}: {error}", log_dir.display()),
        )
    })?;
    let created = context
        .runtime
        .create_container(start.sandbox_id, config, sandbox)
        .await;
    let id = created.map_err(|error| fail("CreateContainerError", error.message()))?;
    events.normal(about.clone(), "Created", "Container created");
    let started = context.runtime.start_container(&id).await;
    started.map_err(|error| fail("RunContainerError", error.message()))?;
    events.normal(about.clone(), "Started", "Container started");
    info!(
        pod = name(pod),
        namespace = namespace(pod),
        container = container.name,
        attempt = start.attempt,
        "container started"
    );
    let hook = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.post_start.as_ref());
    if let Some(hook) = hook
        && let Err(error) = lifecycle::run_hook(
            context,
            hook,
            container,
            &id,
            start.addresses.pod.first().copied(),
        )
        .await
    {
        events.warning(about.clone(), "FailedPostStartHook", "PostStartHook failed");
        let grace = Duration::from_secs(grace_seconds(pod, None));
        events.normal(about, "Killing", "FailedPostStartHook");
        if let Err(error) = context.runtime.stop_container(&id, grace).await {
            warn!(pod = name(pod), container = container.name, %error, "container not stopped after its hook failed");
        }
        return Err(Waiting {
            reason: "PostStartHookError".into(),
            message: error,
        });
    }
    Ok(())
}

fn users_of(sandbox: &PodSandboxConfig) -> Option<UserNamespace> {
    let security = sandbox.linux.as_ref()?.security_context.as_ref()?;
    security.namespace_options.as_ref()?.userns_options.clone()
}

/// The images that the container mounts, pulled as their volumes say.
async fn image_volumes(
    context: &Context,
    pod: &Pod,
    container: &Container,
    about: &ObjectReference,
    sandbox: &PodSandboxConfig,
) -> Result<HashMap<String, ImageSpec>, Waiting> {
    let mut images = HashMap::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let mut mounts = container.volume_mounts.iter().flatten();
        let Some(source) = volume
            .image
            .as_ref()
            .filter(|_| mounts.any(|mount| mount.name == volume.name))
        else {
            continue;
        };
        let wanted = Container {
            image: source.reference.clone(),
            image_pull_policy: source.pull_policy.clone(),
            ..Default::default()
        };
        let present = context
            .images
            .ensure(context, pod, &wanted, about, sandbox.clone())
            .await?;
        let image = ImageSpec {
            image: present.reference,
            user_specified_image: source.reference.clone().unwrap_or_default(),
            ..Default::default()
        };
        images.insert(volume.name.clone(), image);
    }
    Ok(images)
}

/// The hosts file of the pod and the termination message file of this run.
fn write_files(
    context: &Context,
    pod: &Pod,
    container: &Container,
    attempt: u32,
    ips: &[IpAddr],
) -> Result<(PathBuf, PathBuf), String> {
    let pod_dir = context.pod_dir(uid(pod));
    let container_dir = pod_dir.join("containers").join(&container.name);
    fs::create_dir_all(&container_dir)
        .map_err(|error| format!("create {}: {error}", container_dir.display()))?;
    let spec = pod.spec.clone().unwrap_or_default();
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    let text = if spec.host_network == Some(true) {
        etc_hosts::node_hosts(&fs::read_to_string("/etc/hosts").unwrap_or_default(), aliases)
    } else {
        let (host, full) =
            etc_hosts::host_names(name(pod), namespace(pod), &spec, &context.config.cluster_domain);
        etc_hosts::pod_hosts(ips, &host, full.as_deref(), aliases)
    };
    let hosts_file = pod_dir.join("etc-hosts");
    fs::write(&hosts_file, text).map_err(|error| format!("write {}: {error}", hosts_file.display()))?;
    let message_file = container_dir.join(format!("termination-{attempt}"));
    fs::write(&message_file, "").map_err(|error| format!("write {}: {error}", message_file.display()))?;
    // The container may run as any user.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(&message_file, open)
        .map_err(|error| format!("chmod {}: {error}", message_file.display()))?;
    Ok((hosts_file, message_file))
}

/// The grace period in force: the deletion's, a probe's own, the pod's.
pub fn grace_seconds(pod: &Pod, probe: Option<Option<i64>>) -> u64 {
    let of_pod = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds)
        .unwrap_or(30);
    let grace = match (pod.metadata.deletion_grace_period_seconds, probe.flatten()) {
        (Some(deletion), _) => deletion,
        (None, Some(own)) => own,
        (None, None) => of_pod,
    };
    u64::try_from(grace).unwrap_or(0)
}

/// Why a container is being stopped.
pub struct Kill<'a> {
    pub message: &'a str,
    pub grace: Duration,
}

/// The grace period that the failed probe itself asks for.
pub fn probe_grace(container: &Container, failure: ProbeFailure) -> Option<i64> {
    let probe = match failure {
        ProbeFailure::Liveness => container.liveness_probe.as_ref(),
        ProbeFailure::Startup => container.startup_probe.as_ref(),
    };
    probe?.termination_grace_period_seconds
}

pub async fn kill_container(
    context: &Context,
    pod: &Pod,
    running: &ObservedContainer,
    ip: Option<IpAddr>,
    kill: Kill<'_>,
) {
    let found = find_container(pod, &running.name);
    let about = match &found {
        Some((list, _)) => container_reference(pod, list, &running.name),
        None => pod_reference(pod),
    };
    context.events.normal(about.clone(), "Killing", kill.message);
    let mut grace = kill.grace;
    let hook = found.as_ref().and_then(|(_, container)| {
        let hook = container.lifecycle.as_ref()?.pre_stop.as_ref()?;
        Some((container, hook))
    });
    if let Some((container, hook)) = hook.filter(|_| !grace.is_zero()) {
        let started = std::time::Instant::now();
        let run = lifecycle::run_hook(context, hook, container, &running.id, ip);
        match tokio::time::timeout(grace, run).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(
                    pod = name(pod),
                    container = running.name,
                    error,
                    "preStop hook failed"
                );
                context
                    .events
                    .warning(about, "FailedPreStopHook", "PreStopHook failed");
            }
            Err(_) => warn!(
                pod = name(pod),
                container = running.name,
                "preStop hook outlived the grace period"
            ),
        }
        grace = grace.saturating_sub(started.elapsed()).max(MINIMUM_GRACE);
    }
    if let Err(error) = context.runtime.stop_container(&running.id, grace).await {
        warn!(pod = name(pod), container = running.name, %error, "container not stopped");
    }
}

/// Stops containers (sidecars after the others, last one first), then the sandboxes.
pub async fn kill_pod(context: &Context, pod: &Pod, observed: &RuntimePod, grace: Duration) {
    let started = std::time::Instant::now();
    let ip = observed
        .sandbox()
        .and_then(|sandbox| sandbox.ips.first().copied());
    let is_init = |container: &ObservedContainer| {
        find_container(pod, &container.name).is_some_and(|(list, _)| list == "initContainers")
    };
    let kill = |container: ObservedContainer| async move {
        let left = if grace.is_zero() {
            grace
        } else {
            grace
                .saturating_sub(started.elapsed())
                .max(MINIMUM_GRACE.min(grace))
        };
        let message = format!("Stopping container {}", container.name);
        kill_container(
            context,
            pod,
            &container,
            ip,
            Kill {
                message: &message,
                grace: left,
            },
        )
        .await;
    };
    let regular = observed
        .running_containers()
        .filter(|container| !is_init(container))
        .cloned();
    futures::future::join_all(regular.map(kill)).await;
    // Sidecars stop in the reverse of their order, when nobody needs them any more.
    let order = |name: &str| {
        let init = pod
            .spec
            .iter()
            .flat_map(|spec| spec.init_containers.iter().flatten());
        init.into_iter().position(|container| container.name == name)
    };
    let mut sidecars: Vec<ObservedContainer> = observed
        .running_containers()
        .filter(|container| is_init(container))
        .cloned()
        .collect();
    sidecars.sort_by_key(|container| std::cmp::Reverse(order(&container.name)));
    for sidecar in sidecars {
        kill(sidecar).await;
    }
    for sandbox in observed.sandboxes.iter().filter(|sandbox| sandbox.ready) {
        if let Err(error) = context.runtime.stop_sandbox(&sandbox.id).await {
            warn!(pod = name(pod), sandbox = sandbox.id, %error, "sandbox not stopped");
        }
    }
}
