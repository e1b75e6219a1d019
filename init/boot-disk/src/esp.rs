//! The EFI system partition: GRUB and its configuration, and one directory a slot.

use crate::{
    Disk, DiskError, Loader, Source, at,
    boot_config::{Environment, GRUB_CONFIG, SLOT_FILES},
    window::Window,
};
use fatfs::{Dir, FatType, FileSystem, FormatVolumeOptions, FsOptions};
use std::{
    io::{BufReader, BufWriter, Read, Write},
    ops::Range,
};

const LABEL: [u8; 11] = *b"IRONLET    ";
/// The system in use after an install, and the one that no upgrade touches.
const SLOTS: [&str; 2] = ["A", "factory"];
const CHUNK: usize = 1 << 20;

type Files<'a> = [&'a dyn Source; SLOT_FILES.len()];

pub fn write<D: Disk>(
    disk: &mut D,
    range: Range<u64>,
    loader: &Loader,
    files: Files<'_>,
    slot: &str,
) -> Result<(), DiskError> {
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .volume_label(LABEL);
    fatfs::format_volume(Window::new(disk, range.clone()), options).map_err(at("format"))?;
    let volume = FileSystem::new(Window::new(disk, range), FsOptions::new()).map_err(at("open"))?;
    let root = volume.root_dir();
    for directory in ["EFI", "EFI/BOOT", "grub", "A", "B", "factory"] {
        root.create_dir(directory).map_err(at(directory))?;
    }
    put(&root, "EFI/BOOT/BOOTX64.EFI", &mut loader.efi.as_slice())?;
    put(&root, "grub/grub.cfg", &mut GRUB_CONFIG.as_bytes())?;
    put(
        &root,
        "grub/grubenv",
        &mut Environment::default().render()?.as_bytes(),
    )?;
    for directory in SLOTS {
        put(&root, &format!("{directory}/boot.cfg"), &mut slot.as_bytes())?;
    }
    for (name, file) in SLOT_FILES.iter().zip(files) {
        for directory in SLOTS {
            let mut from = file.open().map_err(at(name))?;
            put(&root, &format!("{directory}/{name}"), &mut from)?;
        }
    }
    drop(root);
    volume.unmount().map_err(at("close"))
}

pub(crate) fn put<D: Disk>(
    root: &Dir<'_, Window<'_, D>>,
    path: &str,
    from: &mut (impl Read + ?Sized),
) -> Result<(), DiskError> {
    let file = root.create_file(path).map_err(at(path))?;
    let mut writer = BufWriter::with_capacity(CHUNK, file);
    std::io::copy(from, &mut writer).map_err(at(path))?;
    writer.flush().map_err(at(path))
}

pub fn verify<D: Disk>(disk: &mut D, range: Range<u64>, files: Files<'_>) -> Result<(), DiskError> {
    let volume = FileSystem::new(Window::new(disk, range), FsOptions::new()).map_err(at("open"))?;
    let root = volume.root_dir();
    for (name, file) in SLOT_FILES.iter().zip(files) {
        for directory in SLOTS {
            let path = format!("{directory}/{name}");
            let mut source = file.open().map_err(at(name))?;
            let written = root.open_file(&path).map_err(at(&path))?;
            if !same(&mut BufReader::with_capacity(CHUNK, written), &mut source).map_err(at(&path))? {
                return Err(DiskError::ReadBack(path));
            }
        }
    }
    Ok(())
}

fn same(a: &mut impl Read, b: &mut impl Read) -> std::io::Result<bool> {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        a.take(CHUNK as u64).read_to_end(&mut left)?;
        b.take(CHUNK as u64).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}
