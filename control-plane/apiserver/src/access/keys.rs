//! An issuer's public keys: found by discovery, fetched again when a token names one that is not among them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::fetch;
use crate::object;

/// However many tokens name unknown keys.
const REFETCH: Duration = Duration::from_secs(1);

pub struct KeySet {
    issuer: String,
    discovery: String,
    tls: ClientConfig,
    known: Mutex<Option<Fetched>>,
}

struct Fetched {
    keys: Vec<Value>,
    at: Instant,
}

/// A signed token taken apart; nothing of it is verified yet.
pub struct Signed<'a> {
    message: &'a str,
    algorithm: String,
    key: String,
    signature: Vec<u8>,
}

impl<'a> Signed<'a> {
    pub fn parse(token: &'a str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let header = URL_SAFE_NO_PAD.decode(message.split('.').next()?).ok()?;
        let header: Value = serde_json::from_slice(&header).ok()?;
        Some(Self {
            message,
            algorithm: header["alg"].as_str()?.to_owned(),
            key: header["kid"].as_str().unwrap_or_default().to_owned(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    fn is_signed_by(&self, key: &Value) -> bool {
        let part = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str()?).ok();
        let named = |name: &str| key[name].as_str().unwrap_or_default();
        let fits = |field: &str, wanted: &str| matches!(named(field), "") || named(field) == wanted;
        if !fits("use", "sig")
            || !fits("alg", &self.algorithm)
            || !(self.key.is_empty() || fits("kid", &self.key))
        {
            return false;
        }
        let message = self.message.as_bytes();
        let rsa = |parameters: &'static RsaParameters| {
            let (n, e) = (part("n")?, part("e")?);
            let key = RsaPublicKeyComponents { n, e };
            key.verify(parameters, message, &self.signature).ok()
        };
        let curve = |algorithm: &'static signature::EcdsaVerificationAlgorithm, name: &str| {
            let point = [vec![4], part("x")?, part("y")?].concat();
            let key = UnparsedPublicKey::new(algorithm, point);
            key.verify(message, &self.signature)
                .ok()
                .filter(|()| named("crv") == name)
        };
        let verified = match (named("kty"), self.algorithm.as_str()) {
            ("RSA", "RS256") => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            ("RSA", "RS384") => rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            ("RSA", "RS512") => rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            ("RSA", "PS256") => rsa(&signature::RSA_PSS_2048_8192_SHA256),
            ("RSA", "PS384") => rsa(&signature::RSA_PSS_2048_8192_SHA384),
            ("RSA", "PS512") => rsa(&signature::RSA_PSS_2048_8192_SHA512),
            ("EC", "ES256") => curve(&signature::ECDSA_P256_SHA256_FIXED, "P-256"),
            ("EC", "ES384") => curve(&signature::ECDSA_P384_SHA384_FIXED, "P-384"),
            _ => None,
        };
        verified.is_some()
    }
}

impl KeySet {
    pub fn new(issuer: &str, discovery: &str, tls: ClientConfig) -> Self {
        let usual = || {
            format!(
                "{}/.well-known/openid-configuration",
                issuer.trim_end_matches('/')
            )
        };
        Self {
            issuer: issuer.to_owned(),
            discovery: if discovery.is_empty() {
                usual()
            } else {
                discovery.to_owned()
            },
            tls,
            known: Mutex::default(),
        }
    }

    pub async fn verify(&self, token: &Signed<'_>) -> Result<(), String> {
        let mut known = self.known.lock().await;
        if let Some(fetched) = known.as_ref() {
            if fetched.keys.iter().any(|key| token.is_signed_by(key)) {
                return Ok(());
            }
            if fetched.at.elapsed() < REFETCH {
                return Err("failed to verify signature: failed to verify id token signature".into());
            }
        }
        let keys = self
            .fetch()
            .await
            .map_err(|why| format!("failed to verify signature: fetching keys {why}"))?;
        let is_good = keys.iter().any(|key| token.is_signed_by(key));
        *known = Some(Fetched {
            keys,
            at: Instant::now(),
        });
        match is_good {
            true => Ok(()),
            false => Err("failed to verify signature: failed to verify id token signature".into()),
        }
    }

    async fn fetch(&self) -> Result<Vec<Value>, String> {
        let document = fetch::json(&self.discovery, &self.tls).await?;
        let issuer = document["issuer"].as_str().unwrap_or_default();
        if issuer != self.issuer {
            return Err(format!(
                "oidc: issuer URL provided to client ({:?}) did not match the issuer URL returned by provider ({issuer:?})",
                self.issuer
            ));
        }
        let place = document["jwks_uri"].as_str().unwrap_or_default();
        let keys = fetch::json(place, &self.tls).await?;
        Ok(object::items(&keys, "keys").to_vec())
    }
}
