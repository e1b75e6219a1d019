//! Small files that must never be half written: secrets, certificates, kubeconfigs.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

#[derive(Debug, Error)]
pub enum FileError {
    #[error("--data-dir: cannot create {path}: {source}")]
    CreateDirectory { path: PathBuf, source: io::Error },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("--data-dir: {path} is in use by another control plane")]
    Locked { path: PathBuf },
}

/// `None` when the file does not exist.
pub fn read_optional(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Read {
            path: path.into(),
            source,
        }),
    }
}

pub fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|source| FileError::Read {
        path: path.into(),
        source,
    })
}

/// Replaces the file at once, with mode 0600, on disk when this returns. A device or pipe is written to as it is.
pub fn write(path: &Path, content: &str) -> Result<(), FileError> {
    let outcome = match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_char_device() || metadata.file_type().is_fifo() => {
            write_stream(path, content)
        }
        _ => replace(path, content),
    };
    outcome.map_err(|source| FileError::Write {
        path: path.into(),
        source,
    })
}

fn write_stream(path: &Path, content: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(content.as_bytes())
}

fn replace(path: &Path, content: &str) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        // The error already says what went wrong; a left-over temporary file is overwritten next time.
        let _ = fs::remove_file(&temporary);
    }
    written
}

pub fn create_directory(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| FileError::CreateDirectory {
            path: path.into(),
            source,
        })
}

/// Held as long as the returned file is open.
pub fn lock(path: &Path) -> Result<File, FileError> {
    let failed = |source| FileError::Write {
        path: path.into(),
        source,
    };
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(FileError::Locked {
            path: path.parent().unwrap_or(path).into(),
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files_are_replaced_whole_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        assert_eq!(read_optional(&path).unwrap(), None);
        for content in ["one", "two"] {
            write(&path, content).unwrap();
            assert_eq!(read_optional(&path).unwrap().as_deref(), Some(content));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let nowhere = directory.path().join("none/secret");
        assert!(
            write(&nowhere, "x")
                .unwrap_err()
                .to_string()
                .contains("none/secret")
        );
    }

    #[test]
    fn a_directory_serves_one_owner_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(FileError::Locked { .. })));
        drop(held);
        lock(&path).unwrap();
    }
}
