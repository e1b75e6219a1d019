//! Service-account tokens: ES256 JSON Web Tokens bound to objects, and the key set others verify them with.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use x509_parser::prelude::FromDer as _;

use crate::key::{KeyError, PrivateKey};
use crate::pem;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum JwtError {
    #[error("service-account key is not an ECDSA P-256 key")]
    Key,
    #[error("signing failed")]
    Sign,
    #[error("token is not a JSON Web Token")]
    Format,
    #[error("token is signed with algorithm {0:?}, not ES256")]
    Algorithm(String),
    #[error("token is signed by an unknown key")]
    UnknownKey,
    #[error("token's signature is invalid")]
    Signature,
    #[error("token's claims are not readable: {0}")]
    Claims(String),
}

/// A named object with its UID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundObject {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    pub namespace: String,
    pub serviceaccount: BoundObject,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<BoundObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<BoundObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<BoundObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// The claims of a service-account token, under the names upstream writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenClaims {
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    pub nbf: i64,
    pub sub: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

/// The claims of a token that is kept in a Secret and lives as long as it (upstream's `LegacyClaims`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LegacyClaims {
    pub iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret_name: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub service_account_name: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub service_account_uid: String,
    pub sub: String,
}

/// The issuer of [`LegacyClaims`].
pub const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// The signing half.
#[derive(Debug)]
pub struct ServiceAccountKey {
    pair: EcdsaKeyPair,
    key_id: String,
}

impl ServiceAccountKey {
    pub fn from_pem(key_pem: &str) -> Result<Self, JwtError> {
        let key = PrivateKey::from_pem(key_pem).map_err(|_| JwtError::Key)?;
        let pair = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            key.pkcs8(),
            &SystemRandom::new(),
        )
        .map_err(|_| JwtError::Key)?;
        Ok(Self {
            pair,
            key_id: key_id(&key.public_der()),
        })
    }

    /// A fresh key: (`sa.key`, `sa.pub`).
    pub fn generate_pem() -> Result<(String, String), KeyError> {
        let key = PrivateKey::generate()?;
        Ok((key.to_pem(), key.public_pem()))
    }

    pub fn sign(&self, claims: &TokenClaims) -> Result<String, JwtError> {
        self.sign_claims(claims)
    }

    pub fn sign_legacy(&self, claims: &LegacyClaims) -> Result<String, JwtError> {
        self.sign_claims(claims)
    }

    fn sign_claims(&self, claims: &impl Serialize) -> Result<String, JwtError> {
        let claims = serde_json::to_vec(claims).map_err(|error| JwtError::Claims(error.to_string()))?;
        let header = format!(r#"{{"alg":"ES256","kid":"{}"}}"#, self.key_id);
        let input = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let signature = self
            .pair
            .sign(&SystemRandom::new(), input.as_bytes())
            .map_err(|_| JwtError::Sign)?;
        Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The verifying half: any number of public keys, so that keys can be rotated.
#[derive(Debug, Clone)]
pub struct ServiceAccountVerifier {
    keys: Vec<PublicKey>,
}

#[derive(Debug, Clone)]
struct PublicKey {
    id: String,
    point: Vec<u8>,
}

impl ServiceAccountVerifier {
    /// `PUBLIC KEY` blocks, any number.
    pub fn from_pem(public_pem: &str) -> Result<Self, JwtError> {
        let keys = pem::decode_all("PUBLIC KEY", public_pem)
            .iter()
            .map(|der| {
                let (_, spki) =
                    x509_parser::x509::SubjectPublicKeyInfo::from_der(der).map_err(|_| JwtError::Key)?;
                let point = spki.subject_public_key.data.to_vec();
                // An uncompressed P-256 point: 0x04, x, y.
                let p256 = point.len() == 65 && point[0] == 4;
                p256.then(|| PublicKey {
                    id: key_id(der),
                    point,
                })
                .ok_or(JwtError::Key)
            })
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            Err(JwtError::Key)
        } else {
            Ok(Self { keys })
        }
    }

    /// Checks the signature alone; issuer, audience and times are the authenticator's to judge.
    pub fn verify(&self, token: &str) -> Result<TokenClaims, JwtError> {
        self.verify_claims(token)
    }

    /// Checks the signature alone, of a token kept in a Secret.
    pub fn verify_legacy(&self, token: &str) -> Result<LegacyClaims, JwtError> {
        self.verify_claims(token)
    }

    fn verify_claims<T: DeserializeOwned>(&self, token: &str) -> Result<T, JwtError> {
        let (input, signature) = token.rsplit_once('.').ok_or(JwtError::Format)?;
        let (header, claims) = input.split_once('.').ok_or(JwtError::Format)?;
        let header: Value = decode(header)?;
        if header["alg"] != "ES256" {
            return Err(JwtError::Algorithm(
                header["alg"].as_str().unwrap_or_default().to_owned(),
            ));
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtError::Format)?;
        let named = header["kid"].as_str();
        let mut candidates = self
            .keys
            .iter()
            .filter(|key| named.is_none_or(|name| name == key.id))
            .peekable();
        if candidates.peek().is_none() {
            return Err(JwtError::UnknownKey);
        }
        let genuine = candidates.any(|key| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.point)
                .verify(input.as_bytes(), &signature)
                .is_ok()
        });
        if !genuine {
            return Err(JwtError::Signature);
        }
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| JwtError::Format)?;
        serde_json::from_slice(&claims).map_err(|error| JwtError::Claims(error.to_string()))
    }

    /// The JSON Web Key Set, as `/openid/v1/jwks` serves it.
    pub fn jwks(&self) -> Value {
        let keys = self.keys.iter().map(|key| {
            json!({
                "use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": key.id,
                "x": URL_SAFE_NO_PAD.encode(&key.point[1..33]),
                "y": URL_SAFE_NO_PAD.encode(&key.point[33..]),
            })
        });
        json!({ "keys": keys.collect::<Vec<_>>() })
    }
}

