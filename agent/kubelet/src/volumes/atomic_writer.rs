//! Replaces all files of a volume at once: readers see the old set or the new one, never a mixture.
//!
//! User-visible names are symlinks to `..data/NAME`, and `..data` is a symlink to a dated directory that a rename
//! switches (upstream's `AtomicWriter` layout, which programs rely on to notice updates).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::SetUpError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProjection {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Whom the file belongs to, unless to root.
    pub user: Option<u32>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, FileProjection>;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// Returns whether anything changed.
pub fn write(volume: &Path, payload: &Payload, fs_group: Option<i64>) -> Result<bool, SetUpError> {
    fs::create_dir_all(volume).map_err(SetUpError::file("create", volume))?;
    let data = volume.join(DATA);
    let present = fs::read_link(&data).ok();
    if present
        .as_ref()
        .is_some_and(|dir| is_current(&volume.join(dir), payload))
    {
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now().as_nanosecond();
    let name = format!("..{stamp}");
    let dir = volume.join(&name);
    fs::create_dir(&dir).map_err(SetUpError::file("create", &dir))?;
    set_mode(&dir, 0o755)?;
    for (path, file) in payload {
        write_file(&dir.join(path), file, fs_group)?;
    }
    let tmp = volume.join(DATA_TMP);
    remove_if_present(&tmp)?;
    symlink(&name, &tmp).map_err(SetUpError::file("link", &tmp))?;
    fs::rename(&tmp, &data).map_err(SetUpError::file("rename", &tmp))?;
    link_names(volume, payload)?;
    remove_stale(volume, &name)?;
    Ok(true)
}

fn is_current(dir: &Path, payload: &Payload) -> bool {
    let mut found = 0;
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        let Ok(entries) = fs::read_dir(&next) else {
            return false;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let name = path
                .strip_prefix(dir)
                .ok()
                .and_then(Path::to_str)
                .unwrap_or_default();
            match payload.get(name) {
                Some(file) if fs::read(&path).is_ok_and(|data| data == file.data) => found += 1,
                _ => return false,
            }
        }
    }
    found == payload.len()
}

fn write_file(path: &Path, file: &FileProjection, fs_group: Option<i64>) -> Result<(), SetUpError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(SetUpError::file("create", parent))?;
    }
    fs::write(path, &file.data).map_err(SetUpError::file("write", path))?;
    let mode = if fs_group.is_some() {
        file.mode | 0o440
    } else {
        file.mode
    };
    set_mode(path, mode)?;
    let group = fs_group.and_then(|group| u32::try_from(group).ok());
    if file.user.or(group).is_some() {
        std::os::unix::fs::chown(path, file.user, group).map_err(SetUpError::file("chown", path))?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), SetUpError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(SetUpError::file("chmod", path))
}

fn remove_if_present(path: &Path) -> Result<(), SetUpError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(SetUpError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn first_part(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

fn link_names(volume: &Path, payload: &Payload) -> Result<(), SetUpError> {
    let names: BTreeSet<&str> = payload.keys().map(|path| first_part(path)).collect();
    for name in names {
        let link = volume.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), &link).map_err(SetUpError::file("link", &link))?;
        }
    }
    Ok(())
}

/// Removes names that are no longer projected and the directories of earlier writes.
fn remove_stale(volume: &Path, current: &str) -> Result<(), SetUpError> {
    let entries = fs::read_dir(volume).map_err(SetUpError::file("list", volume))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == DATA || name == current {
            continue;
        }
        if name.starts_with("..") {
            fs::remove_dir_all(&path).map_err(SetUpError::file("remove", &path))?;
        } else if !path.exists() {
            remove_if_present(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, data)| {
                (
                    (*path).to_owned(),
                    FileProjection {
                        data: data.as_bytes().into(),
                        mode: 0o640,
                        user: None,
                    },
                )
            })
            .collect()
    }

    fn names(volume: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(volume)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !name.starts_with(".."));
        names.sort();
        names
    }

    #[test]
    fn writes_updates_and_removes() {
        let dir = TempDir::new("atomic");
        let volume = dir.path().join("v");
        assert!(write(&volume, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!(names(&volume), ["a", "sub"]);
        assert_eq!(fs::read_to_string(volume.join("sub/b")).unwrap(), "2");
        assert_eq!(
            fs::metadata(volume.join("a")).unwrap().permissions().mode() & 0o777,
            0o640
        );
        let before = fs::read_link(volume.join("..data")).unwrap();

        assert!(!write(&volume, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!(
            fs::read_link(volume.join("..data")).unwrap(),
            before,
            "an unchanged volume is not touched"
        );

        assert!(write(&volume, &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!(names(&volume), ["a", "c"]);
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(!volume.join(before).exists(), "the old directory is gone");
    }

    #[test]
    fn files_belong_to_the_group_and_user_that_are_named() {
        use std::os::unix::fs::MetadataExt;
        let dir = TempDir::new("atomic-owner");
        let own =
            |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid(), found.mode() & 0o777));
        let (root, group, _) = own(dir.path()).unwrap();
        for (name, user, fs_group, expected) in [
            ("plain", None, None, (root, group, 0o600)),
            ("user", Some(root), None, (root, group, 0o600)),
            ("group", None, Some(group), (root, group, 0o640)),
            ("both", Some(root), Some(group), (root, group, 0o640)),
        ] {
            let file = FileProjection {
                data: b"t".to_vec(),
                mode: 0o600,
                user,
            };
            let volume = dir.path().join(name);
            let payload = Payload::from([("token".to_owned(), file)]);
            write(&volume, &payload, fs_group.map(i64::from)).unwrap();
            assert_eq!(own(&volume.join("token")).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn recovers_from_an_interrupted_write() {
        let dir = TempDir::new("atomic-crash");
        let volume = dir.path();
        write(volume, &payload(&[("a", "1")]), None).unwrap();
        fs::create_dir(volume.join("..999")).unwrap();
        symlink("..999", volume.join(DATA_TMP)).unwrap();
        assert!(write(volume, &payload(&[("a", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "2");
        assert!(!volume.join("..999").exists() && volume.join(DATA_TMP).symlink_metadata().is_err());
    }

    #[test]
    fn an_empty_payload_is_an_empty_volume() {
        let dir = TempDir::new("atomic-empty");
        assert!(write(dir.path(), &Payload::new(), None).unwrap());
        assert!(!write(dir.path(), &Payload::new(), None).unwrap());
        assert!(names(dir.path()).is_empty());
    }
}
