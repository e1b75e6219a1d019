//! The way to an extension API server: its service's endpoints, TLS with our front-proxy certificate.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};

use super::Remote;
use crate::connect::{Body, BoxError};
use crate::pipeline::ObjectReader;
use crate::proxy::dial::{self, Stream};
use crate::proxy::target::{Scheme, Target};
use crate::proxy::{service, transport};
use crate::state::ApiServer;

/// Discovery and OpenAPI documents are no larger.
const DOCUMENT_LIMIT: usize = 32 << 20;
const FETCH_PATIENCE: Duration = Duration::from_secs(5);

/// A ready endpoint, or the name an ExternalName service stands for.
pub async fn resolve(server: &ApiServer, remote: &Remote, path: String) -> Result<Target, String> {
    let (namespace, name) = (&remote.service_namespace, &remote.service);
    let object = ObjectReader::get(server, "", "services", namespace, name)
        .await
        .map_err(|error| error.message)?
        .ok_or_else(|| format!("service \"{name}\" not found"))?;
    let (host, port) = match object["spec"]["externalName"].as_str() {
        Some(external) if object["spec"]["type"] == "ExternalName" => (external.to_owned(), remote.port),
        _ => {
            let slices = server
                .list("discovery.k8s.io", "endpointslices", namespace)
                .await
                .map_err(|error| error.message)?;
            service::endpoint(&object, &slices, &remote.port.to_string())?
        }
    };
    Ok(Target {
        scheme: Scheme::Https,
        host,
        port,
        path,
    })
}

pub async fn connect(server: &ApiServer, remote: &Remote, target: &Target) -> io::Result<Box<dyn Stream>> {
    let client = server.config.front_proxy.client.as_ref();
    let ca = (!remote.insecure).then_some(remote.ca.as_str());
    dial::tls(target, &remote.host(), dial::client_config(ca, client)?).await
}

/// A document of the other server, asked for in our own name. `verified` is off for probes: they give nothing away.
pub async fn fetch(
    server: &ApiServer,
    remote: &Remote,
    path: &str,
    verified: bool,
) -> Result<(StatusCode, Bytes), String> {
    let target = resolve(server, remote, path.to_owned()).await?;
    let asking = async {
        let mut request = Request::get(&target.path)
            .header("host", target.authority())
            .header("accept", "application/json");
        let own = auth::UserInfo::new("system:kube-aggregator", &["system:masters"]);
        for (name, value) in auth::front_proxy_headers(&own) {
            request = request.header(name, value);
        }
        let empty: Body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let remote = Remote {
            insecure: remote.insecure || !verified,
            ..remote.clone()
        };
        let connecting = connect(server, &remote, &target);
        let response = transport::send(connecting, &target, request.body(empty)?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), DOCUMENT_LIMIT)
            .collect()
            .await?;
        Ok::<_, BoxError>((status, body.to_bytes()))
    };
    match tokio::time::timeout(FETCH_PATIENCE, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!(
            "failing or missing response from {url}: Get \"{url}\": {error}",
            url = target.url()
        )),
        Err(_) => Err(format!("timed out waiting for {}", target.url())),
    }
}
