//! The proxy over real connections: a client, our front, and a backend with TLS and client certificates.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pki::{CertificateAuthority, Identity, LeafRequest, Subject, SubjectAltNames};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::KeyPair;
use crate::proxy::target::Scheme;

type TestBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

fn text(status: u16, body: &str) -> Response<TestBody> {
    Response::builder()
        .status(status)
        .body(Full::new(Bytes::from(body.to_owned())).boxed_unsync())
        .unwrap()
}

/// A kubelet: accepts only clients of its authority. Lines for the log come through `lines`.
struct Backend {
    address: SocketAddr,
    authority: CertificateAuthority,
    lines: mpsc::UnboundedSender<&'static str>,
}

impl Backend {
    async fn start() -> Self {
        let now = jiff::Timestamp::now();
        let authority = CertificateAuthority::generate("ca", now).unwrap();
        let names = SubjectAltNames {
            ip_addresses: vec!["127.0.0.1".parse().unwrap()],
            ..SubjectAltNames::default()
        };
        let serving = authority
            .issue(&LeafRequest::server(Subject::new("node", &[]), names), now)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls(&authority, &serving)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (lines, receiver) = mpsc::unbounded_channel();
        let receiver = Arc::new(tokio::sync::Mutex::new(Some(receiver)));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(tcp).await else {
                    continue;
                };
                let receiver = receiver.clone();
                let service = service_fn(move |request| answer(request, receiver.clone()));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection.with_upgrades());
            }
        });
        Self {
            address,
            authority,
            lines,
        }
    }

    fn target(&self, path: &str) -> Target {
        Target {
            scheme: Scheme::Kubelet,
            host: self.address.ip().to_string(),
            port: self.address.port(),
            path: path.into(),
        }
    }

    fn client(&self) -> KeyPair {
        let request = LeafRequest::client(Subject::new("kube-apiserver-kubelet-client", &[]));
        let Identity {
            certificate_pem,
            key_pem,
        } = self.authority.issue(&request, jiff::Timestamp::now()).unwrap();
        KeyPair {
            certificate: certificate_pem,
            key: key_pem,
        }
    }
}

fn tls(authority: &CertificateAuthority, serving: &Identity) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der(authority.certificate_pem())).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![der(&serving.certificate_pem)],
            PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes()).unwrap(),
        )
        .unwrap()
}

type Lines = Arc<tokio::sync::Mutex<Option<mpsc::UnboundedReceiver<&'static str>>>>;

async fn answer(mut request: Request<Incoming>, lines: Lines) -> Result<Response<TestBody>, Infallible> {
    Ok(match request.uri().path() {
        "/log" => {
            let receiver = lines.lock().await.take().expect("one reader of the log");
            let frames = futures::stream::unfold(receiver, |mut receiver| async {
                let line = receiver.recv().await?;
                Some((Ok(Frame::data(Bytes::from(line))), receiver))
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
        "/waiting" => text(
            400,
            "container \"c\" in pod \"p\" is waiting to start: ContainerCreating",
        ),
        "/exec" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut bytes = [0; 4];
                while stream.read_exact(&mut bytes).await.is_ok() {
                    bytes.make_ascii_uppercase();
                    stream.write_all(&bytes).await.unwrap();
                }
            });
            let mut response = text(101, "");
            response
                .headers_mut()
                .insert("connection", "Upgrade".parse().unwrap());
            response.headers_mut().insert("upgrade", "echo".parse().unwrap());
            response
        }
        _ => {
            let authorization = request.headers().contains_key("authorization");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            text(
                200,
                &format!("{} {authorization}", String::from_utf8_lossy(&body)),
            )
        }
    })
}

/// What clients connect to: every request goes to `target`.
async fn front(target: Target, client: KeyPair, ca: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (target, client, ca) = (target.clone(), client.clone(), ca.clone());
            let service = service_fn(move |request| {
                let (target, client, ca) = (target.clone(), client.clone(), ca.clone());
                async move {
                    let kubelets = Kubelets {
                        client: &client,
                        ca: &ca,
                    };
                    let answer = forward(kubelets, target, request).await;
                    Ok::<_, Infallible>(answer.unwrap_or_else(|error| {
                        let body = Full::new(Bytes::from(error.message)).map_err(|never| match never {});
                        Response::builder()
                            .status(error.code)
                            .body(body.boxed_unsync())
                            .unwrap()
                    }))
                }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service);
            tokio::spawn(connection.with_upgrades());
        }
    });
    address
}

