//! What joining nodes need to find in the API: the bootstrap token's secret and the signed cluster-info. Kept true to
//! the files on every start; the signature itself is the bootstrap-signer controller's.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use pki::{BootstrapToken, Credentials, Kubeconfig};
use serde_json::json;

const TOKEN_NAMESPACE: &str = "kube-system";
const INFO_NAMESPACE: &str = "kube-public";
const INFO: &str = "cluster-info";
const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
pub struct Joining {
    pub token: BootstrapToken,
    /// URL joining nodes reach the API server at.
    pub server: String,
    pub ca_pem: String,
}

/// Returns when both objects are as they should be; the namespaces may still be in the making.
pub async fn publish(client: kube::Client, joining: &Joining) {
    while let Err(error) = publish_once(client.clone(), joining).await {
        tracing::warn!(%error, "cannot publish the bootstrap token and cluster-info yet");
        tokio::time::sleep(RETRY).await;
    }
}

async fn publish_once(client: kube::Client, joining: &Joining) -> kube::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), TOKEN_NAMESPACE);
    let wanted = token_secret(&joining.token);
    let name = format!("bootstrap-token-{}", joining.token.id());
    if secrets.get_opt(&name).await?.is_none() {
        secrets.create(&PostParams::default(), &wanted).await?;
        tracing::info!(secret = name, "bootstrap token created");
    }
    let maps: Api<ConfigMap> = Api::namespaced(client, INFO_NAMESPACE);
    let kubeconfig = discovery_kubeconfig(joining);
    match maps.get_opt(INFO).await? {
        None => {
            let info = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(INFO.into()),
                    ..ObjectMeta::default()
                },
                data: Some(BTreeMap::from([("kubeconfig".into(), kubeconfig)])),
                ..ConfigMap::default()
            };
            maps.create(&PostParams::default(), &info).await?;
            tracing::info!("cluster-info created");
        }
        Some(info) if info.data.as_ref().and_then(|data| data.get("kubeconfig")) != Some(&kubeconfig) => {
            let patch = json!({"data": {"kubeconfig": kubeconfig}});
            maps.patch(INFO, &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
            tracing::info!(server = joining.server, "cluster-info updated");
        }
        Some(_) => {}
    }
    Ok(())
}

fn discovery_kubeconfig(joining: &Joining) -> String {
    Kubeconfig {
        cluster: String::new(),
        user: String::new(),
        server: joining.server.clone(),
        ca_pem: joining.ca_pem.clone(),
        credentials: Credentials::Anonymous,
    }
    .render()
}

fn token_secret(token: &BootstrapToken) -> Secret {
    let data = [
        ("token-id", token.id()),
        ("token-secret", token.secret()),
        ("usage-bootstrap-authentication", "true"),
        ("usage-bootstrap-signing", "true"),
        (
            "auth-extra-groups",
            "system:bootstrappers:kubeadm:default-node-token",
        ),
        ("description", "The token this cluster was founded with."),
    ];
    Secret {
        metadata: ObjectMeta {
            name: Some(format!("bootstrap-token-{}", token.id())),
            namespace: Some(TOKEN_NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        type_: Some("bootstrap.kubernetes.io/token".into()),
        string_data: Some(
            data.into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        ),
        ..Secret::default()
    }
}
