//! Requests that become streams to a kubelet, pod or service: checked here, carried by `proxy`.

use std::sync::Arc;

use auth::UserInfo;
use http::{Request, Response};
use hyper::body::Incoming;

use crate::connect::{Body, ConnectRequest};
use crate::pipeline::{AdmissionContext, Operation};
use crate::request_info::RequestInfo;
use crate::state::ApiServer;
use crate::status::ApiError;

pub fn is_connect(info: &RequestInfo) -> bool {
    info.group.is_empty()
        && match info.resource.as_str() {
            "pods" => matches!(
                info.subresource.as_str(),
                "log" | "exec" | "attach" | "portforward" | "proxy"
            ),
            "nodes" | "services" => info.subresource == "proxy",
            _ => false,
        }
}

pub async fn answer(
    server: &Arc<ApiServer>,
    info: RequestInfo,
    user: UserInfo,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    if info.subresource != "log" {
        let context = AdmissionContext {
            operation: Operation::Connect,
            info: &info,
            kind: "",
            user: &user,
            old: None,
            dry_run: false,
            reader: server.as_ref(),
        };
        server.admission.validate(&context, None).await?;
    }
    let config = server.config.clone();
    let reader = server.clone();
    crate::proxy::connect(ConnectRequest {
        info,
        user,
        request,
        config,
        reader,
    })
    .await
}