async fn request(address: SocketAddr, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.unwrap()
}

#[tokio::test]
async fn bytes_flow_both_ways_after_an_upgrade() {
    let backend = Backend::start().await;
    let ca = backend.authority.certificate_pem().to_owned();
    let address = front(backend.target("/exec"), backend.client(), ca).await;
    let upgrade = Request::post("/api/v1/namespaces/a/pods/p/exec")
        .header("connection", "Upgrade")
        .header("upgrade", "echo")
        .body(Full::default())
        .unwrap();
    let mut response = request(address, upgrade).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "echo");
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    for word in ["ping", "pong"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, *word.to_ascii_uppercase().as_bytes());
    }
}

#[tokio::test]
async fn bodies_pass_and_credentials_do_not() {
    let backend = Backend::start().await;
    let ca = backend.authority.certificate_pem().to_owned();
    let address = front(backend.target("/other"), backend.client(), ca).await;
    let post = Request::post("/x")
        .header("authorization", "Bearer t")
        .body(Full::from("hello"))
        .unwrap();
    let response = request(address, post).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "hello false"
    );
}

#[tokio::test]
async fn log_lines_arrive_as_they_are_written() {
    let backend = Backend::start().await;
    let client = backend.client();
    let kubelets = Kubelets {
        client: &client,
        ca: backend.authority.certificate_pem(),
    };
    backend.lines.send("one\n").unwrap();
    let response = fetch_log(kubelets, &backend.target("/log"), "p").await.unwrap();
    assert_eq!(response.headers()[CONTENT_TYPE], "text/plain");
    let mut body = response.into_body().into_data_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "one\n");
    // The second line does not exist before the first has been read.
    backend.lines.send("two\n").unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "two\n");
    drop(backend.lines);
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn refusals_and_failures_keep_their_words() {
    let backend = Backend::start().await;
    let client = backend.client();
    let kubelets = Kubelets {
        client: &client,
        ca: backend.authority.certificate_pem(),
    };
    let refused = fetch_log(kubelets, &backend.target("/waiting"), "p")
        .await
        .unwrap_err();
    assert_eq!(
        refused.message,
        "container \"c\" in pod \"p\" is waiting to start: ContainerCreating"
    );
    assert_eq!(refused.code, StatusCode::BAD_REQUEST);

    let mut nowhere = backend.target("/log");
    // Bound and dropped: nobody listens there.
    nowhere.port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let unreachable = fetch_log(kubelets, &nowhere, "p").await.unwrap_err();
    assert!(
        unreachable.message.ends_with("connect: connection refused"),
        "{}",
        unreachable.message
    );
}

#[tokio::test]
async fn kubelets_are_verified_when_there_is_a_ca() {
    let (backend, stranger) = (Backend::start().await, Backend::start().await);
    let client = backend.client();
    for (ca, scheme, accepted) in [
        (backend.authority.certificate_pem(), Scheme::Kubelet, true),
        (stranger.authority.certificate_pem(), Scheme::Kubelet, false),
        (
            stranger.authority.certificate_pem(),
            Scheme::UnverifiedKubelet,
            true,
        ),
        ("", Scheme::Kubelet, true),
    ] {
        let target = Target {
            scheme,
            ..backend.target("/other")
        };
        let outcome = fetch_log(Kubelets { client: &client, ca }, &target, "p").await;
        assert_eq!(outcome.is_ok(), accepted, "{scheme:?}");
    }
    let foreign = stranger.client();
    let outcome = fetch_log(
        Kubelets {
            client: &foreign,
            ca: "",
        },
        &backend.target("/other"),
        "p",
    )
    .await;
    assert!(outcome.is_err(), "a kubelet knows its clients");
}
