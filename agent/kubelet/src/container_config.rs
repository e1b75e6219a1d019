//! The CRI container a specification asks for, once its environment, image and volumes are known.

use std::collections::HashMap;
use std::path::Path;

use cri_api::v1::{
    CdiDevice, ContainerConfig, ContainerMetadata, Device, ImageSpec, KeyValue, LinuxContainerConfig, Mount,
    MountPropagation, NamespaceMode, Signal, UserNamespace,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeDevice};

use crate::container_hash::container_hash;
use crate::context::{Context, name, namespace, uid};
use crate::devices::Given;
use crate::env;
use crate::field_path::{Addresses, pod_field};
use crate::resources::{container_resources, resource_field};
use crate::runtime;
use crate::security_context::{ImageUser, container_security};
use crate::volumes::{VolumeError, Volumes, sub_path};

/// What is settled before a container can be described.
pub struct Prepared<'a> {
    pub attempt: u32,
    pub image_ref: String,
    pub image_user: ImageUser,
    pub env: Vec<(String, String)>,
    pub volumes: &'a Volumes,
    /// Images to mount, by volume name.
    pub images: HashMap<String, ImageSpec>,
    pub pod_dir: &'a Path,
    /// What device plugins add.
    pub given: Given,
    /// How the pod's ids are the host's.
    pub users: Option<UserNamespace>,
    /// Host file mounted as `/etc/hosts`.
    pub hosts_file: &'a Path,
    /// Host file mounted at the termination message path.
    pub message_file: &'a Path,
    /// The container whose PID namespace to join.
    pub target_id: Option<String>,
}

