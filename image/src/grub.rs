//! GRUB for disks and media, made by the host's tools: a core for BIOS, an application for UEFI, a rescue ISO.

use crate::run::{RunError, run};
use boot_disk::Loader;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

const BIOS: &str = "/usr/lib/grub/i386-pc";
const UEFI: &str = "/usr/lib/grub/x86_64-efi";
/// Where GRUB's directory is on an installed disk: its second partition.
const DISK_PREFIX: &str = "(,gpt2)/grub";
const MODULES: &[&str] = &[
    "configfile",
    "echo",
    "fat",
    "halt",
    "linux",
    "loadenv",
    "minicmd",
    "normal",
    "part_gpt",
    "reboot",
    "search",
    "search_label",
    "serial",
    "sleep",
    "terminal",
    "test",
];
const MEDIA_MODULES: &[&str] = &[
    "all_video",
    "echo",
    "halt",
    "linux",
    "loopback",
    "minicmd",
    "newc",
    "normal",
    "reboot",
    "serial",
    "terminal",
    "test",
];
/// The volume identifier of our media.
const ISO_LABEL: &str = "IRONLET";

#[derive(Debug, thiserror::Error)]
pub enum GrubError {
    #[error("{action} {path}: {error}")]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Makes the parts that an installed disk needs; `work` is an empty directory.
pub fn loader(work: &Path) -> Result<Loader, GrubError> {
    let read = |path: &Path| {
        fs::read(path).map_err(|error| GrubError::Io {
            action: "read",
            path: path.to_owned(),
            error,
        })
    };
    let make = |format: &str, modules: &str, extra: &[&str]| {
        let out = work.join(format);
        run(Command::new("grub-mkimage")
            .args([
                "--format",
                format,
                "--directory",
                modules,
                "--prefix",
                DISK_PREFIX,
            ])
            .arg("--output")
            .arg(&out)
            .args(MODULES)
            .args(extra))?;
        read(&out)
    };
    Ok(Loader {
        boot_sector: read(&Path::new(BIOS).join("boot.img"))?,
        core: make("i386-pc", BIOS, &["biosdisk"])?,
        efi: make("x86_64-efi", UEFI, &["all_video", "efi_gop"])?,
    })
}

/// Makes a hybrid ISO of a directory that holds boot/grub/grub.cfg: for CD and USB, BIOS and UEFI.
pub fn rescue(directory: &Path, out: &Path) -> Result<(), GrubError> {
    run(Command::new("grub-mkrescue")
        .arg("--output")
        .arg(out)
        .arg(format!("--install-modules={}", MEDIA_MODULES.join(" ")))
        .args(["--fonts=", "--locales=", "--themes="])
        .arg(directory)
        .args(["--", "-volid", ISO_LABEL]))?;
    Ok(())
}
