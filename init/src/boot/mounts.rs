//! The kernel's file systems, as a table read top to bottom.

use super::{StepError, plan::collect};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
};
use std::{ffi::CStr, fs, path::Path};

pub(super) struct Mount {
    pub target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: &'static CStr,
    /// Only where the kernel offers the directory (efivarfs on UEFI machines).
    optional: bool,
}

const PLAIN: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
const SHARED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

const fn mounted(
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: &'static CStr,
) -> Mount {
    Mount {
        target,
        kind,
        flags,
        options,
        optional: false,
    }
}

pub(super) const MOUNTS: &[Mount] = &[
    mounted("/proc", "proc", PLAIN, c""),
    mounted("/sys", "sysfs", PLAIN, c""),
    mounted("/dev", "devtmpfs", MountFlags::NOSUID, c"mode=0755"),
    mounted("/dev/pts", "devpts", DEVICES, c"mode=0620,gid=5,ptmxmode=0666"),
    mounted("/dev/shm", "tmpfs", SHARED, c"mode=1777"),
    mounted("/dev/mqueue", "mqueue", PLAIN, c""),
    mounted("/run", "tmpfs", SHARED, c"mode=0755"),
    mounted("/tmp", "tmpfs", SHARED, c"mode=1777"),
    // memory_recursiveprot: a service's memory.min protects what is inside its cgroup, too.
    mounted(
        "/sys/fs/cgroup",
        "cgroup2",
        PLAIN,
        c"nsdelegate,memory_recursiveprot",
    ),
    Mount {
        optional: true,
        ..mounted("/sys/kernel/security", "securityfs", PLAIN, c"")
    },
    Mount {
        optional: true,
        ..mounted("/sys/firmware/efi/efivars", "efivarfs", PLAIN, c"")
    },
];

pub(super) fn mount_all() -> Result<(), StepError> {
    collect(MOUNTS.iter().filter_map(|entry| entry.mount().err()))
}

impl Mount {
    fn mount(&self) -> Result<(), StepError> {
        if self.optional && !Path::new(self.target).exists() {
            return Ok(());
        }
        // Below /sys nothing can be made, and nothing needs to be.
        if !self.target.starts_with("/sys/") {
            fs::create_dir_all(self.target).map_err(StepError::at(self.target))?;
        }
        match mount(self.kind, self.target, self.kind, self.flags, self.options) {
            Ok(()) => Ok(()),
            // The kernel has mounted it already (CONFIG_DEVTMPFS_MOUNT).
            Err(Errno::BUSY) => Ok(()),
            // The kernel's module for it is not in the image.
            Err(Errno::NODEV) if self.optional => Ok(()),
            Err(error) => Err(StepError::at(self.target)(error.into())),
        }
    }
}

/// The entries that are not within another entry: those move when the root does.
pub(super) fn outermost() -> impl Iterator<Item = &'static Mount> {
    MOUNTS.iter().filter(|entry| {
        !MOUNTS
            .iter()
            .any(|other| Path::new(entry.target).starts_with(other.target) && entry.target != other.target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_comes_after_the_one_it_is_in() {
        for (index, entry) in MOUNTS.iter().enumerate() {
            for later in &MOUNTS[index + 1..] {
                assert!(
                    !Path::new(entry.target).starts_with(later.target),
                    "{} hides {}",
                    later.target,
                    entry.target
                );
            }
        }
    }

    #[test]
    fn only_outermost_mounts_move() {
        let targets: Vec<_> = outermost().map(|entry| entry.target).collect();
        assert_eq!(targets, ["/proc", "/sys", "/dev", "/run", "/tmp"]);
    }
}