pub fn container_config(
    context: &Context,
    pod: &Pod,
    container: &Container,
    prepared: &Prepared,
) -> Result<ContainerConfig, VolumeError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let lookup = |name: &str| {
        prepared
            .env
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
    };
    let expand_all = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|word| env::expand(word, &lookup))
            .collect()
    };
    let labels = HashMap::from([
        (runtime::CONTAINER_NAME.to_owned(), container.name.clone()),
        (runtime::POD_NAME.to_owned(), name(pod).to_owned()),
        (runtime::POD_NAMESPACE.to_owned(), namespace(pod).to_owned()),
        (runtime::POD_UID.to_owned(), uid(pod).to_owned()),
    ]);
    let message_path = container
        .termination_message_path
        .as_deref()
        .unwrap_or("/dev/termination-log");
    let message_policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let mut annotations = HashMap::from([
        (runtime::CONTAINER_HASH.to_owned(), container_hash(container)),
        (runtime::MESSAGE_PATH.to_owned(), message_path.to_owned()),
        (runtime::MESSAGE_POLICY.to_owned(), message_policy.to_owned()),
        (
            runtime::MESSAGE_FILE.to_owned(),
            prepared.message_file.display().to_string(),
        ),
        (
            "io.kubernetes.container.restartCount".to_owned(),
            prepared.attempt.to_string(),
        ),
    ]);
    annotations.extend(prepared.given.annotations.iter().cloned());
    let users = prepared.users.clone();
    let mut security = container_security(
        &spec,
        container,
        &prepared.image_user,
        context.config.settings.seccomp_default,
        users.as_ref(),
    );
    if let Some((target, namespaces)) = prepared
        .target_id
        .as_ref()
        .zip(security.namespace_options.as_mut())
    {
        namespaces.pid = NamespaceMode::Target as i32;
        namespaces.target_id.clone_from(target);
    }
    let stop_signal = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    let stop_signal = stop_signal
        .and_then(Signal::from_str_name)
        .unwrap_or(Signal::RuntimeDefault);
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: container.name.clone(),
            attempt: prepared.attempt,
        }),
        image: Some(ImageSpec {
            image: prepared.image_ref.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand_all(&container.command),
        args: expand_all(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: prepared
            .env
            .iter()
            .chain(&prepared.given.env)
            .map(|(key, value)| KeyValue {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        mounts: mounts(&spec, container, prepared, message_path)?,
        devices: devices(container, prepared),
        cdi_devices: prepared
            .given
            .cdi
            .iter()
            .map(|name| CdiDevice { name: name.clone() })
            .collect(),
        labels,
        annotations,
        log_path: format!("{}/{}.log", container.name, prepared.attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(container_resources(pod, container, context.memory_capacity)),
            security_context: Some(security),
        }),
        stop_signal: stop_signal as i32,
        ..Default::default()
    })
}

fn mounts(
    spec: &PodSpec,
    container: &Container,
    prepared: &Prepared,
    message_path: &str,
) -> Result<Vec<Mount>, VolumeError> {
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let fail = |message: String| VolumeError::SubPath {
            container: container.name.clone(),
            mount: mount.name.clone(),
            message,
        };
        let lookup = |name: &str| {
            let found = prepared.env.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.clone())
        };
        let sub_path = match mount
            .sub_path_expr
            .as_deref()
            .filter(|expression| !expression.is_empty())
        {
            Some(expression) => env::expand_known(expression, &lookup)
                .map_err(|missing| fail(format!("missing value for {missing:?}")))?,
            None => mount.sub_path.clone().unwrap_or_default(),
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            _ => MountPropagation::PropagationPrivate,
        };
        let container_path = match mount.mount_path.as_str() {
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            relative => format!("/{relative}"),
        };
        if let Some(image) = prepared.images.get(&mount.name) {
            mounts.push(Mount {
                container_path,
                readonly: true,
                image: Some(image.clone()),
                image_sub_path: sub_path,
                ..Default::default()
            });
            continue;
        }
        let volume = prepared.volumes.get(&mount.name);
        let volume = volume.ok_or_else(|| fail(format!("volume \"{}\" not found", mount.name)))?;
        let host_path = if sub_path.is_empty() {
            volume.path.clone()
        } else {
            let place = prepared.pod_dir.join("volume-subpaths").join(&mount.name);
            let place = place.join(&container.name).join(index.to_string());
            sub_path::bind(&volume.path, &sub_path, &place).map_err(fail)?
        };
        mounts.push(Mount {
            container_path,
            host_path: host_path.display().to_string(),
            readonly: mount.read_only == Some(true) || volume.read_only,
            propagation: propagation as i32,
            recursive_read_only: matches!(
                mount.recursive_read_only.as_deref(),
                Some("Enabled" | "IfPossible")
            ),
            ..Default::default()
        });
    }
    mounts.extend(prepared.given.mounts.iter().map(|given| Mount {
        container_path: given.container_path.clone(),
        host_path: given.host_path.clone(),
        readonly: given.read_only,
        ..Default::default()
    }));
    let taken = |path: &str| {
        mounts
            .iter()
            .any(|mount| mount.container_path.trim_end_matches('/') == path)
    };
    let mut own = Vec::new();
    if !taken("/etc/hosts") && spec.os.as_ref().is_none_or(|os| os.name == "linux") {
        own.push(("/etc/hosts", prepared.hosts_file));
    }
    if !taken(message_path) {
        own.push((message_path, prepared.message_file));
    }
    mounts.extend(own.into_iter().map(|(container_path, host_path)| Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.display().to_string(),
        ..Default::default()
    }));
    if let Some(users) = &prepared.users {
        for mount in mounts.iter_mut().filter(|mount| mount.image.is_none()) {
            mount.uid_mappings = users.uids.clone();
            mount.gid_mappings = users.gids.clone();
        }
    }
    Ok(mounts)
}

/// Volumes that the container wants as devices, and what plugins give it.
fn devices(container: &Container, prepared: &Prepared) -> Vec<Device> {
    let wanted = container.volume_devices.iter().flatten();
    let device = |wanted: &VolumeDevice| {
        let volume = prepared.volumes.get(&wanted.name)?;
        Some(Device {
            container_path: wanted.device_path.clone(),
            host_path: volume.path.display().to_string(),
            permissions: if volume.read_only { "r" } else { "mrw" }.to_owned(),
        })
    };
    let given = prepared.given.devices.iter().map(|given| Device {
        container_path: given.container_path.clone(),
        host_path: given.host_path.clone(),
        permissions: given.permissions.clone(),
    });
    wanted.filter_map(device).chain(given).collect()
}

