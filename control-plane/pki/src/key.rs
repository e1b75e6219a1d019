//! Private keys: made here, kept by the caller, used to sign certificates and requests.

use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum KeyError {
    #[error("private key is not readable as PKCS#8 PEM")]
    Parse(#[source] rcgen::Error),
    #[error("private key could not be generated")]
    Generate(#[source] rcgen::Error),
    #[error("signing failed")]
    Sign(#[source] rcgen::Error),
    #[error("private key's algorithm cannot sign certificates here")]
    Algorithm,
}

/// An asymmetric private key; ECDSA P-256 when generated here.
#[derive(Debug)]
pub struct PrivateKey(KeyPair);

/// `AlgorithmIdentifier` of the signature each kind of key makes, DER.
const SIGNATURES: &[(&rcgen::SignatureAlgorithm, &[u8])] = &[
    // ecdsa-with-SHA256, ecdsa-with-SHA384: no parameters (RFC 5758)
    (
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &[
            0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
        ],
    ),
    (
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &[
            0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03,
        ],
    ),
    // sha256WithRSAEncryption: NULL parameters (RFC 4055)
    (
        &rcgen::PKCS_RSA_SHA256,
        &[
            0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00,
        ],
    ),
    // Ed25519 (RFC 8410)
    (&rcgen::PKCS_ED25519, &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70]),
];

impl PrivateKey {
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate().map(Self).map_err(KeyError::Generate)
    }

    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        KeyPair::from_pem(pem).map(Self).map_err(KeyError::Parse)
    }

    /// PKCS#8.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// `SubjectPublicKeyInfo`, PEM.
    pub fn public_pem(&self) -> String {
        self.0.public_key_pem()
    }

    /// `SubjectPublicKeyInfo`, DER.
    pub fn public_der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        self.0.serialized_der()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message).map_err(KeyError::Sign)
    }

    pub(crate) fn signature_algorithm(&self) -> Result<&'static [u8], KeyError> {
        SIGNATURES
            .iter()
            .find(|(algorithm, _)| *algorithm == self.0.algorithm())
            .map(|(_, der)| *der)
            .ok_or(KeyError::Algorithm)
    }
}
