//! A part of a disk that looks like a disk of its own.

use crate::Disk;
use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
};

pub struct Window<'a, D> {
    disk: &'a mut D,
    range: Range<u64>,
    position: u64,
}

impl<'a, D: Disk> Window<'a, D> {
    pub fn new(disk: &'a mut D, range: Range<u64>) -> Self {
        Self {
            disk,
            range,
            position: 0,
        }
    }

    /// Goes to the position, and says how much of `wanted` bytes lies within.
    fn place(&mut self, wanted: usize) -> io::Result<usize> {
        let left = (self.range.end - self.range.start).saturating_sub(self.position);
        self.disk
            .seek(SeekFrom::Start(self.range.start + self.position))?;
        Ok(wanted.min(usize::try_from(left).unwrap_or(usize::MAX)))
    }
}

impl<D: Disk> Read for Window<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.place(buffer.len())?;
        let read = self.disk.read(&mut buffer[..length])?;
        self.position += read as u64;
        Ok(read)
    }
}

impl<D: Disk> Write for Window<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.place(bytes.len())?;
        let written = self.disk.write(&bytes[..length])?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }
}

impl<D: Disk> Seek for Window<'_, D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (self.range.end - self.range.start, offset),
        };
        self.position = base
            .checked_add_signed(offset)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
