//! Pods of files on this node, and their mirrors: objects that show them to users of the API server.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::{CONFIG_SOURCE, Context, name, namespace, uid};
use crate::pod_manager::Pods;

const HASH: &str = "kubernetes.io/config.hash";
const SEEN: &str = "kubernetes.io/config.seen";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The directory is listed this often; files are read when they have changed.
const LOOK: Duration = Duration::from_secs(2);

type Key = (String, String);

fn key(pod: &Pod) -> Key {
    (namespace(pod).to_owned(), name(pod).to_owned())
}

/// Whether the API server's object only shows a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(MIRROR))
}

/// The mirrors that the API server has.
#[derive(Default)]
pub struct Mirrors(Mutex<HashMap<Key, Pod>>);

impl Mirrors {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Pod>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn note(&self, mirror: Pod) {
        self.lock().insert(key(&mirror), mirror);
    }

    pub fn forget(&self, mirror: &Pod) {
        self.lock().remove(&key(mirror));
    }

    pub fn forget_all(&self) {
        self.lock().clear();
    }

    pub fn all(&self) -> Vec<Pod> {
        self.lock().values().cloned().collect()
    }

    fn of(&self, pod: &Pod) -> Option<Pod> {
        self.lock().get(&key(pod)).cloned()
    }
}

/// The static pod as the API server knows it: its mirror, made when there is none.
pub async fn mirror(context: &Context, pod: &Pod) -> Result<Pod, kube::Error> {
    let hash = |pod: &Pod, key: &str| pod.metadata.annotations.as_ref()?.get(key).cloned();
    if let Some(known) = context.mirrors.of(pod) {
        if hash(&known, MIRROR) == hash(pod, HASH) && known.metadata.deletion_timestamp.is_none() {
            return Ok(known);
        }
        delete(context, &known).await?;
    }
    let node_name = &context.config.node_name;
    let node = Api::<Node>::all(context.client.clone()).get(node_name).await?;
    let mut mirror = pod.clone();
    mirror.status = None;
    let metadata = &mut mirror.metadata;
    (metadata.uid, metadata.resource_version) = (None, None);
    let own_hash = hash(pod, HASH).unwrap_or_default();
    metadata
        .annotations
        .get_or_insert_default()
        .insert(MIRROR.to_owned(), own_hash);
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node_name.clone(),
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace(pod));
    let created = match pods.create(&PostParams::default(), &mirror).await {
        Err(kube::Error::Api(status)) if status.code == 409 => pods.get(name(pod)).await?,
        other => other?,
    };
    info!(pod = name(pod), namespace = namespace(pod), "mirror pod created");
    context.mirrors.note(created.clone());
    Ok(created)
}

pub async fn delete(context: &Context, mirror: &Pod) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace(mirror));
    let parameters = DeleteParams::default()
        .grace_period(0)
        .preconditions(Preconditions {
            uid: mirror.metadata.uid.clone(),
            resource_version: None,
        });
    context.mirrors.forget(mirror);
    match pods.delete(name(mirror), &parameters).await {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// A file's pod as this node runs it; the uid follows from where it is and what it says.
fn parse(text: &str, path: &Path, node_name: &str, now: Timestamp) -> Result<Pod, String> {
    let mut pod: Pod = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let spec = pod.spec.as_mut().ok_or("no spec")?;
    let metadata = &mut pod.metadata;
    let base = metadata
        .name
        .clone()
        .filter(|name| !name.is_empty())
        .ok_or("metadata.name is missing")?;
    let digest = Sha256::digest(format!("{node_name}\n{}\n{text}", path.display()));
    let hash: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    metadata.uid.get_or_insert_with(|| hash.clone());
    metadata.name = Some(format!("{base}-{}", node_name.to_lowercase()));
    metadata.namespace.get_or_insert_with(|| "default".into());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_SOURCE.to_owned(), "file".to_owned());
    annotations.insert(HASH.to_owned(), hash);
    annotations.insert(SEEN.to_owned(), now.to_string());
    spec.node_name = Some(node_name.to_owned());
    // Nothing else can run this pod, so the node's taints do not end it.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Default::default()
    });
    spec.enable_service_links.get_or_insert(true);
    Ok(pod)
}

