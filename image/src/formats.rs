//! One built system in the forms that machines boot from.

use crate::{cpio, grub, rootfs::LAYOUT, tree::Tree, workdir::WorkDir};
use anyhow::Context;
use boot_disk::{KERNEL, Loader, SYSTEM_FILES, System, loader_commands};
use clap::ValueEnum;
use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

/// The raw image's size; the state partition grows to the end of the disk it is written to.
const DISK_BYTES: u64 = 2 << 30;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// vmlinuz, initramfs and cmdline, for QEMU and boot loaders
    Kernel,
    /// ironlet.iso, hybrid: CD and USB, BIOS and UEFI; its menu installs, too
    Iso,
    /// disk.raw, an installed system
    Disk,
    /// pxe/: an iPXE script and what it loads
    Pxe,
}

impl Format {
    /// Whether machines of all kinds boot it, so that it needs their drivers.
    pub fn for_servers(self) -> bool {
        self != Self::Kernel
    }
}

/// A built system: the contents of [`SYSTEM_FILES`], and its kernel parameters.
pub struct Built {
    pub files: [Vec<u8>; SYSTEM_FILES.len()],
    pub cmdline: String,
}

impl Built {
    /// Writes one format and returns the names of the files below `out`.
    pub fn write(&self, format: Format, out: &Path, loader: Option<&Loader>) -> anyhow::Result<Vec<String>> {
        match format {
            Format::Kernel => self.kernel(out),
            Format::Iso => self.iso(out),
            Format::Disk => self.disk(out, loader.context("a disk needs a boot loader")?),
            Format::Pxe => self.pxe(out),
        }
    }

    fn kernel(&self, out: &Path) -> anyhow::Result<Vec<String>> {
        self.write_system(out)?;
        write(out, "cmdline", format!("{}\n", self.cmdline).as_bytes())?;
        let names = SYSTEM_FILES.into_iter().chain(["cmdline"]);
        Ok(names.map(str::to_owned).collect())
    }

    fn write_system(&self, directory: &Path) -> anyhow::Result<()> {
        let mut files = SYSTEM_FILES.iter().zip(&self.files);
        files.try_for_each(|(name, data)| write(directory, name, data))
    }

    fn iso(&self, out: &Path) -> anyhow::Result<Vec<String>> {
        const NAME: &str = "ironlet.iso";
        let work = WorkDir::new(out, "iso").context("a work directory for the ISO")?;
        let staging = work.sub("staging")?;
        let boot = staging.join("boot");
        fs::create_dir_all(boot.join("grub")).with_context(|| format!("create {}", boot.display()))?;
        let [kernel, initramfs] = &self.files;
        let mut tree = Tree::default();
        tree.file(SYSTEM_FILES[0], 0o644, kernel.clone(), LAYOUT)?;
        write(&boot, KERNEL, &cpio::archive(&tree))?;
        write(&boot, SYSTEM_FILES[1], initramfs)?;
        write(&boot.join("grub"), "grub.cfg", self.menu()?.as_bytes())?;
        grub::rescue(&staging, &out.join(NAME))?;
        Ok(vec![NAME.to_owned()])
    }

    /// The medium's menu: `e` edits the parameters of an entry before it boots.
    fn menu(&self) -> anyhow::Result<String> {
        let mut menu = String::from(
            "serial --unit=0 --speed=115200\nterminal_input console serial\nterminal_output console serial\nset timeout=5\n",
        );
        let entries = [
            ("Ironlet (e: edit the kernel parameters)", ""),
            (
                "Install Ironlet to the smallest empty disk",
                " ironlet.install=auto",
            ),
        ];
        for (title, parameters) in entries {
            let commands = loader_commands("/boot", &format!("{}{parameters}", self.cmdline))?;
            menu += &format!("menuentry \"{title}\" {{\n{commands}}}\n");
        }
        Ok(menu)
    }

    fn pxe(&self, out: &Path) -> anyhow::Result<Vec<String>> {
        let directory = out.join("pxe");
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        self.write_system(&directory)?;
        write(&directory, "ironlet.ipxe", ipxe_script(&self.cmdline).as_bytes())?;
        let names = SYSTEM_FILES.into_iter().chain(["ironlet.ipxe"]);
        Ok(names.map(|name| format!("pxe/{name}")).collect())
    }

    fn disk(&self, out: &Path, loader: &Loader) -> anyhow::Result<Vec<String>> {
        const NAME: &str = "disk.raw";
        let partial = out.join(format!(".{NAME}.partial"));
        let mut disk = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&partial)
            .with_context(|| format!("create {}", partial.display()))?;
        disk.set_len(DISK_BYTES)?;
        let mut identity = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut identity)?;
        let [kernel, initramfs] = &self.files;
        let system = System {
            files: [kernel, initramfs],
            cmdline: &self.cmdline,
        };
        boot_disk::install(&mut disk, loader, &system, identity, |disk| disk.sync_all())?;
        fs::rename(&partial, out.join(NAME))?;
        Ok(vec![NAME.to_owned()])
    }
}

/// Boots over HTTP from beside the script. Parameters of one machine are added by the server that hands the script
/// out, or at iPXE's prompt: `set parameters …`.
fn ipxe_script(cmdline: &str) -> String {
    let [kernel, initramfs] = SYSTEM_FILES;
    format!(
        "#!ipxe\nkernel {kernel} initrd=initrd.magic {cmdline} ${{parameters}}\n\
         initrd --name {KERNEL} {kernel} /{kernel} mode=644\ninitrd {initramfs}\nboot\n"
    )
}

/// Writes a whole file or none.
pub fn write(directory: &Path, name: &str, data: &[u8]) -> anyhow::Result<()> {
    let (path, partial) = (directory.join(name), directory.join(format!(".{name}.partial")));
    fs::write(&partial, data).with_context(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, &path).with_context(|| format!("rename {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_hand_the_kernel_over_for_the_installer() {
        let built = Built {
            files: [vec![], vec![]],
            cmdline: "console=ttyS0".into(),
        };
        let menu = built.menu().unwrap();
        assert!(
            menu.contains("linux (kernel)/vmlinuz console=ttyS0 ironlet.install=auto\n"),
            "{menu}"
        );
        assert!(
            menu.contains("\ninitrd /boot/kernel.img /boot/initramfs\n"),
            "{menu}"
        );
        let script = ipxe_script("a=b");
        assert!(
            script.starts_with("#!ipxe\nkernel vmlinuz initrd=initrd.magic a=b ${parameters}\n"),
            "{script}"
        );
        assert!(script.ends_with("initrd initramfs\nboot\n"), "{script}");
    }
}
