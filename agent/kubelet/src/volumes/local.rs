//! Directories of the StorageClass `local`: made where a volume is first mounted, removed when the node's annotation
//! [`DELETE_VOLUMES`] names them and no pod uses them any more.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use api::metal::{DELETE_VOLUMES, PROVISIONER};
use api::volume::{PROVISIONED_BY, annotation};
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{SetUpError, directories};

/// Below a pod's directory: an entry for each local volume that the pod uses, so that a restarted kubelet knows.
pub(super) const IN_USE: &str = "volumes/kubernetes.io~local-volume";
/// Anybody's, as a pod's user is not known when the volume is made.
const MODE: u32 = 0o777;

/// What a volume may be called: a DNS subdomain, so never a path.
fn is_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Whether the volume's directory is ours to make: provisioned by us, and the one that has the volume's name.
fn is_own(volume_name: &str, volume: &PersistentVolume, path: &Path, directory: &Path) -> bool {
    annotation(&volume.metadata, PROVISIONED_BY) == Some(PROVISIONER)
        && is_name(volume_name)
        && path == directory.join(volume_name)
}

/// Notes that the pod uses the volume, and makes the directory of a volume that is ours.
pub(super) fn prepare(
    volume_name: &str,
    volume: &PersistentVolume,
    path: &Path,
    pod_dir: &Path,
    directory: &Path,
) -> Result<(), SetUpError> {
    if !is_own(volume_name, volume, path, directory) {
        return Ok(());
    }
    let note = pod_dir.join(IN_USE).join(volume_name);
    fs::create_dir_all(&note).map_err(SetUpError::file("create", &note))?;
    fs::create_dir_all(directory).map_err(SetUpError::file("create", directory))?;
    match fs::create_dir(path) {
        Ok(()) => {
            fs::set_permissions(path, fs::Permissions::from_mode(MODE))
                .map_err(SetUpError::file("chmod", path))?;
            info!(volume = volume_name, path = %path.display(), "local volume made");
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(SetUpError::file("create", path)(error)),
    }
}

/// Whether a pod of this node uses the volume; so it is where that cannot be read.
fn is_used(root_dir: &Path, volume_name: &str) -> bool {
    let pods = match fs::read_dir(root_dir.join("pods")) {
        Ok(pods) => pods,
        Err(error) => return error.kind() != ErrorKind::NotFound,
    };
    let uses = |pod: PathBuf| pod.join(IN_USE).join(volume_name).try_exists().unwrap_or(true);
    pods.into_iter()
        .any(|pod| pod.map_or(true, |pod| uses(pod.path())))
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Remove,
    /// A pod still uses it.
    Wait,
    /// No volume can have this name, so there is nothing to remove.
    Forget,
}

fn fate(name: &str, is_used: impl FnOnce(&str) -> bool) -> Fate {
    match () {
        () if !is_name(name) => Fate::Forget,
        () if is_used(name) => Fate::Wait,
        () => Fate::Remove,
    }
}

/// The names in the node's annotation.
pub fn listed(node: &Node) -> Vec<String> {
    let names = annotation(&node.metadata, DELETE_VOLUMES)
        .unwrap_or_default()
        .split(',');
    let names = names.map(str::trim).filter(|name| !name.is_empty());
    names.map(Into::into).collect()
}

/// Removes directories; the names that are done with.
pub fn remove(names: Vec<String>, root_dir: &Path, directory: &Path) -> BTreeSet<String> {
    let gone = |name: &String| match fate(name, |name| is_used(root_dir, name)) {
        Fate::Wait => false,
        Fate::Forget => {
            warn!(annotation = DELETE_VOLUMES, name, "not the name of a volume");
            true
        }
        Fate::Remove => match directories::tear_down(&directory.join(name)) {
            Ok(()) => {
                info!(volume = name, "local volume removed");
                true
            }
            Err(error) => {
                warn!(volume = name, %error, "local volume not removed");
                false
            }
        },
    };
    names.into_iter().filter(gone).collect()
}

/// Takes names off the list as `node` has it; the patch is refused when the node has changed since.
pub fn patch(node: &Node, done: &BTreeSet<String>) -> Option<Value> {
    let before = listed(node);
    let left: Vec<&str> = before
        .iter()
        .filter(|name| !done.contains(*name))
        .map(String::as_str)
        .collect();
    if left.len() == before.len() {
        return None;
    }
    let list = (!left.is_empty()).then(|| left.join(","));
    Some(json!({"metadata": {
        "resourceVersion": node.metadata.resource_version,
        "annotations": {DELETE_VOLUMES: list},
    }}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;
    use serde_json::from_value;

    fn volume(provisioner: &str) -> PersistentVolume {
        from_value(json!({"metadata": {"annotations": {PROVISIONED_BY: provisioner}}})).unwrap()
    }

    fn node(list: &str) -> Node {
        from_value(json!({"metadata": {"resourceVersion": "7", "annotations": {DELETE_VOLUMES: list}}}))
            .unwrap()
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_own_directories_are_made() {
        for (provisioner, name, path, expected) in [
            (PROVISIONER, "pvc-1", "/v/pvc-1", true),
            (PROVISIONER, "pvc.1", "/v/pvc.1", true),
            ("other", "pvc-1", "/v/pvc-1", false),
            (PROVISIONER, "pvc-1", "/v/pvc-2", false),
            (PROVISIONER, "pvc-1", "/elsewhere/pvc-1", false),
            (PROVISIONER, "pvc-1", "/v/../v/pvc-1", false),
            (PROVISIONER, "pvc-1", "/v", false),
            (PROVISIONER, "..", "/v/..", false),
            (PROVISIONER, "", "/v", false),
        ] {
            let own = is_own(name, &volume(provisioner), Path::new(path), Path::new("/v"));
            assert_eq!(own, expected, "{provisioner} {name} {path}");
        }
    }

    #[test]
    fn a_directory_is_made_once_for_everybody() {
        let dir = TempDir::new("local");
        let (directory, pod) = (dir.path().join("volumes"), dir.path().join("pods/p"));
        let path = directory.join("pvc-1");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        let set_up = |provisioner: &str| prepare("pvc-1", &volume(provisioner), &path, &pod, &directory);
        set_up("other").unwrap();
        assert!(!path.exists() && !pod.exists());
        set_up(PROVISIONER).unwrap();
        assert_eq!(mode(), MODE);
        fs::write(path.join("data"), "kept").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        set_up(PROVISIONER).unwrap();
        assert_eq!(mode(), 0o750, "what the user changed stays");
        assert_eq!(fs::read_to_string(path.join("data")).unwrap(), "kept");
    }

    #[test]
    fn fates() {
        for (name, used, expected) in [
            ("pvc-1", false, Fate::Remove),
            ("pvc-1", true, Fate::Wait),
            ("..", false, Fate::Forget),
            (".", true, Fate::Forget),
            ("../etc", false, Fate::Forget),
            ("a/b", false, Fate::Forget),
            ("/etc", false, Fate::Forget),
            ("A", false, Fate::Forget),
            ("-a", false, Fate::Forget),
            ("a.-b", false, Fate::Forget),
        ] {
            assert_eq!(fate(name, |_| used), expected, "{name} {used}");
        }
        assert_eq!(fate(&"a".repeat(254), |_| false), Fate::Forget);
    }

    #[test]
    fn directories_go_once_no_pod_uses_them() {
        let dir = TempDir::new("local-remove");
        let (directory, pod) = (dir.path().join("volumes"), dir.path().join("pods/p"));
        for name in ["pvc-1", "pvc-2"] {
            fs::create_dir_all(directory.join(name).join("below")).unwrap();
        }
        let own = volume(PROVISIONER);
        prepare("pvc-2", &own, &directory.join("pvc-2"), &pod, &directory).unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("data"), "kept").unwrap();
        std::os::unix::fs::symlink(&outside, directory.join("pvc-1/link")).unwrap();
        std::os::unix::fs::symlink(&outside, directory.join("link")).unwrap();

        let names = strings(&["pvc-1", "pvc-2", "never-mounted", "link", "../outside"]);
        let done = remove(names, dir.path(), &directory);
        assert_eq!(done, set(&["pvc-1", "never-mounted", "link", "../outside"]));
        assert!(!directory.join("pvc-1").exists());
        assert!(fs::symlink_metadata(directory.join("link")).is_err());
        assert!(directory.join("pvc-2/below").exists());
        assert_eq!(fs::read_to_string(outside.join("data")).unwrap(), "kept");

        directories::tear_down(&pod).unwrap();
        let done = remove(strings(&["pvc-2"]), dir.path(), &directory);
        assert_eq!(done, set(&["pvc-2"]));
        assert!(!directory.join("pvc-2").exists());
    }

    #[test]
    fn only_names_that_are_done_leave_the_list() {
        for (list, done, expected) in [
            ("a,b", &["a", "b"][..], Some(Value::Null)),
            ("a, b,c", &["b"], Some(json!("a,c"))),
            ("a,new", &["a"], Some(json!("new"))),
            ("a", &["b"], None),
            ("", &["b"], None),
        ] {
            let patch = patch(&node(list), &set(done));
            let annotation = patch
                .as_ref()
                .map(|patch| patch["metadata"]["annotations"][DELETE_VOLUMES].clone());
            assert_eq!(annotation, expected, "{list}");
            if let Some(patch) = patch {
                assert_eq!(patch["metadata"]["resourceVersion"], "7");
            }
        }
        assert_eq!(listed(&Node::default()), Vec::<String>::new());
    }
}
