//! What an installed disk looks like, written by the installer on a machine and by `image build --format disk` alike:
//! a GPT with a place for GRUB's BIOS core, an EFI system partition that holds the systems, and the state partition.
//!
//! The table of partitions comes last: until it is there the disk counts as blank, and an install that was cut off
//! starts anew.

mod bios;
mod boot_config;
pub mod cpio;
mod esp;
mod grow;
mod initramfs;
mod systems;
mod window;

pub use boot_config::{BootError, Environment, KERNEL, SYSTEM_FILES, loader_commands};
pub use grow::grow;
pub use initramfs::{EARLY, Initramfs, ROOT};
pub use systems::{Slot, Systems};

use boot_config::slot_config;

use gptman::{GPT, GPTPartitionEntry};
use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// The name of the GPT partition, and the label of the file system, that keeps the node's state.
pub const STATE_NAME: &str = "IRONLET-STATE";
/// The name of the GPT partition with the systems; a disk that has it is installed.
pub const SYSTEM_NAME: &str = "IRONLET-SYSTEM";
const CORE_NAME: &str = "IRONLET-BIOS";

const CORE: Range<u64> = MIB..2 * MIB;
const SYSTEM: Range<u64> = 2 * MIB..514 * MIB;
/// Less room for state than this is no use to a node.
const STATE_LEAST: u64 = 512 * MIB;

/// Partition types of the UEFI and Discoverable Partitions specifications, in the table's mixed-endian bytes.
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";
const EFI_SYSTEM: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];
const LINUX_DATA: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("the disk has {} MiB and {} are needed", .size / MIB, .needed / MIB)]
    Small { size: u64, needed: u64 },
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error("partition table: {0}")]
    Table(#[from] gptman::Error),
    #[error("{0}: reads back differently from what was written: the disk is broken")]
    ReadBack(String),
    #[error(transparent)]
    Boot(#[from] BootError),
}

fn at<E: Into<io::Error>>(what: impl ToString) -> impl FnOnce(E) -> DiskError {
    let what = what.to_string();
    |error| DiskError::Io {
        what,
        error: error.into(),
    }
}

/// GRUB's parts, as files of the image.
pub struct Loader {
    /// The first sector, with the BIOS code to load `core`.
    pub boot_sector: Vec<u8>,
    pub core: Vec<u8>,
    /// The UEFI application.
    pub efi: Vec<u8>,
}

/// One bootable system.
pub struct System<'a> {
    /// What [`SYSTEM_FILES`] names, in that order.
    pub files: [&'a dyn Source; SYSTEM_FILES.len()],
    /// Kernel parameters.
    pub cmdline: &'a str,
}

/// Bytes that can be read again and again from the start, by one reader at a time.
pub trait Source {
    fn open(&self) -> io::Result<Box<dyn Read + '_>>;
}

impl Source for Vec<u8> {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.as_slice()))
    }
}

impl Source for std::fs::File {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        let mut file = self;
        file.seek(SeekFrom::Start(0))?;
        Ok(Box::new(file))
    }
}

pub trait Disk: Read + Write + Seek {}
impl<T: Read + Write + Seek> Disk for T {}

/// Writes the whole layout and reads it back. `identity` are random bytes for the disk's and the partitions' identifiers; `flush` makes
/// what was written durable, and reads after it come from the medium.
pub fn install<D: Disk>(
    disk: &mut D,
    loader: &Loader,
    system: &System<'_>,
    identity: [u8; 16],
    mut flush: impl FnMut(&mut D) -> io::Result<()>,
) -> Result<(), DiskError> {
    let size = disk.seek(SeekFrom::End(0)).map_err(at("size"))?;
    let needed = SYSTEM.end + STATE_LEAST + MIB;
    if size < needed {
        return Err(DiskError::Small { size, needed });
    }
    let slot = slot_config(system.cmdline)?;
    erase(disk, 0..MIB)?;
    erase(disk, size - MIB..size)?;
    // What looks blank is formatted at the next boot.
    erase(disk, SYSTEM.end..SYSTEM.end + MIB)?;
    flush(disk).map_err(at("flush"))?;
    let core = bios::core_at(&loader.core, CORE.start / SECTOR)?;
    write_at(disk, CORE.start, &core)?;
    esp::write(disk, SYSTEM, loader, system.files, &slot)?;
    flush(disk).map_err(at("flush"))?;
    esp::verify(disk, SYSTEM, system.files)?;
    let mut table = table(disk, identity)?;
    table.write_into(disk)?;
    flush(disk).map_err(at("flush"))?;
    write_at(
        disk,
        0,
        &bios::boot_sector(&loader.boot_sector, CORE.start / SECTOR, size / SECTOR)?,
    )?;
    flush(disk).map_err(at("flush"))
}

