//! A server on a loopback port with its own PKI and embedded store, and an HTTPS client for it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{Config, Handle, KeyPair, ServiceAccountKeys};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pki::{CertificateAuthority, Identity, LeafRequest, ServiceAccountKey, Subject, SubjectAltNames};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use store::{EmbeddedStore, Store};

/// Only a hang makes it this long.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Server {
    pub handle: Handle,
    pub store: Arc<dyn Store>,
    ca: CertificateAuthority,
}

fn pair(identity: Identity) -> KeyPair {
    KeyPair {
        certificate: identity.certificate_pem,
        key: identity.key_pem,
    }
}

impl Server {
    pub async fn start(directory: &Path) -> Self {
        Self::start_with(directory, |_| {}).await
    }

    /// With a configuration that the test changes.
    pub async fn start_with(directory: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let now = jiff::Timestamp::now();
        let ca = CertificateAuthority::generate("test-ca", now).unwrap();
        let names = SubjectAltNames {
            dns_names: vec!["localhost".into()],
            ip_addresses: vec!["127.0.0.1".parse().unwrap()],
            ..SubjectAltNames::default()
        };
        let serving = ca
            .issue(
                &LeafRequest::server(Subject::new("kube-apiserver", &[]), names),
                now,
            )
            .unwrap();
        let kubelet = ca
            .issue(&LeafRequest::client(Subject::new("kubelet-client", &[])), now)
            .unwrap();
        let (signing_key, public_key) = ServiceAccountKey::generate_pem().unwrap();
        let store: Arc<dyn Store> = EmbeddedStore::open(directory).unwrap();
        let mut config = Config {
            store: store.clone(),
            bind_address: "127.0.0.1:0".parse().unwrap(),
            advertise_address: "127.0.0.1".parse().unwrap(),
            serving: pair(serving),
            client_ca: ca.certificate_pem().to_owned(),
            kubelet_client: pair(kubelet),
            kubelet_ca: ca.certificate_pem().to_owned(),
            front_proxy: apiserver::FrontProxy::default(),
            service_account: ServiceAccountKeys {
                signing_key,
                public_keys: vec![public_key],
                issuer: "https://kubernetes.default.svc.cluster.local".into(),
            },
            service_cidrs: vec!["10.96.0.0/16".into()],
            node_port_range: (30000, 32767),
            cluster_domain: "cluster.local".into(),
            openapi_descriptions: None,
            event_ttl_seconds: 3600,
            compaction_interval: Duration::from_secs(300),
            companions: Vec::new(),
            audit: apiserver::AuditOptions::default(),
            access: apiserver::AccessOptions::default(),
            admission: apiserver::AdmissionOptions::default(),
            shutdown_delay: Duration::ZERO,
        };
        change(&mut config);
        let handle = apiserver::run(config).await.unwrap();
        tokio::time::timeout(PATIENCE, handle.ready())
            .await
            .expect("readiness");
        Self { handle, store, ca }
    }

    pub fn admin(&self) -> Client {
        self.client("admin", &["system:masters"])
    }

    pub fn client(&self, user: &str, groups: &[&str]) -> Client {
        let request = LeafRequest::client(Subject::new(user, groups));
        Client::new(
            self,
            Some(self.ca.issue(&request, jiff::Timestamp::now()).unwrap()),
        )
    }

    pub fn anonymous(&self) -> Client {
        Client::new(self, None)
    }
}

pub struct Client {
    base: String,
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    pub token: Option<String>,
}

impl Client {
    fn new(server: &Server, identity: Option<Identity>) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(server.ca.certificate_pem().as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let tls = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain =
                    vec![CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_all_versions()
            .build();
        let http = HyperClient::builder(TokioExecutor::new()).build(connector);
        Self {
            base: format!("https://{}", server.handle.address),
            http,
            token: None,
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: String,
    ) -> http::Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("accept", "application/json")
            .header("content-type", content_type);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        tokio::time::timeout(PATIENCE, self.http.request(request))
            .await
            .expect("an answer")
            .unwrap()
    }

    pub async fn text(&self, path: &str) -> (StatusCode, String) {
        let response = self
            .send(Method::GET, path, "application/json", String::new())
            .await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn json(&self, method: Method, path: &str, content_type: &str, body: String) -> (u16, Value) {
        let response = self.send(method, path, content_type, body).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (
            status,
            serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{path}: {e}: {bytes:?}")),
        )
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.json(Method::GET, path, "application/json", String::new())
            .await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.json(Method::POST, path, "application/json", body.to_string())
            .await
    }

    pub async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        self.json(Method::PUT, path, "application/json", body.to_string())
            .await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: Value) -> (u16, Value) {
        self.json(
            Method::PATCH,
            path,
            &format!("application/{kind}"),
            body.to_string(),
        )
        .await
    }

    pub async fn delete(&self, path: &str, options: Value) -> (u16, Value) {
        let body = if options.is_null() {
            String::new()
        } else {
            options.to_string()
        };
        self.json(Method::DELETE, path, "application/json", body).await
    }

    pub async fn watch(&self, path: &str) -> Events {
        let response = self
            .send(Method::GET, path, "application/json", String::new())
            .await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Events {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }
}

/// The events of a watch.
pub struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// None when the server ended the watch.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame())
                .await
                .expect("an event")?;
            if let Ok(data) = frame.unwrap().into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// `(type, name)` of the next event.
    pub async fn brief(&mut self) -> (String, String) {
        let event = self.next().await.expect("a running watch");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}
