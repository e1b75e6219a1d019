//! Requests that become streams to a kubelet, pod or service: checked here, carried by `proxy`.

use std::sync::Arc;

use auth::UserInfo;
use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::connect::{Body, ConnectRequest};
use crate::pipeline::{AdmissionContext, Operation};
use crate::request_info::{RequestInfo, query_pairs};
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

/// What the query asks for, as the object that admission sees (`PodExecOptions` and the like).
fn connect_options(info: &RequestInfo, query: &str) -> Value {
    let (resource, subresource) = (info.resource.as_str(), info.subresource.as_str());
    let kind = match (resource, subresource) {
        ("pods", "exec") => "PodExecOptions",
        ("pods", "attach") => "PodAttachOptions",
        ("pods", "portforward") => "PodPortForwardOptions",
        ("pods", _) => "PodProxyOptions",
        ("nodes", _) => "NodeProxyOptions",
        _ => "ServiceProxyOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    if subresource == "proxy" {
        options["path"] = json!(info.rest);
        return options;
    }
    for (name, value) in query_pairs(query) {
        match (subresource, name.as_str()) {
            ("portforward", "ports") => {
                let ports = value.split(',').filter_map(|port| port.parse::<u16>().ok());
                options["ports"] = ports.collect();
            }
            (_, "stdin" | "stdout" | "stderr" | "tty") => {
                options[name] = json!(matches!(value.as_str(), "" | "1" | "true" | "True" | "TRUE"));
            }
            ("exec", "command") => match options["command"].as_array_mut() {
                Some(command) => command.push(json!(value)),
                None => options["command"] = json!([value]),
            },
            (_, "container") => options["container"] = json!(value),
            _ => {}
        }
    }
    options
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
            query: request.uri().query().unwrap_or_default(),
            reader: server.as_ref(),
            reinvocation: std::sync::Mutex::default(),
        };
        let options = connect_options(&info, context.query);
        server.admission.validate(&context, Some(&options)).await?;
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
