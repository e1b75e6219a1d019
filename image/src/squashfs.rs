//! The root file system as a squashfs image, by mksquashfs, with every source of variation turned off.

use crate::{
    run::{RunError, run},
    tree::Tree,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

#[derive(Debug, thiserror::Error)]
pub enum SquashfsError {
    #[error("{action} {path}: {error}")]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Packs the tree; `work` is an empty directory. Equal trees give equal bytes with the same mksquashfs.
pub fn pack(tree: &Tree, work: &Path) -> Result<Vec<u8>, SquashfsError> {
    let io_error = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error| SquashfsError::Io { action, path, error }
    };
    let (staging, out) = (work.join("root"), work.join("root.sqsh"));
    fs::create_dir(&staging).map_err(io_error("create", &staging))?;
    tree.write_to(&staging)
        .map_err(io_error("write below", &staging))?;
    run(Command::new("mksquashfs")
        .arg(&staging)
        .arg(&out)
        .args(["-noappend", "-quiet", "-no-progress", "-all-root", "-no-xattrs", "-exit-on-error"])
        .args(["-root-mode", "0755", "-mkfs-time", "0", "-all-time", "0"])
        .args(["-comp", "zstd", "-Xcompression-level", "19", "-b", "128K"])
        // mksquashfs refuses to have the times said twice.
        .env_remove("SOURCE_DATE_EPOCH"))?;
    fs::read(&out).map_err(io_error("read", &out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_trees_give_equal_bytes() {
        let pack_once = |name: &str| {
            let mut tree = Tree::default();
            for index in 0..200 {
                tree.file(
                    &format!("usr/lib/file-{index}"),
                    0o644,
                    vec![index as u8; 3000],
                    "x",
                )
                .unwrap();
            }
            tree.link("lib", "usr/lib", "x").unwrap();
            let work = crate::workdir::WorkDir::new(&std::env::temp_dir(), name).unwrap();
            pack(&tree, &work.sub("squashfs").unwrap()).unwrap()
        };
        let first = pack_once("squashfs-a");
        assert_eq!(&first[..4], b"hsqs");
        assert_eq!(first, pack_once("squashfs-b"));
    }
}
