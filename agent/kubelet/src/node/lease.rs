//! The node's lease in `kube-node-lease`: the cheap heartbeat that tells the control plane the node lives.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::context::Context;

const NAMESPACE: &str = "kube-node-lease";

pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let duration = context.config.settings.node_lease_duration_seconds;
    while !stop.is_cancelled() {
        let pause = match renew(&context).await {
            // Upstream renews after a quarter of the lease.
            Ok(()) => Duration::from_secs(u64::try_from(duration / 4).unwrap_or(10)),
            Err(error) => {
                warn!(%error, "node lease not renewed");
                Duration::from_secs(2)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn renew(context: &Context) -> Result<(), kube::Error> {
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), NAMESPACE);
    let name = &context.config.node_name;
    let now = MicroTime(Timestamp::now());
    let spec = json!({ "holderIdentity": name, "leaseDurationSeconds": context.config.settings.node_lease_duration_seconds, "renewTime": now });
    let patch = async |patch| {
        leases
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
    };
    match patch(json!({ "spec": spec })).await {
        Err(kube::Error::Api(status)) if status.code == 404 => create(context, &leases, now).await,
        // It may be older than the node object.
        Ok(lease) if lease.metadata.owner_references.is_none() => match owner(context).await? {
            Some(owner) => patch(json!({ "metadata": { "ownerReferences": [owner] } }))
                .await
                .map(drop),
            None => Ok(()),
        },
        other => other.map(drop),
    }
}

/// The lease belongs to the node object, so that it goes with it.
async fn owner(context: &Context) -> Result<Option<OwnerReference>, kube::Error> {
    let name = &context.config.node_name;
    let node = Api::<Node>::all(context.client.clone()).get_opt(name).await?;
    Ok(node.and_then(|node| node.metadata.uid).map(|uid| OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.clone(),
        uid,
        ..Default::default()
    }))
}

async fn create(context: &Context, leases: &Api<Lease>, now: MicroTime) -> Result<(), kube::Error> {
    let name = &context.config.node_name;
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.into()),
            owner_references: owner(context).await?.map(|owner| vec![owner]),
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(context.config.settings.node_lease_duration_seconds),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    leases.create(&PostParams::default(), &lease).await.map(drop)
}
