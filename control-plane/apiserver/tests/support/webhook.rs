//! A webhook over TLS on a loopback port, that answers as the test says.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pki::{CertificateAuthority, LeafRequest, Subject, SubjectAltNames};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub struct Webhook {
    pub address: SocketAddr,
    /// Base64 of PEM, as configurations hold it.
    pub bundle: String,
}

impl Webhook {
    /// `answer` gets path and body; None: never answers.
    pub async fn start(answer: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static) -> Self {
        let now = jiff::Timestamp::now();
        let ca = CertificateAuthority::generate("webhook-ca", now).unwrap();
        let names = SubjectAltNames {
            dns_names: vec!["localhost".into(), "hook.default.svc".into()],
            ip_addresses: vec!["127.0.0.1".parse().unwrap()],
            ..SubjectAltNames::default()
        };
        let identity = ca
            .issue(&LeafRequest::server(Subject::new("hook", &[]), names), now)
            .unwrap();
        let chain = vec![CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let answer = answer.clone();
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await?.to_bytes();
                            let body = serde_json::from_slice(&body).unwrap_or_default();
                            match answer(&path, &body) {
                                Some(told) => Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(
                                    told.to_string(),
                                )))),
                                None => std::future::pending().await,
                            }
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            bundle: base64::engine::general_purpose::STANDARD.encode(ca.certificate_pem()),
        }
    }

    pub fn by_url(&self, path: &str) -> Value {
        json!({"url": format!("https://{}{path}", self.address), "caBundle": self.bundle})
    }

    /// Through the Service `hook` of the namespace `default`.
    pub fn by_service(&self, path: &str) -> Value {
        let service =
            json!({"namespace": "default", "name": "hook", "path": path, "port": self.address.port()});
        json!({"service": service, "caBundle": self.bundle})
    }
}

/// An AdmissionReview's answer.
pub fn review(question: &Value, mut response: Value) -> Value {
    response["uid"] = question["request"]["uid"].clone();
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
}

pub fn patch(operations: Value) -> Value {
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}
