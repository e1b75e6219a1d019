//! The audit log: a line of JSON an event, in a file that is put aside when it is full (upstream: lumberjack).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

const MEGABYTE: u64 = 1024 * 1024;
const DEFAULT_MEGABYTES: u64 = 100;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Where to, and when what is old goes; 0 is no limit, and upstream's 100 MB for the size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// `-` is standard output.
    pub path: PathBuf,
    pub max_age_days: u64,
    pub max_backups: usize,
    pub max_megabytes: u64,
}

pub struct Log {
    options: LogOptions,
    /// None: standard output.
    open: Option<Mutex<Open>>,
}

struct Open {
    file: File,
    size: u64,
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl Log {
    pub fn open(options: LogOptions) -> io::Result<Self> {
        let open = match options.path.as_os_str() == "-" {
            true => None,
            false => {
                if let Some(directory) = options.path.parent() {
                    fs::create_dir_all(directory)?;
                }
                Some(Mutex::new(Open::new(&options.path)?))
            }
        };
        Ok(Self { options, open })
    }

    /// `line` ends with its newline.
    pub fn write(&self, line: &[u8]) -> io::Result<()> {
        let Some(open) = &self.open else {
            return io::stdout().lock().write_all(line);
        };
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        let megabytes = match self.options.max_megabytes {
            0 => DEFAULT_MEGABYTES,
            megabytes => megabytes,
        };
        let length = line.len() as u64;
        if open.size > 0 && open.size.saturating_add(length) > megabytes.saturating_mul(MEGABYTE) {
            self.put_aside(jiff::Timestamp::now())?;
            *open = Open::new(&self.options.path)?;
            // What is too old can be removed another time; this line cannot be written another time.
            if let Err(error) = self.remove_old() {
                tracing::warn!(%error, "cannot remove old audit logs");
            }
        }
        open.size += length;
        open.file.write_all(line)
    }

    fn put_aside(&self, now: jiff::Timestamp) -> io::Result<()> {
        let time = now.strftime("%Y-%m-%dT%H-%M-%S%.3f");
        let path = &self.options.path;
        let (prefix, suffix) = names(path);
        fs::rename(path, path.with_file_name(format!("{prefix}{time}{suffix}")))
    }

    fn remove_old(&self) -> io::Result<()> {
        let oldest = SystemTime::now()
            .checked_sub(DAY.saturating_mul(u32::try_from(self.options.max_age_days).unwrap_or(u32::MAX)));
        for (index, backup) in backups(&self.options.path)?.into_iter().enumerate() {
            let is_old = || {
                let written = fs::metadata(&backup).and_then(|metadata| metadata.modified());
                written.is_ok_and(|written| oldest.is_some_and(|oldest| written < oldest))
            };
            let too_many = self.options.max_backups > 0 && index >= self.options.max_backups;
            if too_many || (self.options.max_age_days > 0 && is_old()) {
                fs::remove_file(&backup)?;
            }
        }
        Ok(())
    }
}

/// What the names of files put aside begin and end with.
fn names(path: &Path) -> (String, String) {
    let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let suffix = match part(path.extension()) {
        extension if extension.is_empty() => extension,
        extension => format!(".{extension}"),
    };
    (format!("{}-", part(path.file_stem())), suffix)
}

/// The newest first.
fn backups(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (prefix, suffix) = names(path);
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let time = name
            .strip_prefix(&prefix)
            .and_then(|rest| rest.strip_suffix(&suffix));
        if time.is_some_and(|time| time.starts_with(|c: char| c.is_ascii_digit())) {
            found.push(entry.path());
        }
    }
    found.sort();
    found.reverse();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_put_aside_and_few_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/audit.log");
        let log = Log::open(LogOptions {
            path: path.clone(),
            max_backups: 2,
            max_megabytes: 1,
            ..LogOptions::default()
        })
        .unwrap();
        let line = vec![b'x'; 600 * 1024];
        log.write(&line).unwrap();
        for round in 0..3u64 {
            let written = fs::metadata(&path).unwrap().len();
            assert_eq!(written, line.len() as u64, "round {round}");
            let before = backups(&path).unwrap();
            // Names count milliseconds; a round within the same one would overwrite.
            while before.first().is_some_and(|newest| {
                newest
                    .to_string_lossy()
                    .contains(&jiff::Timestamp::now().strftime("%S%.3f").to_string())
            }) {
                std::thread::yield_now();
            }
            log.write(&line).unwrap();
        }
        assert_eq!(backups(&path).unwrap().len(), 2);
    }

    #[test]
    fn what_cannot_be_removed_costs_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        // A directory is no file that could be removed.
        fs::create_dir(directory.path().join("audit-2000-01-01T00-00-00.000.log")).unwrap();
        let log = Log::open(LogOptions {
            path: path.clone(),
            max_backups: 1,
            max_megabytes: 1,
            ..LogOptions::default()
        })
        .unwrap();
        let line = vec![b'x'; 600 * 1024];
        for _ in 0..2 {
            log.write(&line).unwrap();
        }
        log.write(b"last\n").unwrap();
        let written = fs::metadata(&path).unwrap().len();
        assert_eq!(written, line.len() as u64 + 5);
    }
}
