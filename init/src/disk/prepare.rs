//! From a device to a mounted /var: format when blank, check, mount.

use super::{DiskError, LABEL, MOUNT_POINT, devices, find, signature::Content};
use crate::{
    console, programs,
    services::reaper::Reaper,
    sys::{block, process::Exit},
};
use node_config::DiskSelector;
use rustix::mount::{MountFlags, mount};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// Every feature is named: the image has no mke2fs.conf, and a disk must not depend on one.
const MKE2FS: &[&str] = &[
    "-q",
    "-F",
    "-b",
    "4096",
    "-I",
    "256",
    "-m",
    "1",
    "-O",
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
    "-E",
    "lazy_itable_init=1,lazy_journal_init=1",
    "-L",
    LABEL,
];

/// e2fsck(8): errors were corrected.
const CORRECTED: i32 = 1 | 2;

/// Mounts the selected disk at /var and returns its device.
pub fn state_disk(selector: &DiskSelector, reaper: &Reaper) -> Result<PathBuf, DiskError> {
    let (device, content) = find::find(selector)?;
    if let Err(reason) = grow_partition(&device) {
        console::say(format_args!(
            "state disk: {} stays as small as it is: {reason}",
            device.display()
        ));
    }
    match content {
        Content::Ext { .. } => check(&device, reaper)?,
        Content::Blank => {
            console::say(format_args!(
                "state disk: {} is blank: formatting",
                device.display()
            ));
            match run("mke2fs", MKE2FS, &device, reaper)? {
                Exit::Code(0) => {}
                exit => {
                    return Err(DiskError::Program {
                        program: "mke2fs",
                        device,
                        exit,
                    });
                }
            }
        }
        Content::Other(content) => {
            return Err(DiskError::Foreign {
                device,
                content: content.to_owned(),
            });
        }
    }
    mount(
        &device,
        MOUNT_POINT,
        "ext4",
        MountFlags::NOATIME | MountFlags::NODEV,
        c"errors=remount-ro",
    )
    .map_err(|error| DiskError::Io {
        path: device.clone(),
        error: error.into(),
    })?;
    if let Err(error) = grow_file_system(&device) {
        console::say(format_args!(
            "state disk: the file system stays as small as it is: {error}"
        ));
    }
    Ok(device)
}

/// An image of a disk is smaller than the disk it is written to.
fn grow_partition(device: &Path) -> Result<(), String> {
    let ours = devices::partition_name(device).is_some_and(|name| name == LABEL);
    let Some(path) = devices::disk_of(device).filter(|_| ours) else {
        return Ok(());
    };
    let open = File::options().read(true).write(true).open(&path);
    let mut disk = open.map_err(|error| format!("{}: {error}", path.display()))?;
    let grown = boot_disk::grow(&mut disk, |disk| block::flush(disk)).map_err(|error| error.to_string())?;
    if let Some(size) = grown {
        block::read_partitions(&disk).map_err(|error| format!("{}: {error}", path.display()))?;
        console::say(format_args!(
            "state disk: {} has grown to {} MiB, the end of {}",
            device.display(),
            size >> 20,
            path.display()
        ));
    }
    Ok(())
}

/// The file system takes what its device has; most times it has all.
fn grow_file_system(device: &Path) -> io::Result<()> {
    let mounted = File::open(MOUNT_POINT)?;
    let block_size = rustix::fs::fstatvfs(&mounted)?.f_frsize;
    block::grow_ext4(&mounted, devices::size(device) / block_size)
}

/// Replays the journal and mends what is safe to mend; what is not stops the disk from being used.
fn check(device: &Path, reaper: &Reaper) -> Result<(), DiskError> {
    match run("e2fsck", &["-p"], device, reaper)? {
        Exit::Code(0) => Ok(()),
        Exit::Code(code) if code & !CORRECTED == 0 => {
            console::say(format_args!(
                "state disk: {}: errors were corrected",
                device.display()
            ));
            Ok(())
        }
        exit => Err(DiskError::Program {
            program: "e2fsck",
            device: device.to_owned(),
            exit,
        }),
    }
}

fn run(program: &'static str, args: &[&str], device: &Path, reaper: &Reaper) -> Result<Exit, DiskError> {
    let path = programs::find(program).ok_or(DiskError::NoProgram { program })?;
    let mut command = programs::command(program);
    command.args(args).arg(device);
    let (exit, output) = reaper
        .run(command)
        .map_err(|error| DiskError::Io { path, error })?;
    output
        .lines()
        .filter(|line| !line.trim().is_empty())
        .for_each(|line| console::relay(program, line));
    Ok(exit)
}
