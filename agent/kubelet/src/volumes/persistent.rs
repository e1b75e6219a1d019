//! Claims and the persistent volumes behind them, and file servers: what a pod's volume stands for on this node.

use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{NFSVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::api::Api;
use rustix::mount::MountFlags;

use super::csi::{self, Source};
use super::{Ready, SetUpError, VolumeContext, device, directories, fs_group, fs_group_policy, local};
use crate::context::{name, namespace, uid};

fn refused(message: impl Into<String>) -> SetUpError {
    SetUpError::Refused(message.into())
}

/// The claim that a volume names, or that was made for it, and whether the pod wants it read-only.
fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some((source.claim_name.clone(), source.read_only == Some(true))),
        (None, Some(_)) => Some((format!("{}-{}", name(pod), volume.name), false)),
        (None, None) => None,
    }
}

/// Makes a claim's volume ready; none when the volume is of another kind.
pub async fn set_up(
    pod: &Pod,
    volume: &Volume,
    context: &VolumeContext<'_>,
) -> Result<Option<Ready>, SetUpError> {
    let Some((claim_name, read_only)) = claim_of(pod, volume) else {
        return Ok(None);
    };
    let place = format!("{}/{claim_name}", namespace(pod));
    let fail = |message: String| refused(format!("error processing PVC {place}: {message}"));
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace(pod));
    let claim = claims.get(&claim_name).await;
    let claim = claim.map_err(|error| fail(format!("failed to fetch PVC from API server: {error}")))?;
    if claim.metadata.deletion_timestamp.is_some() && claim.metadata.finalizers.is_none() {
        return Err(fail("PVC is being deleted".into()));
    }
    if volume.ephemeral.is_some() {
        let mut owners = claim.metadata.owner_references.iter().flatten();
        if !owners.any(|owner| owner.uid == uid(pod) && owner.controller == Some(true)) {
            let text = format!(
                "PVC {place} was not created for pod {}/{} (pod is not owner)",
                namespace(pod),
                name(pod)
            );
            return Err(fail(text));
        }
    }
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let volume_name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
    let Some(volume_name) = volume_name.filter(|name| bound && !name.is_empty()) else {
        return Err(fail("PVC is not bound".into()));
    };
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let persistent = volumes.get(&volume_name).await;
    let persistent = persistent.map_err(|error| {
        fail(format!(
            "failed to fetch PV {volume_name} from API server: {error}"
        ))
    })?;
    let holder = persistent
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref())
        .and_then(|claim| claim.uid.clone());
    if holder != claim.metadata.uid {
        return Err(fail(format!("PV {volume_name} is bound to another claim")));
    }
    mount(pod, &volume_name, &persistent, read_only, context)
        .await
        .map(Some)
}