/// Fetches what `env` and `envFrom` refer to; errors are upstream's `CreateContainerConfigError` messages.
pub async fn environment(
    context: &Context,
    pod: &Pod,
    container: &Container,
    addresses: &Addresses,
    volumes: &Volumes,
) -> Result<Vec<(String, String)>, String> {
    let namespace = namespace(pod);
    let mut sources = env::Sources::default();
    let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (data, missing) = if let Some(source) = &from.config_map_ref {
            let data = context
                .objects
                .config_map(namespace, &source.name)
                .await
                .map_err(|e| e.to_string())?;
            (
                data,
                (source.optional != Some(true)).then(|| format!("configmap \"{}\" not found", source.name)),
            )
        } else if let Some(source) = &from.secret_ref {
            let data = context
                .objects
                .secret(namespace, &source.name)
                .await
                .map_err(|e| e.to_string())?;
            (
                data,
                (source.optional != Some(true)).then(|| format!("secret \"{}\" not found", source.name)),
            )
        } else {
            continue;
        };
        match (data, missing) {
            (Some(data), _) => {
                sources.from.extend(
                    data.iter()
                        .map(|(key, value)| (format!("{prefix}{key}"), text(value))),
                );
            }
            (None, Some(message)) => return Err(message),
            (None, None) => {}
        }
    }
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let Some(from) = &variable.value_from else {
            continue;
        };
        let value = if let Some(field) = &from.field_ref {
            let value = pod_field(pod, &field.field_path, addresses);
            Some(value.ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?)
        } else if let Some(field) = &from.resource_field_ref {
            let named = field.container_name.as_deref().filter(|name| !name.is_empty());
            let all = pod
                .spec
                .iter()
                .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
            let target = all
                .into_iter()
                .find(|c| named == Some(&c.name))
                .unwrap_or(container);
            let value = resource_field(
                target,
                &field.resource,
                field.divisor.as_ref(),
                &context.allocatable,
            );
            Some(value.ok_or_else(|| format!("unsupported container resource : {}", field.resource))?)
        } else if let Some(key) = &from.config_map_key_ref {
            let data = context
                .objects
                .config_map(namespace, &key.name)
                .await
                .map_err(|e| e.to_string())?;
            key_value(
                data,
                &key.key,
                key.optional,
                "configmap",
                "ConfigMap",
                namespace,
                &key.name,
            )?
        } else if let Some(key) = &from.secret_key_ref {
            let data = context
                .objects
                .secret(namespace, &key.name)
                .await
                .map_err(|e| e.to_string())?;
            key_value(
                data,
                &key.key,
                key.optional,
                "secret",
                "Secret",
                namespace,
                &key.name,
            )?
        } else if let Some(key) = &from.file_key_ref {
            let volume = volumes.get(&key.volume_name);
            let volume = volume.ok_or_else(|| format!("volume \"{}\" not found", key.volume_name))?;
            file_value(&volume.path, &key.path, &key.key, key.optional == Some(true))?
        } else {
            return Err(format!(
                "env {} has a valueFrom of a kind this kubelet does not support",
                variable.name
            ));
        };
        sources.values.insert(index, value);
    }
    let links = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.enable_service_links)
        .unwrap_or(true);
    let services = context.services.state();
    let variables = env::service_variables(services.iter().map(AsRef::as_ref), namespace, links);
    Ok(env::merge(container, &sources, &variables))
}

/// A variable of a file in a volume; the file must be one of the volume's own.
fn file_value(volume: &Path, path: &str, key: &str, optional: bool) -> Result<Option<String>, String> {
    let file = match sub_path::open_inside(volume, path) {
        Ok(file) => file,
        Err(_) if optional => return Ok(None),
        Err(error) => return Err(format!("couldn't parse env file: {error}")),
    };
    let text = std::io::read_to_string(file)
        .map_err(|error| format!("couldn't parse env file {path:?}: {error}"))?;
    match env::file_variable(&text, key) {
        Some(value) => Ok(Some(value)),
        None if optional => Ok(None),
        None => Err(format!(
            "environment variable key {key:?} not found in file {path:?}"
        )),
    }
}

fn key_value(
    data: Option<crate::objects::Data>,
    key: &str,
    optional: Option<bool>,
    lower: &str,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<String>, String> {
    let optional = optional == Some(true);
    match data {
        None if optional => Ok(None),
        None => Err(format!("{lower} \"{name}\" not found")),
        Some(data) => match data.get(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {key} in {kind} {namespace}/{name}")),
        },
    }
}
