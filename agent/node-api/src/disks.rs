//! The machine's disks and their partitions, from sysfs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::v1::{Disk, Partition};

/// No disks: loops, RAM, floppies, and what is put together of disks.
const OTHERS: &[&str] = &["loop", "ram", "zram", "fd", "dm-", "md"];
const SECTOR: u64 = 512;

/// Devices by name, and the first place each is mounted at (proc_pid_mounts(5)).
fn mounts(text: &str) -> Vec<(String, String)> {
    let pairs = text.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.next()?, fields.next()?))
    });
    pairs
        .filter(|(device, _)| device.starts_with("/dev/"))
        .map(|(device, target)| (device.to_owned(), target.to_owned()))
        .collect()
}

pub fn disks() -> Vec<Disk> {
    let mounts = mounts(&fs::read_to_string("/proc/self/mounts").unwrap_or_default());
    list(Path::new("/sys/class/block"), &mounts)
}

/// The partition with this name in its table (GPT); an error names those there are.
pub fn partition_named(name: &str) -> Result<PathBuf, String> {
    let partitions = list(Path::new("/sys/class/block"), &[])
        .into_iter()
        .flat_map(|disk| disk.partitions);
    let found: Vec<String> = partitions
        .filter(|partition| partition.name == name)
        .map(|partition| partition.device)
        .collect();
    match found.as_slice() {
        [one] => Ok(PathBuf::from(one)),
        [] => Err(format!("no disk of this machine has a partition named {name}")),
        several => Err(format!(
            "several partitions are named {name}: {}",
            several.join(", ")
        )),
    }
}

fn list(sysfs: &Path, mounts: &[(String, String)]) -> Vec<Disk> {
    let mut names = names(sysfs);
    names.retain(|name| !OTHERS.iter().any(|other| name.starts_with(other)));
    let disks = names
        .iter()
        .filter(|name| !sysfs.join(name).join("partition").exists());
    disks
        .filter_map(|name| disk(sysfs, name, mounts))
        .filter(|disk| disk.size > 0)
        .collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn disk(sysfs: &Path, name: &str, mounts: &[(String, String)]) -> Option<Disk> {
    let directory = sysfs.join(name);
    let flag = |name: &str| attribute(&directory.join(name)).is_some_and(|value| value == "1");
    let kind = match (flag("removable"), flag("queue/rotational")) {
        (true, _) => "removable",
        (false, true) => "hdd",
        (false, false) => "ssd",
    };
    let device = format!("/dev/{name}");
    let partitions = names(&directory)
        .into_iter()
        .filter(|entry| directory.join(entry).join("partition").exists());
    Some(Disk {
        size: size(&directory)?,
        model: attribute(&directory.join("device/model")).unwrap_or_default(),
        kind: kind.to_owned(),
        read_only: flag("ro"),
        partitions: partitions
            .filter_map(|entry| partition(&directory.join(&entry), &entry, mounts))
            .collect(),
        mount_point: mount_point(mounts, &device),
        device,
    })
}

fn partition(directory: &Path, name: &str, mounts: &[(String, String)]) -> Option<Partition> {
    let device = format!("/dev/{name}");
    let described = fs::read_to_string(directory.join("uevent")).unwrap_or_default();
    let named = described.lines().find_map(|line| line.strip_prefix("PARTNAME="));
    let mount_point = mount_point(mounts, &device);
    let space = (!mount_point.is_empty())
        .then(|| rustix::fs::statvfs(mount_point.as_str()).ok())
        .flatten();
    Some(Partition {
        name: named.unwrap_or_default().to_owned(),
        size: size(directory)?,
        available: space.map_or(0, |space| space.f_bavail * space.f_frsize),
        mount_point,
        device,
    })
}

fn mount_point(mounts: &[(String, String)], device: &str) -> String {
    let found = mounts.iter().find(|(mounted, _)| mounted == device);
    found.map(|(_, target)| target.clone()).unwrap_or_default()
}

fn size(directory: &Path) -> Option<u64> {
    Some(attribute(&directory.join("size"))?.parse::<u64>().ok()? * SECTOR)
}

fn attribute(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_their_partitions_and_mounts() {
        let dir = std::env::temp_dir().join(format!("node-api-disks-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sda/size", "4194304\n");
        write("sda/queue/rotational", "1\n");
        write("sda/device/model", "QEMU HARDDISK   \n");
        write("sda/sda3/size", "2048\n");
        write("sda/sda3/partition", "3\n");
        write("sda/sda3/uevent", "DEVTYPE=partition\nPARTNAME=IRONLET-STATE\n");
        write("sda3/partition", "3\n");
        write("sda3/size", "2048\n");
        write("loop0/size", "99\n");
        write("sr0/size", "0\n");
        let mounts = mounts("proc /proc proc rw 0 0\n/dev/sda3 /nowhere/at/all ext4 rw 0 0\n");
        let disks = list(&dir, &mounts);
        assert_eq!(disks.len(), 1, "{disks:?}");
        let disk = &disks[0];
        assert_eq!(
            (
                disk.device.as_str(),
                disk.size,
                disk.model.as_str(),
                disk.kind.as_str()
            ),
            ("/dev/sda", 2 << 30, "QEMU HARDDISK", "hdd")
        );
        let partition = &disk.partitions[0];
        assert_eq!(
            (
                partition.name.as_str(),
                partition.mount_point.as_str(),
                partition.size
            ),
            ("IRONLET-STATE", "/nowhere/at/all", 1 << 20)
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
