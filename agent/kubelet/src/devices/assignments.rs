//! Which container has which devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::warn;

const FILE: &str = "ironlet_assignments.json";

type ByResource = BTreeMap<String, BTreeSet<String>>;

/// By pod uid, container and resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignments(BTreeMap<String, BTreeMap<String, ByResource>>);

impl Assignments {
    pub fn load(directory: &Path) -> Self {
        let read = fs::read(directory.join(FILE)).ok();
        read.and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    pub fn write(&self, directory: &Path) {
        let (file, new) = (directory.join(FILE), directory.join("new"));
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        let written = fs::create_dir_all(directory).and_then(|()| fs::write(&new, bytes));
        if let Err(error) = written.and_then(|()| fs::rename(&new, &file)) {
            warn!(file = %file.display(), %error, "device assignments not written");
        }
    }

    pub fn of(&self, pod: &str, container: &str, resource: &str) -> BTreeSet<String> {
        let found = self.0.get(pod).and_then(|pod| pod.get(container)?.get(resource));
        found.cloned().unwrap_or_default()
    }

    pub fn of_pod(&self, pod: &str) -> BTreeMap<String, ByResource> {
        self.0.get(pod).cloned().unwrap_or_default()
    }

    pub fn taken(&self, resource: &str) -> BTreeSet<String> {
        let containers = self.0.values().flat_map(BTreeMap::values);
        containers
            .filter_map(|resources| resources.get(resource))
            .flatten()
            .cloned()
            .collect()
    }

    pub fn set(&mut self, pod: &str, container: &str, resource: &str, ids: BTreeSet<String>) {
        let containers = self.0.entry(pod.to_owned()).or_default();
        containers
            .entry(container.to_owned())
            .or_default()
            .insert(resource.to_owned(), ids);
    }

    /// Whether the pod had any.
    pub fn release(&mut self, pod: &str) -> bool {
        self.0.remove(pod).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_survive() {
        let dir = crate::volumes::testing::TempDir::new("devices");
        let mut all = Assignments::load(dir.path());
        let ids = |ids: &[&str]| {
            ids.iter()
                .map(|id| (*id).to_owned())
                .collect::<BTreeSet<String>>()
        };
        all.set("p", "c", "x/y", ids(&["1", "2"]));
        all.set("q", "c", "x/y", ids(&["3"]));
        all.write(dir.path());
        let mut again = Assignments::load(dir.path());
        assert_eq!(again, all);
        assert_eq!(again.taken("x/y"), ids(&["1", "2", "3"]));
        assert!(again.release("p") && !again.release("p"));
        assert_eq!(
            (again.taken("x/y"), again.of("p", "c", "x/y")),
            (ids(&["3"]), ids(&[]))
        );
    }
}
