//! Asks every kubelet what its node and pods use, once a round.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::{Client, Config};

use crate::samples::{self, Malformed, Scrape};

const PATH: &str = "/metrics/resource";
/// Kubelets asked at the same time.
const CONCURRENCY: usize = 64;

/// How kubelets are reached.
pub struct Options {
    pub port: u16,
    pub use_node_status_port: bool,
    pub preferred_address_types: Vec<String>,
    /// A round gives up on a kubelet after this.
    pub timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    #[error("no address of types {0:?}")]
    Address(Vec<String>),
    #[error("{url}: {message}")]
    Request { url: String, message: String },
    #[error("{url}: {error}")]
    Malformed { url: String, error: Malformed },
    #[error("{0}: no answer in time")]
    Late(String),
}

pub struct Kubelets {
    options: Options,
    /// Credentials and trust; the address is each kubelet's own.
    config: Config,
    clients: Mutex<HashMap<String, Client>>,
}

impl Kubelets {
    pub fn new(options: Options, config: Config) -> Self {
        Self {
            options,
            config,
            clients: Mutex::default(),
        }
    }

    /// What every kubelet that answers says; of the others nothing is known until they do.
    pub async fn scrape(&self, nodes: &[impl AsRef<Node>]) -> Vec<(String, Scrape)> {
        let urls = nodes.iter().map(|node| {
            let node = node.as_ref();
            (
                node.metadata.name.clone().unwrap_or_default(),
                url(node, &self.options),
            )
        });
        let urls: Vec<_> = urls.collect();
        self.forget_others(&urls);
        let answers = stream::iter(urls).map(|(name, url)| async move {
            match self.ask(url).await {
                Ok(scrape) => Some((name, scrape)),
                Err(error) => {
                    tracing::error!(node = name, %error, "kubelet not scraped");
                    None
                }
            }
        });
        let answers: Vec<_> = answers.buffer_unordered(CONCURRENCY).collect().await;
        answers.into_iter().flatten().collect()
    }

    async fn ask(&self, url: Result<String, ScrapeError>) -> Result<Scrape, ScrapeError> {
        let url = url?;
        let failed = |message: String| ScrapeError::Request {
            url: url.clone(),
            message,
        };
        let client = self.client(&url).map_err(|error| failed(error.to_string()))?;
        let request = http::Request::get(PATH)
            .body(Vec::new())
            .map_err(|error| failed(error.to_string()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = match tokio::time::timeout(self.options.timeout, client.request_text(request)).await {
            Ok(answer) => answer.map_err(|error| failed(chain(&error)))?,
            Err(_) => return Err(ScrapeError::Late(url)),
        };
        let now = i128::try_from(now.as_nanos()).unwrap_or_default();
        samples::parse(&text, now).map_err(|error| ScrapeError::Malformed { url, error })
    }

    fn client(&self, url: &str) -> Result<Client, kube::Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(url) {
            return Ok(client.clone());
        }
        let mut config = self.config.clone();
        config.cluster_url = url
            .parse()
            .map_err(|error| kube::Error::Service(Box::new(error)))?;
        let client = Client::try_from(config)?;
        clients.insert(url.to_owned(), client.clone());
        Ok(client)
    }

    fn forget_others(&self, urls: &[(String, Result<String, ScrapeError>)]) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|known, _| {
            urls.iter()
                .any(|(_, url)| url.as_ref().is_ok_and(|url| url == known))
        });
    }
}

/// The error and its causes: what refused a connection says why only below.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn url(node: &Node, options: &Options) -> Result<String, ScrapeError> {
    let status = node.status.as_ref();
    let addresses = || status.iter().flat_map(|status| status.addresses.iter().flatten());
    let preferred = options.preferred_address_types.iter();
    let address = preferred
        .filter_map(|wanted| addresses().find(|address| address.type_ == *wanted))
        .map(|address| &address.address)
        .next()
        .ok_or_else(|| ScrapeError::Address(options.preferred_address_types.clone()))?;
    let own_port = status
        .and_then(|status| status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref())
        .and_then(|endpoint| u16::try_from(endpoint.port).ok())
        .filter(|port| options.use_node_status_port && *port != 0);
    let port = own_port.unwrap_or(options.port);
    let host = match address.contains(':') {
        true => format!("[{address}]"),
        false => address.clone(),
    };
    Ok(format!("https://{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kubelets_are_found_where_their_node_says() {
        for (status, use_node_status_port, want) in [
            (
                json!({"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}]}),
                true,
                Some("https://10.0.0.1:10250"),
            ),
            (
                json!({"addresses": [{"type": "InternalIP", "address": "fd00::1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 7}}}),
                true,
                Some("https://[fd00::1]:7"),
            ),
            (
                json!({"addresses": [{"type": "Hostname", "address": "n"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 7}}}),
                false,
                Some("https://n:10250"),
            ),
            (
                json!({"addresses": [{"type": "ExternalDNS", "address": "n"}]}),
                true,
                None,
            ),
        ] {
            let node: Node =
                serde_json::from_value(json!({"metadata": {"name": "n"}, "status": status})).unwrap();
            let options = Options {
                port: 10250,
                use_node_status_port,
                preferred_address_types: vec!["InternalIP".into(), "Hostname".into()],
                timeout: Duration::from_secs(1),
            };
            assert_eq!(url(&node, &options).ok().as_deref(), want, "{status}");
        }
    }
}