/// True for three dot-separated parts; tells a service-account token from other bearer tokens before any cryptography.
pub fn looks_like_jwt(token: &str) -> bool {
    token.split('.').count() == 3
}

/// Upstream's `keyIDFromPublicKey`: base64url of the SHA-256 of the PKIX public key.
fn key_id(public_der: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, public_der))
}

fn decode(part: &str) -> Result<Value, JwtError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Format)?;
    serde_json::from_slice(&bytes).map_err(|_| JwtError::Format)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> TokenClaims {
        TokenClaims {
            aud: vec!["https://kubernetes.default.svc.cluster.local".into()],
            exp: 2,
            iat: 1,
            nbf: 1,
            iss: "https://kubernetes.default.svc.cluster.local".into(),
            jti: "id".into(),
            sub: "system:serviceaccount:default:builder".into(),
            kubernetes: KubernetesClaims {
                namespace: "default".into(),
                serviceaccount: BoundObject {
                    name: "builder".into(),
                    uid: "u".into(),
                },
                ..KubernetesClaims::default()
            },
        }
    }

    #[test]
    fn tokens_verify_with_their_own_key_only() {
        let (private, public) = ServiceAccountKey::generate_pem().unwrap();
        let (_, other) = ServiceAccountKey::generate_pem().unwrap();
        let token = ServiceAccountKey::from_pem(&private)
            .unwrap()
            .sign(&claims())
            .unwrap();
        assert!(looks_like_jwt(&token));
        let verifier = ServiceAccountVerifier::from_pem(&public).unwrap();
        assert_eq!(verifier.verify(&token), Ok(claims()));
        let both = ServiceAccountVerifier::from_pem(&format!("{other}{public}")).unwrap();
        assert_eq!(both.verify(&token), Ok(claims()));
        let foreign = ServiceAccountVerifier::from_pem(&other).unwrap();
        assert_eq!(foreign.verify(&token), Err(JwtError::UnknownKey));
    }

    #[test]
    fn tampering_and_weaker_algorithms_are_refused() {
        let (private, public) = ServiceAccountKey::generate_pem().unwrap();
        let verifier = ServiceAccountVerifier::from_pem(&public).unwrap();
        let token = ServiceAccountKey::from_pem(&private)
            .unwrap()
            .sign(&claims())
            .unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let mut forged = claims();
        forged.sub = "system:serviceaccount:kube-system:admin".into();
        let forged = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&forged).unwrap());
        let forged = format!("{}.{forged}.{}", parts[0], parts[2]);
        assert_eq!(verifier.verify(&forged), Err(JwtError::Signature));
        for algorithm in ["none", "HS256", ""] {
            let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{algorithm}"}}"#));
            let weak = format!("{header}.{}.{}", parts[1], parts[2]);
            assert_eq!(verifier.verify(&weak), Err(JwtError::Algorithm(algorithm.into())));
        }
        for garbage in ["", "a.b", "a.b.c", "..", "....."] {
            assert!(verifier.verify(garbage).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn legacy_claims_carry_upstreams_names() {
        let (private, public) = ServiceAccountKey::generate_pem().unwrap();
        let claims = LegacyClaims {
            iss: LEGACY_ISSUER.into(),
            namespace: "default".into(),
            secret_name: "s".into(),
            service_account_name: "builder".into(),
            service_account_uid: "u".into(),
            sub: "system:serviceaccount:default:builder".into(),
        };
        let key = ServiceAccountKey::from_pem(&private).unwrap();
        let token = key.sign_legacy(&claims).unwrap();
        let verifier = ServiceAccountVerifier::from_pem(&public).unwrap();
        assert_eq!(verifier.verify_legacy(&token), Ok(claims));
        assert!(matches!(verifier.verify(&token), Err(JwtError::Claims(_))));
        let wire: Value = decode(token.split('.').nth(1).unwrap()).unwrap();
        assert_eq!(
            wire,
            json!({
                "iss": "kubernetes/serviceaccount",
                "kubernetes.io/serviceaccount/namespace": "default",
                "kubernetes.io/serviceaccount/secret.name": "s",
                "kubernetes.io/serviceaccount/service-account.name": "builder",
                "kubernetes.io/serviceaccount/service-account.uid": "u",
                "sub": "system:serviceaccount:default:builder",
            })
        );
    }

    #[test]
    fn the_key_set_names_the_key_the_header_names() {
        let (private, public) = ServiceAccountKey::generate_pem().unwrap();
        let token = ServiceAccountKey::from_pem(&private)
            .unwrap()
            .sign(&claims())
            .unwrap();
        let header: Value = decode(token.split('.').next().unwrap()).unwrap();
        let set = ServiceAccountVerifier::from_pem(&public).unwrap().jwks();
        assert_eq!(set["keys"][0]["kid"], header["kid"]);
        let coordinate = set["keys"][0]["x"].as_str().unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(coordinate).unwrap().len(), 32);
    }
}
