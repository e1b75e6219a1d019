//! The default StorageClass `local`: directories on the state disk of the node that the scheduler chose.
//!
//! The agent makes a volume's directory when it first mounts it. A directory goes when its name is in the node's
//! annotation [`DELETE`]: the agent removes it, then takes its name off the list.

use crate::world::Snapshot;
use crate::write::Write;
use api::event::{NORMAL, WARNING};
use api::volume::{PROVISIONED_BY, PROVISIONER, SELECTED_NODE, annotation};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, from_value, json};

const NAME: &str = "metal.ironlet.dev";
const DIRECTORY: &str = "/var/lib/ironlet/volumes";
/// On a Node: volumes whose directories shall be removed, separated by commas.
pub const DELETE: &str = "ironlet.dev/delete-volumes";

/// Made when absent; users may change or replace it.
pub fn default_class() -> Write {
    let metadata =
        json!({"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}});
    Write {
        method: http::Method::POST,
        url: "/apis/storage.k8s.io/v1/storageclasses".into(),
        body: Some(
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": metadata,
            "provisioner": NAME, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer"}),
        ),
        events: Vec::new(),
    }
}

pub fn reconcile(snapshot: &Snapshot) -> Vec<Write> {
    let claims = snapshot
        .claims
        .iter()
        .filter_map(|claim| provision(claim, snapshot));
    let volumes = snapshot
        .volumes
        .iter()
        .flat_map(|volume| reclaim(volume, snapshot));
    claims.chain(volumes).collect()
}

fn node<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Node> {
    let named = snapshot
        .nodes
        .iter()
        .find(|n| n.metadata.name.as_deref() == Some(name));
    named.map(|n| &**n)
}

fn provision(claim: &PersistentVolumeClaim, snapshot: &Snapshot) -> Option<Write> {
    let ours = PROVISIONER
        .iter()
        .any(|key| annotation(&claim.metadata, key) == Some(NAME));
    if !ours || api::volume::volume_name(claim).is_some() || claim.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let class_name = api::volume::claim_class(claim);
    let class = snapshot
        .classes
        .iter()
        .find(|c| c.metadata.name.as_deref() == Some(class_name))?;
    let selected = annotation(&claim.metadata, SELECTED_NODE);
    let name = format!("pvc-{}", claim.metadata.uid.as_deref()?);
    if snapshot
        .volumes
        .iter()
        .any(|v| v.metadata.name.as_ref() == Some(&name))
    {
        return None;
    }
    let failed = |why: &str| {
        let message = format!("failed to provision volume with StorageClass {class_name:?}: {why}");
        Write::say(claim).event(claim, WARNING, "ProvisioningFailed", message)
    };
    let Some(selected) = selected else {
        return (!api::volume::waits_for_consumer(class))
            .then(|| failed("local volumes need volumeBindingMode WaitForFirstConsumer"));
    };
    let Some(node) = node(snapshot, selected) else {
        // The node vanished: the scheduler has to choose again.
        return Some(Write::patch(
            claim,
            json!({"metadata": {"annotations": {SELECTED_NODE: null}}}),
        ));
    };
    let block = claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()) == Some("Block");
    let modes = claim
        .spec
        .as_ref()
        .and_then(|s| s.access_modes.as_deref())
        .unwrap_or_default();
    if block {
        return Some(failed(
            "spec.volumeMode: Block is not supported, directories only",
        ));
    }
    if modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany") {
        return Some(failed("spec.accessModes: a local volume is on one node"));
    }
    let volume = volume(claim, class, node, &name)?;
    let message = format!("Successfully provisioned volume {name}");
    Some(Write::create(&volume).event(claim, NORMAL, "ProvisioningSucceeded", message))
}

fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    name: &str,
) -> Option<PersistentVolume> {
    let host = api::node::label(node, api::well_known::HOSTNAME);
    let host = host.or(node.metadata.name.as_deref())?;
    let spec = claim.spec.as_ref()?;
    let body = json!({
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: NAME}},
        "spec": {
            "capacity": spec.resources.as_ref().and_then(|r| r.requests.clone()),
            "accessModes": spec.access_modes,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "mountOptions": class.mount_options,
            "volumeMode": "Filesystem",
            "local": {"path": format!("{DIRECTORY}/{name}")},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace,
                "name": claim.metadata.name, "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": api::well_known::HOSTNAME, "operator": "In", "values": [host]}]}]}},
        },
    });
    from_value(body).ok()
}

