//! The kernel and its modules: from Debian's packages to the files of one image.

use crate::{
    contents::{Flavour, Load, ModuleSet},
    modules::{Index, ModuleError},
    packages::{Package, PackageError, Packages},
    run::{RunError, output, run},
    tree::{Tree, TreeError},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// Name of the modules' part in the manifest.
pub const PART: &str = "kernel-modules";

/// What our modprobe reads; depmod's binary indexes would only take space.
const METADATA: [&str; 6] = [
    "modules.alias",
    "modules.builtin",
    "modules.builtin.modinfo",
    "modules.dep",
    "modules.order",
    "modules.softdep",
];
/// The last file depmod writes: present means that all are.
const LAST_WRITTEN: &str = "modules.devname";

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("{action} {path}: {error}")]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("the package {0} names no kernel image")]
    Metapackage(String),
    #[error("the package {0} holds no directory usr/lib/modules/VERSION")]
    NoModules(String),
    #[error("unknown compression of the kernel module {0}")]
    Compression(String),
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    move |error| KernelError::Io {
        action,
        path: path.to_owned(),
        error,
    }
}

pub struct Kernel {
    pub package: Package,
    pub release: String,
    root: PathBuf,
    index: Index,
    sets: &'static [&'static [ModuleSet]],
}

impl Kernel {
    pub fn find(packages: &Packages, flavour: &'static Flavour) -> Result<Self, KernelError> {
        let metapackage = packages.find(flavour.metapackage)?;
        let image = metapackage
            .first_dependency
            .ok_or(KernelError::Metapackage(metapackage.name))?;
        let package = packages.find(&image)?;
        let root = packages.extract(&package)?;
        let releases = root.join("usr/lib/modules");
        let mut entries = fs::read_dir(&releases).map_err(io_error("read", &releases))?;
        let entry = entries
            .next()
            .ok_or_else(|| KernelError::NoModules(package.name.clone()))?;
        let release = entry
            .map_err(io_error("read", &releases))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        let directory = releases.join(&release);
        if !directory.join(LAST_WRITTEN).exists() {
            run(Command::new("depmod")
                .arg("-b")
                .arg(root.join("usr"))
                .arg(&release))?;
        }
        let text = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(io_error("read", &path))
        };
        let index = Index::parse(
            &text("modules.dep")?,
            &text("modules.builtin")?,
            &text("modules.softdep")?,
        );
        Ok(Self {
            package,
            release,
            root,
            index,
            sets: flavour.modules,
        })
    }

    fn sets(&self, stage: Load) -> impl Iterator<Item = &'static ModuleSet> {
        let sets = self.sets.iter().copied().flatten();
        sets.filter(move |set| set.when == stage)
    }

    /// The list that PID 1 reads: names to load in this order, one a line; `#` starts a comment.
    pub fn load_list(&self, stage: Load) -> String {
        self.sets(stage)
            .map(|set| format!("# {}\n{}\n", set.purpose, set.names.join("\n")))
            .collect()
    }

    pub fn vmlinuz(&self) -> Result<Vec<u8>, KernelError> {
        let path = self.root.join("boot").join(format!("vmlinuz-{}", self.release));
        fs::read(&path).map_err(io_error("read", &path))
    }

    /// Adds the modules of these load stages with all they depend on, uncompressed (the archive around them compresses
    /// better, and the kernel loads them faster), and the metadata of exactly these. `work` is an empty directory.
    pub fn add_modules(&self, tree: &mut Tree, stages: &[Load], work: &Path) -> Result<(), KernelError> {
        let wanted: Vec<&str> = stages
            .iter()
            .flat_map(|stage| self.sets(*stage))
            .flat_map(|set| set.names)
            .copied()
            .collect();
        let from = self.root.join("usr/lib/modules").join(&self.release);
        let staged = work.join("lib/modules").join(&self.release);
        let target = format!("usr/lib/modules/{}", self.release);
        for path in self.index.closure(&wanted)? {
            let data = decompressed(&from.join(&path))?;
            let plain = path
                .split_once(".ko")
                .map_or(path.as_str(), |(stem, _)| stem)
                .to_owned()
                + ".ko";
            let file = staged.join(&plain);
            let parent = file.parent().unwrap_or(&staged);
            fs::create_dir_all(parent).map_err(io_error("create", parent))?;
            fs::write(&file, &data).map_err(io_error("write", &file))?;
            tree.file(&format!("{target}/{plain}"), 0o644, data, PART)?;
        }
        for name in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
            let (source, copy) = (from.join(name), staged.join(name));
            fs::copy(&source, &copy).map_err(io_error("copy", &source))?;
        }
        run(Command::new("depmod").arg("-b").arg(work).arg(&self.release))?;
        for name in METADATA {
            let path = staged.join(name);
            let data = fs::read(&path).map_err(io_error("read", &path))?;
            tree.file(&format!("{target}/{name}"), 0o644, data, PART)?;
        }
        Ok(())
    }
}

fn decompressed(path: &Path) -> Result<Vec<u8>, KernelError> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => fs::read(path).map_err(io_error("read", path)),
        Some("xz") => Ok(output(
            Command::new("xz").args(["--decompress", "--stdout"]).arg(path),
        )?),
        Some("zst") => {
            let data = fs::read(path).map_err(io_error("read", path))?;
            zstd::decode_all(data.as_slice()).map_err(io_error("decompress", path))
        }
        _ => Err(KernelError::Compression(path.display().to_string())),
    }
}
