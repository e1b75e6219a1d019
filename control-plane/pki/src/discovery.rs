//! Token-signed discovery: the detached JWS over the `cluster-info` kubeconfig (kubeadm's `jws-kubeconfig-<id>`).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use thiserror::Error;

use crate::token::BootstrapToken;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum DiscoveryError {
    #[error("signature is not a detached JWS (header..signature)")]
    Format,
    #[error("signature was not made with this bootstrap token")]
    Mismatch,
}

/// `header..signature` over `content`, keyed with the token's secret; kubeadm recomputes and compares it verbatim.
pub fn cluster_info_signature(content: &str, token: &BootstrapToken) -> String {
    sign(content, token.id(), token.secret())
}

fn sign(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
    let signature = hmac::sign(&key(secret), signing_input(&header, content).as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature))
}

pub fn verify_cluster_info(
    content: &str,
    signature: &str,
    token: &BootstrapToken,
) -> Result<(), DiscoveryError> {
    let (header, signature) = signature.split_once("..").ok_or(DiscoveryError::Format)?;
    let claimed = URL_SAFE_NO_PAD
        .decode(header)
        .map_err(|_| DiscoveryError::Format)?;
    let claimed: serde_json::Value = serde_json::from_slice(&claimed).map_err(|_| DiscoveryError::Format)?;
    if claimed["alg"] != "HS256" || claimed["kid"] != token.id() {
        return Err(DiscoveryError::Mismatch);
    }
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| DiscoveryError::Format)?;
    hmac::verify(
        &key(token.secret()),
        signing_input(header, content).as_bytes(),
        &signature,
    )
    .map_err(|_| DiscoveryError::Mismatch)
}

fn key(secret: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())
}

fn signing_input(header: &str, content: &str) -> String {
    format!("{header}.{}", URL_SAFE_NO_PAD.encode(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_equal_upstreams() {
        // The vector of k8s.io/cluster-bootstrap's token/jws tests.
        let content = "Hello from the other side. I must have called a thousand times.";
        assert_eq!(
            sign(content, "joshua", "my voice is my passcode"),
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
        );
    }

    #[test]
    fn only_the_same_token_and_content_verify() {
        let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
        let signature = cluster_info_signature("kubeconfig", &token);
        assert_eq!(verify_cluster_info("kubeconfig", &signature, &token), Ok(()));
        assert_eq!(
            verify_cluster_info("tampered", &signature, &token),
            Err(DiscoveryError::Mismatch)
        );
        for other in ["abcdef.0123456789abcdee", "abcdee.0123456789abcdef"] {
            let other = BootstrapToken::parse(other).unwrap();
            assert_eq!(
                verify_cluster_info("kubeconfig", &signature, &other),
                Err(DiscoveryError::Mismatch)
            );
        }
        assert_eq!(
            verify_cluster_info("kubeconfig", "a.b.c", &token),
            Err(DiscoveryError::Format)
        );
    }
}
