//! All controllers for everybody below the root, and a place for our own services.

use super::{SERVICE_CGROUPS, StepError, plan::collect};
use std::{fs, io, path::Path};

const ROOT: &str = "/sys/fs/cgroup";

pub(super) fn delegate() -> Result<(), StepError> {
    fs::create_dir_all(SERVICE_CGROUPS).map_err(StepError::at(SERVICE_CGROUPS))?;
    let failed = [ROOT, SERVICE_CGROUPS]
        .into_iter()
        .flat_map(|dir| enable_all(Path::new(dir)));
    collect(failed)
}

/// Enables all controllers at once, which is the quick way; where that fails each by itself, so that one that cannot
/// be does not keep the others off.
fn enable_all(dir: &Path) -> Vec<String> {
    let control = dir.join("cgroup.subtree_control");
    let available = match fs::read_to_string(dir.join("cgroup.controllers")) {
        Ok(available) => available,
        Err(error) => return vec![format!("{}: {error}", dir.display())],
    };
    let all: Vec<String> = available
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    if fs::write(&control, all.join(" ")).is_ok() {
        return vec![];
    }
    let enable = |name: &str| -> Option<String> {
        let result: io::Result<()> = fs::write(&control, format!("+{name}"));
        result
            .err()
            .map(|error| format!("{}: {name}: {error}", control.display()))
    };
    available.split_whitespace().filter_map(enable).collect()
}
