//! Security settings of sandboxes and containers: the pod's defaults overridden by the container's own.

use cri_api::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, SecurityProfile, SupplementalGroupsPolicy, UserNamespace, security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SeccompProfile, SecurityContext};

/// Paths hidden from unprivileged containers: upstream's list, and the kernel command line, which may hold a
/// bootstrap token.
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/cmdline",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
];
const MASKED_DIRECTORIES: [&str; 2] = ["/sys/firmware", "/sys/devices/virtual/powercap"];
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The user an image runs as when nobody says otherwise.
#[derive(Clone, Debug, Default)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

fn mode(host: Option<bool>, default: NamespaceMode) -> i32 {
    if host == Some(true) {
        NamespaceMode::Node as i32
    } else {
        default as i32
    }
}

pub fn namespaces(spec: &PodSpec, users: Option<&UserNamespace>) -> NamespaceOption {
    let pid = if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: mode(spec.host_network, NamespaceMode::Pod),
        pid: mode(spec.host_pid, pid),
        ipc: mode(spec.host_ipc, NamespaceMode::Pod),
        userns_options: users.cloned(),
        ..Default::default()
    }
}

fn seccomp(profile: Option<&SeccompProfile>, privileged: bool, default: bool) -> Option<SecurityProfile> {
    let kind = match profile.map(|profile| profile.type_.as_str()) {
        _ if privileged => ProfileType::Unconfined,
        Some("RuntimeDefault") => ProfileType::RuntimeDefault,
        Some("Localhost") => ProfileType::Localhost,
        None if default => ProfileType::RuntimeDefault,
        _ => ProfileType::Unconfined,
    };
    let localhost_ref = profile
        .and_then(|profile| profile.localhost_profile.clone())
        .unwrap_or_default();
    Some(SecurityProfile {
        profile_type: kind as i32,
        localhost_ref,
    })
}

fn groups(spec: &PodSpec) -> Vec<i64> {
    let Some(context) = &spec.security_context else {
        return Vec::new();
    };
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    groups.extend(context.fs_group);
    groups
}

fn groups_policy(spec: &PodSpec) -> i32 {
    let policy = spec
        .security_context
        .as_ref()
        .and_then(|context| context.supplemental_groups_policy.as_deref());
    match policy {
        Some("Strict") => SupplementalGroupsPolicy::Strict as i32,
        _ => SupplementalGroupsPolicy::Merge as i32,
    }
}

fn is_privileged(container: &Container) -> bool {
    container
        .security_context
        .as_ref()
        .and_then(|context| context.privileged)
        == Some(true)
}

pub fn sandbox_security(
    spec: &PodSpec,
    seccomp_default: bool,
    users: Option<&UserNamespace>,
) -> LinuxSandboxSecurityContext {
    let context = spec.security_context.as_ref();
    let privileged = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .any(is_privileged);
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec, users)),
        privileged,
        run_as_user: context
            .and_then(|context| context.run_as_user)
            .map(|value| Int64Value { value }),
        run_as_group: context
            .and_then(|context| context.run_as_group)
            .map(|value| Int64Value { value }),
        supplemental_groups: groups(spec),
        supplemental_groups_policy: groups_policy(spec),
        seccomp: seccomp(
            context.and_then(|context| context.seccomp_profile.as_ref()),
            privileged,
            seccomp_default,
        ),
        ..Default::default()
    }
}

/// Refuses containers that must not run as root but would (upstream's `verifyRunAsNonRoot`).
pub fn verify_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), String> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let own = container.security_context.as_ref();
    let of_pod = spec.security_context.as_ref();
    let required = own
        .and_then(|c| c.run_as_non_root)
        .or(of_pod.and_then(|c| c.run_as_non_root))
        == Some(true);
    if !required {
        return Ok(());
    }
    let place = format!(
        "(pod: \"{}\", container: {})",
        crate::context::format_pod(pod),
        container.name
    );
    match (
        own.and_then(|c| c.run_as_user)
            .or(of_pod.and_then(|c| c.run_as_user)),
        image.uid,
    ) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!(
            "container has runAsNonRoot and image will run as root {place}"
        )),
        (None, Some(_)) => Ok(()),
        (None, None) if !image.name.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {place}",
            image.name
        )),
        (None, None) => Err(format!(
            "container has runAsNonRoot and image will run as root {place}"
        )),
    }
}

