//! A directory of intermediate files that disappears with its owner.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// Makes an empty directory below `parent`, unique to this process and `name`.
    pub fn new(parent: &Path, name: &str) -> io::Result<Self> {
        let path = parent.join(format!(".{name}-{}", std::process::id()));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Makes an empty directory inside.
    pub fn sub(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
