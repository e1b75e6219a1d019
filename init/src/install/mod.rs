//! `ironlet.install`: the running system writes itself to a disk, and the machine reboots into it.

mod target;

use crate::{
    console,
    disk::devices,
    sys::{block, clock},
    thread::keep,
};
use boot_disk::{DiskError, Initramfs, Loader, System};
use node_config::InstallTarget;
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use target::Choice;

/// GRUB's parts in the image.
const LOADER: &str = "/usr/lib/ironlet/loader";
/// Disks behind controllers and hubs appear some time after their drivers.
const DISKS_WITHIN: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(10);

/// Parameters that are of this boot only.
const NOT_KEPT: &[&str] = &[
    "BOOT_IMAGE=",
    "initrd=",
    "ironlet.install=",
    "ironlet.slot=",
    "ironlet.trial=",
    "ironlet.wipe=",
];

/// The files that the boot medium handed over, held open from before the initramfs was emptied.
pub struct Payload {
    pub root: File,
    pub early: File,
    pub kernel: File,
}

/// What the command line asks for.
pub struct Order {
    pub target: InstallTarget,
    pub wipe: bool,
    /// `None`: the boot medium brought no kernel.
    pub payload: Option<Payload>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Written and read back.
    Installed(PathBuf),
    /// The disk has a system of ours already: it stays.
    Present(PathBuf),
}

#[derive(Debug, thiserror::Error)]
enum InstallError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{0}: {1}")]
    Disk(PathBuf, DiskError),
    #[error("{0}")]
    Refused(String),
    #[error(
        "this boot medium brings no kernel to install: boot from the ISO or by the PXE script of `image build`"
    )]
    NoKernel,
    #[error("this image has no boot loader to install ({LOADER}): build it with --format iso or pxe")]
    NoLoader,
}

fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.into();
    |error| InstallError::Io { path, error }
}

/// Tries until it succeeds, telling what is in the way.
pub fn start(order: Order, devices_settled: Arc<AtomicBool>, done: impl Fn(Outcome) + Send + 'static) {
    keep("install", move || {
        while !devices_settled.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(100));
        }
        thread::sleep(DISKS_WITHIN);
        let mut told = String::new();
        loop {
            match attempt(&order) {
                Ok(outcome) => return done(outcome),
                Err(error) => {
                    let text = error.to_string();
                    if text != told {
                        console::say(format_args!("INSTALL: {text}"));
                        told = text;
                    }
                }
            }
            thread::sleep(RETRY);
        }
    });
}

fn attempt(order: &Order) -> Result<Outcome, InstallError> {
    let disks = devices::disks().map_err(at("/sys/class/block"))?;
    let disk = match target::choose(&order.target, order.wipe, &disks) {
        Choice::Write(path) => path,
        Choice::Present(path) => return Ok(Outcome::Present(path)),
        Choice::Refuse(reason) => return Err(InstallError::Refused(reason)),
    };
    let payload = order.payload.as_ref().ok_or(InstallError::NoKernel)?;
    write(&disk, payload)?;
    Ok(Outcome::Installed(disk))
}

fn write(disk: &Path, payload: &Payload) -> Result<(), InstallError> {
    let started = clock::since_boot();
    console::say(format_args!("INSTALL: writing to {}", disk.display()));
    let given = fs::read_to_string("/proc/cmdline").map_err(at("/proc/cmdline"))?;
    let root = payload.root.try_clone().map_err(at(boot_disk::ROOT))?;
    let initramfs = Initramfs::of_files(root, &payload.early).map_err(at(boot_disk::EARLY))?;
    let system = System {
        files: [&payload.kernel, &initramfs],
        cmdline: &kept(&given),
    };
    let loader = loader()?;
    let mut identity = [0; 16];
    let random = Path::new("/dev/urandom");
    File::open(random)
        .and_then(|mut random| random.read_exact(&mut identity))
        .map_err(at(random))?;
    // Exclusive: not while something of the disk is mounted.
    let mut device = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(disk)
        .map_err(at(disk))?;
    boot_disk::install(&mut device, &loader, &system, identity, |device| {
        block::flush(device)
    })
    .map_err(|error| InstallError::Disk(disk.to_owned(), error))?;
    let seconds = (clock::since_boot() - started).as_secs();
    console::say(format_args!(
        "INSTALL: {}: written and read back in {seconds} s",
        disk.display()
    ));
    block::read_partitions(&device).map_err(at(disk))
}

fn loader() -> Result<Loader, InstallError> {
    let part = |name: &str| {
        let path = Path::new(LOADER).join(name);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(InstallError::NoLoader),
            result => result.map_err(at(path)),
        }
    };
    Ok(Loader {
        boot_sector: part("boot.img")?,
        core: part("core.img")?,
        efi: part("bootx64.efi")?,
    })
}

/// The installed system's parameters: this boot's, without what was meant for this boot.
fn kept(cmdline: &str) -> String {
    let mut words: Vec<&str> = cmdline.split_whitespace().collect();
    // Some loaders put the kernel's name first.
    if words
        .first()
        .is_some_and(|word| word.ends_with("vmlinuz") && !word.contains('='))
    {
        words.remove(0);
    }
    words.retain(|word| !NOT_KEPT.iter().any(|name| word.starts_with(name)));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_installed_system_keeps_what_is_not_of_this_boot() {
        let given = "vmlinuz BOOT_IMAGE=(kernel)/vmlinuz console=ttyS0 ip=dhcp initrd=initrd.magic ironlet.install=auto ironlet.token=a.b\n";
        assert_eq!(super::kept(given), "console=ttyS0 ip=dhcp ironlet.token=a.b");
    }
}
