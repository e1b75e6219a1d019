//! The HTTP client of probes and lifecycle hooks: a fresh connection a request, and no certificate checks over TLS,
//! because a probe asks whether the pod answers and not who it is.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPHeader;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

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

/// The status code of the answer.
pub async fn status(get: &Get<'_>) -> Result<u16, String> {
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

async fn exchange<S>(stream: S, get: &Get<'_>) -> Result<u16, String>
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
    driver.abort();
    Ok(response.map_err(|error| error.to_string())?.status().as_u16())
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
        assert_eq!(status(&get).await, Ok(503));
        let seen = server.await.unwrap().to_lowercase();
        assert!(seen.starts_with("get /healthz http/1.1\r\n"), "{seen}");
        assert!(
            seen.contains("host: example\r\n") && seen.contains("user-agent: kube-probe/1.36\r\n"),
            "{seen}"
        );
        assert_eq!(seen.matches("host:").count(), 1);
    }
}
