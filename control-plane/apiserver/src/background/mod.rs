//! What the server does without being asked: the objects every cluster has, the authorizer's
//! knowledge, custom resources, the `kubernetes` Service's endpoints, and forgetting old revisions.

mod authorization;
mod bootstrap;
mod compaction;
mod conversion;
mod definitions;
mod endpoints;
mod flow_control;
mod front_proxy;
mod identity;
mod token_tracking;
mod type_checking;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::aggregation::{availability, registration};
use crate::endpoints::ResourceRequest;
use crate::negotiate::Wanted;
use crate::request_info::RequestInfo;
use crate::state::ApiServer;
use crate::status::ApiError;

const RETRY: Duration = Duration::from_millis(500);

/// Brings the server to readiness, then keeps its own objects up to date until shutdown.
pub async fn run(server: Arc<ApiServer>, port: u16) {
    let work = async {
        authorization::start(&server).await;
        definitions::start(&server).await;
        while let Err(error) = bootstrap::ensure(&server).await {
            tracing::warn!(error = error.message, "bootstrap objects are not in place yet");
            tokio::time::sleep(RETRY).await;
        }
        while let Err(error) = endpoints::announce(&server, port).await {
            tracing::warn!(
                error = error.message,
                "the kubernetes Service has no endpoint yet"
            );
            tokio::time::sleep(RETRY).await;
        }
        server.ready.send_replace(true);
        tokio::join!(
            endpoints::keep(&server, port),
            compaction::keep(&server),
            front_proxy::publish(&server),
            token_tracking::publish(&server),
            flow_control::keep(&server),
            availability::keep(&server),
            registration::keep(&server),
            type_checking::keep(&server),
            identity::keep(&server)
        );
    };
    tokio::select! {
        () = work => {}
        () = server.shutdown.cancelled() => {}
    }
}

/// A write of the server itself, through the same path as everyone's.
pub(crate) fn own_request(
    server: &ApiServer,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<ResourceRequest, ApiError> {
    let catalog = server.registry.catalog();
    let resource = catalog
        .resource(group, "v1", plural)
        .cloned()
        .ok_or_else(|| ApiError::internal(format!("{plural}.{group}/v1 is not in the catalog")))?;
    Ok(ResourceRequest {
        info: RequestInfo {
            is_resource: true,
            verb: "create".into(),
            group: group.into(),
            version: "v1".into(),
            namespace: namespace.into(),
            resource: plural.into(),
            name: name.into(),
            ..RequestInfo::default()
        },
        user: auth::UserInfo::new("system:apiserver", &["system:masters", "system:authenticated"]),
        resource,
        headers: http::HeaderMap::new(),
        query: String::new(),
        wanted: Wanted::default(),
        body: bytes::Bytes::new(),
        is_admitted: false,
    })
}

/// Creates the object unless it is there.
pub(crate) async fn ensure_object(
    server: &ApiServer,
    request: &ResourceRequest,
    object: Value,
) -> Result<bool, ApiError> {
    let info = &request.info;
    if server
        .read(&info.group, &info.resource, &info.namespace, &info.name)
        .await?
        .is_some()
    {
        return Ok(false);
    }
    let intent = crate::endpoints::Intent {
        request,
        dry_run: false,
    };
    match crate::endpoints::create_object(server, intent, object).await {
        Ok(_) => Ok(true),
        Err(error) if error.reason == "AlreadyExists" => Ok(false),
        Err(error) => Err(error),
    }
}
