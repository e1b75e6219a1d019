//! Ids of pods with a user namespace of their own (`hostUsers: false`): a block of 65,536 for each, noted in the
//! pod's directory and free again with it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use cri_api::v1::{IdMapping, NamespaceMode, UserNamespace};
use k8s_openapi::api::core::v1::Pod;

use crate::context::uid;

const NOTE: &str = "userns";
const LENGTH: u32 = 65_536;

/// Choosing and noting a block must not be interleaved.
static CHOICE: Mutex<()> = Mutex::new(());

fn block(pod_dir: &Path) -> Option<u32> {
    fs::read_to_string(pod_dir.join(NOTE)).ok()?.trim().parse().ok()
}

/// The first block that no pod has; the first of all belongs to the host.
fn free(taken: &BTreeSet<u32>) -> Option<u32> {
    (1..u32::MAX / LENGTH).find(|block| !taken.contains(block))
}

/// The mapping of the pod's ids; none for pods with the host's.
pub fn of(pods_dir: &Path, pod: &Pod) -> Result<Option<UserNamespace>, String> {
    if pod.spec.as_ref().and_then(|spec| spec.host_users) != Some(false) {
        return Ok(None);
    }
    let _choice = CHOICE.lock().unwrap_or_else(|e| e.into_inner());
    let own = pods_dir.join(uid(pod));
    let block = match block(&own) {
        Some(block) => block,
        None => {
            let dirs = fs::read_dir(pods_dir).into_iter().flatten().flatten();
            let taken = dirs.filter_map(|dir| block(&dir.path())).collect();
            let block = free(&taken).ok_or("no ids are left for another user namespace")?;
            let describe = |error: std::io::Error| format!("{}: {error}", own.display());
            fs::create_dir_all(&own).map_err(describe)?;
            let new = own.join(format!("{NOTE}.new"));
            fs::write(&new, block.to_string()).map_err(describe)?;
            fs::rename(new, own.join(NOTE)).map_err(describe)?;
            block
        }
    };
    let mapping = vec![IdMapping {
        host_id: block * LENGTH,
        container_id: 0,
        length: LENGTH,
    }];
    Ok(Some(UserNamespace {
        mode: NamespaceMode::Pod as i32,
        uids: mapping.clone(),
        gids: mapping,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;
    use k8s_openapi::api::core::v1::PodSpec;

    #[test]
    fn blocks_are_kept_and_given_back() {
        let dir = TempDir::new("userns");
        let pod = |name: &str, host_users| {
            let spec = PodSpec {
                host_users,
                ..Default::default()
            };
            let mut pod = Pod {
                spec: Some(spec),
                ..Default::default()
            };
            pod.metadata.uid = Some(name.into());
            pod
        };
        let first = |name: &str| of(dir.path(), &pod(name, Some(false))).unwrap().unwrap().uids[0].host_id;
        assert_eq!(of(dir.path(), &pod("host", None)).unwrap(), None);
        assert_eq!([first("a"), first("b"), first("a")], [65_536, 131_072, 65_536]);
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        assert_eq!([first("c"), first("b")], [65_536, 131_072]);
    }
}
