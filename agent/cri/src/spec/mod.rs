//! The OCI runtime spec of a container, from CRI's configuration and the image's.

pub mod apparmor;
pub mod capabilities;
pub mod mounts;
pub mod resources;
pub mod seccomp;
pub mod user;

use crate::state::records::ImageConfig;
use capabilities::{Capabilities, UnknownCapability};
use cri_api::v1;
use mounts::{HostMount, SandboxFiles};
use resources::Controllers;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use user::User;

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("linux.security_context.capabilities: {0}")]
    Capability(#[from] UnknownCapability),
    #[error("linux.security_context.apparmor: {0}")]
    Apparmor(#[from] apparmor::ApparmorError),
    #[error("no command specified")]
    NoCommand,
    #[error("linux.security_context.seccomp.localhost_ref {path:?}: {source}")]
    SeccompFile { path: String, source: std::io::Error },
    #[error("linux.security_context.seccomp.localhost_ref {path:?}: {source}")]
    SeccompProfile { path: String, source: serde_json::Error },
}

/// What this host offers, read once.
#[derive(Debug, Clone, Default)]
pub struct Host {
    pub controllers: Controllers,
    /// A bit for each capability that can be handed on.
    pub capabilities: u64,
    /// The lowest OOM score adjustment that can be handed on.
    pub lowest_oom_score: i64,
    pub apparmor: bool,
    pub devices: Vec<DeviceNode>,
    /// The most files that a process may have open.
    pub open_files: u64,
}

/// A device node to make in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    pub path: PathBuf,
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Namespaces to join by path, to make new (`Some(None)`), or to share with the host (`None`).
#[derive(Debug, Default)]
pub struct Namespaces {
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: Option<Option<PathBuf>>,
}

pub struct Input<'a> {
    pub config: &'a v1::ContainerConfig,
    pub image: &'a ImageConfig,
    pub host: &'a Host,
    pub user: &'a User,
    pub hostname: &'a str,
    pub rootfs: &'a Path,
    pub cgroup: &'a Path,
    pub namespaces: &'a Namespaces,
    pub files: &'a SandboxFiles,
    pub volumes: &'a [HostMount],
    pub devices: &'a [DeviceNode],
}

/// Hidden in every container: the node's join token may stand there.
const ALWAYS_MASKED: &str = "/proc/cmdline";
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Enough for servers; programs that loop over every possible descriptor stay quick.
const SOFT_OPEN_FILES: u64 = 65_536;

/// The spec as JSON, and the controllers whose limits had to be left out.
pub fn generate(input: &Input) -> Result<(Value, Vec<&'static str>), SpecError> {
    let config = input.config;
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let asked = linux.resources.unwrap_or_default();
    let capabilities = Capabilities::choose(
        security.privileged,
        security.capabilities.as_ref(),
        input.host.capabilities,
    )?;
    let (resources, missing) = resources::to_oci(&asked, &input.host.controllers);
    let mut process = json!({
        "terminal": config.tty,
        "user": {"uid": input.user.uid, "gid": input.user.gid, "additionalGids": input.user.groups},
        "args": command(config, input.image)?,
        "env": environment(config, input.image, input.hostname, input.user),
        "cwd": working_dir(config, input.image),
        "capabilities": capabilities.to_json(),
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": input.host.open_files.min(SOFT_OPEN_FILES), "hard": input.host.open_files}],
        "oomScoreAdj": asked.oom_score_adj.max(input.host.lowest_oom_score),
    });
    if security.no_new_privs {
        // Only when true: libcontainer takes a present `false` for true when it orders seccomp.
        process["noNewPrivileges"] = json!(true);
    }
    let loaded = || std::fs::read_to_string(apparmor::LOADED).unwrap_or_default();
    if let Some(profile) = apparmor::profile(&security, input.host.apparmor, loaded)? {
        process["apparmorProfile"] = json!(profile);
    }
    let mut out = json!({
        "namespaces": namespaces(input.namespaces),
        "cgroupsPath": input.cgroup,
        "resources": resources,
        "rootfsPropagation": mounts::root_propagation(input.volumes),
        "maskedPaths": masked_paths(&security),
        "readonlyPaths": if security.privileged { vec![] } else { security.readonly_paths.clone() },
        "devices": devices(if security.privileged { &input.host.devices } else { &[] }, input.devices),
    });
    if let Some(profile) = seccomp_profile(&security, &capabilities)? {
        out["seccomp"] = profile;
    }
    let spec = json!({
        "ociVersion": "1.2.0",
        "root": {"path": input.rootfs, "readonly": security.readonly_rootfs},
        "process": process,
        "mounts": mounts::mounts(security.privileged, security.readonly_rootfs, input.files, input.volumes),
        "linux": out,
    });
    Ok((spec, missing))
}

