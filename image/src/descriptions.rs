//! The prose of the API (OpenAPI descriptions) for the master: from a Python package to our compact pack.

use crate::{
    contents::DESCRIPTIONS,
    manifest::Versions,
    packages::{INDEX_LIFETIME, older_than},
    run::{RunError, output, run},
    tree::{Tree, TreeError},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The package with upstream's definitions, prose included, of many Kubernetes versions.
const PACKAGE: &str = "kubernetes-validate";
/// The version of Kubernetes that we serve.
const KUBERNETES: &str = "v1.36";
/// Name of the part in the manifest.
const PART: &str = "openapi-descriptions";

/// Prints the definitions of the Kubernetes version in the second argument out of the wheel in the first.
const EXTRACT: &str = "\
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
names = [n for n in wheel.namelist() if f'/{sys.argv[2]}.' in n and n.endswith('/_definitions.json')]
sys.exit(f'{sys.argv[1]}: no definitions of {sys.argv[2]}') if not names else sys.stdout.buffer.write(wheel.read(max(names)))
";

#[derive(Debug, thiserror::Error)]
pub enum DescriptionsError {
    #[error("{action} {path}: {error}")]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("no wheel of {PACKAGE} in {0}")]
    NoWheel(PathBuf),
    #[error("the definitions of {PACKAGE}: {0}")]
    Definitions(String),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DescriptionsError {
    move |error| DescriptionsError::Io {
        action,
        path: path.to_owned(),
        error,
    }
}

/// Adds the pack to the root file system; `cache` keeps the wheels.
pub fn add(
    tree: &mut Tree,
    cache: &Path,
    refresh: bool,
    versions: &mut Versions,
) -> Result<(), DescriptionsError> {
    let wheel = wheel(cache, refresh)?;
    let definitions = output(
        Command::new("python3")
            .args(["-c", EXTRACT])
            .arg(&wheel)
            .arg(KUBERNETES),
    )?;
    let pack = schema::openapi::build_pack(&definitions)
        .map_err(|error| DescriptionsError::Definitions(error.to_string()))?;
    let name = wheel
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    versions.set(
        PART,
        &format!(
            "{KUBERNETES}, {PACKAGE} {}",
            wheel_version(&name).unwrap_or_default()
        ),
    );
    tree.file(DESCRIPTIONS, 0o644, pack, PART)?;
    Ok(())
}

/// The newest wheel: downloaded when the cache is older than a day, the one at hand without a network.
fn wheel(cache: &Path, refresh: bool) -> Result<PathBuf, DescriptionsError> {
    fs::create_dir_all(cache).map_err(io_error("create", cache))?;
    let stamp = cache.join("refreshed");
    if refresh || older_than(&stamp, INDEX_LIFETIME) {
        let download = run(Command::new("python3")
            .args([
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--disable-pip-version-check",
            ])
            .args(["--only-binary", ":all:", "--dest"])
            .arg(cache)
            .arg(PACKAGE));
        match download {
            Ok(()) => fs::write(&stamp, "").map_err(io_error("write", &stamp))?,
            Err(error) if stamp.exists() && !refresh => {
                eprintln!("image: {PACKAGE} could not be refreshed, going on with the one at hand: {error}");
            }
            Err(error) => return Err(error.into()),
        }
    }
    let files = fs::read_dir(cache).map_err(io_error("read", cache))?;
    let paths = files
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let newest = paths.max_by_key(|path| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        wheel_version(&name).map(numbers)
    });
    newest.ok_or_else(|| DescriptionsError::NoWheel(cache.to_owned()))
}

/// The second field of a wheel's name.
fn wheel_version(name: &str) -> Option<&str> {
    name.split('-').nth(1)
}

fn numbers(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_wheels_compare_as_numbers() {
        let version = |name| wheel_version(name).map(numbers);
        assert_eq!(
            wheel_version("kubernetes_validate-1.37.0-py3-none-any.whl"),
            Some("1.37.0")
        );
        assert!(version("a-1.100.0-py3.whl") > version("a-1.37.2-py3.whl"));
    }
}
