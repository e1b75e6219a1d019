//! The initramfs: two archives one after the other (the kernel unpacks them all). The first holds the root image as it
//! is, since it is compressed already, and a copy of the second, so that a running system can write the whole again;
//! the second is the small compressed one with PID 1.

use crate::{Source, cpio};
use std::{
    fs::File,
    io::{self, Read},
};

/// The root file system's image.
pub const ROOT: &str = "root.sqsh";
/// The small archive.
pub const EARLY: &str = "early.img";

/// An initramfs of its parts.
pub struct Initramfs<R> {
    head: Vec<u8>,
    root: R,
    tail: Vec<u8>,
}

impl<R: Source> Initramfs<R> {
    /// `size` is the root image's.
    pub fn new(root: R, size: u32, early: &[u8]) -> Self {
        let mut head = Vec::with_capacity(early.len() + 1024);
        let early_size = u32::try_from(early.len()).unwrap_or(u32::MAX);
        cpio::header(&mut head, EARLY, 1, cpio::REGULAR, 1, early_size);
        head.extend_from_slice(early);
        cpio::pad(&mut head);
        cpio::header(&mut head, ROOT, 2, cpio::REGULAR, 1, size);
        let mut tail = vec![0; (size.next_multiple_of(4) - size) as usize];
        cpio::trailer(&mut tail);
        // The trailer ends where the whole is a multiple of four, not the tail alone.
        let whole = head.len() + size as usize + tail.len();
        tail.resize(tail.len() + whole.next_multiple_of(4) - whole, 0);
        tail.extend_from_slice(early);
        Self { head, root, tail }
    }
}

impl Initramfs<File> {
    pub fn of_files(root: File, mut early: &File) -> io::Result<Self> {
        let size = root.metadata()?.len();
        let size = u32::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = Vec::new();
        early.read_to_end(&mut bytes)?;
        Ok(Self::new(root, size, &bytes))
    }
}

impl<R: Source> Source for Initramfs<R> {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        let root = self.root.open()?;
        Ok(Box::new(
            self.head.as_slice().chain(root).chain(self.tail.as_slice()),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_aligned_whatever_their_sizes() {
        for (root, early) in [(5_usize, 3_usize), (8, 4), (6, 1)] {
            let early_bytes = vec![b'e'; early];
            let initramfs = Initramfs::new(vec![b'r'; root], root as u32, &early_bytes);
            let mut whole = Vec::new();
            initramfs.open().unwrap().read_to_end(&mut whole).unwrap();
            let positions: Vec<usize> = whole
                .windows(6)
                .enumerate()
                .filter(|(_, window)| *window == b"070701")
                .map(|(at, _)| at)
                .collect();
            assert_eq!(positions.len(), 3);
            assert!(positions.iter().all(|at| at % 4 == 0), "{positions:?}");
            assert!(whole.ends_with(&early_bytes));
            assert_eq!((whole.len() - early) % 4, 0);
        }
    }
}
