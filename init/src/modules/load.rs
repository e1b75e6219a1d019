//! Loading modules into the running kernel.

use super::index::{Index, name_of};
use rustix::{io::Errno, system::finit_module};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// `MODULE_INIT_COMPRESSED_FILE` of linux/module.h: the kernel unpacks .xz and .zst itself.
const COMPRESSED: i32 = 4;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{name}: no module or alias of this name")]
    Unknown { name: String },
    #[error("{file}: {error}")]
    Init { file: String, error: Errno },
}

pub struct Loader {
    root: PathBuf,
    index: Index,
}

impl Loader {
    pub fn of_running_kernel() -> Result<Self, LoadError> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Self::open(&Path::new("/usr/lib/modules").join(release))
    }

    /// Reads the tables of one kernel's module directory; only modules.dep must exist.
    pub fn open(root: &Path) -> Result<Self, LoadError> {
        let read = |name: &str| fs::read_to_string(root.join(name));
        let dep = read("modules.dep").map_err(|error| LoadError::Read {
            path: root.join("modules.dep"),
            error,
        })?;
        let other = |name| read(name).unwrap_or_default();
        let index = Index::parse(
            &dep,
            &other("modules.alias"),
            &other("modules.softdep"),
            &other("modules.builtin"),
        );
        Ok(Self {
            root: root.to_owned(),
            index,
        })
    }

    /// Loads a module, or all that an alias stands for, with dependencies. What is loaded already is fine.
    pub fn load(&self, name: &str) -> Result<(), LoadError> {
        let modules = self.index.resolve(name);
        if modules.is_empty() {
            return Err(LoadError::Unknown {
                name: name.to_owned(),
            });
        }
        modules.iter().try_for_each(|module| {
            self.index
                .closure(module)
                .into_iter()
                .try_for_each(|file| self.insert(file))
        })
    }

    /// Loads the drivers of a device; that nobody knows the device is usual.
    pub fn load_for_device(&self, modalias: &str) -> Result<(), LoadError> {
        match self.load(modalias) {
            Err(LoadError::Unknown { .. }) => Ok(()),
            result => result,
        }
    }

    fn insert(&self, file: &str) -> Result<(), LoadError> {
        // The kernel would say so, too, but only after checking the signature.
        let state = Path::new("/sys/module").join(name_of(file)).join("initstate");
        if fs::read_to_string(state).is_ok_and(|state| state.trim() == "live") {
            return Ok(());
        }
        let path = self.root.join(file);
        let module = File::open(&path).map_err(|error| LoadError::Read { path, error })?;
        let flags = if file.ends_with(".ko") { 0 } else { COMPRESSED };
        match finit_module(&module, c"", flags) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(LoadError::Init {
                file: file.to_owned(),
                error,
            }),
        }
    }
}
