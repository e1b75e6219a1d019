//! The container images that travel inside the image, so that a machine without internet runs something.

use crate::{
    contents::IMAGES,
    manifest::Versions,
    oci::{self, ImageSpec},
    packages::{PackageError, Packages},
    rootfs::{self, RootError},
    run::{RunError, stdout},
    tree::{Tree, TreeError},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

const PACKAGE: &str = "busybox-static";
const BINARY: &str = "usr/bin/busybox";
/// Name of the part in the manifest.
const PART: &str = "image:busybox";
/// Our own add-ons, each one static executable, and their parts' names in the manifest.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
pub const CLUSTER_DNS: Own = Own {
    name: "cluster-dns",
    part: "image:cluster-dns",
};
pub const METRICS_SERVER: Own = Own {
    name: "metrics-server",
    part: "image:metrics-server",
};

/// An add-on that is ours: `ironlet.local/NAME`, of one program.
pub struct Own {
    pub name: &'static str,
    part: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum AddonError {
    #[error("read {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("write the archive of {part}: {error}")]
    Archive { part: &'static str, error: io::Error },
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error(transparent)]
    Own(#[from] RootError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Adds busybox to the images of the root file system.
pub fn add_busybox(tree: &mut Tree, packages: &Packages, versions: &mut Versions) -> Result<(), AddonError> {
    let (archive, version) = busybox(packages)?;
    versions.set(PART, &version);
    tree.file(&format!("{IMAGES}/busybox.tar"), 0o644, archive, PART)?;
    Ok(())
}

/// `docker.io/library/busybox`, made of Debian's static busybox: the OCI archive and the package's version.
pub fn busybox(packages: &Packages) -> Result<(Vec<u8>, String), AddonError> {
    let package = packages.find(PACKAGE)?;
    let path = packages.extract(&package)?.join(BINARY);
    let binary = fs::read(&path).map_err(|error| AddonError::Read {
        path: path.clone(),
        error,
    })?;
    // The binary itself knows its applets; it runs on any x86-64 host since it is static.
    let applets = stdout(Command::new(&path).arg("--list"))?;
    let version = upstream_version(&package.version);
    let names = ["latest", version].map(|tag| format!("docker.io/library/busybox:{tag}"));
    let spec = ImageSpec {
        names: &names,
        entrypoint: &[],
        command: &["sh"],
        environment: &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    };
    let archive = pack(PART, &spec, &files(binary, applets.lines())?)?;
    Ok((archive, package.version.clone()))
}

impl Own {
    /// The OCI archive; `binaries` is where the program is.
    pub fn archive(&self, binaries: &Path) -> Result<Vec<u8>, AddonError> {
        let Self { name, part } = self;
        let mut files = Tree::default();
        files.file(name, 0o755, rootfs::own(binaries, name)?, part)?;
        for (directory, mode) in [("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("sys", 0o555)] {
            files.directory(directory, mode, part)?;
        }
        let spec = ImageSpec {
            names: &[format!("ironlet.local/{name}:{VERSION}")],
            entrypoint: &[&format!("/{name}")],
            command: &[],
            environment: &[],
        };
        pack(part, &spec, &files)
    }
}

/// Adds our own add-ons to the images of the root file system.
pub fn add_own(tree: &mut Tree, binaries: &Path, versions: &mut Versions) -> Result<(), AddonError> {
    for addon in [&CLUSTER_DNS, &METRICS_SERVER] {
        let Own { name, part } = addon;
        let archive = addon.archive(binaries)?;
        versions.set(part, VERSION);
        tree.file(&format!("{IMAGES}/{name}.tar"), 0o644, archive, part)?;
    }
    Ok(())
}

fn pack(part: &'static str, spec: &ImageSpec<'_>, files: &Tree) -> Result<Vec<u8>, AddonError> {
    oci::archive(spec, files).map_err(|error| AddonError::Archive { part, error })
}

/// `1:1.37.0-6+b9` → `1.37.0`.
fn upstream_version(debian: &str) -> &str {
    let version = debian.split_once(':').map_or(debian, |(_, rest)| rest);
    version.split('-').next().unwrap_or(version)
}

fn files<'a>(binary: Vec<u8>, applets: impl Iterator<Item = &'a str>) -> Result<Tree, TreeError> {
    let mut tree = Tree::default();
    tree.file("bin/busybox", 0o755, binary, PART)?;
    for applet in applets.filter(|applet| !applet.is_empty() && *applet != "busybox") {
        tree.link(&format!("bin/{applet}"), "busybox", PART)?;
    }
    tree.link("usr/bin/env", "/bin/busybox", PART)?;
    for (directory, mode) in [
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("var/www", 0o755),
    ] {
        tree.directory(directory, mode, PART)?;
    }
    tree.file(
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
        PART,
    )?;
    tree.file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n", PART)?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_upstreams_version() {
        for (debian, want) in [
            ("1:1.37.0-6+b9", "1.37.0"),
            ("1.35.0-4", "1.35.0"),
            ("2.0", "2.0"),
        ] {
            assert_eq!(upstream_version(debian), want);
        }
    }

    #[test]
    fn applets_are_links_to_the_one_binary() {
        let tree = files(b"x".to_vec(), ["busybox", "sh", "["].into_iter()).unwrap();
        let links: Vec<_> = tree
            .iter()
            .filter(|(path, _)| path.starts_with("bin/"))
            .map(|(path, _)| path)
            .collect();
        assert_eq!(links, ["bin/[", "bin/busybox", "bin/sh"]);
    }
}
