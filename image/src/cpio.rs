//! A tree as an initramfs archive.

use crate::tree::{Node, Tree};
use boot_disk::cpio;

/// Directory, regular file, symbolic link: the `S_IFMT` bits.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// The tree as an archive owned by root with zero times. Equal trees give equal bytes.
pub fn archive(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    let mut inode = 0;
    for (path, entry) in tree.iter() {
        inode += 1;
        let (kind, links, data): (u32, u32, &[u8]) = match &entry.node {
            Node::Directory => (DIRECTORY, 2, &[]),
            Node::File(data) => (REGULAR, 1, data),
            Node::Link(target) => (LINK, 1, target.as_bytes()),
        };
        let size = u32::try_from(data.len()).expect("a file of an image is below 4 GiB");
        cpio::header(&mut out, path, inode, kind | entry.mode, links, size);
        out.extend_from_slice(data);
        cpio::pad(&mut out);
    }
    cpio::trailer(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    fn fixture() -> Tree {
        let mut tree = Tree::default();
        tree.file("init", 0o755, "#!", "init").unwrap();
        tree.directory("proc", 0o555, "root").unwrap();
        tree.file("usr/lib/a", 0o644, "abcde", "lib").unwrap();
        tree.link("lib", "usr/lib", "root").unwrap();
        tree
    }

    #[test]
    fn equal_trees_give_equal_aligned_bytes() {
        let first = archive(&fixture());
        assert_eq!(first, archive(&fixture()));
        assert_eq!(first.len() % 4, 0);
    }

    #[test]
    fn gnu_cpio_reads_what_we_wrote() {
        let mut child = Command::new("cpio")
            .args(["-tv", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed by qemu/setup");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&archive(&fixture()))
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<String> = listing
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "-rwxr-xr-x 1 0 0 2 Jan 1 1970 init",
                "lrwxrwxrwx 1 0 0 7 Jan 1 1970 lib -> usr/lib",
                "dr-xr-xr-x 2 0 0 0 Jan 1 1970 proc",
                "drwxr-xr-x 2 0 0 0 Jan 1 1970 usr",
                "drwxr-xr-x 2 0 0 0 Jan 1 1970 usr/lib",
                "-rw-r--r-- 1 0 0 5 Jan 1 1970 usr/lib/a",
            ]
        );
    }
}
