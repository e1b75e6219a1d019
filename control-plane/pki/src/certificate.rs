//! Certificates on the wire: writing one (RFC 5280), reading what Kubernetes needs from one, and kubeadm's pin.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, DERWriterSeq, Tag};

use crate::key::{KeyError, PrivateKey};
use crate::names::{Subject, SubjectAltNames, Usage};
use crate::pem;

#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("no CERTIFICATE block in the PEM text")]
    Missing,
    #[error("certificate is not readable as X.509: {0}")]
    Parse(String),
}

/// What the rest of the system wants to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    pub subject: Subject,
    pub alt_names: SubjectAltNames,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub is_ca: bool,
    /// `SubjectPublicKeyInfo`, DER.
    pub public_key: Vec<u8>,
    /// Lower-case hex SHA-256 of the whole certificate (upstream's credential id is `X509SHA256=` and this).
    pub fingerprint: String,
}

impl CertificateInfo {
    /// The first certificate of a PEM bundle.
    pub fn from_pem(text: &str) -> Result<Self, CertificateError> {
        Self::from_der(&first_certificate(text)?)
    }

    /// True when the first certificate of `text` bears the signature of the authority with this certificate.
    pub fn is_issued_by(text: &str, authority_pem: &str) -> Result<bool, CertificateError> {
        let (leaf, authority) = (first_certificate(text)?, first_certificate(authority_pem)?);
        let (leaf, authority) = (parse(&leaf)?, parse(&authority)?);
        Ok(leaf.issuer() == authority.subject()
            && leaf.verify_signature(Some(authority.public_key())).is_ok())
    }

    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let mut alt_names = SubjectAltNames::default();
        if let Ok(Some(extension)) = certificate.subject_alternative_name() {
            extension
                .value
                .general_names
                .iter()
                .for_each(|name| alt_names.add(name));
        }
        let validity = certificate.validity();
        let instant = |time: &x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp())
                .map_err(|error| CertificateError::Parse(error.to_string()))
        };
        Ok(Self {
            subject: Subject::from_x509(certificate.subject()),
            alt_names,
            not_before: instant(&validity.not_before)?,
            not_after: instant(&validity.not_after)?,
            is_ca: certificate.is_ca(),
            public_key: certificate.public_key().raw.to_vec(),
            fingerprint: hex(digest(&SHA256, der).as_ref()),
        })
    }
}

/// kubeadm's CA pin: `sha256:` and the hex SHA-256 of the certificate's SubjectPublicKeyInfo.
pub fn ca_pin(certificate_pem: &str) -> Result<String, CertificateError> {
    let der = first_certificate(certificate_pem)?;
    let certificate = parse(&der)?;
    Ok(format!(
        "sha256:{}",
        hex(digest(&SHA256, certificate.public_key().raw).as_ref())
    ))
}

/// Every certificate of a PEM bundle, each as PEM of its own.
pub fn split_bundle(text: &str) -> Vec<String> {
    pem::decode_all("CERTIFICATE", text)
        .iter()
        .map(|der| pem::encode("CERTIFICATE", der))
        .collect()
}

