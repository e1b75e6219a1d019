//! What the API server serves, for controllers that deal in every kind there is.

use crate::executor::Error;
use kube::Client;
use kube::discovery::{ApiCapabilities, ApiResource, Discovery, Scope, verbs};

/// One resource, in its preferred version.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    pub resource: ApiResource,
    pub namespaced: bool,
    /// Has deletecollection.
    pub collectively: bool,
    pub watchable: bool,
}

impl Kind {
    /// `pods.` or `deployments.apps`, as upstream's messages have it.
    pub fn title(&self) -> String {
        format!("{}.{}", self.resource.plural, self.resource.group)
    }

    pub fn url(&self, namespace: &str) -> String {
        let ApiResource {
            group,
            version,
            plural,
            ..
        } = &self.resource;
        let root = if group.is_empty() {
            format!("/api/{version}")
        } else {
            format!("/apis/{group}/{version}")
        };
        if namespace.is_empty() {
            format!("{root}/{plural}")
        } else {
            format!("{root}/namespaces/{namespace}/{plural}")
        }
    }
}

/// Every kind there is.
pub async fn kinds(client: &Client) -> Result<Vec<Kind>, Error> {
    list(client, |_| true).await
}

/// Every kind that can be listed and deleted.
pub async fn deletable(client: &Client) -> Result<Vec<Kind>, Error> {
    let usable =
        |can: &ApiCapabilities| can.supports_operation(verbs::LIST) && can.supports_operation(verbs::DELETE);
    list(client, usable).await
}

async fn list(client: &Client, wanted: fn(&ApiCapabilities) -> bool) -> Result<Vec<Kind>, Error> {
    let discovery = Discovery::new(client.clone())
        .run_aggregated()
        .await
        .map_err(|error| Error::Observation(format!("discovery: {error}")))?;
    let kinds = discovery
        .groups()
        .flat_map(|group| group.recommended_resources())
        .filter(|(_, can)| wanted(can))
        .map(|(resource, can)| Kind {
            namespaced: can.scope == Scope::Namespaced,
            collectively: can.supports_operation(verbs::DELETE_COLLECTION),
            watchable: can.supports_operation(verbs::WATCH),
            resource,
        });
    Ok(kinds.collect())
}
