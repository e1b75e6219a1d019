//! Debian packages from a private, signature-checked apt root: found by the host's apt, never installed on the host.

use crate::{
    digest::sha256,
    mirrors::{self, Mirrors},
    run::{RunError, run, stdout},
};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

const RELEASE: &str = "trixie";
/// The kernel, the userland and etcd are all in `main`.
const COMPONENTS: &str = "main";
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];
/// Debian publishes four times a day; once a day is often enough to build with the newest packages.
pub const INDEX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    #[error("{action} {path}: {error}")]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("{0}")]
    Run(#[from] RunError),
    #[error("no Debian archive keyring ({}): install the package debian-archive-keyring", KEYRINGS.join(" or "))]
    Keyring,
    #[error(
        "the host's apt sources name no Debian mirror, and there is no {}: install the package python-apt-common",
        mirrors::TEMPLATE
    )]
    Mirror,
    #[error("the package index of {RELEASE} has no package {0}")]
    Unknown(String),
    #[error("apt's description of {package} has no field {field}")]
    Field { package: String, field: &'static str },
    #[error("{path} has SHA-256 {found}, but the signed index says {wanted}")]
    Hash {
        path: PathBuf,
        found: String,
        wanted: String,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PackageError {
    move |error| PackageError::Io {
        action,
        path: path.to_owned(),
        error,
    }
}

/// The newest version of a package in the signed index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub sha256: String,
    /// The first package named in `Depends`, which is what a metapackage stands for.
    pub first_dependency: Option<String>,
}

/// The private apt root and its cache of archives and extracted packages.
pub struct Packages {
    root: PathBuf,
    _lock: File,
}

impl Packages {
    /// Opens the cache below `directory` and refreshes the index when it is old or `refresh` asks for it. Without a
    /// network, an index that is already there is used.
    pub fn open(directory: &Path, refresh: bool) -> Result<Self, PackageError> {
        for sub in [
            "apt/etc/apt",
            "apt/var/lib/dpkg",
            "apt/var/lib/apt/lists/partial",
            "apt/var/cache/apt/archives/partial",
            "archives",
            "extracted",
        ] {
            let path = directory.join(sub);
            fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        }
        let lock_path = directory.join("lock");
        let lock = File::create(&lock_path).map_err(io_error("create", &lock_path))?;
        lock.lock().map_err(io_error("lock", &lock_path))?;
        let packages = Self {
            root: directory.to_owned(),
            _lock: lock,
        };
        let changed = packages.configure()?;
        let stamp = directory.join("apt/refreshed");
        if refresh || changed || older_than(&stamp, INDEX_LIFETIME) {
            match run(packages
                .apt("apt-get")
                .args(["update", "--quiet=2", "--error-on=any"]))
            {
                Ok(()) => fs::write(&stamp, "").map_err(io_error("write", &stamp))?,
                Err(error) if stamp.exists() && !refresh => {
                    eprintln!(
                        "image: the package index could not be refreshed, going on with the one at hand: {error}"
                    );
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(packages)
    }

    /// Writes the private root's configuration; true when it changed.
    fn configure(&self) -> Result<bool, PackageError> {
        let keyring = KEYRINGS
            .iter()
            .find(|path| Path::new(path).exists())
            .ok_or(PackageError::Keyring)?;
        let status = self.root.join("apt/var/lib/dpkg/status");
        if !status.exists() {
            fs::write(&status, "").map_err(io_error("write", &status))?;
        }
        let mut changed = false;
        let texts = [
            (
                "apt/apt.conf",
                configuration(&self.root.join("apt"), &host_acquire_settings()),
            ),
            ("apt/etc/apt/sources.list", source_list(keyring, &host_mirrors()?)),
        ];
        for (name, text) in texts {
            let path = self.root.join(name);
            if fs::read_to_string(&path).is_ok_and(|old| old == text) {
                continue;
            }
            fs::write(&path, text).map_err(io_error("write", &path))?;
            changed = true;
        }
        Ok(changed)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.root.join("apt/apt.conf"))
            .env("LC_ALL", "C");
        command
    }

    pub fn find(&self, name: &str) -> Result<Package, PackageError> {
        let text = stdout(self.apt("apt-cache").args(["show", "--no-all-versions", name]))
            .map_err(|_| PackageError::Unknown(name.to_owned()))?;
        describe(name, &text)
    }

    /// The package's files, extracted below the returned directory; downloaded when the cache does not have them.
    pub fn extract(&self, package: &Package) -> Result<PathBuf, PackageError> {
        let target = self.root.join("extracted").join(&package.sha256);
        if target.exists() {
            return Ok(target);
        }
        let archive = self.archive(package)?;
        let partial = self
            .root
            .join("extracted")
            .join(format!("{}.partial", package.sha256));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(io_error("remove", &partial))?;
        }
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(&archive)
            .arg(&partial))?;
        fs::rename(&partial, &target).map_err(io_error("rename", &target))?;
        Ok(target)
    }

    fn archive(&self, package: &Package) -> Result<PathBuf, PackageError> {
        let path = self.root.join("archives").join(format!("{}.deb", package.sha256));
        if !path.exists() {
            let partial = self.root.join("archives/partial");
            if partial.exists() {
                fs::remove_dir_all(&partial).map_err(io_error("remove", &partial))?;
            }
            fs::create_dir(&partial).map_err(io_error("create", &partial))?;
            let wanted = format!("{}={}", package.name, package.version);
            run(self
                .apt("apt-get")
                .args(["download", "--quiet=2", &wanted])
                .current_dir(&partial))?;
            let mut files = fs::read_dir(&partial).map_err(io_error("read", &partial))?;
            let file = files
                .next()
                .ok_or(PackageError::Unknown(wanted))?
                .map_err(io_error("read", &partial))?;
            fs::rename(file.path(), &path).map_err(io_error("rename", &path))?;
        }
        let data = fs::read(&path).map_err(io_error("read", &path))?;
        let found = sha256(&data);
        if found != package.sha256 {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
            return Err(PackageError::Hash {
                path,
                found,
                wanted: package.sha256.clone(),
            });
        }
        Ok(path)
    }
}

pub fn older_than(stamp: &Path, lifetime: Duration) -> bool {
    let modified = fs::metadata(stamp).and_then(|meta| meta.modified());
    modified.map_or(true, |time| {
        SystemTime::now()
            .duration_since(time)
            .is_ok_and(|age| age > lifetime)
    })
}

/// apt.conf(5) of the private root; `acquire` carries the host's proxy settings over.
fn configuration(root: &Path, acquire: &str) -> String {
    let root = root.display();
    format!(
        "Dir \"{root}\";\nDir::State::status \"{root}/var/lib/dpkg/status\";\nAPT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n{acquire}"
    )
}

fn source_list(keyring: &str, mirrors: &Mirrors) -> String {
    let Mirrors { archive, security } = mirrors;
    let line = |uri: &str, suite: &str| format!("deb [signed-by={keyring}] {uri} {suite} {COMPONENTS}\n");
    line(archive, RELEASE)
        + &line(archive, &format!("{RELEASE}-updates"))
        + &line(security, &format!("{RELEASE}-security"))
}

/// `apt-config dump` lines of the host that say how to reach mirrors (proxies, certificates).
fn host_acquire_settings() -> String {
    let dump = stdout(Command::new("apt-config").args(["dump", "--no-empty", "Acquire"])).unwrap_or_default();
    let carried = |line: &&str| line.starts_with("Acquire::http::") || line.starts_with("Acquire::https::");
    dump.lines()
        .filter(carried)
        .map(|line| format!("{line}\n"))
        .collect()
}

fn host_mirrors() -> Result<Mirrors, PackageError> {
    let sources = host_sources();
    let sources = sources.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    let template = fs::read_to_string(mirrors::TEMPLATE).ok();
    mirrors::choose(sources, template.as_deref()).ok_or(PackageError::Mirror)
}

fn host_sources() -> Vec<(String, String)> {
    let listed = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = listed.chain([PathBuf::from("/etc/apt/sources.list")]).collect();
    paths.sort();
    let texts = paths.into_iter().filter_map(|path| {
        Some((
            path.to_string_lossy().into_owned(),
            fs::read_to_string(&path).ok()?,
        ))
    });
    texts.collect()
}

/// Reads `apt-cache show`.
fn describe(name: &str, text: &str) -> Result<Package, PackageError> {
    let field = |wanted: &'static str| {
        let lines = text.lines().take_while(|line| !line.is_empty());
        let found = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(field, _)| *field == wanted);
        found
            .map(|(_, value)| value.trim())
            .ok_or_else(|| PackageError::Field {
                package: name.to_owned(),
                field: wanted,
            })
    };
    let first_dependency = field("Depends")
        .ok()
        .and_then(|value| value.split([' ', ',', '|']).next().map(str::to_owned));
    Ok(Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        sha256: field("SHA256")?.to_owned(),
        first_dependency,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describes_what_apt_cache_shows() {
        let text = "Package: linux-image-cloud-amd64\nVersion: 6.12.9-1\nDepends: linux-image-6.12.9-cloud-amd64 (= 6.12.9-1), other\nSHA256: ab12\n\nPackage: older\nVersion: 1\n";
        let want = Package {
            name: "linux-image-cloud-amd64".into(),
            version: "6.12.9-1".into(),
            sha256: "ab12".into(),
            first_dependency: Some("linux-image-6.12.9-cloud-amd64".into()),
        };
        assert_eq!(describe("linux-image-cloud-amd64", text).unwrap(), want);
        let error = describe("x", "Package: x\nSHA256: 1\n").unwrap_err();
        assert_eq!(error.to_string(), "apt's description of x has no field Version");
    }

    #[test]
    fn every_suite_is_checked_against_the_keyring() {
        let mirrors = Mirrors {
            archive: "http://m/debian".into(),
            security: "http://m/debian-security".into(),
        };
        assert_eq!(
            source_list("/k.gpg", &mirrors),
            "deb [signed-by=/k.gpg] http://m/debian trixie main\n\
             deb [signed-by=/k.gpg] http://m/debian trixie-updates main\n\
             deb [signed-by=/k.gpg] http://m/debian-security trixie-security main\n"
        );
    }
}
