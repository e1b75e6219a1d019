//! PKCS#10 certificate requests: made by joiners, read and judged by approver and signer.

use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer as _;
use yasna::Tag;
use yasna::models::ObjectIdentifier;

use crate::key::{KeyError, PrivateKey};
use crate::names::{Subject, SubjectAltNames};
use crate::pem;

#[derive(Debug, Error)]
pub enum RequestError {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Missing,
    #[error("certificate request is not readable as PKCS#10: {0}")]
    Parse(String),
    #[error("certificate request is not signed by the key it names")]
    Signature,
}

/// A parsed request whose self-signature has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    pub subject: Subject,
    pub alt_names: SubjectAltNames,
    pub(crate) subject_der: Vec<u8>,
    pub(crate) public_key: Vec<u8>,
}

impl CertificateRequest {
    pub fn from_pem(text: &str) -> Result<Self, RequestError> {
        let der = ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"]
            .iter()
            .find_map(|label| pem::decode_all(label, text).into_iter().next())
            .ok_or(RequestError::Missing)?;
        let (_, request) = X509CertificationRequest::from_der(&der)
            .map_err(|error| RequestError::Parse(error.to_string()))?;
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        let mut alt_names = SubjectAltNames::default();
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                names.general_names.iter().for_each(|name| alt_names.add(name));
            }
        }
        let info = &request.certification_request_info;
        Ok(Self {
            subject: Subject::from_x509(&info.subject),
            alt_names,
            subject_der: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
        })
    }

    /// A request for `subject`, signed with the key it is for, as PEM.
    pub fn create(
        key: &PrivateKey,
        subject: &Subject,
        alt_names: &SubjectAltNames,
    ) -> Result<String, KeyError> {
        let info = crate::certificate::sequence(|info| {
            info.next().write_u8(0);
            info.next().write_der(&subject.to_der());
            info.next().write_der(&key.public_der());
            info.next().write_tagged_implicit(Tag::context(0), |attributes| {
                attributes.write_set(|attributes| {
                    if !alt_names.is_empty() {
                        attributes.next().write_der(&extension_request(alt_names));
                    }
                });
            });
        });
        let signature = key.sign(&info)?;
        let algorithm = key.signature_algorithm()?;
        let der = crate::certificate::sequence(|request| {
            request.next().write_der(&info);
            request.next().write_der(algorithm);
            request.next().write_bitvec_bytes(&signature, signature.len() * 8);
        });
        Ok(pem::encode("CERTIFICATE REQUEST", &der))
    }

    /// `SubjectPublicKeyInfo`, DER.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }
}

/// PKCS#9 extensionRequest holding the alternative names.
fn extension_request(alt_names: &SubjectAltNames) -> Vec<u8> {
    crate::certificate::sequence(|attribute| {
        attribute
            .next()
            .write_oid(&ObjectIdentifier::from_slice(&[1, 2, 840, 113549, 1, 9, 14]));
        attribute.next().write_set(|values| {
            values.next().write_sequence(|extensions| {
                let names = yasna::construct_der(|writer| alt_names.write(writer));
                extensions.next().write_sequence(|extension| {
                    extension
                        .next()
                        .write_oid(&ObjectIdentifier::from_slice(&[2, 5, 29, 17]));
                    extension.next().write_bytes(&names);
                });
            });
        });
    })
}
