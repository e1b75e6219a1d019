//! Directory volumes: emptyDir on disk or in memory, hostPath with its type checks, and removing a pod's directory.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use rustix::mount::{MountFlags, UnmountFlags};

use super::SetUpError;

/// Marks an emptyDir whose ownership has been set, so that it is set once.
const READY: &str = ".ready";

pub fn empty_dir(
    path: &Path,
    source: &EmptyDirVolumeSource,
    fs_group: Option<i64>,
) -> Result<(), SetUpError> {
    let ready = path.with_extension("").with_file_name(format!(
        "{}{READY}",
        path.file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    ));
    let memory = match source.medium.as_deref().unwrap_or_default() {
        "" => false,
        "Memory" => true,
        pages if pages.starts_with("HugePages") => return huge_pages(path, pages, fs_group),
        other => {
            return Err(SetUpError::Refused(format!(
                "emptyDir medium {other:?} is not supported"
            )));
        }
    };
    if ready.exists() && (!memory || is_mount_point(path)) {
        return Ok(());
    }
    if memory {
        let limit = source.size_limit.as_ref().map(Quantity::of);
        self::memory(path, limit.map(|limit| limit.value()).filter(|limit| *limit != 0))?;
    } else {
        fs::create_dir_all(path).map_err(SetUpError::file("create", path))?;
    }
    // The root of a tmpfs stays sticky, as the kernel makes it.
    let sticky = if memory { 0o1000 } else { 0 };
    let mode = sticky | if fs_group.is_some() { 0o2777 } else { 0o777 };
    if let Some(group) = fs_group.and_then(|group| u32::try_from(group).ok()) {
        chown(path, None, Some(group)).map_err(SetUpError::file("chown", path))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(SetUpError::file("chmod", path))?;
    fs::write(&ready, "").map_err(SetUpError::file("write", &ready))
}

/// A directory whose files are huge pages: of the size that the medium names, or of the kernel's usual one.
fn huge_pages(path: &Path, medium: &str, fs_group: Option<i64>) -> Result<(), SetUpError> {
    fs::create_dir_all(path).map_err(SetUpError::file("create", path))?;
    if is_mount_point(path) {
        return Ok(());
    }
    let size = medium
        .strip_prefix("HugePages-")
        .and_then(|size| size.parse::<Quantity>().ok());
    let mut options = vec!["mode=0777".to_owned()];
    options.extend(size.map(|size| format!("pagesize={}", size.value())));
    options.extend(fs_group.map(|group| format!("gid={group}")));
    let options = std::ffi::CString::new(options.join(",")).unwrap_or_default();
    rustix::mount::mount(
        "nodev",
        path,
        "hugetlbfs",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .map_err(|error| SetUpError::file("mount hugetlbfs on", path)(error.into()))
}

/// A directory in memory, made once.
pub fn memory(path: &Path, limit: Option<i64>) -> Result<(), SetUpError> {
    fs::create_dir_all(path).map_err(SetUpError::file("create", path))?;
    if is_mount_point(path) {
        return Ok(());
    }
    let options = limit.map_or_else(String::new, |limit| format!("size={limit}"));
    let options = std::ffi::CString::new(options).unwrap_or_default();
    rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::empty(), options.as_c_str())
        .map_err(|error| SetUpError::file("mount tmpfs on", path)(error.into()))
}

pub fn host_path(path: &Path, kind: &str) -> Result<PathBuf, SetUpError> {
    let metadata = fs::metadata(path).ok();
    let refuse = |what: &str| {
        Err(SetUpError::Refused(format!(
            "hostPath type check failed: {} is not {what}",
            path.display()
        )))
    };
    let file_type = metadata.as_ref().map(fs::Metadata::file_type);
    let holds = |check: fn(&fs::FileType) -> bool| file_type.as_ref().is_some_and(check);
    match kind {
        "" => {}
        "DirectoryOrCreate" if file_type.is_none() => {
            fs::create_dir_all(path).map_err(SetUpError::file("create", path))?;
        }
        "FileOrCreate" if file_type.is_none() => {
            fs::File::create(path).map_err(SetUpError::file("create", path))?;
        }
        "Directory" | "DirectoryOrCreate" if !holds(fs::FileType::is_dir) => return refuse("a directory"),
        "File" | "FileOrCreate" if !holds(fs::FileType::is_file) => return refuse("a file"),
        "Socket" if !holds(FileTypeExt::is_socket) => return refuse("a socket file"),
        "CharDevice" if !holds(FileTypeExt::is_char_device) => return refuse("a character device"),
        "BlockDevice" if !holds(FileTypeExt::is_block_device) => return refuse("a block device"),
        "Directory" | "DirectoryOrCreate" | "File" | "FileOrCreate" | "Socket" | "CharDevice"
        | "BlockDevice" => {}
        other => return Err(SetUpError::Refused(format!("{other} is an invalid volume type"))),
    }
    Ok(path.to_owned())
}

/// Mount points at or below `root`, deepest first, from a mountinfo text.
fn mounts_below(mountinfo: &str, root: &Path) -> Vec<PathBuf> {
    let fields = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let mut mounts: Vec<PathBuf> = fields
        .map(PathBuf::from)
        .filter(|path| path.starts_with(root))
        .collect();
    mounts.sort();
    mounts.reverse();
    mounts
}

fn mountinfo() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

pub fn is_mount_point(path: &Path) -> bool {
    mounts_below(&mountinfo(), path).iter().any(|mount| mount == path)
}

/// Gives a tree to a group as upstream does: members may read (and write), and new files stay theirs.
pub fn own(path: &Path, group: i64, policy: Option<&str>, read_only: bool) -> Result<(), SetUpError> {
    let group =
        u32::try_from(group).map_err(|_| SetUpError::Refused(format!("fsGroup {group} is too large")))?;
    let access = if read_only { 0o440 } else { 0o660 };
    let wanted = |metadata: &fs::Metadata| {
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            mode | access | 0o2110
        } else {
            mode | access
        }
    };
    let root = fs::symlink_metadata(path).map_err(SetUpError::file("stat", path))?;
    let right = root.gid() == group && wanted(&root) == root.permissions().mode() & 0o7777;
    if policy == Some("OnRootMismatch") && right {
        return Ok(());
    }
    // The root comes last: where it is right, all below it is.
    let mut pending = vec![path.to_owned()];
    let mut found = Vec::new();
    while let Some(next) = pending.pop() {
        let metadata = fs::symlink_metadata(&next).map_err(SetUpError::file("stat", &next))?;
        if metadata.is_dir() {
            let entries = fs::read_dir(&next).map_err(SetUpError::file("list", &next))?;
            pending.extend(entries.flatten().map(|entry| entry.path()));
        }
        found.push((next, metadata));
    }
    for (path, metadata) in found.iter().rev() {
        lchown(path, None, Some(group)).map_err(SetUpError::file("chown", path))?;
        if !metadata.is_symlink() {
            let mode = fs::Permissions::from_mode(wanted(metadata));
            fs::set_permissions(path, mode).map_err(SetUpError::file("chmod", path))?;
        }
    }
    Ok(())
}

