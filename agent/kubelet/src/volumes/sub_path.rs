//! `subPath`: binds one file or directory of a volume to a place of the kubelet's own, step by step from an open
//! directory, so that no symlink, old or just made, leads out of the volume.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// The place to mount into the container for `sub_path` of `volume`.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, String> {
    check(sub_path)?;
    let found = open(volume, sub_path)?;
    let describe = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let is_dir = rustix::fs::fstat(&found).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory
    });
    // A container that starts again finds what the path names now.
    while rustix::mount::unmount(target, UnmountFlags::DETACH).is_ok() {}
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(|error| describe(parent, error))?;
    }
    if is_dir {
        fs::create_dir_all(target).map_err(|error| describe(target, error))?;
    } else {
        fs::write(target, "").map_err(|error| describe(target, error))?;
    }
    let source = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::mount::mount_bind_recursive(source.as_str(), target)
        .map_err(|error| describe(target, error.into()))?;
    Ok(target.to_owned())
}

/// Opens a file of a volume for reading, if the path does not lead out of it.
pub fn open_inside(volume: &Path, path: &str) -> Result<fs::File, String> {
    check(path)?;
    let describe = |error: Errno| format!("{path:?}: {}", std::io::Error::from(error));
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(describe)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), inside).map_err(describe)?;
    Ok(file.into())
}

fn check(sub_path: &str) -> Result<(), String> {
    if sub_path.starts_with('/') {
        return Err(format!("error SubPath `{sub_path}` must not be an absolute path"));
    }
    if Path::new(sub_path)
        .components()
        .any(|part| part == Component::ParentDir)
    {
        return Err(format!(
            "unable to provision SubPath `{sub_path}`: must not contain '..'"
        ));
    }
    Ok(())
}

/// Opens what the path names without leaving the volume; missing directories are made like the volume itself.
fn open(volume: &Path, sub_path: &str) -> Result<OwnedFd, String> {
    let describe = |error: Errno| match error {
        Errno::XDEV => format!("subPath {sub_path:?} leads out of the volume"),
        other => format!(
            "subPath {sub_path:?} of {}: {}",
            volume.display(),
            std::io::Error::from(other)
        ),
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, flags, Mode::empty()).map_err(describe)?;
    let mode = rustix::fs::fstat(&root).map_err(describe)?.st_mode & 0o7777;
    let mode = Mode::from_raw_mode(mode);
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut so_far = PathBuf::new();
    let mut parent = root.try_clone().map_err(|error| error.to_string())?;
    for part in Path::new(sub_path).components() {
        let Component::Normal(name) = part else { continue };
        so_far.push(name);
        parent = match rustix::fs::openat2(&root, &so_far, flags, Mode::empty(), inside) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&parent, name, mode).map_err(describe)?;
                // The process's umask must not narrow it.
                let made = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
                let made = rustix::fs::openat(&parent, name, made, Mode::empty()).map_err(describe)?;
                rustix::fs::fchmod(&made, mode).map_err(describe)?;
                made
            }
            other => other.map_err(describe)?,
        };
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn sub_paths_stay_inside() {
        let dir = TempDir::new("subpath");
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("a")).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
        fs::create_dir_all(dir.path().join("secret")).unwrap();
        symlink(dir.path().join("secret"), volume.join("link")).unwrap();
        symlink("../secret", volume.join("up")).unwrap();
        symlink("a", volume.join("inner")).unwrap();
        for (sub_path, inside) in [
            ("a", true),
            ("a/new/deep", true),
            ("inner/more", true),
            ("link", false),
            ("link/x", false),
            ("up/x", false),
            ("../secret", false),
            ("/a", false),
        ] {
            let found = check(sub_path).and_then(|()| open(&volume, sub_path));
            assert_eq!(found.is_ok(), inside, "{sub_path}: {found:?}");
        }
        assert_eq!(
            fs::metadata(volume.join("a/new/deep"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o777
        );
        assert!(!dir.path().join("secret/x").exists());
    }
}
