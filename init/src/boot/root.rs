//! From the initramfs to a root that containers can pivot away from.
//!
//! pivot_root(2) refuses to leave the kernel's first root. So the real root is the image's squashfs (`/root.sqsh`
//! in the initramfs) under a writable layer in memory; without that file, the initramfs' own content, moved to
//! memory. Either is moved over `/`.

use super::{StepError, mounts};
use crate::{console, install::Payload, sys::loop_device};
use rustix::{
    mount::{MountFlags, mount, mount_bind, mount_move},
    process::{chdir, chroot},
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

const IMAGE: &str = "/root.sqsh";
/// Where the new root is put together.
const STAGE: &str = "/stage";
const NEW_ROOT: &str = "/stage/root";

/// Returns the files that an install would write.
pub(super) fn enter() -> Result<Option<Payload>, StepError> {
    if !is_first_root()? {
        console::say("the root is a disk or a container's: it stays");
        return Ok(None);
    }
    let payload = payload();
    fs::create_dir_all(STAGE).map_err(StepError::at(STAGE))?;
    mount("tmpfs", STAGE, "tmpfs", MountFlags::empty(), c"mode=0755").map_err(at(STAGE))?;
    fs::create_dir_all(NEW_ROOT).map_err(StepError::at(NEW_ROOT))?;
    if Path::new(IMAGE).exists() {
        overlay_image()?
    } else {
        move_content()?
    }
    for entry in mounts::outermost() {
        let target = format!("{NEW_ROOT}{}", entry.target);
        fs::create_dir_all(&target).map_err(StepError::at(&target))?;
        mount_move(entry.target, &target).map_err(at(&target))?;
    }
    chdir(NEW_ROOT).map_err(at(NEW_ROOT))?;
    mount_move(".", "/").map_err(at("/"))?;
    chroot(".").map_err(at("/"))?;
    chdir("/").map_err(at("/"))?;
    link_modprobe()?;
    Ok(payload)
}

/// Held open, the files outlive the initramfs' content.
fn payload() -> Option<Payload> {
    let open = |name: &str| File::open(Path::new("/").join(name)).ok();
    let [kernel, _] = boot_disk::SYSTEM_FILES;
    Some(Payload {
        root: open(boot_disk::ROOT)?,
        early: open(boot_disk::EARLY)?,
        kernel: open(kernel)?,
    })
}

fn at(path: &str) -> impl FnOnce(rustix::io::Errno) -> StepError {
    let at = StepError::at(path);
    |error| at(error.into())
}

/// Whether `/` is the kernel's initial file system (ramfs or tmpfs, rootfs by its name).
fn is_first_root() -> Result<bool, StepError> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(StepError::at("/proc/self/mounts"))?;
    Ok(mounts.lines().any(|line| line.starts_with("rootfs / "))
        || !mounts.lines().any(|line| line.split(' ').nth(1) == Some("/")))
}

/// The squashfs below, memory above. The initramfs' files are removed: the mounts hold what is in use, and the rest
/// would only take memory.
fn overlay_image() -> Result<(), StepError> {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| format!("{STAGE}/{name}"));
    for dir in [&lower, &upper, &work] {
        fs::create_dir_all(dir).map_err(StepError::at(dir))?;
    }
    let image = File::open(IMAGE).map_err(StepError::at(IMAGE))?;
    let (device, handle) = loop_device::attach(&image).map_err(StepError::at(IMAGE))?;
    mount(&device, &lower, "squashfs", MountFlags::RDONLY, None).map_err(at(IMAGE))?;
    drop(handle);
    let options = c"lowerdir=/stage/lower,upperdir=/stage/upper,workdir=/stage/work";
    mount("overlay", NEW_ROOT, "overlay", MountFlags::empty(), options).map_err(at(NEW_ROOT))?;
    // This program is in the initramfs only; the new root calls it as modprobe.
    let init = format!("{NEW_ROOT}/init");
    if !Path::new(&init).exists() {
        File::create(&init).map_err(StepError::at(&init))?;
        mount_bind("/init", &init).map_err(at(&init))?;
    }
    for path in old_content()? {
        let removed = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(StepError::at(&path))?;
    }
    Ok(())
}

/// What lies in the initramfs' root, apart from what is mounted there.
fn old_content() -> Result<Vec<PathBuf>, StepError> {
    let kept: Vec<&str> = mounts::outermost()
        .map(|entry| entry.target)
        .chain([STAGE])
        .collect();
    let entries = fs::read_dir("/")
        .map_err(StepError::at("/"))?
        .flatten()
        .map(|entry| entry.path());
    Ok(entries
        .filter(|path| !kept.iter().any(|kept| path == Path::new(kept)))
        .collect())
}

/// Moves every file to memory under the new root, one at a time, so that nothing is held twice for long.
fn move_content() -> Result<(), StepError> {
    for path in old_content()? {
        let name = path.file_name().unwrap_or_default();
        move_tree(&path, &Path::new(NEW_ROOT).join(name)).map_err(StepError::at(&path))?;
    }
    Ok(())
}

fn move_tree(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return fs::remove_file(from);
    }
    if metadata.is_dir() {
        fs::create_dir_all(to)?;
        fs::set_permissions(to, metadata.permissions())?;
        for entry in fs::read_dir(from)?.flatten() {
            move_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
        return fs::remove_dir(from);
    }
    if metadata.is_file() {
        fs::copy(from, to)?;
        return fs::remove_file(from);
    }
    // Device nodes: /dev is the kernel's own.
    fs::remove_file(from)
}

/// The kernel, mount(2) and iptables call /sbin/modprobe; that is this program.
fn link_modprobe() -> Result<(), StepError> {
    const MODPROBE: &str = "/sbin/modprobe";
    if Path::new(MODPROBE).exists() {
        return Ok(());
    }
    fs::create_dir_all("/sbin").map_err(StepError::at("/sbin"))?;
    symlink("/init", MODPROBE).map_err(StepError::at(MODPROBE))
}
