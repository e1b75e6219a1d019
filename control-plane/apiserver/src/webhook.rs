//! Calls of webhooks, for admission and conversion: where a client configuration points, TLS with its bundle, JSON both ways.

use std::time::Duration;

use base64::Engine as _;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use serde_json::Value;

use crate::connect::{Body, BoxError};
use crate::object::text;
use crate::pipeline::ObjectReader;
use crate::proxy::target::{Scheme, Target};
use crate::proxy::{dial, service, transport};

/// Answers are no larger.
const ANSWER_LIMIT: usize = 8 << 20;

/// A `clientConfig`, read once.
#[derive(Debug)]
pub struct WebhookClient {
    place: Place,
    tls: Result<rustls::ClientConfig, String>,
}

#[derive(Debug)]
enum Place {
    Service {
        namespace: String,
        name: String,
        port: u16,
        path: String,
    },
    Url(Uri),
    /// What is wrong with the address.
    Bad(String),
}

impl WebhookClient {
    pub fn new(config: &Value) -> Self {
        let bundle = base64::engine::general_purpose::STANDARD.decode(text(config, "/caBundle"));
        let bundle = bundle.ok().and_then(|pem| String::from_utf8(pem).ok());
        let tls = match bundle {
            Some(pem) => dial::client_config(Some(&pem), None)
                .map_err(|error| format!("unable to load root certificates: {error}")),
            None => Err("unable to load root certificates: unable to parse bytes as PEM block".into()),
        };
        let place = match config.get("service").filter(|service| service.is_object()) {
            Some(service) => Place::Service {
                namespace: text(service, "/namespace").to_owned(),
                name: text(service, "/name").to_owned(),
                port: service["port"]
                    .as_u64()
                    .and_then(|port| port.try_into().ok())
                    .unwrap_or(443),
                path: format!("/{}", text(service, "/path").trim_start_matches('/')),
            },
            None => match text(config, "/url").parse::<Uri>() {
                Ok(url) if url.scheme_str() == Some("https") && url.host().is_some() => Place::Url(url),
                _ => Place::Bad(format!("unparsable webhook URL {:?}", text(config, "/url"))),
            },
        };
        Self { place, tls }
    }

    /// Host, port, path with query.
    fn address(&self, query: &str) -> Result<(String, u16, String), String> {
        match &self.place {
            Place::Service {
                namespace,
                name,
                port,
                path,
            } => Ok((format!("{name}.{namespace}.svc"), *port, format!("{path}{query}"))),
            Place::Url(url) => {
                let path = match url.path() {
                    "/" => "",
                    path => path,
                };
                let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
                Ok((
                    host.to_owned(),
                    url.port_u16().unwrap_or(443),
                    format!("{path}{query}"),
                ))
            }
            Place::Bad(why) => Err(why.clone()),
        }
    }

    /// Posts `body` and gives the JSON answer; errors read as Go's client tells them.
    pub async fn post(
        &self,
        reader: &dyn ObjectReader,
        body: &Value,
        patience: Duration,
    ) -> Result<Value, String> {
        let query = format!("?timeout={}s", patience.as_secs());
        let (host, port, path) = self.address(&query)?;
        let url = match &self.place {
            Place::Url(url) if url.port().is_none() => format!("https://{host}{path}"),
            _ => format!("https://{host}:{port}{path}"),
        };
        let failed = |why: String| format!("Post \"{url}\": {why}");
        match tokio::time::timeout(patience, self.call(reader, &host, port, path, body)).await {
            Err(_) => Err(failed("context deadline exceeded".into())),
            Ok(Err(Failure::Transport(error))) => Err(failed(error.to_string())),
            Ok(Err(Failure::Answer(why))) => Err(why),
            Ok(Ok(answer)) => Ok(answer),
        }
    }

    async fn call(
        &self,
        reader: &dyn ObjectReader,
        host: &str,
        port: u16,
        path: String,
        body: &Value,
    ) -> Result<Value, Failure> {
        let tls = self.tls.clone().map_err(Failure::Answer)?;
        let (address, reached) = match &self.place {
            Place::Service { namespace, name, .. } => resolve(reader, namespace, name, port)
                .await
                .map_err(|why| Failure::Transport(why.into()))?,
            _ => (host.to_owned(), port),
        };
        let named = Target {
            scheme: Scheme::Https,
            host: host.to_owned(),
            port,
            path: if path.starts_with('/') {
                path
            } else {
                format!("/{path}")
            },
        };
        let reached = Target {
            host: address,
            port: reached,
            ..named.clone()
        };
        let bytes: Body = Full::from(body.to_string())
            .map_err(|never| match never {})
            .boxed_unsync();
        let request = Request::post(&named.path)
            .header(HOST, named.authority())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, */*")
            .body(bytes)
            .map_err(BoxError::from)?;
        let response = transport::send(dial::tls(&reached, host, tls), &reached, request).await?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await?
            .to_bytes();
        if !status.is_success() {
            return Err(Failure::Answer(refusal(status, &bytes)));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::Answer(format!("couldn't get version/kind; json parse error: {error}")))
    }
}

enum Failure {
    /// Nothing came back.
    Transport(BoxError),
    /// What came back is no good.
    Answer(String),
}

impl From<BoxError> for Failure {
    fn from(error: BoxError) -> Self {
        Self::Transport(error)
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        Self::Transport(error.into())
    }
}

/// A ready endpoint, or the name an ExternalName service stands for.
async fn resolve(
    reader: &dyn ObjectReader,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<(String, u16), String> {
    let object = reader
        .get("", "services", namespace, name)
        .await
        .map_err(|error| error.message)?
        .ok_or_else(|| format!("service \"{name}\" not found"))?;
    if object["spec"]["type"] == "ExternalName" {
        return Ok((text(&object, "/spec/externalName").to_owned(), port));
    }
    let slices = reader
        .list("discovery.k8s.io", "endpointslices", namespace)
        .await
        .map_err(|error| error.message)?;
    service::endpoint(&object, &slices, &port.to_string())
}

/// client-go's words for answers that are not 2xx.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    match status {
        StatusCode::NOT_FOUND => "the server could not find the requested resource".into(),
        status if status.is_server_error() => {
            format!(
                "an error on the server ({:?}) has prevented the request from succeeding",
                body.trim()
            )
        }
        status => format!(
            "the server rejected our request for an unknown reason: status {}: {}",
            status.as_u16(),
            body.trim()
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_read_from_both_forms() {
        let service = json!({"service": {"namespace": "ns", "name": "hook", "path": "check", "port": 8443}});
        let url = json!({"url": "https://10.0.0.1:9443/a"});
        for (config, expected) in [
            (
                service,
                Ok(("hook.ns.svc".to_owned(), 8443, "/check?t".to_owned())),
            ),
            (url, Ok(("10.0.0.1".to_owned(), 9443, "/a?t".to_owned()))),
            (
                json!({"url": "no"}),
                Err("unparsable webhook URL \"no\"".to_owned()),
            ),
        ] {
            assert_eq!(WebhookClient::new(&config).address("?t"), expected);
        }
    }
}
