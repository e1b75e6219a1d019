//! Files and directories every program expects, before the node's own name and servers are known.

use super::StepError;
use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

const DIRECTORIES: &[(&str, u32)] = &[
    ("/etc", 0o755),
    ("/root", 0o700),
    ("/var", 0o755),
    ("/run/ironlet", 0o755),
    ("/run/ironlet/log", 0o750),
    ("/run/lock", 0o755),
];

/// xtables and others look at what is mounted through it.
const LINKS: &[(&str, &str)] = &[("/etc/mtab", "../proc/self/mounts"), ("/dev/fd", "/proc/self/fd")];

pub(super) fn prepare() -> Result<(), StepError> {
    for (dir, mode) in DIRECTORIES {
        fs::create_dir_all(dir).map_err(StepError::at(*dir))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(*mode)).map_err(StepError::at(*dir))?;
    }
    for (link, target) in LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StepError::at(*link)(error));
            }
            _ => {}
        }
    }
    // Local names must resolve from the first moment on.
    if !Path::new("/etc/hosts").exists() {
        fs::write("/etc/hosts", crate::machine::hosts(None)).map_err(StepError::at("/etc/hosts"))?;
    }
    Ok(())
}
