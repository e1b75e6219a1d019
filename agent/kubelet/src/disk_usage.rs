//! How much of a file system a directory takes.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

impl Usage {
    pub fn add(&mut self, more: Self) {
        self.bytes += more.bytes;
        self.inodes += more.inodes;
    }
}

/// Bytes and inodes below a path on its own file system, each inode counted once.
pub fn of(path: &Path) -> Usage {
    walk(path, None, &mut HashSet::new())
}

fn walk(path: &Path, device: Option<u64>, seen: &mut HashSet<u64>) -> Usage {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Usage::default();
    };
    if device.is_some_and(|device| device != metadata.dev()) || !seen.insert(metadata.ino()) {
        return Usage::default();
    }
    let mut sum = Usage {
        bytes: metadata.blocks() * 512,
        inodes: 1,
    };
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            sum.add(walk(&entry.path(), Some(metadata.dev()), seen));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_links_count_once() {
        let dir = crate::volumes::testing::TempDir::new("usage");
        std::fs::write(dir.path().join("a"), vec![1; 10_000]).unwrap();
        let one = of(dir.path());
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_eq!((of(dir.path()), one.inodes), (one, 2));
        assert!(one.bytes >= 10_000);
    }
}