pub fn container_security(
    spec: &PodSpec,
    container: &Container,
    image: &ImageUser,
    seccomp_default: bool,
    users: Option<&UserNamespace>,
) -> LinuxContainerSecurityContext {
    let default = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&default);
    let of_pod = spec.security_context.as_ref();
    let privileged = is_privileged(container);
    let user = own.run_as_user.or(of_pod.and_then(|c| c.run_as_user));
    let group = own.run_as_group.or(of_pod.and_then(|c| c.run_as_group));
    let profile = own
        .seccomp_profile
        .as_ref()
        .or(of_pod.and_then(|c| c.seccomp_profile.as_ref()));
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let capabilities = own.capabilities.as_ref().map(|capabilities| Capability {
        add_capabilities: capabilities.add.clone().unwrap_or_default(),
        drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
        ..Default::default()
    });
    let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let from_image = user.or(image.uid);
    LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(namespaces(spec, users)),
        run_as_user: from_image.map(|value| Int64Value { value }),
        run_as_username: if from_image.is_none() {
            image.name.clone()
        } else {
            String::new()
        },
        run_as_group: group.map(|value| Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(spec),
        supplemental_groups_policy: groups_policy(spec),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: if unmasked {
            Vec::new()
        } else {
            [paths(&MASKED_PATHS), paths(&MASKED_DIRECTORIES)].concat()
        },
        readonly_paths: if unmasked {
            Vec::new()
        } else {
            paths(&READONLY_PATHS)
        },
        seccomp: seccomp(profile, privileged, seccomp_default),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSecurityContext;

    fn pod(of_pod: PodSecurityContext, own: SecurityContext) -> Pod {
        let container = Container {
            name: "c".into(),
            security_context: Some(own),
            ..Default::default()
        };
        let spec = PodSpec {
            containers: vec![container],
            security_context: Some(of_pod),
            ..Default::default()
        };
        Pod {
            spec: Some(spec),
            ..Default::default()
        }
    }

    #[test]
    fn non_root_is_verified() {
        let required = || PodSecurityContext {
            run_as_non_root: Some(true),
            ..Default::default()
        };
        let user = |uid| SecurityContext {
            run_as_user: uid,
            ..Default::default()
        };
        let image = |uid, name: &str| ImageUser {
            uid,
            name: name.into(),
        };
        for (of_pod, own, image, accepted) in [
            (
                PodSecurityContext::default(),
                user(None),
                image(Some(0), ""),
                true,
            ),
            (required(), user(None), image(Some(0), ""), false),
            (required(), user(None), image(None, ""), false),
            (required(), user(None), image(None, "nobody"), false),
            (required(), user(None), image(Some(7), ""), true),
            (required(), user(Some(0)), image(Some(7), ""), false),
            (required(), user(Some(5)), image(Some(0), ""), true),
        ] {
            let pod = pod(of_pod, own);
            let container = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(
                verify_non_root(&pod, container, &image).is_ok(),
                accepted,
                "{container:?} {image:?}"
            );
        }
    }

    #[test]
    fn the_container_overrides_the_pod() {
        let of_pod = PodSecurityContext {
            run_as_user: Some(1),
            fs_group: Some(9),
            ..Default::default()
        };
        let pod = pod(
            of_pod,
            SecurityContext {
                run_as_user: Some(2),
                ..Default::default()
            },
        );
        let spec = pod.spec.unwrap();
        let security = container_security(&spec, &spec.containers[0], &ImageUser::default(), false, None);
        assert_eq!(security.run_as_user.unwrap().value, 2);
        assert_eq!(security.supplemental_groups, [9]);
        assert!(security.masked_paths.contains(&"/proc/cmdline".to_owned()));
    }

    #[test]
    fn privileged_containers_see_everything() {
        let own = SecurityContext {
            privileged: Some(true),
            ..Default::default()
        };
        let pod = pod(PodSecurityContext::default(), own);
        let spec = pod.spec.unwrap();
        let security = container_security(&spec, &spec.containers[0], &ImageUser::default(), false, None);
        assert!(
            security.privileged && security.masked_paths.is_empty() && security.readonly_paths.is_empty()
        );
        assert!(sandbox_security(&spec, false, None).privileged);
    }
}
