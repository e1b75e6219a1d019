//! `image build`: from the tables to the files of one image.

use crate::{
    addons,
    contents::{CMDLINE, INITRAMFS_DIRECTORIES, LOADER, Load, MODULES_LOAD, SERVERS, VIRTUAL_MACHINES},
    cpio, descriptions,
    formats::{Built, Format, write},
    grub,
    kernel::Kernel,
    manifest::{self, Manifest, Part, Versions},
    packages::Packages,
    rootfs::{self, Inputs, LAYOUT},
    squashfs,
    tree::Tree,
    workdir::WorkDir,
};
use anyhow::Context;
use boot_disk::{Initramfs, Loader, Source};
use node_config::Role;
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

pub struct Request {
    pub role: Role,
    pub formats: Vec<Format>,
    /// Follows the image's own parameters.
    pub cmdline: String,
    pub out: PathBuf,
    /// Directory of our own executables.
    pub binaries: PathBuf,
    /// Directory that keeps what was downloaded.
    pub cache: PathBuf,
    pub refresh: bool,
}

/// Builds the system once and writes it in each format, with OUT/manifest.json.
pub fn build(request: &Request) -> anyhow::Result<Manifest> {
    let Request {
        role, out, binaries, ..
    } = request;
    fs::create_dir_all(out).with_context(|| format!("--out {}: create the directory", out.display()))?;
    let work = WorkDir::new(out, "work")
        .with_context(|| format!("--out {}: create a work directory", out.display()))?;
    let packages = Packages::open(&request.cache.join("packages"), request.refresh)?;
    let for_servers = request.formats.iter().any(|format| format.for_servers());
    let flavour = if for_servers { &SERVERS } else { &VIRTUAL_MACHINES };
    let kernel = Kernel::find(&packages, flavour)?;
    let mut versions = Versions::default();

    let inputs = Inputs {
        role: *role,
        packages: &packages,
        kernel: &kernel,
        binaries,
        work: &work.sub("modules")?,
    };
    let mut root = rootfs::build(&inputs, &mut versions)?;
    addons::add_busybox(&mut root, &packages, &mut versions)?;
    addons::add_own(&mut root, binaries, &mut versions)?;
    if *role == Role::Master {
        descriptions::add(
            &mut root,
            &request.cache.join("pypi"),
            request.refresh,
            &mut versions,
        )?;
    }
    let loader = for_servers.then(|| grub::loader(&work.sub("grub")?).map_err(anyhow::Error::from));
    let loader = loader.transpose()?;
    if let Some(loader) = &loader {
        add_loader(&mut root, loader)?;
    }
    let init = rootfs::own(binaries, "init")?;
    let vmlinuz = kernel.vmlinuz()?;
    let mut parts = vec![
        versioned("kernel", &kernel.package.version, &vmlinuz),
        versioned("init", env!("CARGO_PKG_VERSION"), &init),
    ];
    parts.extend(manifest::parts(&root, &versions));
    let squashfs = squashfs::pack(&root, &work.sub("squashfs")?)?;
    let size = u32::try_from(squashfs.len()).context("the root image is too large for an initramfs")?;
    let early = early(&kernel, &init, &work.sub("early")?)?;
    let mut initramfs = Vec::new();
    Initramfs::new(squashfs, size, &early)
        .open()?
        .read_to_end(&mut initramfs)?;
    let built = Built {
        files: [vmlinuz, initramfs],
        cmdline: format!("{CMDLINE} {}", request.cmdline).trim().to_owned(),
    };
    drop(root);
    let mut files = Vec::new();
    for format in &request.formats {
        for name in built.write(*format, out, loader.as_ref())? {
            let path = out.join(&name);
            let data = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            files.push(Part::file(&name, &data));
        }
    }
    let manifest = Manifest {
        name: "ironlet",
        version: env!("CARGO_PKG_VERSION"),
        role: role.to_string(),
        kernel: kernel.release,
        cmdline: built.cmdline,
        parts,
        files,
    };
    let text = format!("{}\n", serde_json::to_string_pretty(&manifest)?);
    write(out, "manifest.json", text.as_bytes())?;
    Ok(manifest)
}

fn versioned(name: &str, version: &str, data: &[u8]) -> Part {
    Part {
        version: Some(version.to_owned()),
        ..Part::file(name, data)
    }
}

/// What a running system needs to install itself.
fn add_loader(root: &mut Tree, loader: &Loader) -> anyhow::Result<()> {
    let files = [
        ("boot.img", &loader.boot_sector),
        ("core.img", &loader.core),
        ("bootx64.efi", &loader.efi),
    ];
    for (name, data) in files {
        root.file(&format!("{LOADER}/{name}"), 0o644, data.clone(), "grub")?;
    }
    Ok(())
}

/// The small archive: PID 1 and the modules that mount the root image.
fn early(kernel: &Kernel, init: &[u8], work: &Path) -> anyhow::Result<Vec<u8>> {
    let mut early = Tree::default();
    for directory in INITRAMFS_DIRECTORIES {
        early.directory(directory, 0o755, LAYOUT)?;
    }
    early.file("init", 0o755, init, "init")?;
    early.link("sbin/modprobe", "/init", LAYOUT)?;
    early.file(MODULES_LOAD, 0o644, kernel.load_list(Load::Early), LAYOUT)?;
    kernel.add_modules(&mut early, &[Load::Early], work)?;
    zstd::encode_all(cpio::archive(&early).as_slice(), 19).context("compress the initramfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_own_parameters_are_understood() {
        let (config, errors) = node_config::parse(CMDLINE);
        assert_eq!(errors, []);
        assert_eq!(config.consoles.last().map(String::as_str), Some("ttyS0,115200"));
    }
}
