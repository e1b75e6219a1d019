//! Which attachments a node should have, and what its status should say of them.

use crate::action::Action;
use api::event::{NORMAL, WARNING};
use k8s_openapi::api::core::v1::{AttachedVolume, Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A volume, and the pods of the node that use it.
pub struct Wanted {
    pub volume: Arc<PersistentVolume>,
    pub pods: Vec<Arc<Pod>>,
}

pub struct Observed<'a> {
    pub name: &'a str,
    pub node: Option<&'a Node>,
    pub wanted: &'a [Wanted],
    /// Of all nodes.
    pub attachments: &'a [Arc<VolumeAttachment>],
    pub volume: &'a dyn Fn(&str) -> Option<Arc<PersistentVolume>>,
}

/// As upstream names them, so that either may take over the other's.
fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}"));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// The name the kubelet knows the volume by.
fn unique_name(volume: &PersistentVolume) -> Option<String> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some(format!("kubernetes.io/csi/{}^{}", csi.driver, csi.volume_handle))
}

fn volume_of(attachment: &VolumeAttachment) -> Option<&str> {
    attachment.spec.source.persistent_volume_name.as_deref()
}

/// Attachments of other names are somebody else's, who will remove them.
fn is_ours(attachment: &VolumeAttachment) -> bool {
    let name = attachment.metadata.name.as_deref().unwrap_or_default();
    let digest = name.strip_prefix("csi-").unwrap_or_default();
    digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|s| s.attached)
}

fn is_for_one_node(volume: &PersistentVolume) -> bool {
    let modes = volume
        .spec
        .as_ref()
        .and_then(|s| s.access_modes.as_deref())
        .unwrap_or_default();
    !modes.is_empty()
        && modes
            .iter()
            .all(|m| m == "ReadWriteOnce" || m == "ReadWriteOncePod")
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let mut plan = Vec::new();
    let mine: Vec<_> = observed
        .attachments
        .iter()
        .filter(|a| a.spec.node_name == observed.name)
        .collect();
    for wanted in observed.wanted {
        let name = wanted.volume.metadata.name.as_deref().unwrap_or_default();
        match mine.iter().find(|a| volume_of(a) == Some(name)) {
            Some(attachment) => plan.extend(announce(observed, wanted, attachment)),
            None => plan.extend(attach(observed, wanted, name)),
        }
    }
    let in_use = observed
        .node
        .and_then(|n| n.status.as_ref()?.volumes_in_use.as_deref())
        .unwrap_or_default();
    let mut attached = Vec::new();
    for attachment in &mine {
        let name = volume_of(attachment);
        let volume = name.and_then(|n| (observed.volume)(n));
        let unique = volume.as_deref().and_then(unique_name);
        let needed = observed
            .wanted
            .iter()
            .any(|w| w.volume.metadata.name.as_deref() == name)
            || unique.as_ref().is_some_and(|u| in_use.contains(u));
        let goes = !needed && name.is_some() && is_ours(attachment);
        if goes && attachment.metadata.deletion_timestamp.is_none() {
            plan.push(Action::delete(&***attachment));
        } else if let Some(name) = unique.filter(|_| needed && is_attached(attachment)) {
            attached.push(AttachedVolume {
                name,
                device_path: String::new(),
            });
        }
    }
    attached.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(node) = observed.node {
        let old = node.status.clone().unwrap_or_default();
        if old.volumes_attached.as_deref().unwrap_or_default() != attached {
            let mut new = old.clone();
            new.volumes_attached = (!attached.is_empty()).then_some(attached);
            // Before anything is detached, so that the kubelet doesn't start to use it.
            plan.insert(0, Action::patch_status(node, &old, &new));
        }
    }
    plan
}

fn attach(observed: &Observed, wanted: &Wanted, name: &str) -> Vec<Action> {
    let elsewhere = observed.attachments.iter().find(|a| volume_of(a) == Some(name));
    if let Some(other) = elsewhere.filter(|_| is_for_one_node(&wanted.volume)) {
        let message = format!(
            "Multi-Attach error for volume {name:?} Volume is already exclusively attached to one node and can't be \
             attached to another"
        );
        tracing::debug!(volume = name, node = observed.name, other = %other.spec.node_name, "attached elsewhere");
        let event = |pod: &Arc<Pod>| Action::event(&**pod, WARNING, "FailedAttachVolume", message.clone());
        let mut plan: Vec<Action> = wanted.pods.iter().map(event).collect();
        plan.push(Action::Requeue(std::time::Duration::from_secs(5)));
        return plan;
    }
    let Some(csi) = wanted.volume.spec.as_ref().and_then(|s| s.csi.as_ref()) else {
        return Vec::new();
    };
    vec![Action::create(&VolumeAttachment {
        metadata: ObjectMeta {
            name: Some(attachment_name(&csi.volume_handle, &csi.driver, observed.name)),
            ..ObjectMeta::default()
        },
        spec: VolumeAttachmentSpec {
            attacher: csi.driver.clone(),
            node_name: observed.name.to_owned(),
            source: VolumeAttachmentSource {
                persistent_volume_name: Some(name.to_owned()),
                ..VolumeAttachmentSource::default()
            },
        },
        status: None,
    })]
}

