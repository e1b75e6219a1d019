//! Block devices that pods use as file systems: formatted when blank, mounted in the pod's directory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rustix::mount::MountFlags;
use tokio::process::Command;
use tokio::task::spawn_blocking;
use tracing::info;

use super::{SetUpError, directories};

const DEFAULT_TYPE: &str = "ext4";
/// Where file systems, partition tables and RAID members have their marks: the first and the last of the device.
const MARKED: u64 = 1024 * 1024;

/// Nothing is written where marks could be. Anything else may be somebody's.
fn is_blank(mut device: impl Read + Seek) -> io::Result<bool> {
    let size = device.seek(SeekFrom::End(0))?;
    for start in [0, size.saturating_sub(MARKED)] {
        device.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        device.by_ref().take(MARKED).read_to_end(&mut bytes)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(size > 0)
}

/// Upstream's `SafeFormatAndMount`: arguments of `mkfs.TYPE`.
fn arguments(kind: &str) -> &'static [&'static str] {
    match kind {
        "ext3" | "ext4" => &["-F", "-m0"],
        "xfs" => &["-f"],
        _ => &[],
    }
}

/// Mounts `device` at `target`, once. The mount itself is writable: pods share the device's one file system.
pub async fn mount(device: &Path, kind: Option<&str>, target: &Path) -> Result<(), SetUpError> {
    let kind = kind.filter(|kind| !kind.is_empty()).unwrap_or(DEFAULT_TYPE);
    if directories::is_mount_point(target) {
        return Ok(());
    }
    std::fs::create_dir_all(target).map_err(SetUpError::file("create", target))?;
    let opened = device.to_owned();
    let blank = spawn_blocking(move || is_blank(File::open(opened)?)).await;
    let blank = blank.map_err(io::Error::other).flatten();
    if blank.map_err(SetUpError::file("read", device))? {
        format(device, kind).await?;
    }
    let (source, path, file_system) = (device.to_owned(), target.to_owned(), kind.to_owned());
    // A disk that does not answer must not hold up a thread of the runtime.
    let mounted = spawn_blocking(move || {
        rustix::mount::mount(
            &source,
            &path,
            file_system.as_str(),
            MountFlags::empty(),
            None::<&std::ffi::CStr>,
        )
    });
    let mounted = mounted.await.map_err(io::Error::other);
    mounted
        .and_then(|mounted| mounted.map_err(io::Error::from))
        .map_err(SetUpError::file("mount a file system on", target))
}

async fn format(device: &Path, kind: &str) -> Result<(), SetUpError> {
    info!(device = %device.display(), kind, "blank disk is formatted");
    let program = format!("mkfs.{kind}");
    let output = Command::new(&program)
        .args(arguments(kind))
        .arg(device)
        .output()
        .await;
    let failed = |detail: String| {
        SetUpError::Refused(format!(
            "failed to format {} with {program}: {detail}",
            device.display()
        ))
    };
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn only_blank_devices_are_formatted() {
        let disk = |marks: &[usize]| {
            let mut bytes = vec![0u8; 3 * MARKED as usize];
            marks.iter().for_each(|at| bytes[*at] = 1);
            is_blank(Cursor::new(bytes)).unwrap()
        };
        assert!(disk(&[]));
        assert!(!disk(&[1080]), "ext4");
        assert!(!disk(&[3 * MARKED as usize - 512]), "the second partition table");
        assert!(disk(&[MARKED as usize + 5]));
        assert!(!is_blank(Cursor::new(Vec::new())).unwrap());
        assert!(!is_blank(Cursor::new(vec![0, 1])).unwrap());
    }
}