/// First the directory's name goes to its node, then the volume goes.
fn reclaim(volume: &PersistentVolume, snapshot: &Snapshot) -> Vec<Write> {
    let (Some(spec), Some(name)) = (&volume.spec, volume.metadata.name.as_deref()) else {
        return Vec::new();
    };
    let released = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released");
    let deletes = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    let ours = annotation(&volume.metadata, PROVISIONED_BY) == Some(NAME);
    if !released || !deletes || !ours || volume.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let home = snapshot
        .nodes
        .iter()
        .find(|node| api::volume::reaches(volume, node));
    let listed: Vec<&str> = home
        .and_then(|n| annotation(&n.metadata, DELETE))
        .map(|list| list.split(',').filter(|n| !n.is_empty()).collect())
        .unwrap_or_default();
    match home {
        Some(node) if !listed.contains(&name) => {
            let list = listed.into_iter().chain([name]).collect::<Vec<_>>().join(",");
            let annotations: Value = json!({DELETE: list});
            let mut patch = Write::patch(&**node, json!({"metadata": {"annotations": annotations}}));
            // The kubelet writes its status all the time; only a list that changed meanwhile would matter, and only
            // this process and the node itself, which takes names off, write it.
            if let Some(metadata) = patch.body.as_mut().and_then(|b| b["metadata"].as_object_mut()) {
                metadata.remove("resourceVersion");
            }
            vec![patch, Write::delete(volume)]
        }
        _ => vec![Write::delete(volume)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn claim(annotations: Value, spec: Value) -> Arc<PersistentVolumeClaim> {
        let mut body = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u", "annotations": annotations},
            "spec": {"storageClassName": "local", "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            body["spec"][key] = value.clone();
        }
        Arc::new(from_value(body).unwrap())
    }

    fn world(claim: Arc<PersistentVolumeClaim>) -> Snapshot {
        Snapshot {
            nodes: vec![Arc::new(
                from_value(json!({"metadata": {"name": "a",
                "labels": {"kubernetes.io/hostname": "host-a"}}}))
                .unwrap(),
            )],
            classes: vec![Arc::new(from_value(default_class().body.unwrap()).unwrap())],
            claims: vec![claim],
            ..Snapshot::default()
        }
    }

    fn ready() -> Value {
        json!({PROVISIONER[0]: NAME, SELECTED_NODE: "a"})
    }

    #[test]
    fn a_claim_with_a_node_gets_a_directory_there() {
        let mut world = world(claim(ready(), json!({})));
        let plan = reconcile(&world);
        let volume = plan[0].body.clone().unwrap();
        assert_eq!(volume["spec"]["local"]["path"], "/var/lib/ironlet/volumes/pvc-u");
        assert_eq!(volume["spec"]["claimRef"]["uid"], "u");
        let affinity =
            &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
        assert_eq!(affinity["values"], json!(["host-a"]));
        let mut made: PersistentVolume = from_value(volume).unwrap();
        world.volumes = vec![Arc::new(made.clone())];
        assert!(reconcile(&world).is_empty(), "once");
        made.status.get_or_insert_default().phase = Some("Released".into());
        world.volumes = vec![Arc::new(made)];
        let plan = reconcile(&world);
        assert_eq!(
            plan[0].body.as_ref().unwrap()["metadata"]["annotations"][DELETE],
            "pvc-u"
        );
        assert_eq!(plan[1].method, http::Method::DELETE);
    }

    #[test]
    fn what_a_directory_cannot_be_is_said() {
        for (annotations, spec, expected) in [
            (json!({PROVISIONER[0]: NAME}), json!({}), None),
            (
                json!({PROVISIONER[0]: "other", SELECTED_NODE: "a"}),
                json!({}),
                None,
            ),
            (ready(), json!({"volumeMode": "Block"}), Some("spec.volumeMode")),
            (
                ready(),
                json!({"accessModes": ["ReadWriteMany"]}),
                Some("spec.accessModes"),
            ),
        ] {
            let plan = reconcile(&world(claim(annotations, spec)));
            match expected {
                None => assert!(plan.is_empty(), "{plan:?}"),
                Some(words) => assert!(plan[0].events[0].message.contains(words), "{plan:?}"),
            }
        }
    }
}
