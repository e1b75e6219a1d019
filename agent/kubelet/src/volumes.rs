//! Volumes of a pod: made ready on the host before its containers start, kept fresh, taken away at the end.

mod atomic_writer;
mod directories;
mod projections;
pub mod sub_path;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};
use thiserror::Error;

use crate::field_path::Addresses;
use crate::objects::{ObjectError, Objects};

pub use directories::tear_down;

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
}

/// Makes every volume ready, or brings its content up to date; host paths by volume name.
pub async fn set_up(pod: &Pod, context: &VolumeContext<'_>) -> Result<HashMap<String, PathBuf>, VolumeError> {
    let mut paths = HashMap::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        // The runtime mounts these from the image.
        if volume.image.is_some() {
            continue;
        }
        let path = set_up_one(pod, volume, context)
            .await
            .map_err(|error| VolumeError::SetUp {
                volume: volume.name.clone(),
                message: error.to_string(),
            })?;
        paths.insert(volume.name.clone(), path);
    }
    Ok(paths)
}

async fn set_up_one(pod: &Pod, volume: &Volume, context: &VolumeContext<'_>) -> Result<PathBuf, SetUpError> {
    let fs_group = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref())
        .and_then(|sc| sc.fs_group);
    let dir = |plugin: &str| {
        context
            .pod_dir
            .join("volumes")
            .join(format!("kubernetes.io~{plugin}"))
            .join(&volume.name)
    };
    if let Some(host_path) = &volume.host_path {
        return directories::host_path(
            Path::new(&host_path.path),
            host_path.type_.as_deref().unwrap_or_default(),
        );
    }
    if let Some(empty_dir) = &volume.empty_dir {
        let path = dir("empty-dir");
        directories::empty_dir(&path, empty_dir, fs_group)?;
        return Ok(path);
    }
    let (plugin, payload) = projections::payload(pod, volume, context).await?;
    let path = dir(plugin);
    if IN_MEMORY.contains(&plugin) {
        directories::memory(&path, None)?;
    }
    atomic_writer::write(&path, &payload, fs_group)?;
    Ok(path)
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
