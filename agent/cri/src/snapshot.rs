//! A container's root file system: an overlay of its image's layers and a layer of its own.

use nix::mount::{MsFlags, mount};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("mount the root file system at {path}: {source}")]
    Mount { path: PathBuf, source: io::Error },
    #[error("the image has too many layers ({0}) for one mount")]
    TooManyLayers(usize),
}

/// mount(2) takes one page of options.
const MAX_OPTIONS: usize = 4095;

/// Overlay options; the kernel wants the topmost lower layer first.
fn options(layers: &[PathBuf], upper: &Path, work: &Path) -> Result<String, SnapshotError> {
    let lower: Vec<String> = layers
        .iter()
        .rev()
        .map(|layer| layer.display().to_string())
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    if options.len() > MAX_OPTIONS {
        Err(SnapshotError::TooManyLayers(layers.len()))
    } else {
        Ok(options)
    }
}

/// Mounts a writable view of the layers (lowest first) at `rootfs`.
pub fn mount_root(layers: &[PathBuf], upper: &Path, work: &Path, rootfs: &Path) -> Result<(), SnapshotError> {
    for path in [upper, work, rootfs] {
        fs::create_dir_all(path).map_err(|source| SnapshotError::Io {
            path: path.into(),
            source,
        })?;
    }
    let options = options(layers, upper, work)?;
    // No device nodes: a container's own are on its /dev.
    mount(
        Some("overlay"),
        rootfs,
        Some("overlay"),
        MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .map_err(|error| SnapshotError::Mount {
        path: rootfs.into(),
        source: error.into(),
    })
}

/// A read-only view of layers, for image volumes.
pub fn mount_image(layers: &[PathBuf], target: &Path) -> Result<(), SnapshotError> {
    fs::create_dir_all(target).map_err(|source| SnapshotError::Io {
        path: target.into(),
        source,
    })?;
    let failed = |source: io::Error| SnapshotError::Mount {
        path: target.into(),
        source,
    };
    if let [only] = layers {
        mount(Some(only), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| failed(e.into()))?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
        return mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(|e| failed(e.into()));
    }
    let lower: Vec<String> = layers
        .iter()
        .rev()
        .map(|layer| layer.display().to_string())
        .collect();
    let options = format!("lowerdir={}", lower.join(":"));
    if options.len() > MAX_OPTIONS {
        return Err(SnapshotError::TooManyLayers(layers.len()));
    }
    mount(
        Some("overlay"),
        target,
        Some("overlay"),
        MsFlags::MS_RDONLY | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .map_err(|e| failed(e.into()))
}

/// Bytes and inodes below a folder, without following links.
pub fn usage(folder: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 0);
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            inodes += 1;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_layer_comes_first() {
        let layers = ["/l/base", "/l/top"].map(PathBuf::from);
        assert_eq!(
            options(&layers, Path::new("/u"), Path::new("/w")).unwrap(),
            "lowerdir=/l/top:/l/base,upperdir=/u,workdir=/w"
        );
        let many = vec![PathBuf::from("/var/lib/ironlet/cri/l/0123456789abcdef0123456789abcdef"); 80];
        assert!(matches!(
            options(&many, Path::new("/u"), Path::new("/w")),
            Err(SnapshotError::TooManyLayers(80))
        ));
    }
}
