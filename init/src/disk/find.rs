//! The block device that a selector means.

use super::{
    DiskError,
    signature::{self, Content},
};
use node_config::DiskSelector;
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

/// All disks and partitions with media, in name order; no loop, RAM or compressed-RAM devices.
fn block_devices() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| fs::read_to_string(entry.path().join("size")).is_ok_and(|size| size.trim() != "0"))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            !["loop", "ram", "zram", "sr", "fd"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        })
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| Path::new("/dev").join(name))
        .collect()
}

/// The device and what it holds.
pub fn find(selector: &DiskSelector) -> Result<(PathBuf, Content), DiskError> {
    let absent = || DiskError::Absent(selector.clone());
    match selector {
        DiskSelector::None => Err(absent()),
        DiskSelector::Device(path) => {
            if !fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
                return Err(absent());
            }
            let content = content(path).map_err(|error| DiskError::Io {
                path: path.clone(),
                error,
            })?;
            Ok((path.clone(), content))
        }
        DiskSelector::Label(label) => block_devices()
            .into_iter()
            .filter_map(|path| content(&path).ok().map(|content| (path, content)))
            .find(|(_, content)| *content == Content::Ext { label: label.clone() })
            .ok_or_else(absent),
    }
}

fn content(device: &Path) -> io::Result<Content> {
    let mut start = Vec::new();
    File::open(device)?
        .take(signature::LOOK_BYTES as u64)
        .read_to_end(&mut start)?;
    Ok(signature::identify(&start))
}
