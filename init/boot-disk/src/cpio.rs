//! The kernel's initramfs format: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst), with
//! everything owned by root and without times.

const TRAILER: &str = "TRAILER!!!";

/// `S_IFREG` and the usual mode.
pub const REGULAR: u32 = 0o100_644;

/// What stands before a member's data. Inodes are to differ within an archive.
pub fn header(out: &mut Vec<u8>, name: &str, inode: u32, mode: u32, links: u32, size: u32) {
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
}

/// The end of an archive.
pub fn trailer(out: &mut Vec<u8>) {
    header(out, TRAILER, 0, 0, 1, 0);
}

/// Members begin at multiples of four bytes.
pub fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}
