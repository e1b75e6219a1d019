//! The default StorageClass `local`: directories on the state disk of the node that the scheduler chose.
//!
//! The agent makes a volume's directory when it first mounts it. A directory goes when its name is in the node's
//! annotation [`DELETE_VOLUMES`]: the agent removes it, then takes its name off the list.

use crate::world::Snapshot;
use crate::write::Write;
use api::event::{NORMAL, WARNING};
use api::metal::{self, DELETE_VOLUMES};
use api::volume::{PROVISIONED_BY, PROVISIONER, SELECTED_NODE, annotation};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, from_value, json};

/// Made when absent; users may change or replace it.
pub fn default_class() -> Write {
    let metadata =
        json!({"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}});
    Write {
        method: http::Method::POST,
        url: "/apis/storage.k8s.io/v1/storageclasses".into(),
        body: Some(
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": metadata,
            "provisioner": metal::PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer"}),
        ),
        events: Vec::new(),
    }
}

pub fn reconcile(snapshot: &Snapshot) -> Vec<Write> {
    let claims = snapshot
        .claims
        .iter()
        .filter_map(|claim| provision(claim, snapshot));
    claims.chain(reclaim(snapshot)).collect()
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
        .any(|key| annotation(&claim.metadata, key) == Some(metal::PROVISIONER));
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
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: metal::PROVISIONER}},
        "spec": {
            "capacity": spec.resources.as_ref().and_then(|r| r.requests.clone()),
            "accessModes": spec.access_modes,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "mountOptions": class.mount_options,
            "volumeMode": "Filesystem",
            "local": {"path": format!("{}/{name}", metal::VOLUMES)},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace,
                "name": claim.metadata.name, "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": api::well_known::HOSTNAME, "operator": "In", "values": [host]}]}]}},
        },
    });
    from_value(body).ok()
}

/// Released, and ours to delete.
fn is_done(volume: &PersistentVolume) -> bool {
    let spec = volume.spec.as_ref();
    volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released")
        && spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Delete")
        && annotation(&volume.metadata, PROVISIONED_BY) == Some(metal::PROVISIONER)
        && volume.metadata.deletion_timestamp.is_none()
}

/// First the directories' names go to their nodes, then the volumes go.
fn reclaim(snapshot: &Snapshot) -> Vec<Write> {
    let done: Vec<&PersistentVolume> = snapshot
        .volumes
        .iter()
        .map(|v| &**v)
        .filter(|v| is_done(v))
        .collect();
    let mut plan = Vec::new();
    for node in &snapshot.nodes {
        let listed = annotation(&node.metadata, DELETE_VOLUMES).unwrap_or_default();
        let mut names: Vec<&str> = listed.split(',').filter(|n| !n.is_empty()).collect();
        let before = names.len();
        for volume in done.iter().filter(|v| api::volume::reaches(v, node)) {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if names.len() > before {
            let annotations: Value = json!({DELETE_VOLUMES: names.join(",")});
            plan.push(Write::patch(
                &**node,
                json!({"metadata": {"annotations": annotations}}),
            ));
        }
    }
    // A node that changed meanwhile refuses its patch: its volumes go in the next round.
    let told = |volume: &&PersistentVolume| {
        let home = snapshot.nodes.iter().find(|n| api::volume::reaches(volume, n));
        home.is_none_or(|n| {
            let listed = annotation(&n.metadata, DELETE_VOLUMES).unwrap_or_default();
            listed
                .split(',')
                .any(|name| Some(name) == volume.metadata.name.as_deref())
        })
    };
    plan.extend(done.into_iter().filter(told).map(Write::delete));
    plan
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
        json!({PROVISIONER[0]: metal::PROVISIONER, SELECTED_NODE: "a"})
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
            plan[0].body.as_ref().unwrap()["metadata"]["annotations"][DELETE_VOLUMES],
            "pvc-u"
        );
        assert_eq!(plan.len(), 1, "the volume goes when its node knows");
        let mut told = (*world.nodes[0]).clone();
        told.metadata
            .annotations
            .get_or_insert_default()
            .insert(DELETE_VOLUMES.into(), "pvc-u".into());
        world.nodes = vec![Arc::new(told)];
        let plan = reconcile(&world);
        assert_eq!((plan.len(), &plan[0].method), (1, &http::Method::DELETE));
    }

    #[test]
    fn what_a_directory_cannot_be_is_said() {
        for (annotations, spec, expected) in [
            (json!({PROVISIONER[0]: metal::PROVISIONER}), json!({}), None),
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
