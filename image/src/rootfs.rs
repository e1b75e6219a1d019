//! The root file system of a role, assembled from the tables, the packages and our own executables.

use crate::{
    contents::{Content, IMAGES, LIBRARY_DIRECTORY, LIBRARY_PACKAGES, Load, MODULES_LOAD, PARAMETERS, ROOT},
    elf::{self, ElfError},
    kernel::{Kernel, KernelError},
    manifest::Versions,
    packages::{PackageError, Packages},
    tree::{Node, Tree, TreeError},
};
use node_config::Role;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The part that our own small text files and directories belong to.
pub const LAYOUT: &str = "layout";

#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("{action} {path}: {error}")]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("--binaries {directory}: cannot read the executable {name}: {error}")]
    Own {
        directory: PathBuf,
        name: String,
        error: io::Error,
    },
    #[error(transparent)]
    Elf(#[from] ElfError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootError {
    move |error| RootError::Io {
        action,
        path: path.to_owned(),
        error,
    }
}

pub struct Inputs<'a> {
    pub role: Role,
    pub packages: &'a Packages,
    pub kernel: &'a Kernel,
    /// Directory of our own executables.
    pub binaries: &'a Path,
    /// An empty directory.
    pub work: &'a Path,
}

/// Everything of the root file system but the container images and the descriptions.
pub fn build(inputs: &Inputs<'_>, versions: &mut Versions) -> Result<Tree, RootError> {
    let mut tree = Tree::default();
    for item in ROOT
        .iter()
        .filter(|item| item.role.is_none_or(|role| role == inputs.role))
    {
        let (path, mode) = (item.path, item.mode);
        match item.content {
            Content::Directory => tree.directory(path, mode, LAYOUT)?,
            Content::Link(target) => tree.link(path, target, LAYOUT)?,
            Content::Text(text) => tree.file(path, mode, text, LAYOUT)?,
            Content::Own(name) => {
                versions.set(name, env!("CARGO_PKG_VERSION"));
                tree.file(path, mode, own(inputs.binaries, name)?, name)?;
            }
            Content::Packaged(package, from) => {
                let file = extracted(inputs.packages, package, versions)?.join(from);
                tree.file(
                    path,
                    mode,
                    fs::read(&file).map_err(io_error("read", &file))?,
                    package,
                )?;
            }
            Content::Several(package, from, names) => {
                let directory = extracted(inputs.packages, package, versions)?.join(from);
                for name in names {
                    let file = directory.join(name);
                    tree.file(
                        &format!("{path}/{name}"),
                        mode,
                        fs::read(&file).map_err(io_error("read", &file))?,
                        package,
                    )?;
                }
            }
            Content::Certificates(package, from) => {
                let directory = extracted(inputs.packages, package, versions)?.join(from);
                tree.file(path, mode, certificates(&directory)?, package)?;
            }
        }
    }
    tree.file(
        "etc/os-release",
        0o644,
        os_release(env!("CARGO_PKG_VERSION")),
        LAYOUT,
    )?;
    tree.file(
        PARAMETERS,
        0o644,
        format!("ironlet.role={}\n", inputs.role),
        LAYOUT,
    )?;
    tree.file(MODULES_LOAD, 0o644, inputs.kernel.load_list(Load::Boot), LAYOUT)?;
    tree.directory(IMAGES, 0o755, LAYOUT)?;
    inputs
        .kernel
        .add_modules(&mut tree, &[Load::Early, Load::Boot, Load::Demand], inputs.work)?;
    versions.set(crate::kernel::PART, &inputs.kernel.package.version);
    add_libraries(&mut tree, inputs.packages, versions)?;
    Ok(tree)
}

pub fn own(binaries: &Path, name: &str) -> Result<Vec<u8>, RootError> {
    fs::read(binaries.join(name)).map_err(|error| RootError::Own {
        directory: binaries.to_owned(),
        name: name.to_owned(),
        error,
    })
}

fn extracted(packages: &Packages, name: &str, versions: &mut Versions) -> Result<PathBuf, RootError> {
    let package = packages.find(name)?;
    versions.set(name, &package.version);
    Ok(packages.extract(&package)?)
}

/// os-release(5).
fn os_release(version: &str) -> String {
    format!(
        "NAME=\"Ironlet\"\nID=ironlet\nVERSION_ID={version}\nVERSION=\"{version}\"\nPRETTY_NAME=\"Ironlet {version}\"\n"
    )
}

/// The `.crt` files below a directory, sorted by path, in one bundle.
fn certificates(directory: &Path) -> Result<Vec<u8>, RootError> {
    let mut paths = Vec::new();
    let mut queue = vec![directory.to_owned()];
    while let Some(next) = queue.pop() {
        for entry in fs::read_dir(&next).map_err(io_error("read", &next))? {
            let path = entry.map_err(io_error("read", &next))?.path();
            if path.is_dir() {
                queue.push(path);
            } else if path.extension().is_some_and(|extension| extension == "crt") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let mut bundle = Vec::new();
    for path in paths {
        bundle.extend(fs::read(&path).map_err(io_error("read", &path))?);
        if !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
    }
    Ok(bundle)
}

/// Adds the shared libraries, and the loader, that the executables and plugins of the tree need.
fn add_libraries(tree: &mut Tree, packages: &Packages, versions: &mut Versions) -> Result<(), RootError> {
    let mut available = BTreeMap::new();
    let mut suppliers = BTreeMap::new();
    for name in LIBRARY_PACKAGES {
        let directory = extracted(packages, name, versions)?.join(LIBRARY_DIRECTORY);
        for entry in fs::read_dir(&directory).map_err(io_error("read", &directory))? {
            let path = entry.map_err(io_error("read", &directory))?.path();
            let file = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_file() && file.contains(".so") {
                available.insert(file.clone(), fs::read(&path).map_err(io_error("read", &path))?);
                suppliers.insert(file, *name);
            }
        }
    }
    let files = tree.iter().filter_map(|(path, entry)| match &entry.node {
        Node::File(data) => Some((path, data.as_slice())),
        _ => None,
    });
    // Kernel modules are ELF too, but not the loader's.
    let needed = elf::closure(files.filter(|(path, _)| !path.ends_with(".ko")), &available)?;
    for library in needed {
        let (data, part) = (available[&library].clone(), suppliers[&library]);
        tree.file(&format!("{LIBRARY_DIRECTORY}/{library}"), 0o755, data, part)?;
        if library.starts_with("ld-linux") {
            tree.link(
                &format!("usr/lib64/{library}"),
                &format!("/{LIBRARY_DIRECTORY}/{library}"),
                part,
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_executable_is_named_with_the_argument() {
        let error = own(Path::new("/nonexistent"), "init").unwrap_err().to_string();
        assert!(
            error.starts_with("--binaries /nonexistent: cannot read the executable init"),
            "{error}"
        );
    }

    #[test]
    fn os_release_names_the_version() {
        assert!(os_release("1.2.3").contains("PRETTY_NAME=\"Ironlet 1.2.3\"\n"));
    }
}