/// Files by path with the time they were changed and what is in them.
#[derive(Default)]
struct Files(BTreeMap<PathBuf, (Option<std::time::SystemTime>, Option<Pod>)>);

impl Files {
    fn look(&mut self, directory: &Path, node_name: &str) {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let visible = |path: &PathBuf| {
            !path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .starts_with('.')
        };
        let present: BTreeSet<PathBuf> = entries.map(|entry| entry.path()).filter(visible).collect();
        self.0.retain(|path, _| present.contains(path));
        for path in present {
            let changed = std::fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .ok();
            if self.0.get(&path).is_some_and(|(known, _)| *known == changed) {
                continue;
            }
            let read = std::fs::read_to_string(&path).map_err(|error| error.to_string());
            let pod = read.and_then(|text| parse(&text, &path, node_name, Timestamp::now()));
            if let Err(error) = &pod {
                warn!(path = %path.display(), error, "file is not a pod");
            }
            self.0.insert(path, (changed, pod.ok()));
        }
    }

    fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.0.values().filter_map(|(_, pod)| pod.as_ref())
    }
}

/// Follows the directory of static pods until told to stop.
pub async fn run(context: Arc<Context>, pods: Pods, stop: CancellationToken) {
    let Some(directory) = context.config.settings.static_pod_path.clone() else {
        return;
    };
    let mut files = Files::default();
    while !stop.is_cancelled() {
        files.look(&directory, &context.config.node_name);
        let wanted: BTreeSet<String> = files.pods().map(|pod| uid(pod).to_owned()).collect();
        for gone in pods
            .static_pods()
            .into_iter()
            .filter(|pod| !wanted.contains(uid(pod)))
        {
            pods.mark_removed(uid(&gone));
            if let Some(mirror) = context.mirrors.of(&gone)
                && let Err(error) = delete(&context, &mirror).await
            {
                warn!(pod = name(&gone), %error, "mirror pod not deleted");
            }
        }
        for pod in files.pods() {
            // A new version waits until the old one is gone.
            if pods.find(namespace(pod), name(pod)).is_none() {
                pods.assign(&context, pod.clone(), false);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::is_static;

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";

    #[test]
    fn files_become_pods_of_this_node() {
        let read = |text: &str| parse(text, Path::new("/m/web.yaml"), "node-1", Timestamp::UNIX_EPOCH);
        let pod = read(POD).unwrap();
        assert_eq!((namespace(&pod), name(&pod)), ("default", "web-node-1"));
        assert!(is_static(&pod) && !is_mirror(&pod));
        assert_eq!(read(POD).unwrap(), pod, "the uid depends on nothing else");
        let changed = read(&POD.replace("image: i", "image: j")).unwrap();
        assert_ne!(uid(&changed), uid(&pod));
        assert_eq!(
            read("kind: Pod\nspec: {containers: []}").unwrap_err(),
            "metadata.name is missing"
        );
    }

    #[test]
    fn only_changed_files_are_read() {
        let dir = crate::volumes::testing::TempDir::new("static");
        std::fs::write(dir.path().join("web.yaml"), POD).unwrap();
        std::fs::write(dir.path().join(".hidden"), POD).unwrap();
        std::fs::write(dir.path().join("broken"), "{").unwrap();
        let mut files = Files::default();
        files.look(dir.path(), "n");
        assert_eq!(files.pods().map(name).collect::<Vec<_>>(), ["web-n"]);
        std::fs::remove_file(dir.path().join("web.yaml")).unwrap();
        files.look(dir.path(), "n");
        assert_eq!(files.pods().count(), 0);
    }
}
