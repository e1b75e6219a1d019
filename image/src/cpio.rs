//! The kernel's initramfs format: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

use crate::tree::{Node, Tree};

const TRAILER: &str = "TRAILER!!!";

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
        member(&mut out, path, inode, kind | entry.mode, links, data);
    }
    member(&mut out, TRAILER, 0, 0, 1, &[]);
    out
}

fn member(out: &mut Vec<u8>, name: &str, inode: u32, mode: u32, links: u32, data: &[u8]) {
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    let size = u32::try_from(data.len()).expect("a file of an image is below 4 GiB");
    let name_size = u32::try_from(name.len() + 1).expect("a path is below 4 GiB");
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
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
