//! A token server as registries point to it: checks a password or a refresh token, signs what may be pulled.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

pub const ISSUER: &str = "test-issuer";
pub const SERVICE: &str = "test-registry";

struct Signer {
    key: jsonwebtoken::EncodingKey,
    certificate: String,
}

/// Serves in the background; the address, for the registry's `realm`. The certificate lands in `bundle`.
pub fn start(bundle: &Path) -> String {
    let key = rcgen::KeyPair::generate().expect("key");
    let mut parameters = rcgen::CertificateParams::new(vec!["token-server".into()]).expect("parameters");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).expect("certificate");
    std::fs::write(bundle, certificate.pem()).expect("bundle");
    let signer = Arc::new(Signer {
        key: jsonwebtoken::EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).expect("key"),
        certificate: STANDARD.encode(certificate.der()),
    });
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve(stream, &signer);
        }
    });
    format!("http://{address}/token")
}

fn serve(stream: TcpStream, signer: &Signer) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) < 3 {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        head += &line;
    }
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    let text = format!("{head}\n{}", String::from_utf8_lossy(&body));
    let password = format!("Basic {}", STANDARD.encode("user:secret"));
    // Who says nothing gets a token that is good for nothing, as Docker Hub does for private images.
    let allowed = if text.contains(&password) || text.contains("refresh_token=good") {
        true
    } else if text.contains("Basic ") || text.contains("refresh_token=") {
        return answer(reader.into_inner(), "401 Unauthorized", "{}");
    } else {
        false
    };
    let scope = text
        .split(['?', '&', '\n', ' '])
        .find_map(|part| part.strip_prefix("scope=repository%3A"))
        .expect("scope");
    let repository = scope.split("%3A").next().expect("repository").replace("%2F", "/");
    let token = signer.token(&repository, allowed);
    answer(
        reader.into_inner(),
        "200 OK",
        &json!({"token": token}).to_string(),
    );
}

fn answer(mut stream: TcpStream, status: &str, body: &str) {
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes());
}

impl Signer {
    fn token(&self, repository: &str, allowed: bool) -> String {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("clock")
            .as_secs();
        let access = json!({"type": "repository", "name": repository, "actions": ["pull"]});
        let claims = json!({
            "iss": ISSUER, "aud": SERVICE, "sub": "user", "jti": "1", "iat": now, "nbf": now - 60, "exp": now + 600,
            "access": if allowed { vec![access] } else { vec![] },
        });
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        header.x5c = Some(vec![self.certificate.clone()]);
        jsonwebtoken::encode(&header, &claims, &self.key).expect("token")
    }
}
