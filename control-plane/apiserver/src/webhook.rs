//! Calls of webhooks, for admission and conversion: where a client configuration points, TLS with its bundle, JSON both ways.

mod kubeconfig;
mod pool;

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use serde_json::Value;

use self::pool::Pool;
use crate::connect::{Body, BoxError};
use crate::object::text;
use crate::pipeline::ObjectReader;
use crate::proxy::target::{Scheme, Target};
use crate::proxy::{dial, service};

/// Answers are no larger.
const ANSWER_LIMIT: usize = 8 << 20;

/// A `clientConfig` or kubeconfig, read once.
#[derive(Debug)]
pub struct WebhookClient {
    place: Place,
    /// None: plain HTTP.
    tls: Result<Option<rustls::ClientConfig>, String>,
    token: Option<String>,
    pool: Pool,
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
        let bundle = text(config, "/caBundle");
        let tls = if bundle.is_empty() {
            dial::system_config(None).map_err(|error| error.to_string())
        } else {
            let bundle = base64::engine::general_purpose::STANDARD.decode(bundle);
            match bundle.ok().and_then(|pem| String::from_utf8(pem).ok()) {
                Some(pem) => dial::client_config(Some(&pem), None)
                    .map_err(|error| format!("unable to load root certificates: {error}")),
                None => Err("unable to load root certificates: unable to parse bytes as PEM block".into()),
            }
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
        Self {
            place,
            tls: tls.map(Some),
            token: None,
            pool: Pool::default(),
        }
    }

    /// For the server's own webhooks.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, String> {
        let kubeconfig::Webhook { url, tls, token } = kubeconfig::read(path)?;
        Ok(Self {
            place: Place::Url(url),
            tls: Ok(tls),
            token,
            pool: Pool::default(),
        })
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
                let query = match (url.query(), query) {
                    (Some(own), "") => format!("?{own}"),
                    _ => query.to_owned(),
                };
                let usual = if url.scheme_str() == Some("http") { 80 } else { 443 };
                Ok((
                    host.to_owned(),
                    url.port_u16().unwrap_or(usual),
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
        self.ask(Some(reader), &query, body, patience).await
    }

    /// The same to a place that needs no looking up; the answer may be empty.
    pub async fn send(&self, body: &Value, patience: Duration) -> Result<Value, String> {
        self.ask(None, "", body, patience).await
    }

    async fn ask(
        &self,
        reader: Option<&dyn ObjectReader>,
        query: &str,
        body: &Value,
        patience: Duration,
    ) -> Result<Value, String> {
        let (host, port, path) = self.address(query)?;
        let scheme = match &self.place {
            Place::Url(url) => url.scheme_str().unwrap_or("https"),
            _ => "https",
        };
        let url = match &self.place {
            Place::Url(url) if url.port().is_none() => format!("{scheme}://{host}{path}"),
            _ => format!("{scheme}://{host}:{port}{path}"),
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
        reader: Option<&dyn ObjectReader>,
        host: &str,
        port: u16,
        path: String,
        body: &Value,
    ) -> Result<Value, Failure> {
        let tls = self.tls.as_ref().map_err(|why| Failure::Answer(why.clone()))?;
        let (address, reached) = match (&self.place, reader) {
            (Place::Service { namespace, name, .. }, Some(reader)) => resolve(reader, namespace, name, port)
                .await
                .map_err(|why| Failure::Transport(why.into()))?,
            _ => (host.to_owned(), port),
        };
        let named = Target {
            scheme: if tls.is_some() {
                Scheme::Https
            } else {
                Scheme::Http
            },
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
        let mut request = Request::post(&named.path)
            .header(HOST, named.authority())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, */*");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(bytes).map_err(BoxError::from)?;
        let tls = tls.as_ref().map(|tls| (host, tls));
        let (response, connection) = self.pool.send(&reached, tls, request).await?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await?
            .to_bytes();
        self.pool.give_back(connection);
        if !status.is_success() {
            return Err(Failure::Answer(refusal(status, &bytes)));
        }
        if bytes.is_empty() && reader.is_none() {
            return Ok(Value::Null);
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