/// Success is told once: while the node's status doesn't yet say so.
fn announce(observed: &Observed, wanted: &Wanted, attachment: &VolumeAttachment) -> Vec<Action> {
    let name = wanted.volume.metadata.name.as_deref().unwrap_or_default();
    let told = observed
        .node
        .and_then(|n| n.status.as_ref()?.volumes_attached.as_ref())
        .is_some_and(|list| {
            let unique = unique_name(&wanted.volume);
            list.iter().any(|v| Some(&v.name) == unique.as_ref())
        });
    let error = attachment
        .status
        .as_ref()
        .and_then(|s| s.attach_error.as_ref()?.message.as_deref());
    let (kind, reason, message) = match error {
        _ if is_attached(attachment) && told => return Vec::new(),
        _ if is_attached(attachment) => (
            NORMAL,
            "SuccessfulAttachVolume",
            format!("AttachVolume.Attach succeeded for volume {name:?} "),
        ),
        Some(error) => (
            WARNING,
            "FailedAttachVolume",
            format!("AttachVolume.Attach failed for volume {name:?} : {error}"),
        ),
        None => return Vec::new(),
    };
    let event = |pod: &Arc<Pod>| Action::event(&**pod, kind, reason, message.clone());
    wanted.pods.iter().map(event).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn volume() -> Arc<PersistentVolume> {
        Arc::new(
            from_value(
                json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "d.io", "volumeHandle": "h"}}}),
            )
            .unwrap(),
        )
    }

    fn attachment(node: &str, attached: bool) -> Arc<VolumeAttachment> {
        named(&attachment_name("h", "d.io", node), node, attached)
    }

    fn named(name: &str, node: &str, attached: bool) -> Arc<VolumeAttachment> {
        Arc::new(
            from_value(
                json!({"metadata": {"name": name, "uid": "a"}, "spec": {"attacher": "d.io",
            "nodeName": node, "source": {"persistentVolumeName": "v"}}, "status": {"attached": attached}}),
            )
            .unwrap(),
        )
    }

    fn run(status: Value, wanted: bool, attachments: &[Arc<VolumeAttachment>]) -> Vec<String> {
        let node: Node = from_value(json!({"metadata": {"name": "n"}, "status": status})).unwrap();
        let pod: Arc<Pod> = Arc::new(from_value(json!({"metadata": {"name": "p"}})).unwrap());
        let wanted: Vec<Wanted> = wanted
            .then(|| Wanted {
                volume: volume(),
                pods: vec![pod],
            })
            .into_iter()
            .collect();
        let observed = Observed {
            name: "n",
            node: Some(&node),
            wanted: &wanted,
            attachments,
            volume: &|_| Some(volume()),
        };
        let word = |action: &Action| match action {
            Action::Create { .. } => "create".to_owned(),
            Action::Delete { .. } => "delete".to_owned(),
            Action::Event(notice) => notice.reason.clone(),
            Action::Patch { patch, .. } => match &patch["status"]["volumesAttached"] {
                Value::Null => "none attached".to_owned(),
                list => list[0]["name"].as_str().unwrap_or_default().to_owned(),
            },
            other => format!("{other:?}"),
        };
        reconcile(&observed).iter().map(word).collect()
    }

    const UNIQUE: &str = "kubernetes.io/csi/d.io^h";

    #[test]
    fn attach_tell_and_detach() {
        let told = json!({"volumesAttached": [{"name": UNIQUE, "devicePath": ""}]});
        let busy = json!({"volumesInUse": [UNIQUE], "volumesAttached": [{"name": UNIQUE, "devicePath": ""}]});
        for (what, status, wanted, attachments, expected) in [
            ("attach", json!({}), true, vec![], vec!["create"]),
            ("under way", json!({}), true, vec![attachment("n", false)], vec![]),
            (
                "done",
                json!({}),
                true,
                vec![attachment("n", true)],
                vec![UNIQUE, "SuccessfulAttachVolume"],
            ),
            ("told", told.clone(), true, vec![attachment("n", true)], vec![]),
            ("still mounted", busy, false, vec![attachment("n", true)], vec![]),
            (
                "detach",
                told,
                false,
                vec![attachment("n", true)],
                vec!["none attached", "delete"],
            ),
            ("quiet", json!({}), false, vec![], vec![]),
            (
                "somebody's own",
                json!({}),
                false,
                vec![named("mine", "n", false)],
                vec![],
            ),
        ] {
            assert_eq!(run(status, wanted, &attachments), expected, "{what}");
        }
        let elsewhere = run(json!({}), true, &[attachment("other", true)]);
        assert_eq!(elsewhere[0], "FailedAttachVolume");
    }
}
