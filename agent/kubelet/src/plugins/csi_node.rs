//! The node's CSINode object: which volume drivers are here, and what they call this node.

use std::path::Path;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::Context;
use crate::volumes::csi_api as csi;

/// Another writer may come between reading and writing.
const ATTEMPTS: usize = 5;

fn objects(context: &Context) -> Api<CSINode> {
    Api::all(context.client.clone())
}

/// Creates the object when there is none.
pub async fn ensure(context: &Context) -> Result<CSINode, kube::Error> {
    let name = &context.config.node_name;
    if let Some(found) = objects(context).get_opt(name).await? {
        return Ok(found);
    }
    let node = Api::<Node>::all(context.client.clone()).get(name).await?;
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.clone(),
        uid: node.metadata.uid.unwrap_or_default(),
        ..Default::default()
    };
    let object = CSINode {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: CSINodeSpec { drivers: Vec::new() },
    };
    objects(context).create(&PostParams::default(), &object).await
}

/// Asks the driver about this node and lists it.
pub async fn add(context: &Context, driver: &str, socket: &Path) -> Result<(), String> {
    let info = csi::node_info(socket).await?;
    if info.node_id.is_empty() {
        return Err(format!("driver {driver} has no id for this node"));
    }
    let segments = info
        .accessible_topology
        .map(|topology| topology.segments)
        .unwrap_or_default();
    if !segments.is_empty() {
        let nodes: Api<Node> = Api::all(context.client.clone());
        let patch = Patch::Merge(json!({ "metadata": { "labels": segments } }));
        let patched = nodes
            .patch(&context.config.node_name, &PatchParams::default(), &patch)
            .await;
        patched.map_err(|error| error.to_string())?;
    }
    let mut keys: Vec<String> = segments.into_keys().collect();
    keys.sort();
    let count = i32::try_from(info.max_volumes_per_node)
        .ok()
        .filter(|count| *count > 0);
    let listed = CSINodeDriver {
        name: driver.to_owned(),
        node_id: info.node_id,
        topology_keys: (!keys.is_empty()).then_some(keys),
        allocatable: count.map(|count| VolumeNodeResources { count: Some(count) }),
    };
    update(context, driver, Some(listed))
        .await
        .map_err(|error| error.to_string())
}

pub async fn remove(context: &Context, driver: &str) -> Result<(), kube::Error> {
    update(context, driver, None).await
}

async fn update(context: &Context, name: &str, driver: Option<CSINodeDriver>) -> Result<(), kube::Error> {
    for attempt in 1.. {
        let mut object = ensure(context).await?;
        let before = object.spec.drivers.clone();
        object.spec.drivers.retain(|listed| listed.name != name);
        object.spec.drivers.extend(driver.clone());
        if object.spec.drivers == before {
            break;
        }
        let node = &context.config.node_name;
        match objects(context)
            .replace(node, &PostParams::default(), &object)
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 409 && attempt < ATTEMPTS => {}
            other => return other.map(drop),
        }
    }
    Ok(())
}