pub(crate) fn first_certificate(text: &str) -> Result<Vec<u8>, CertificateError> {
    pem::decode_all("CERTIFICATE", text)
        .into_iter()
        .next()
        .ok_or(CertificateError::Missing)
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| CertificateError::Parse(error.to_string()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 5280's method 1: SHA-1 of the subjectPublicKey bits.
pub(crate) fn key_identifier(public_key_der: &[u8]) -> Vec<u8> {
    let bits = x509_parser::x509::SubjectPublicKeyInfo::from_der(public_key_der)
        .map(|(_, spki)| spki.subject_public_key.data.to_vec())
        .unwrap_or_default();
    digest(&SHA1_FOR_LEGACY_USE_ONLY, &bits).as_ref().to_vec()
}

/// Everything that goes into a certificate, decided.
pub(crate) struct Draft<'a> {
    pub serial: [u8; 16],
    pub issuer: &'a [u8],
    pub subject: &'a [u8],
    pub public_key: &'a [u8],
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub alt_names: &'a SubjectAltNames,
    pub usages: &'a [Usage],
    pub is_ca: bool,
    pub authority_key_id: &'a [u8],
}

impl Draft<'_> {
    pub(crate) fn sign(&self, key: &PrivateKey) -> Result<String, KeyError> {
        let algorithm = key.signature_algorithm()?;
        let body = yasna::construct_der(|writer| self.write_body(algorithm, writer));
        let signature = key.sign(&body)?;
        let der = sequence(|certificate| {
            certificate.next().write_der(&body);
            certificate.next().write_der(algorithm);
            certificate
                .next()
                .write_bitvec_bytes(&signature, signature.len() * 8);
        });
        Ok(pem::encode("CERTIFICATE", &der))
    }

    fn write_body(&self, algorithm: &[u8], writer: DERWriter<'_>) {
        writer.write_sequence(|body| {
            body.next()
                .write_tagged(Tag::context(0), |version| version.write_u8(2));
            body.next().write_bigint_bytes(&self.serial, true);
            body.next().write_der(algorithm);
            body.next().write_der(self.issuer);
            body.next().write_sequence(|validity| {
                validity.next().write_der(&time(self.not_before));
                validity.next().write_der(&time(self.not_after));
            });
            body.next().write_der(self.subject);
            body.next().write_der(self.public_key);
            body.next().write_tagged(Tag::context(3), |writer| {
                writer.write_sequence(|extensions| self.write_extensions(extensions));
            });
        });
    }

    fn write_extensions(&self, extensions: &mut DERWriterSeq<'_>) {
        let bits: Vec<u8> = self.usages.iter().filter_map(|usage| usage.bit()).collect();
        if let Some(&last) = bits.iter().max() {
            extension(extensions, &[2, 5, 29, 15], true, |value| {
                let mut bytes = vec![0u8; usize::from(last) / 8 + 1];
                for bit in &bits {
                    bytes[usize::from(*bit) / 8] |= 0x80 >> (bit % 8);
                }
                value.write_bitvec_bytes(&bytes, usize::from(last) + 1);
            });
        }
        let purposes: Vec<&[u64]> = self
            .usages
            .iter()
            .filter_map(|usage| usage.extended_oid())
            .collect();
        if !purposes.is_empty() {
            extension(extensions, &[2, 5, 29, 37], false, |value| {
                value.write_sequence(|list| {
                    for oid in &purposes {
                        list.next().write_oid(&ObjectIdentifier::from_slice(oid));
                    }
                });
            });
        }
        extension(extensions, &[2, 5, 29, 19], true, |value| {
            value.write_sequence(|constraints| {
                if self.is_ca {
                    constraints.next().write_bool(true);
                }
            });
        });
        if self.is_ca {
            let own = key_identifier(self.public_key);
            extension(extensions, &[2, 5, 29, 14], false, |value| {
                value.write_bytes(&own)
            });
        }
        extension(extensions, &[2, 5, 29, 35], false, |value| {
            value.write_sequence(|identifier| {
                identifier
                    .next()
                    .write_tagged_implicit(Tag::context(0), |id| id.write_bytes(self.authority_key_id));
            });
        });
        if !self.alt_names.is_empty() {
            extension(extensions, &[2, 5, 29, 17], false, |value| {
                self.alt_names.write(value)
            });
        }
    }
}

fn extension(list: &mut DERWriterSeq<'_>, oid: &[u64], critical: bool, value: impl FnOnce(DERWriter<'_>)) {
    let value = yasna::construct_der(value);
    list.next().write_sequence(|extension| {
        extension.next().write_oid(&ObjectIdentifier::from_slice(oid));
        if critical {
            extension.next().write_bool(true);
        }
        extension.next().write_bytes(&value);
    });
}

/// UTCTime through 2049, GeneralizedTime from 2050 (RFC 5280, section 4.1.2.5).
fn time(instant: Timestamp) -> Vec<u8> {
    let utc = instant.to_zoned(TimeZone::UTC);
    let (tag, format) = if utc.year() < 2050 {
        (0x17, "%y%m%d%H%M%SZ")
    } else {
        (0x18, "%Y%m%d%H%M%SZ")
    };
    let text = utc.strftime(format).to_string();
    let mut der = vec![tag, text.len() as u8];
    der.extend_from_slice(text.as_bytes());
    der
}

pub(crate) fn sequence(content: impl FnOnce(&mut DERWriterSeq<'_>)) -> Vec<u8> {
    yasna::construct_der(|writer| writer.write_sequence(content))
}
