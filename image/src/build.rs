//! `image build`: from the tables to the files of one image.

use crate::{
    addons,
    contents::{CMDLINE, INITRAMFS_DIRECTORIES, Load, MODULES_LOAD},
    cpio, descriptions,
    kernel::{Kernel, load_list},
    manifest::{self, Manifest, Part, Versions},
    packages::Packages,
    rootfs::{self, Inputs, LAYOUT},
    squashfs,
    tree::Tree,
    workdir::WorkDir,
};
use anyhow::Context;
use node_config::Role;
use std::{
    fs,
    path::{Path, PathBuf},
};

pub struct Request {
    pub role: Role,
    /// Follows the image's own parameters.
    pub cmdline: String,
    pub out: PathBuf,
    /// Directory of our own executables.
    pub binaries: PathBuf,
    /// Directory that keeps what was downloaded.
    pub cache: PathBuf,
    pub refresh: bool,
}

/// Builds the kernel format: OUT/{vmlinuz,initramfs,cmdline,manifest.json}.
pub fn build(request: &Request) -> anyhow::Result<Manifest> {
    let Request {
        role, out, binaries, ..
    } = request;
    fs::create_dir_all(out).with_context(|| format!("--out {}: create the directory", out.display()))?;
    let work = WorkDir::new(out, "work")
        .with_context(|| format!("--out {}: create a work directory", out.display()))?;
    let packages = Packages::open(&request.cache.join("packages"), request.refresh)?;
    let kernel = Kernel::find(&packages)?;
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
    addons::add_dns(&mut root, binaries, &mut versions)?;
    if *role == Role::Master {
        descriptions::add(
            &mut root,
            &request.cache.join("pypi"),
            request.refresh,
            &mut versions,
        )?;
    }
    let squashfs = squashfs::pack(&root, &work.sub("squashfs")?)?;
    let init = rootfs::own(binaries, "init")?;
    let initramfs = initramfs(&kernel, &init, squashfs, &work.sub("early")?)?;
    let vmlinuz = kernel.vmlinuz()?;
    let cmdline = format!("{CMDLINE} {}", request.cmdline).trim().to_owned();

    let files = [
        ("vmlinuz", vmlinuz.as_slice()),
        ("initramfs", &initramfs),
        ("cmdline", format!("{cmdline}\n").as_bytes()),
    ]
    .map(|(name, data)| write(out, name, data).map(|()| Part::file(name, data)));
    let versioned = |name, version: &str, data| Part {
        version: Some(version.to_owned()),
        ..Part::file(name, data)
    };
    let mut parts = vec![
        versioned("kernel", &kernel.package.version, vmlinuz.as_slice()),
        versioned("init", env!("CARGO_PKG_VERSION"), &init),
    ];
    parts.extend(manifest::parts(&root, &versions));
    let manifest = Manifest {
        name: "ironlet",
        version: env!("CARGO_PKG_VERSION"),
        role: role.to_string(),
        kernel: kernel.release,
        cmdline,
        parts,
        files: files.into_iter().collect::<anyhow::Result<_>>()?,
    };
    write(
        out,
        "manifest.json",
        format!("{}\n", serde_json::to_string_pretty(&manifest)?).as_bytes(),
    )?;
    Ok(manifest)
}

/// Two archives one after the other (the kernel unpacks them all): the root image as it is, since it is compressed
/// already, and the compressed small one with PID 1 and the modules that mount the root image.
fn initramfs(kernel: &Kernel, init: &[u8], squashfs: Vec<u8>, work: &Path) -> anyhow::Result<Vec<u8>> {
    let mut root = Tree::default();
    root.file("root.sqsh", 0o644, squashfs, LAYOUT)?;
    let mut early = Tree::default();
    for directory in INITRAMFS_DIRECTORIES {
        early.directory(directory, 0o755, LAYOUT)?;
    }
    early.file("init", 0o755, init, "init")?;
    early.link("sbin/modprobe", "/init", LAYOUT)?;
    early.file(MODULES_LOAD, 0o644, load_list(Load::Early), LAYOUT)?;
    kernel.add_modules(&mut early, &[Load::Early], work)?;
    let mut archive = cpio::archive(&root);
    archive.extend(zstd::encode_all(cpio::archive(&early).as_slice(), 19).context("compress the initramfs")?);
    Ok(archive)
}

/// Writes a whole file or none.
fn write(directory: &Path, name: &str, data: &[u8]) -> anyhow::Result<()> {
    let (path, partial) = (directory.join(name), directory.join(format!(".{name}.partial")));
    fs::write(&partial, data).with_context(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, &path).with_context(|| format!("rename {}", path.display()))
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