/// Unmounts what is mounted inside a pod's directory, then removes it.
pub fn tear_down(pod_dir: &Path) -> std::io::Result<()> {
    for mount in mounts_below(&mountinfo(), pod_dir) {
        rustix::mount::unmount(&mount, UnmountFlags::DETACH)?;
    }
    match fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;

    #[test]
    fn host_path_types() {
        let dir = TempDir::new("hostpath");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let missing = dir.path().join("missing");
        for (path, kind, accepted) in [
            (dir.path(), "Directory", true),
            (&file, "Directory", false),
            (&file, "File", true),
            (&missing, "File", false),
            (&missing, "", true),
            (&file, "Socket", false),
            (Path::new("/dev/null"), "CharDevice", true),
            (&file, "Nonsense", false),
            (&missing, "DirectoryOrCreate", true),
        ] {
            assert_eq!(
                host_path(path, kind).is_ok(),
                accepted,
                "{} {kind}",
                path.display()
            );
        }
        assert!(missing.is_dir());
        let error = host_path(&file, "Directory").unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "hostPath type check failed: {} is not a directory",
                file.display()
            )
        );
    }

    #[test]
    fn empty_dirs_keep_their_content() {
        let dir = TempDir::new("emptydir");
        let path = dir.path().join("scratch");
        empty_dir(&path, &EmptyDirVolumeSource::default(), None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
        fs::write(path.join("x"), "kept").unwrap();
        empty_dir(&path, &EmptyDirVolumeSource::default(), None).unwrap();
        assert_eq!(fs::read_to_string(path.join("x")).unwrap(), "kept");
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            1,
            "no marker inside the volume"
        );
    }

    #[test]
    fn trees_are_given_to_a_group() {
        let dir = TempDir::new("own");
        let group = fs::metadata(dir.path()).unwrap().gid();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), "").unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("link")).unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        fs::set_permissions(dir.path().join("sub/file"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(dir.path().join("sub"), fs::Permissions::from_mode(0o755)).unwrap();
        own(dir.path(), i64::from(group), None, false).unwrap();
        assert_eq!((mode("sub"), mode("sub/file")), (0o2775, 0o660));
        fs::set_permissions(dir.path().join("sub"), fs::Permissions::from_mode(0o700)).unwrap();
        own(dir.path(), i64::from(group), Some("OnRootMismatch"), false).unwrap();
        assert_eq!(mode("sub"), 0o700, "the root is right, so nobody looks below it");
    }

    #[test]
    fn mounts_are_found_deepest_first() {
        let info = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:5 / /p/a rw - tmpfs t rw\n3 2 0:6 / /p/a/b rw - tmpfs t rw\n\
                    4 1 0:7 / /pods rw - tmpfs t rw\n";
        let found = mounts_below(info, Path::new("/p"));
        assert_eq!(found, [PathBuf::from("/p/a/b"), PathBuf::from("/p/a")]);
    }
}
