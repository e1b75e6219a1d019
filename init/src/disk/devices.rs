//! The machine's disks and partitions, as sysfs lists them.

use super::signature::{self, Content};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

const SYSFS: &str = "/sys/class/block";
/// No disks: loops, RAM, CDs, floppies, and what is put together of disks.
const OTHERS: &[&str] = &["loop", "ram", "zram", "sr", "fd", "dm-", "md"];
const SECTOR: u64 = 512;

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub path: PathBuf,
    pub bytes: u64,
    pub content: Content,
    /// It has a partition with systems of ours.
    pub installed: bool,
}

impl Disk {
    pub fn is_blank(&self) -> bool {
        self.content == Content::Blank
    }
}

/// All disks with media and their partitions, in name order.
pub fn all() -> Vec<PathBuf> {
    let mut names = names().unwrap_or_default();
    names.retain(|name| bytes(name) > 0);
    names
        .into_iter()
        .map(|name| Path::new("/dev").join(name))
        .collect()
}

/// The disks that can be written to.
pub fn disks() -> io::Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for name in names()? {
        let directory = Path::new(SYSFS).join(&name);
        let flag = |name: &str| attribute(&directory.join(name)).as_deref() == Some("1");
        if directory.join("partition").exists() || bytes(&name) == 0 || flag("ro") {
            continue;
        }
        let path = Path::new("/dev").join(&name);
        // A disk that cannot be read is not offered.
        if let Ok(content) = content(&path) {
            disks.push(Disk {
                bytes: bytes(&name),
                content,
                installed: partitions(&directory).any(|name| name == boot_disk::SYSTEM_NAME),
                path,
            });
        }
    }
    Ok(disks)
}

/// The name a partition has in its table (GPT).
pub fn partition_name(device: &Path) -> Option<String> {
    name_in(&Path::new(SYSFS).join(device.file_name()?))
}

/// The disk that a partition is on.
pub fn disk_of(partition: &Path) -> Option<PathBuf> {
    let directory = Path::new(SYSFS).join(partition.file_name()?);
    if !directory.join("partition").exists() {
        return None;
    }
    // sysfs has a partition's directory in its disk's.
    let directory = fs::canonicalize(directory).ok()?;
    Some(Path::new("/dev").join(directory.parent()?.file_name()?))
}

/// How many bytes a disk or partition has.
pub fn size(device: &Path) -> u64 {
    let name = device.file_name().and_then(|name| name.to_str());
    name.map_or(0, bytes)
}

pub fn content(device: &Path) -> io::Result<Content> {
    let mut start = Vec::new();
    File::open(device)?
        .take(signature::LOOK_BYTES as u64)
        .read_to_end(&mut start)?;
    Ok(signature::identify(&start))
}

fn names() -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(SYSFS)?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !OTHERS.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    Ok(names)
}

fn bytes(name: &str) -> u64 {
    let sectors = attribute(&Path::new(SYSFS).join(name).join("size"));
    sectors.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * SECTOR
}

fn attribute(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn partitions(disk: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(disk).into_iter().flatten().flatten();
    entries.filter_map(|entry| name_in(&entry.path()))
}

fn name_in(directory: &Path) -> Option<String> {
    let text = fs::read_to_string(directory.join("uevent")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("PARTNAME="))
        .map(str::to_owned)
}