fn table<D: Disk>(disk: &mut D, identity: [u8; 16]) -> Result<GPT, DiskError> {
    let mut table = GPT::new_from(disk, SECTOR, identity)?;
    let last = table.header.last_usable_lba;
    let sectors = |range: Range<u64>| range.start / SECTOR..=(range.end / SECTOR - 1);
    let partitions = [
        (CORE_NAME, BIOS_BOOT, sectors(CORE)),
        (SYSTEM_NAME, EFI_SYSTEM, sectors(SYSTEM)),
        (STATE_NAME, LINUX_DATA, SYSTEM.end / SECTOR..=last),
    ];
    for (number, (name, kind, lba)) in (1_u8..).zip(partitions) {
        let mut id = identity;
        id[0] = id[0].wrapping_add(number);
        table[u32::from(number)] = GPTPartitionEntry {
            partition_type_guid: kind,
            unique_partition_guid: id,
            starting_lba: *lba.start(),
            ending_lba: *lba.end(),
            attribute_bits: 0,
            partition_name: name.into(),
        };
    }
    Ok(table)
}

fn write_at(disk: &mut impl Disk, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
    let place = || format!("write at byte {offset}");
    disk.seek(SeekFrom::Start(offset)).map_err(at(place()))?;
    disk.write_all(bytes).map_err(at(place()))
}

fn erase(disk: &mut impl Disk, range: Range<u64>) -> Result<(), DiskError> {
    write_at(disk, range.start, &vec![0; (range.end - range.start) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn loader() -> Loader {
        Loader {
            boot_sector: vec![0xeb; 512],
            core: vec![0xc0; 3000],
            efi: b"MZ efi".to_vec(),
        }
    }

    #[test]
    fn an_installed_disk_has_its_partitions_and_boot_code() {
        let mut disk = tempfile::tempfile().unwrap();
        disk.set_len(1100 * MIB).unwrap();
        let (kernel, initramfs) = (vec![1_u8; 70_000], vec![2; 3_000_000]);
        let system = System {
            files: [&kernel, &initramfs],
            cmdline: "console=ttyS0 ironlet.hostname=n1",
        };
        install(&mut disk, &loader(), &system, [7; 16], |disk| disk.sync_all()).unwrap();

        let table = GPT::find_from(&mut disk).unwrap();
        let names: Vec<String> = table
            .iter()
            .filter(|(_, entry)| entry.is_used())
            .map(|(_, entry)| entry.partition_name.to_string())
            .collect();
        assert_eq!(names, [CORE_NAME, SYSTEM_NAME, STATE_NAME]);
        let mut sector = [0; 512];
        disk.seek(SeekFrom::Start(0)).unwrap();
        disk.read_exact(&mut sector).unwrap();
        assert_eq!(sector[0x5c..0x64], 2048_u64.to_le_bytes());
        assert_eq!(sector[510..], [0x55, 0xaa]);
        assert_eq!(sector[450], 0xee, "a protective partition");
    }

    /// What a medium that loses writes looks like to the installer.
    struct Forgetful(Cursor<Vec<u8>>);

    impl Read for Forgetful {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Seek for Forgetful {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }
    impl Write for Forgetful {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes.contains(&0xab) {
                self.0.seek_relative(bytes.len() as i64)?;
                return Ok(bytes.len());
            }
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_loses_writes_gets_no_partition_table() {
        let mut disk = Forgetful(Cursor::new(vec![0; 1100 * MIB as usize]));
        let (kernel, initramfs) = (vec![1_u8; 700], vec![0xab; 700]);
        let system = System {
            files: [&kernel, &initramfs],
            cmdline: "",
        };
        let error = install(&mut disk, &loader(), &system, [7; 16], |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("initrd"), "{error}");
        assert!(disk.0.get_ref()[..MIB as usize].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_small_disk_is_refused_and_untouched() {
        let mut disk = Cursor::new(vec![5_u8; 4096]);
        let system = System {
            files: [&vec![], &vec![]],
            cmdline: "",
        };
        let error = install(&mut disk, &loader(), &system, [7; 16], |_| Ok(())).unwrap_err();
        assert!(matches!(error, DiskError::Small { .. }), "{error}");
        assert!(disk.get_ref().iter().all(|byte| *byte == 5));
    }
}
