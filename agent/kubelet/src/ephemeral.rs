//! Ephemeral containers (`kubectl debug`): containers added to a running pod, which run once.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

/// The name of the specification's list, as events print it.
pub const LIST: &str = "ephemeralContainers";

/// The container that an ephemeral one is: the same fields, and never started again.
pub fn container(ephemeral: &EphemeralContainer) -> Container {
    let e = ephemeral.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: e.liveness_probe,
        name: e.name,
        ports: e.ports,
        readiness_probe: e.readiness_probe,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: Some("Never".into()),
        restart_policy_rules: None,
        security_context: e.security_context,
        startup_probe: e.startup_probe,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}

pub fn of(pod: &Pod) -> impl Iterator<Item = &EphemeralContainer> {
    pod.spec
        .iter()
        .flat_map(|spec| spec.ephemeral_containers.iter().flatten())
}

/// The container whose processes `name` asked to see.
pub fn target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let ephemeral = of(pod).find(|ephemeral| ephemeral.name == name)?;
    ephemeral
        .target_container_name
        .as_deref()
        .filter(|target| !target.is_empty())
}
