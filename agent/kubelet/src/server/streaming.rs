//! Exec, attach and port-forward: asks CRI for a streaming URL and joins the client's connection to it byte for byte,
//! whatever protocol they speak.

use bytes::Bytes;
use cri_api::v1;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::debug;

use super::{Answer, Body, query, text};
use crate::context::{Context, uid};
use crate::pod_manager::Pods;
use crate::runtime_pod::RuntimePod;

pub struct Target<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    pub container: Option<&'a str>,
}

pub async fn answer(
    context: &Context,
    pods: &Pods,
    kind: &str,
    target: Target<'_>,
    request: Request<Incoming>,
) -> Answer {
    let parameters = query(request.uri().query());
    let Some(pod) = pods.find(target.namespace, target.pod) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let observed = match context.runtime.pod(uid(&pod)).await {
        Ok(observed) => observed,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    match url(context, kind, &target, &parameters, &observed).await {
        Ok(url) => join(url, request).await,
        Err((status, message)) => text(status, message),
    }
}

type Refusal = (StatusCode, String);

async fn url(
    context: &Context,
    kind: &str,
    target: &Target<'_>,
    parameters: &[(String, String)],
    observed: &RuntimePod,
) -> Result<String, Refusal> {
    // The API server says `input`, `output`, `error`; direct clients also `stdin`, `stdout`, `stderr`.
    let flag = |names: &[&str]| {
        parameters
            .iter()
            .any(|(key, value)| names.contains(&key.as_str()) && matches!(value.as_str(), "1" | "true"))
    };
    let (stdin, stdout, tty) = (
        flag(&["input", "stdin"]),
        flag(&["output", "stdout"]),
        flag(&["tty"]),
    );
    let stderr = flag(&["error", "stderr"]) && !tty;
    if kind != "portForward" && !stdin && !stdout && !stderr {
        let message = "you must specify at least 1 of stdin, stdout, stderr";
        return Err((StatusCode::BAD_REQUEST, message.into()));
    }
    let failed = |error: crate::runtime::RuntimeError| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    if kind == "portForward" {
        let sandbox = observed.ready_sandbox();
        let sandbox = sandbox.ok_or((
            StatusCode::INTERNAL_SERVER_ERROR,
            "pod has no running sandbox".to_owned(),
        ))?;
        let ports = parameters
            .iter()
            .filter(|(key, _)| key == "port")
            .filter_map(|(_, value)| value.parse().ok());
        let request = v1::PortForwardRequest {
            pod_sandbox_id: sandbox.id.clone(),
            port: ports.collect(),
        };
        return context.runtime.port_forward_url(request).await.map_err(failed);
    }
    let name = target.container.unwrap_or_default();
    let running = observed
        .running_containers()
        .find(|container| container.name == name);
    let missing = || {
        let message = if kind == "attach" {
            format!(
                "container {name} not found in pod {}_{}",
                target.pod, target.namespace
            )
        } else {
            format!("container not found (\"{name}\")")
        };
        (StatusCode::NOT_FOUND, message)
    };
    let container_id = running.ok_or_else(missing)?.id.clone();
    if kind == "attach" {
        let request = v1::AttachRequest {
            container_id,
            stdin,
            tty,
            stdout,
            stderr,
            ..Default::default()
        };
        return context.runtime.attach_url(request).await.map_err(failed);
    }
    let cmd = parameters
        .iter()
        .filter(|(key, _)| key == "command")
        .map(|(_, value)| value.clone())
        .collect();
    let request = v1::ExecRequest {
        container_id,
        cmd,
        tty,
        stdin,
        stdout,
        stderr,
        ..Default::default()
    };
    context.runtime.exec_url(request).await.map_err(failed)
}

/// Repeats the request at `url`; on an upgrade both connections become one pipe.
async fn join(url: String, mut request: Request<Incoming>) -> Answer {
    let client = hyper::upgrade::on(&mut request);
    let forwarded = async {
        let uri: Uri = url
            .parse()
            .map_err(|error| format!("streaming URL {url:?}: {error}"))?;
        let address = uri
            .authority()
            .ok_or_else(|| format!("streaming URL {url:?} has no host"))?;
        let stream = TcpStream::connect(address.as_str())
            .await
            .map_err(|error| format!("connect {address}: {error}"))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        tokio::spawn(connection.with_upgrades());
        let mut onward = Request::new(Full::new(Bytes::new()));
        *onward.method_mut() = request.method().clone();
        *onward.uri_mut() = uri
            .path_and_query()
            .map(|path| path.as_str().parse())
            .transpose()
            .ok()
            .flatten()
            .unwrap_or_default();
        *onward.headers_mut() = request.headers().clone();
        onward.headers_mut().remove(http::header::AUTHORIZATION);
        if let Ok(host) = address.as_str().parse() {
            onward.headers_mut().insert(http::header::HOST, host);
        }
        sender
            .send_request(onward)
            .await
            .map_err(|error| format!("streaming server: {error}"))
    };
    let mut response = match forwarded.await {
        Ok(response) => response,
        Err(error) => return text(StatusCode::BAD_GATEWAY, error),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let runtime = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let (client, runtime) = match tokio::try_join!(client, runtime) {
                Ok(pair) => pair,
                Err(error) => {
                    debug!(%error, "stream not upgraded");
                    return;
                }
            };
            let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut runtime).await {
                debug!(%error, "stream ended");
            }
        });
    }
    let (parts, body) = response.into_parts();
    let bytes = if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        Bytes::new()
    } else {
        body.collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default()
    };
    let body: Body = Full::new(bytes).boxed_unsync();
    Answer::from_parts(parts, body)
}
