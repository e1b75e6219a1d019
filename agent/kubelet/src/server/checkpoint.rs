//! `/checkpoint`: freezes a running container into an archive (KEP-2008).

use http::StatusCode;
use jiff::Timestamp;
use serde_json::json;

use super::{Answer, json as json_answer, query, text};
use crate::context::{Context, uid};
use crate::pod_manager::Pods;

pub async fn answer(
    context: &Context,
    pods: &Pods,
    namespace: &str,
    pod_name: &str,
    container: &str,
    parameters: Option<&str>,
) -> Answer {
    let Some(pod) = pods.find(namespace, pod_name) else {
        return text(
            StatusCode::NOT_FOUND,
            format!("pod \"{pod_name}\" does not exist\n"),
        );
    };
    let observed = match context.runtime.pod(uid(&pod)).await {
        Ok(observed) => observed,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let Some(running) = observed
        .running_containers()
        .find(|running| running.name == container)
    else {
        return text(
            StatusCode::NOT_FOUND,
            format!("container {container} does not exist\n"),
        );
    };
    let pairs = query(parameters);
    let timeout = pairs
        .iter()
        .find(|(key, _)| key == "timeout")
        .map(|(_, value)| value.parse::<i64>());
    let Ok(timeout) = timeout.unwrap_or(Ok(0)) else {
        return text(
            StatusCode::BAD_REQUEST,
            "cannot parse value of timeout parameter\n",
        );
    };
    let directory = context.config.root_dir.join("checkpoints");
    if let Err(error) = std::fs::create_dir_all(&directory) {
        return text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{}: {error}", directory.display()),
        );
    }
    let name = format!(
        "checkpoint-{pod_name}_{namespace}-{container}-{}.tar",
        Timestamp::now()
    );
    let location = directory.join(name).display().to_string();
    match context.runtime.checkpoint(&running.id, &location, timeout).await {
        Ok(()) => json_answer(&json!({ "items": [location] })),
        Err(error) if error.is_unimplemented() => text(StatusCode::NOT_FOUND, error.to_string()),
        Err(error) => {
            let message = format!("checkpointing of {namespace}/{pod_name}/{container} failed ({error})");
            text(StatusCode::INTERNAL_SERVER_ERROR, message)
        }
    }
}
