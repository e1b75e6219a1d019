//! The HTTP client of probes and lifecycle hooks: a fresh connection a request, and no certificate checks over TLS,
//! because a probe asks whether the pod answers and not who it is.

use std::sync::Arc;

use bytes::Bytes;
use http::header::LOCATION;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPHeader;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use url::{Position, Url};

const MAX_REDIRECTS: usize = 10;
const MAX_BODY: usize = 10 * 1024;

pub struct Get<'a> {
    pub tls: bool,
    pub host: &'a str,
    pub port: u16,
    pub path: String,
    pub headers: &'a [HTTPHeader],
}

impl Get<'_> {
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", join(self.host, self.port), self.path)
    }
}

pub fn join(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The kernel's words without Rust's `(os error N)`, in lower case as Go prints them.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// What a redirection that was not followed says.
    pub body: String,
    location: Option<String>,
}

/// Where to go on from `at`: redirections are followed within the host that was asked first.
fn next(first: &Url, at: &Url, answer: &Answer) -> Option<Url> {
    let follows = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
    let location = answer.location.as_deref().filter(|_| follows)?;
    let to = at.join(location).ok()?;
    (matches!(to.scheme(), "http" | "https") && to.host() == first.host()).then_some(to)
}

/// The answer, after redirections.
pub async fn fetch(get: &Get<'_>) -> Result<Answer, String> {
    let mut answer = once(get).await?;
    let Ok(first) = Url::parse(&get.url()) else {
        return Ok(answer);
    };
    let mut at = first.clone();
    for _ in 0..MAX_REDIRECTS {
        let Some(to) = next(&first, &at, &answer) else {
            return Ok(answer);
        };
        let onward = Get {
            tls: to.scheme() == "https",
            port: to.port_or_known_default().unwrap_or(get.port),
            path: to[Position::BeforePath..Position::AfterQuery].to_owned(),
            ..*get
        };
        answer = once(&onward).await?;
        at = to;
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

async fn once(get: &Get<'_>) -> Result<Answer, String> {
    let address = join(get.host, get.port);
    let stream = TcpStream::connect(&address).await;
    let stream = stream.map_err(|error| format!("dial tcp {address}: connect: {}", plain(&error)))?;
    if !get.tls {
        return exchange(stream, get).await;
    }
    let name = ServerName::try_from(get.host.to_owned()).map_err(|error| error.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(unverified_tls()))
        .connect(name, stream)
        .await;
    exchange(stream.map_err(|error| error.to_string())?, get).await
}

async fn exchange<S>(stream: S, get: &Get<'_>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let mut request = http::Request::get(&get.path).header("Connection", "close");
    let given = |name: &str| {
        get.headers
            .iter()
            .any(|header| header.name.eq_ignore_ascii_case(name))
    };
    let host = join(get.host, get.port);
    for (name, value) in [
        ("Host", host.as_str()),
        ("User-Agent", "kube-probe/1.36"),
        ("Accept", "*/*"),
    ] {
        if !given(name) {
            request = request.header(name, value);
        }
    }
    for header in get.headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| error.to_string())?;
    let location = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
    let mut answer = Answer {
        status: response.status().as_u16(),
        location: location.map(str::to_owned),
        body: String::new(),
    };
    if response.status().is_redirection()
        && let Ok(body) = Limited::new(response.into_body(), MAX_BODY).collect().await
    {
        answer.body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    }
    driver.abort();
    Ok(answer)
}

fn unverified_tls() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
        .with_no_client_auth()
}

#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn sends_headers_and_reads_the_status() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n")
                .await
                .unwrap();
            String::from_utf8_lossy(&buffer[..read]).into_owned()
        });
        let headers = [HTTPHeader {
            name: "Host".into(),
            value: "example".into(),
        }];
        let get = Get {
            tls: false,
            host: "127.0.0.1",
            port,
            path: "/healthz".into(),
            headers: &headers,
        };
        assert_eq!(fetch(&get).await.map(|answer| answer.status), Ok(503));
        let seen = server.await.unwrap().to_lowercase();
        assert!(seen.starts_with("get /healthz http/1.1\r\n"), "{seen}");
        assert!(
            seen.contains("host: example\r\n") && seen.contains("user-agent: kube-probe/1.36\r\n"),
            "{seen}"
        );
        assert_eq!(seen.matches("host:").count(), 1);
    }

    #[test]
    fn redirections_stay_with_the_host() {
        let first = Url::parse("http://10.0.0.1:80/redirect?loc=x").unwrap();
        let to = |status, location: &str| {
            let answer = Answer {
                status,
                location: Some(location.to_owned()),
                body: String::new(),
            };
            next(&first, &first, &answer).map(String::from)
        };
        for (status, location, expected) in [
            (302, "/healthz?a=b", Some("http://10.0.0.1/healthz?a=b")),
            (301, "other", Some("http://10.0.0.1/other")),
            (307, "https://10.0.0.1:8443/", Some("https://10.0.0.1:8443/")),
            (302, "http://0.0.0.0/", None),
            (302, "ftp://10.0.0.1/", None),
            (304, "/healthz", None),
        ] {
            assert_eq!(to(status, location).as_deref(), expected, "{status} {location}");
        }
    }

    #[tokio::test]
    async fn redirections_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer: fn(&str) -> &'static [u8] = |request| {
            if request.starts_with("GET /there ") {
                b"HTTP/1.1 204 ok\r\n\r\n"
            } else if request.starts_with("GET /away ") {
                b"HTTP/1.1 302 go\r\nLocation: http://127.0.0.9/\r\nContent-Length: 4\r\n\r\naway"
            } else if request.starts_with("GET /round ") {
                b"HTTP/1.1 302 go\r\nLocation: /round\r\nContent-Length: 0\r\n\r\n"
            } else {
                b"HTTP/1.1 302 go\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"
            }
        };
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = vec![0; 4096];
                let read = stream.read(&mut buffer).await.unwrap();
                let request = String::from_utf8_lossy(&buffer[..read]);
                stream.write_all(answer(&request)).await.unwrap();
            }
        });
        let get = |path: &str| Get {
            tls: false,
            host: "127.0.0.1",
            port,
            path: path.to_owned(),
            headers: &[],
        };
        assert_eq!(fetch(&get("/")).await.map(|answer| answer.status), Ok(204));
        let away = fetch(&get("/away")).await.unwrap();
        assert_eq!((away.status, away.body.as_str()), (302, "away"));
        let round = fetch(&get("/round")).await;
        assert_eq!(round, Err("stopped after 10 redirects".to_owned()));
    }
}