async fn mount(
    pod: &Pod,
    volume_name: &str,
    persistent: &PersistentVolume,
    read_only: bool,
    context: &VolumeContext<'_>,
) -> Result<Ready, SetUpError> {
    let spec = persistent.spec.clone().unwrap_or_default();
    let block = spec.volume_mode.as_deref() == Some("Block");
    let modes = spec.access_modes.unwrap_or_default();
    let options = spec.mount_options.unwrap_or_default();
    let read_only = read_only || modes.iter().all(|mode| mode == "ReadOnlyMany") && !modes.is_empty();
    let at = |path: &str, read_only| Ready {
        path: PathBuf::from(path),
        read_only,
    };
    if let Some(source) = &spec.csi {
        let volume = csi::Volume {
            spec_name: volume_name,
            source: Source::Persistent(source),
            access_modes: &modes,
            mount_options: &options,
            block,
            read_only: read_only || source.read_only == Some(true),
        };
        return csi::set_up(pod, &volume, context).await;
    }
    if let Some(source) = &spec.host_path {
        let kind = source.type_.as_deref().unwrap_or_default();
        directories::host_path(Path::new(&source.path), kind)?;
        return Ok(at(&source.path, read_only));
    }
    if let Some(source) = &spec.local {
        let path = Path::new(&source.path);
        let directory = Path::new(api::metal::VOLUMES);
        local::prepare(volume_name, persistent, path, context.pod_dir, directory)?;
        let missing = |_| refused(format!("path {:?} does not exist", source.path));
        // The path may be a link; what is owned, mounted and shown is what it leads to.
        let path = &std::fs::canonicalize(path).map_err(missing)?;
        let metadata = std::fs::metadata(path).map_err(missing)?;
        if !block && metadata.file_type().is_block_device() {
            let target = context.pod_dir.join(local::IN_USE).join(volume_name);
            device::mount(path, source.fs_type.as_deref(), &target).await?;
            if let Some(group) = fs_group(pod) {
                directories::own(&target, group, fs_group_policy(pod), read_only)?;
            }
            return Ok(Ready {
                path: target,
                read_only,
            });
        }
        if metadata.is_dir() == block {
            let message = format!(
                "volume mode and path {:?} do not match: {}",
                source.path,
                if block { "Block" } else { "Filesystem" }
            );
            return Err(refused(message));
        }
        if let Some(group) = fs_group(pod).filter(|_| metadata.is_dir()) {
            directories::own(path, group, fs_group_policy(pod), read_only)?;
        }
        return Ok(Ready {
            path: path.clone(),
            read_only,
        });
    }
    if let Some(source) = &spec.nfs {
        return nfs(volume_name, source, &options, read_only, context).await;
    }
    Err(refused(format!(
        "no volume plugin matched: persistent volume {volume_name}"
    )))
}

/// Mounts an export through the kernel: the newest version of the protocol that both sides speak.
pub async fn nfs(
    volume_name: &str,
    source: &NFSVolumeSource,
    options: &[String],
    read_only: bool,
    context: &VolumeContext<'_>,
) -> Result<Ready, SetUpError> {
    let target = context
        .pod_dir
        .join("volumes/kubernetes.io~nfs")
        .join(volume_name);
    let read_only = read_only || source.read_only == Some(true);
    let ready = Ready {
        path: target.clone(),
        read_only,
    };
    if directories::is_mount_point(&target) {
        return Ok(ready);
    }
    std::fs::create_dir_all(&target).map_err(SetUpError::file("create", &target))?;
    let address = address(&source.server).await?;
    let device = format!("{}:{}", source.server, source.path);
    let flags = if read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    let chosen = options
        .iter()
        .any(|option| option.starts_with("vers=") || option.starts_with("nfsvers="));
    let versions: &[&str] = if chosen {
        &[""]
    } else {
        &["vers=4.2,", "vers=4.1,", "vers=4.0,", "vers=3,nolock,"]
    };
    let mut last = None;
    for version in versions {
        let data = format!("{version}addr={address},{}", options.join(","));
        let data = std::ffi::CString::new(data.trim_end_matches(',')).unwrap_or_default();
        let path = target.clone();
        let (device, data) = (device.clone(), data.clone());
        // A server that does not answer must not hold up a thread of the runtime.
        let mounted = tokio::task::spawn_blocking(move || {
            rustix::mount::mount(device.as_str(), &path, "nfs", flags, data.as_c_str())
        });
        match mounted.await {
            Ok(Ok(())) => return Ok(ready),
            Ok(Err(error)) => last = Some(std::io::Error::from(error)),
            Err(error) => last = Some(std::io::Error::other(error)),
        }
    }
    let error = last.unwrap_or_else(|| std::io::Error::other("no version to try"));
    Err(SetUpError::file("mount nfs on", &target)(error))
}

async fn address(server: &str) -> Result<IpAddr, SetUpError> {
    let mut found = tokio::net::lookup_host((server, 2049)).await;
    let first = found
        .as_mut()
        .ok()
        .and_then(Iterator::next)
        .map(|address| address.ip());
    first.ok_or_else(|| refused(format!("mount.nfs: Failed to resolve server {server}")))
}
