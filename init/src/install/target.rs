//! Which disk an install goes to. Pure: nothing with data on it is ever chosen by itself.

use crate::disk::{devices::Disk, signature::Content};
use node_config::InstallTarget;
use std::path::PathBuf;

#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    Write(PathBuf),
    /// A system of ours is there.
    Present(PathBuf),
    Refuse(String),
}

/// Smaller disks have no room for the systems and some state.
const LEAST_BYTES: u64 = 2_000_000_000;

pub fn choose(target: &InstallTarget, wipe: bool, disks: &[Disk]) -> Choice {
    match target {
        InstallTarget::Device(path) => {
            let Some(disk) = disks.iter().find(|disk| disk.path == *path) else {
                return Choice::Refuse(format!(
                    "ironlet.install={}: no such disk; there are {}",
                    path.display(),
                    listed(disks)
                ));
            };
            if wipe || (disk.is_blank() && !disk.installed) {
                Choice::Write(path.clone())
            } else if disk.installed {
                Choice::Present(path.clone())
            } else {
                Choice::Refuse(format!(
                    "{}: it is not overwritten without ironlet.wipe=yes",
                    described(disk)
                ))
            }
        }
        InstallTarget::Auto => {
            if let Some(disk) = disks.iter().find(|disk| disk.installed) {
                return Choice::Present(disk.path.clone());
            }
            let empty = disks
                .iter()
                .filter(|disk| disk.is_blank() && disk.bytes >= LEAST_BYTES);
            match empty.min_by_key(|disk| disk.bytes) {
                Some(disk) => Choice::Write(disk.path.clone()),
                None => Choice::Refuse(format!(
                    "ironlet.install=auto: no empty disk of {} GB or more; there are {}. Name one with ironlet.install=/dev/… and, if it may be overwritten, ironlet.wipe=yes",
                    LEAST_BYTES / 1_000_000_000,
                    listed(disks)
                )),
            }
        }
    }
}

fn listed(disks: &[Disk]) -> String {
    if disks.is_empty() {
        return "none".to_owned();
    }
    disks.iter().map(described).collect::<Vec<_>>().join(", ")
}

fn described(disk: &Disk) -> String {
    let content = match &disk.content {
        Content::Blank => "nothing",
        Content::Ext { .. } => "an ext4 file system",
        Content::Other(what) => what,
    };
    format!(
        "{} ({} MB) with {content}",
        disk.path.display(),
        disk.bytes / 1_000_000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(path: &str, gigabytes: u64, content: Content, installed: bool) -> Disk {
        Disk {
            path: path.into(),
            bytes: gigabytes * 1_000_000_000,
            content,
            installed,
        }
    }

    #[test]
    fn only_empty_disks_are_taken_unless_one_is_named_and_may_be_wiped() {
        let gpt = Content::Other("a GPT partition table");
        let disks = [
            disk("/dev/sda", 500, Content::Blank, false),
            disk("/dev/sdb", 8, gpt.clone(), false),
            disk("/dev/sdc", 100, Content::Blank, false),
            disk("/dev/sdd", 1, Content::Blank, false),
        ];
        let named = |path: &str| InstallTarget::Device(path.into());
        let choose = |target: &InstallTarget, wipe| super::choose(target, wipe, &disks);
        assert_eq!(
            choose(&InstallTarget::Auto, true),
            Choice::Write("/dev/sdc".into())
        );
        assert_eq!(
            choose(&named("/dev/sda"), false),
            Choice::Write("/dev/sda".into())
        );
        assert_eq!(choose(&named("/dev/sdb"), true), Choice::Write("/dev/sdb".into()));
        for (target, part) in [
            (
                named("/dev/sdb"),
                "/dev/sdb (8000 MB) with a GPT partition table: it is not overwritten without ironlet.wipe=yes",
            ),
            (
                named("/dev/sdx"),
                "ironlet.install=/dev/sdx: no such disk; there are /dev/sda",
            ),
        ] {
            let Choice::Refuse(reason) = choose(&target, false) else {
                panic!("{target:?} is not refused");
            };
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn an_installed_disk_stays() {
        let disks = [
            disk("/dev/sda", 500, Content::Blank, false),
            disk("/dev/sdb", 8, Content::Other("a GPT partition table"), true),
        ];
        let present = Choice::Present("/dev/sdb".into());
        assert_eq!(choose(&InstallTarget::Auto, false, &disks), present);
        let named = InstallTarget::Device("/dev/sdb".into());
        assert_eq!(choose(&named, false, &disks), present);
        assert_eq!(choose(&named, true, &disks), Choice::Write("/dev/sdb".into()));
    }
}
