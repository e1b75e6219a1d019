//! Volumes of a pod: made ready on the host before its containers start, kept fresh, taken away at the end.

mod atomic_writer;
pub mod csi;
pub mod csi_api;
mod device;
mod directories;
pub mod local;
mod persistent;
mod projections;
pub mod sub_path;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};
use thiserror::Error;

use crate::context::Context;
use crate::field_path::Addresses;
use crate::objects::{ObjectError, Objects};
use crate::plugins::Drivers;

#[derive(Debug, Error)]
pub enum VolumeError {
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
    SetUp { volume: String, message: String },
    #[error("failed to prepare subPath for volumeMount \"{mount}\" of container \"{container}\": {message}")]
    SubPath {
        container: String,
        mount: String,
        message: String,
    },
}

#[derive(Debug, Error)]
enum SetUpError {
    #[error("{operation} {path}: {source}", path = path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("{0}")]
    Refused(String),
}

impl SetUpError {
    fn file(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }
}

/// Volumes that may hold secrets never reach a disk.
const IN_MEMORY: [&str; 3] = ["secret", "projected", "downward-api"];

/// What setting up volumes needs besides the pod.
pub struct VolumeContext<'a> {
    pub objects: &'a Objects,
    pub addresses: Addresses,
    pub allocatable:
        &'a std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
    /// The pod's own directory under the kubelet's root.
    pub pod_dir: &'a Path,
    pub client: &'a kube::Client,
    pub node_name: &'a str,
    pub drivers: &'a Drivers,
    /// Where drivers stage volumes.
    pub plugins_dir: PathBuf,
}

/// A volume on the host: a directory or file to mount, or a device.
#[derive(Clone, Debug)]
pub struct Ready {
    pub path: PathBuf,
    pub read_only: bool,
}

pub type Volumes = HashMap<String, Ready>;

fn fs_group(pod: &Pod) -> Option<i64> {
    pod.spec.as_ref()?.security_context.as_ref()?.fs_group
}

fn fs_group_policy(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .security_context
        .as_ref()?
        .fs_group_change_policy
        .as_deref()
}

/// Makes every volume ready, or brings its content up to date; host paths by volume name.
pub async fn set_up(pod: &Pod, context: &VolumeContext<'_>) -> Result<Volumes, VolumeError> {
    let mut ready = Volumes::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        // The runtime mounts these from the image.
        if volume.image.is_some() {
            continue;
        }
        let one = set_up_one(pod, volume, context)
            .await
            .map_err(|error| VolumeError::SetUp {
                volume: volume.name.clone(),
                message: error.to_string(),
            })?;
        ready.insert(volume.name.clone(), one);
    }
    Ok(ready)
}

async fn set_up_one(pod: &Pod, volume: &Volume, context: &VolumeContext<'_>) -> Result<Ready, SetUpError> {
    let fs_group = fs_group(pod);
    let dir = |plugin: &str| {
        context
            .pod_dir
            .join("volumes")
            .join(format!("kubernetes.io~{plugin}"))
            .join(&volume.name)
    };
    let writable = |path| Ready {
        path,
        read_only: false,
    };
    if let Some(ready) = persistent::set_up(pod, volume, context).await? {
        return Ok(ready);
    }
    if let Some(source) = &volume.csi {
        let inline = csi::Volume {
            spec_name: &volume.name,
            source: csi::Source::Inline(source),
            access_modes: &[],
            mount_options: &[],
            block: false,
            read_only: source.read_only == Some(true),
        };
        return csi::set_up(pod, &inline, context).await;
    }
    if let Some(source) = &volume.nfs {
        return persistent::nfs(&volume.name, source, &[], false, context).await;
    }
    if let Some(host_path) = &volume.host_path {
        let kind = host_path.type_.as_deref().unwrap_or_default();
        return directories::host_path(Path::new(&host_path.path), kind).map(writable);
    }
    if let Some(empty_dir) = &volume.empty_dir {
        let path = dir("empty-dir");
        directories::empty_dir(&path, empty_dir, fs_group)?;
        return Ok(writable(path));
    }
    let (plugin, payload) = projections::payload(pod, volume, context).await?;
    let path = dir(plugin);
    if IN_MEMORY.contains(&plugin) {
        directories::memory(&path, None)?;
    }
    atomic_writer::write(&path, &payload, fs_group)?;
    // Files that are projected are never written to by containers.
    Ok(Ready {
        path,
        read_only: true,
    })
}

/// Takes everything of a pod off the host; `pod_dir` is gone when all went well.
pub async fn tear_down(context: &Context, pod_dir: &Path) -> Result<(), String> {
    csi::tear_down(context, pod_dir).await?;
    directories::tear_down(pod_dir).map_err(|error| format!("remove {}: {error}", pod_dir.display()))
}

#[cfg(test)]
pub mod testing {
    //! Temporary directories for the crate's tests.

    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    pub struct TempDir(PathBuf);

    impl TempDir {
        pub fn new(name: &str) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("kubelet-{name}-{}-{number}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