/// CRI's command replaces the entrypoint, and then the image's arguments are dropped too.
fn command(config: &v1::ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let (entrypoint, image_args) = if config.command.is_empty() {
        (&image.entrypoint, &image.cmd[..])
    } else {
        (&config.command, &[][..])
    };
    let args = if config.args.is_empty() {
        image_args
    } else {
        &config.args[..]
    };
    let all: Vec<String> = entrypoint.iter().chain(args).cloned().collect();
    if all.is_empty() {
        Err(SpecError::NoCommand)
    } else {
        Ok(all)
    }
}

/// The image's variables, then the pod's, later ones replacing earlier ones.
fn environment(
    config: &v1::ContainerConfig,
    image: &ImageConfig,
    hostname: &str,
    user: &User,
) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned() + "=";
        match all.iter_mut().find(|old| old.starts_with(&name)) {
            Some(old) => *old = entry,
            None => all.push(entry),
        }
    };
    set(DEFAULT_PATH.to_owned());
    set(format!("HOSTNAME={hostname}"));
    if config.tty {
        set("TERM=xterm".to_owned());
    }
    if let Some(home) = &user.home {
        set(format!("HOME={home}"));
    }
    image.env.iter().for_each(|entry| set(entry.clone()));
    config
        .envs
        .iter()
        .for_each(|entry| set(format!("{}={}", entry.key, entry.value)));
    all
}

fn working_dir(config: &v1::ContainerConfig, image: &ImageConfig) -> PathBuf {
    let chosen = [&config.working_dir, &image.working_dir]
        .into_iter()
        .find(|dir| !dir.is_empty());
    mounts::normal(Path::new(chosen.map_or("/", String::as_str)))
}

/// The folder a container starts in, so that it can be made before.
pub fn start_folder(config: &v1::ContainerConfig, image: &ImageConfig) -> PathBuf {
    working_dir(config, image)
}

fn namespaces(wanted: &Namespaces) -> Vec<Value> {
    let mut all = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    for (kind, path) in [
        ("network", &wanted.network),
        ("ipc", &wanted.ipc),
        ("uts", &wanted.uts),
    ] {
        if let Some(path) = path {
            all.push(json!({"type": kind, "path": path}));
        }
    }
    match &wanted.pid {
        Some(Some(path)) => all.push(json!({"type": "pid", "path": path})),
        Some(None) => all.push(json!({"type": "pid"})),
        None => {}
    }
    all
}

fn masked_paths(security: &v1::LinuxContainerSecurityContext) -> Vec<String> {
    let mut paths = if security.privileged {
        vec![]
    } else {
        security.masked_paths.clone()
    };
    if !paths.iter().any(|path| path == ALWAYS_MASKED) {
        paths.push(ALWAYS_MASKED.to_owned());
    }
    paths
}

fn devices(host: &[DeviceNode], asked: &[DeviceNode]) -> Vec<Value> {
    let kept = host
        .iter()
        .filter(|device| !asked.iter().any(|other| other.path == device.path));
    asked
        .iter()
        .chain(kept)
        .map(|device| {
            json!({
                "path": device.path, "type": if device.block { "b" } else { "c" },
                "major": device.major, "minor": device.minor,
                "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
            })
        })
        .collect()
}

/// No profile at all means unconfined, as CRI says.
fn seccomp_profile(
    security: &v1::LinuxContainerSecurityContext,
    capabilities: &Capabilities,
) -> Result<Option<Value>, SpecError> {
    use v1::security_profile::ProfileType;
    let Some(profile) = security.seccomp.as_ref().filter(|_| !security.privileged) else {
        return Ok(None);
    };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(seccomp::runtime_default(capabilities))),
        ProfileType::Localhost => {
            let path = profile.localhost_ref.trim_start_matches("localhost/").to_owned();
            let text = std::fs::read_to_string(&path).map_err(|source| SpecError::SeccompFile {
                path: path.clone(),
                source,
            })?;
            seccomp::from_file(&text, capabilities)
                .map(Some)
                .map_err(|source| SpecError::SeccompProfile { path, source })
        }
    }
}

#[cfg(test)]
mod tests;
