//! Volumes of drivers: attached by the controllers, staged once a node, published once a pod. What was published is
//! noted beside it before it happens, so that a restarted kubelet takes it back.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, CSIVolumeSource, Pod, SecretReference};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::api::Api;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tracing::warn;

use super::csi_api::{
    self as api, AccessMode, Empty, Mount, PublishRequest, StageRequest, UndoRequest, VolumeCapability,
};
use super::{Ready, SetUpError, VolumeContext, directories};
use crate::context::{Context, name, namespace, uid};

const NOTE: &str = "vol_data.json";

/// What is needed to take a published volume back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    driver_name: String,
    volume_handle: String,
    /// Where the volume is staged, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    staged: Option<PathBuf>,
    attached: bool,
}

/// A volume of a driver, from a persistent volume or from the pod itself.
pub struct Volume<'a> {
    pub spec_name: &'a str,
    pub source: Source<'a>,
    pub access_modes: &'a [String],
    pub mount_options: &'a [String],
    pub block: bool,
    pub read_only: bool,
}

pub enum Source<'a> {
    Persistent(&'a CSIPersistentVolumeSource),
    Inline(&'a CSIVolumeSource),
}

fn hash(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The name under which controllers attach a volume (upstream's `getAttachmentName`).
fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    format!("csi-{}", hash(&format!("{handle}{driver}{node}")))
}

fn access_mode(modes: &[String], single_node_modes: bool) -> i32 {
    let has = |mode: &str| modes.iter().any(|own| own == mode);
    match () {
        () if has("ReadWriteMany") => 5,
        () if has("ReadOnlyMany") && has("ReadWriteOnce") => 4,
        () if has("ReadOnlyMany") => 3,
        () if has("ReadWriteOncePod") && single_node_modes => 6,
        () if has("ReadWriteOnce") && single_node_modes => 7,
        () => 1,
    }
}

fn refused(message: impl Into<String>) -> SetUpError {
    SetUpError::Refused(message.into())
}

pub(super) async fn set_up(
    pod: &Pod,
    volume: &Volume<'_>,
    context: &VolumeContext<'_>,
) -> Result<Ready, SetUpError> {
    let (driver, attributes, fs_type) = match &volume.source {
        Source::Persistent(csi) => (&csi.driver, &csi.volume_attributes, &csi.fs_type),
        Source::Inline(csi) => (&csi.driver, &csi.volume_attributes, &csi.fs_type),
    };
    let socket = context.drivers.socket(driver).ok_or_else(|| {
        refused(format!(
            "kubernetes.io/csi: driver name {driver} not found in the list of registered CSI drivers"
        ))
    })?;
    let object: Api<CSIDriver> = Api::all(context.client.clone());
    let object = object
        .get_opt(driver)
        .await
        .map_err(|error| refused(error.to_string()))?;
    let spec = object.map(|object| object.spec).unwrap_or_default();
    let inline = matches!(volume.source, Source::Inline(_));
    let lifecycle = if inline { "Ephemeral" } else { "Persistent" };
    let modes = spec
        .volume_lifecycle_modes
        .clone()
        .unwrap_or_else(|| vec!["Persistent".into()]);
    if !modes.iter().any(|mode| mode == lifecycle) {
        let message =
            format!("volume mode \"{lifecycle}\" not supported by driver {driver} (only supports {modes:?})");
        return Err(refused(message));
    }
    let abilities = api::capabilities(&socket).await.map_err(refused)?;
    let handle = match &volume.source {
        Source::Persistent(csi) => csi.volume_handle.clone(),
        Source::Inline(_) => format!("csi-{}", hash(&format!("{}{}", uid(pod), volume.spec_name))),
    };
    let attached = !inline && spec.attach_required != Some(false);
    let publish_context = if attached {
        attachment(context, &handle, driver).await?
    } else {
        HashMap::new()
    };
    let fs_group = super::fs_group(pod);
    let delegated = fs_group.filter(|_| abilities.contains(&api::VOLUME_MOUNT_GROUP));
    let capability = VolumeCapability {
        block: volume.block.then_some(Empty {}),
        mount: (!volume.block).then(|| Mount {
            fs_type: fs_type.clone().unwrap_or_default(),
            mount_flags: volume.mount_options.to_vec(),
            volume_mount_group: delegated.map(|group| group.to_string()).unwrap_or_default(),
        }),
        access_mode: Some(AccessMode {
            mode: access_mode(
                volume.access_modes,
                abilities.contains(&api::SINGLE_NODE_MULTI_WRITER),
            ),
        }),
    };
    let staged = abilities.contains(&api::STAGE_UNSTAGE) && !inline;
    let staged = staged.then(|| {
        context
            .plugins_dir
            .join(driver)
            .join(hash(&handle))
            .join("globalmount")
    });
    let kind = if volume.block { "volumeDevices" } else { "volumes" };
    let directory = context
        .pod_dir
        .join(kind)
        .join("kubernetes.io~csi")
        .join(volume.spec_name);
    let target = directory.join("mount");
    let note = Note {
        driver_name: driver.clone(),
        volume_handle: handle.clone(),
        staged: staged.clone(),
        attached,
    };
    write_note(&directory, &note)?;
    let ready = Ready {
        path: target.clone(),
        read_only: volume.read_only,
    };
    let is_published = directories::is_mount_point(&target);
    if is_published && spec.requires_republish != Some(true) {
        return Ok(ready);
    }
    let volume_context: HashMap<String, String> =
        attributes.clone().unwrap_or_default().into_iter().collect();
    let (stage_secret, publish_secret) = match &volume.source {
        Source::Persistent(csi) => (
            csi.node_stage_secret_ref.clone(),
            csi.node_publish_secret_ref.clone(),
        ),
        Source::Inline(csi) => {
            let own = csi
                .node_publish_secret_ref
                .as_ref()
                .map(|reference| SecretReference {
                    name: Some(reference.name.clone()),
                    namespace: Some(namespace(pod).to_owned()),
                });
            (None, own)
        }
    };
    if let Some(staging) = staged.as_ref().filter(|_| !is_published) {
        fs::create_dir_all(staging).map_err(SetUpError::file("create", staging))?;
        let request = StageRequest {
            volume_id: handle.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(capability.clone()),
            secrets: secrets(context, stage_secret).await?,
            volume_context: volume_context.clone(),
        };
        api::stage(&socket, request)
            .await
            .map_err(|error| refused(format!("kubernetes.io/csi: attacher.MountDevice failed: {error}")))?;
    }
    let mut volume_context = volume_context;
    if spec.pod_info_on_mount == Some(true) {
        volume_context.extend(pod_info(pod, inline));
    }
    if let Some(requests) = spec
        .token_requests
        .as_ref()
        .filter(|requests| !requests.is_empty())
    {
        let mut tokens = serde_json::Map::new();
        for request in requests {
            let seconds = request.expiration_seconds.unwrap_or(3600);
            let (token, expires) = context
                .objects
                .token_until(pod, &request.audience, seconds)
                .await?;
            tokens.insert(
                request.audience.clone(),
                json!({ "token": token, "expirationTimestamp": expires }),
            );
        }
        let tokens = serde_json::Value::Object(tokens).to_string();
        volume_context.insert("csi.storage.k8s.io/serviceAccount.tokens".into(), tokens);
    }
    let request = PublishRequest {
        volume_id: handle,
        publish_context,
        staging_target_path: staged.map(|path| path.display().to_string()).unwrap_or_default(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability),
        readonly: volume.read_only,
        secrets: secrets(context, publish_secret).await?,
        volume_context,
    };
    api::publish(&socket, request)
        .await
        .map_err(|error| refused(format!("kubernetes.io/csi: mounter.SetUpAt failed: {error}")))?;
    // The kubelet owns files for drivers that leave it to the kubelet.
    let policy = spec
        .fs_group_policy
        .as_deref()
        .unwrap_or("ReadWriteOnceWithFSType");
    let once = volume
        .access_modes
        .iter()
        .any(|mode| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod");
    let ours = policy == "File"
        || policy != "None" && once && fs_type.as_deref().is_some_and(|kind| !kind.is_empty());
    if let Some(group) = fs_group.filter(|_| ours && delegated.is_none() && !volume.block && !is_published) {
        directories::own(&target, group, super::fs_group_policy(pod), volume.read_only)?;
    }
    Ok(ready)
}

fn pod_info(pod: &Pod, inline: bool) -> [(String, String); 5] {
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone());
    [
        ("csi.storage.k8s.io/pod.name", name(pod).to_owned()),
        ("csi.storage.k8s.io/pod.namespace", namespace(pod).to_owned()),
        ("csi.storage.k8s.io/pod.uid", uid(pod).to_owned()),
        (
            "csi.storage.k8s.io/serviceAccount.name",
            account.unwrap_or_default(),
        ),
        ("csi.storage.k8s.io/ephemeral", inline.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
}

async fn attachment(
    context: &VolumeContext<'_>,
    handle: &str,
    driver: &str,
) -> Result<HashMap<String, String>, SetUpError> {
    let attachments: Api<VolumeAttachment> = Api::all(context.client.clone());
    let id = attachment_name(handle, driver, context.node_name);
    let found = attachments
        .get_opt(&id)
        .await
        .map_err(|error| refused(error.to_string()))?;
    let status = found.and_then(|found| found.status);
    match status {
        Some(status) if status.attached => Ok(status
            .attachment_metadata
            .unwrap_or_default()
            .into_iter()
            .collect()),
        Some(status) if status.attach_error.is_some() => {
            let message = status
                .attach_error
                .and_then(|error| error.message)
                .unwrap_or_default();
            Err(refused(format!("AttachVolume.Attach failed: {message}")))
        }
        _ => Err(refused(format!(
            "volume {handle} is not attached to this node yet"
        ))),
    }
}

async fn secrets(
    context: &VolumeContext<'_>,
    reference: Option<SecretReference>,
) -> Result<HashMap<String, String>, SetUpError> {
    let Some(reference) = reference else {
        return Ok(HashMap::new());
    };
    let (namespace, name) = (
        reference.namespace.unwrap_or_default(),
        reference.name.unwrap_or_default(),
    );
    let data = context.objects.secret(&namespace, &name).await?;
    let data = data.ok_or_else(|| refused(format!("secret \"{namespace}\"/\"{name}\" not found")))?;
    let text = |(key, value): (String, Vec<u8>)| (key, String::from_utf8_lossy(&value).into_owned());
    Ok(data.into_iter().map(text).collect())
}

fn write_note(directory: &Path, note: &Note) -> Result<(), SetUpError> {
    fs::create_dir_all(directory).map_err(SetUpError::file("create", directory))?;
    let (file, new) = (directory.join(NOTE), directory.join("new"));
    if read_note(directory).as_ref() == Some(note) {
        return Ok(());
    }
    fs::write(&new, serde_json::to_vec(note).unwrap_or_default()).map_err(SetUpError::file("write", &new))?;
    fs::rename(&new, &file).map_err(SetUpError::file("rename", &new))
}

fn read_note(directory: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(directory.join(NOTE)).ok()?).ok()
}

/// Directories of published volumes in one pod's directory.
fn published(pod_dir: &Path) -> Vec<(PathBuf, Note)> {
    let roots = ["volumes", "volumeDevices"].map(|kind| pod_dir.join(kind).join("kubernetes.io~csi"));
    let entries = roots
        .iter()
        .flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten());
    entries
        .filter_map(|entry| Some((entry.path(), read_note(&entry.path())?)))
        .collect()
}

fn all_published(root_dir: &Path) -> Vec<(PathBuf, Note)> {
    let pods = fs::read_dir(root_dir.join("pods"))
        .into_iter()
        .flatten()
        .flatten();
    pods.flat_map(|pod| published(&pod.path())).collect()
}

/// Attached volumes that pods of this node use, as the node's status names them.
pub fn in_use(root_dir: &Path) -> BTreeSet<String> {
    let notes = all_published(root_dir)
        .into_iter()
        .map(|(_, note)| note)
        .filter(|note| note.attached);
    notes
        .map(|note| format!("kubernetes.io/csi/{}^{}", note.driver_name, note.volume_handle))
        .collect()
}

/// Takes the volumes of a pod back, and off the node when no other pod uses them.
pub async fn tear_down(context: &Context, pod_dir: &Path) -> Result<(), String> {
    for (directory, note) in published(pod_dir) {
        let gone = format!("driver {} is not registered", note.driver_name);
        let socket = context.drivers.socket(&note.driver_name).ok_or(gone)?;
        let undo = |path: &Path| UndoRequest {
            volume_id: note.volume_handle.clone(),
            path: path.display().to_string(),
        };
        let target = directory.join("mount");
        api::unpublish(&socket, undo(&target)).await?;
        if directories::is_mount_point(&target) {
            return Err(format!(
                "driver {} left {} mounted",
                note.driver_name,
                target.display()
            ));
        }
        let remaining = all_published(&context.config.root_dir);
        let shared = remaining
            .iter()
            .any(|(other, theirs)| *other != directory && *theirs == note);
        if let Some(staged) = note.staged.as_ref().filter(|_| !shared) {
            api::unstage(&socket, undo(staged)).await?;
            let parent = staged.parent().unwrap_or(staged);
            if let Err(error) = fs::remove_dir(staged).and_then(|()| fs::remove_dir(parent)) {
                warn!(directory = %staged.display(), %error, "staging directory not removed");
            }
        }
        fs::remove_dir_all(&directory).map_err(|error| format!("remove {}: {error}", directory.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;

    #[test]
    fn modes_are_the_protocols() {
        for (modes, single, expected) in [
            (&["ReadWriteOnce"][..], false, 1),
            (&["ReadWriteOnce"], true, 7),
            (&["ReadWriteOncePod"], true, 6),
            (&["ReadOnlyMany"], false, 3),
            (&["ReadWriteMany", "ReadWriteOnce"], true, 5),
            (&[], false, 1),
        ] {
            let owned: Vec<String> = modes.iter().map(|mode| (*mode).to_owned()).collect();
            assert_eq!(access_mode(&owned, single), expected, "{modes:?}");
        }
    }

    #[test]
    fn attached_volumes_of_pods_are_in_use() {
        let root = TempDir::new("csi");
        let note = |handle: &str, attached| Note {
            driver_name: "d".into(),
            volume_handle: handle.into(),
            staged: None,
            attached,
        };
        let place = |pod: &str, kind: &str, name: &str| {
            root.path()
                .join("pods")
                .join(pod)
                .join(kind)
                .join("kubernetes.io~csi")
                .join(name)
        };
        write_note(&place("a", "volumes", "v"), &note("1", true)).unwrap();
        write_note(&place("b", "volumeDevices", "v"), &note("2", true)).unwrap();
        write_note(&place("b", "volumes", "inline"), &note("3", false)).unwrap();
        assert_eq!(
            in_use(root.path()),
            ["kubernetes.io/csi/d^1", "kubernetes.io/csi/d^2"]
                .map(str::to_owned)
                .into()
        );
        assert_eq!(attachment_name("h", "d", "n").len(), 4 + 64);
    }
}
