//! What this machine offers to containers, read from the kernel's files.

use crate::spec::{DeviceNode, Host};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The mount point of cgroup v2.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

const OPEN_FILES: u64 = 1_048_576;
const CAP_SYS_RESOURCE: u32 = 24;

pub fn read() -> Host {
    let controllers =
        fs::read_to_string(Path::new(CGROUP_ROOT).join("cgroup.controllers")).unwrap_or_default();
    let capabilities = capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    let mut devices = Vec::new();
    collect(Path::new("/dev"), &mut devices);
    Host {
        controllers: controllers.split_whitespace().map(str::to_owned).collect(),
        capabilities,
        lowest_oom_score: if capabilities >> CAP_SYS_RESOURCE & 1 == 1 {
            -1000
        } else {
            own_oom_score()
        },
        apparmor: fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.starts_with('Y')),
        devices,
        open_files: open_files(),
    }
}

/// The bounding set in /proc/self/status: no child can have more.
fn capabilities(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

fn own_oom_score() -> i64 {
    fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_default()
}

/// Raises this process's own limit as far as the machine lets it: containers inherit from it.
fn open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(OPEN_FILES),
    };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::debug!(%error, "the limit of open files stays");
    }
    getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES)
}

/// This boot's identity: what was made in another is gone.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// All device nodes below a folder, but for those that each container has its own of.
fn collect(folder: &Path, out: &mut Vec<DeviceNode>) {
    const OWN: [&str; 5] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx"];
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&path, out),
            Ok(_) => out.extend(device(&path, &path)),
            Err(_) => {}
        }
    }
}

/// The node at `source`, as it shall be called inside; `None` when it is no device.
pub fn device(source: &Path, name: &Path) -> Option<DeviceNode> {
    let metadata = fs::symlink_metadata(source).ok()?;
    let kind = metadata.file_type();
    (kind.is_block_device() || kind.is_char_device()).then(|| DeviceNode {
        path: name.to_path_buf(),
        block: kind.is_block_device(),
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.permissions().mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// All devices that CRI's `host_path` stands for: a node, or every node of a folder.
pub fn devices_at(source: &Path, name: &Path) -> Vec<DeviceNode> {
    let source = fs::canonicalize(source).unwrap_or_else(|_| source.to_path_buf());
    if !source.is_dir() {
        return device(&source, name).into_iter().collect();
    }
    let mut found = Vec::new();
    collect(&source, &mut found);
    for node in &mut found {
        let inside: PathBuf = node
            .path
            .strip_prefix(&source)
            .map(|rest| name.join(rest))
            .unwrap_or_else(|_| name.into());
        node.path = inside;
    }
    found
}
