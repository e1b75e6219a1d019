//! `postStart` and `preStop` hooks.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler};

use crate::context::Context;
use crate::probes::check;

/// Hooks have no time limit of their own; `preStop` is bounded by the grace period.
const UNLIMITED: Duration = Duration::from_secs(24 * 3600);

pub async fn run_hook(
    context: &Context,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    ip: Option<IpAddr>,
) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        let command = action.command.clone().unwrap_or_default();
        return check::exec(context, id, command, Duration::ZERO).await;
    }
    if let Some(action) = &handler.http_get {
        let ip = ip.map(|ip| ip.to_string()).unwrap_or_default();
        let answer = check::http_get(action, container, &ip, UNLIMITED).await;
        // Servers that speak plain HTTP were reached before hooks learned TLS, and still are.
        let plain = answer
            .as_ref()
            .is_err_and(|error| error.contains("InvalidContentType") || error.contains("corrupt message"));
        if action.scheme.as_deref() == Some("HTTPS") && plain {
            let action = HTTPGetAction {
                scheme: Some("HTTP".into()),
                ..action.clone()
            };
            return check::http_get(&action, container, &ip, UNLIMITED)
                .await
                .map(drop);
        }
        return answer.map(drop);
    }
    if let Some(action) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("invalid handler: must have one of exec, httpGet or sleep".into())
}
