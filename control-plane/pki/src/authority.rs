//! The certificate authority: makes itself, issues leaves, signs requests.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;

use crate::certificate::{CertificateError, Draft, first_certificate, key_identifier, parse};
use crate::key::{KeyError, PrivateKey};
use crate::names::{Subject, SubjectAltNames, Usage};
use crate::pem;
use crate::request::CertificateRequest;

/// kubeadm's lifetime of a CA; leaves are renewed long before, a CA is not.
const CA_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// Clocks differ; upstream's signer backdates by as much.
const BACKDATE: Duration = Duration::from_mins(5);

#[derive(Debug, Error)]
pub enum AuthorityError {
    #[error("CA certificate: {0}")]
    Certificate(#[from] CertificateError),
    #[error("CA key: {0}")]
    Key(#[from] KeyError),
    #[error("CA certificate and CA key do not belong together")]
    Mismatch,
    #[error("certificate is not a CA certificate")]
    NotAnAuthority,
    #[error("the system gives no random bytes")]
    Random,
    #[error("lifetime is beyond the calendar")]
    Lifetime,
}

/// A certificate for a service or a client of our own.
#[derive(Debug, Clone)]
pub struct LeafRequest {
    pub subject: Subject,
    pub alt_names: SubjectAltNames,
    pub usages: Vec<Usage>,
    pub lifetime: Duration,
}

impl LeafRequest {
    const YEAR: Duration = Duration::from_hours(365 * 24);

    /// A client certificate: `subject.common_name` is the user, its organizations the groups.
    pub fn client(subject: Subject) -> Self {
        let usages = vec![Usage::DigitalSignature, Usage::KeyEncipherment, Usage::ClientAuth];
        Self {
            subject,
            alt_names: SubjectAltNames::default(),
            usages,
            lifetime: Self::YEAR,
        }
    }

    /// A serving certificate for these names.
    pub fn server(subject: Subject, alt_names: SubjectAltNames) -> Self {
        let usages = vec![Usage::DigitalSignature, Usage::KeyEncipherment, Usage::ServerAuth];
        Self {
            subject,
            alt_names,
            usages,
            lifetime: Self::YEAR,
        }
    }

    /// A certificate used on both ends of a connection (etcd peers).
    pub fn peer(subject: Subject, alt_names: SubjectAltNames) -> Self {
        let mut request = Self::server(subject, alt_names);
        request.usages.push(Usage::ClientAuth);
        request
    }
}

/// A certificate and its private key, PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

#[derive(Debug)]
pub struct CertificateAuthority {
    certificate_pem: String,
    key: PrivateKey,
    subject: Vec<u8>,
    key_id: Vec<u8>,
    not_after: Timestamp,
}

impl CertificateAuthority {
    pub fn generate(common_name: &str, now: Timestamp) -> Result<Self, AuthorityError> {
        let key = PrivateKey::generate()?;
        let subject = Subject::new(common_name, &[]).to_der();
        let public_key = key.public_der();
        let not_after = after(now, CA_LIFETIME)?;
        let certificate_pem = Draft {
            serial: serial()?,
            issuer: &subject,
            subject: &subject,
            public_key: &public_key,
            not_before: before(now)?,
            not_after,
            alt_names: &SubjectAltNames::default(),
            usages: &[Usage::DigitalSignature, Usage::KeyEncipherment, Usage::CertSign],
            is_ca: true,
            authority_key_id: &key_identifier(&public_key),
        }
        .sign(&key)?;
        Self::from_pem(&certificate_pem, &key.to_pem())
    }

    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let key = PrivateKey::from_pem(key_pem)?;
        let der = first_certificate(certificate_pem)?;
        let certificate = parse(&der)?;
        if !certificate.is_ca() {
            return Err(AuthorityError::NotAnAuthority);
        }
        if certificate.public_key().raw != key.public_der() {
            return Err(AuthorityError::Mismatch);
        }
        let key_id = certificate
            .iter_extensions()
            .find_map(|extension| match extension.parsed_extension() {
                x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        Ok(Self {
            certificate_pem: pem::encode("CERTIFICATE", &der),
            subject: certificate.subject().as_raw().to_vec(),
            key_id: key_id.unwrap_or_else(|| key_identifier(certificate.public_key().raw)),
            not_after: Timestamp::from_second(certificate.validity().not_after.timestamp())
                .map_err(|_| AuthorityError::Lifetime)?,
            key,
        })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn key_pem(&self) -> String {
        self.key.to_pem()
    }

    /// A fresh key and a certificate for it.
    pub fn issue(&self, request: &LeafRequest, now: Timestamp) -> Result<Identity, AuthorityError> {
        let key = PrivateKey::generate()?;
        let holder = Holder {
            subject: &request.subject.to_der(),
            public_key: &key.public_der(),
            alt_names: &request.alt_names,
        };
        let certificate_pem = self.sign(holder, &request.usages, request.lifetime, now)?;
        Ok(Identity {
            certificate_pem,
            key_pem: key.to_pem(),
        })
    }

    /// Signs a request for exactly these usages. The certificate never outlives the CA.
    pub fn sign_csr(
        &self,
        request: &CertificateRequest,
        usages: &[Usage],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, AuthorityError> {
        let holder = Holder {
            subject: &request.subject_der,
            public_key: &request.public_key,
            alt_names: &request.alt_names,
        };
        self.sign(holder, usages, lifetime, now)
    }

    fn sign(
        &self,
        holder: Holder<'_>,
        usages: &[Usage],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, AuthorityError> {
        let draft = Draft {
            serial: serial()?,
            issuer: &self.subject,
            subject: holder.subject,
            public_key: holder.public_key,
            not_before: before(now)?,
            not_after: after(now, lifetime)?.min(self.not_after),
            alt_names: holder.alt_names,
            usages,
            is_ca: false,
            authority_key_id: &self.key_id,
        };
        Ok(draft.sign(&self.key)?)
    }
}

struct Holder<'a> {
    subject: &'a [u8],
    public_key: &'a [u8],
    alt_names: &'a SubjectAltNames,
}

fn serial() -> Result<[u8; 16], AuthorityError> {
    let mut serial = [0; 16];
    SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| AuthorityError::Random)?;
    // RFC 5280 wants it positive and not zero.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn before(now: Timestamp) -> Result<Timestamp, AuthorityError> {
    now.checked_sub(BACKDATE).map_err(|_| AuthorityError::Lifetime)
}

fn after(now: Timestamp, lifetime: Duration) -> Result<Timestamp, AuthorityError> {
    let lifetime = SignedDuration::try_from(lifetime).map_err(|_| AuthorityError::Lifetime)?;
    now.checked_add(lifetime).map_err(|_| AuthorityError::Lifetime)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::server::WebPkiClientVerifier;

    use super::*;
    use crate::certificate::{CertificateInfo, ca_pin};

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn roots(authority: &CertificateAuthority) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap())
            .unwrap();
        Arc::new(roots)
    }

    fn accepted_as_client(authority: &CertificateAuthority, certificate_pem: &str) -> bool {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority), provider)
            .build()
            .unwrap();
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now().as_second() as u64));
        verifier.verify_client_cert(&certificate, &[], at).is_ok()
    }

    fn accepted_as_server(authority: &CertificateAuthority, certificate_pem: &str, name: &str) -> bool {
        use rustls::client::WebPkiServerVerifier;
        use rustls::client::danger::ServerCertVerifier as _;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots(authority), provider)
            .build()
            .unwrap();
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now().as_second() as u64));
        let name = ServerName::try_from(name).unwrap().to_owned();
        verifier
            .verify_server_cert(&certificate, &[], &name, &[], at)
            .is_ok()
    }

    #[test]
    fn issued_leaves_verify_for_their_use_and_names_only() {
        let authority = CertificateAuthority::generate("kubernetes", now()).unwrap();
        let stranger = CertificateAuthority::generate("kubernetes", now()).unwrap();
        let client = LeafRequest::client(Subject::new("kubernetes-admin", &["kubeadm:cluster-admins"]));
        let client = authority.issue(&client, now()).unwrap().certificate_pem;
        assert!(accepted_as_client(&authority, &client));
        assert!(!accepted_as_client(&stranger, &client));
        assert!(!accepted_as_server(&authority, &client, "localhost"));

        let names = SubjectAltNames {
            dns_names: vec!["localhost".into()],
            ip_addresses: vec!["127.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ..SubjectAltNames::default()
        };
        let server = LeafRequest::server(Subject::new("kube-apiserver", &[]), names.clone());
        let server = authority.issue(&server, now()).unwrap().certificate_pem;
        for name in ["localhost", "127.0.0.1", "fd00::1"] {
            assert!(accepted_as_server(&authority, &server, name), "{name}");
        }
        assert!(!accepted_as_server(&authority, &server, "example.com"));
        assert!(!accepted_as_client(&authority, &server));
        assert_eq!(CertificateInfo::from_pem(&server).unwrap().alt_names, names);
    }

    #[test]
    fn an_authority_survives_its_pem_form_and_refuses_a_foreign_key() {
        let authority = CertificateAuthority::generate("kubernetes", now()).unwrap();
        let reloaded =
            CertificateAuthority::from_pem(authority.certificate_pem(), &authority.key_pem()).unwrap();
        let leaf = reloaded
            .issue(&LeafRequest::client(Subject::new("x", &[])), now())
            .unwrap();
        assert!(accepted_as_client(&authority, &leaf.certificate_pem));
        let other = CertificateAuthority::generate("kubernetes", now()).unwrap();
        let mixed = CertificateAuthority::from_pem(authority.certificate_pem(), &other.key_pem());
        assert!(matches!(mixed, Err(AuthorityError::Mismatch)));
        let leaf = CertificateAuthority::from_pem(&leaf.certificate_pem, &leaf.key_pem);
        assert!(matches!(leaf, Err(AuthorityError::NotAnAuthority)));
    }

    #[test]
    fn a_signed_request_keeps_subject_and_names_and_gets_only_the_granted_usages() {
        let authority = CertificateAuthority::generate("kubernetes", now()).unwrap();
        let key = PrivateKey::generate().unwrap();
        let subject = Subject::new("system:node:worker-1", &["system:nodes", "a", "b"]);
        let names = SubjectAltNames {
            dns_names: vec!["worker-1".into()],
            ip_addresses: vec![IpAddr::from([192, 168, 76, 12])],
            emails: vec!["a@b.c".into()],
            uris: vec!["spiffe://x/y".into()],
        };
        let pem = CertificateRequest::create(&key, &subject, &names).unwrap();
        let request = CertificateRequest::from_pem(&pem).unwrap();
        assert_eq!((&request.subject, &request.alt_names), (&subject, &names));
        let serving = [Usage::DigitalSignature, Usage::ServerAuth];
        let signed = authority
            .sign_csr(&request, &serving, Duration::from_hours(1), now())
            .unwrap();
        let info = CertificateInfo::from_pem(&signed).unwrap();
        assert_eq!((info.subject, info.alt_names), (subject, names));
        assert_eq!(info.public_key, key.public_der());
        assert_eq!(info.not_after, now() + SignedDuration::from_hours(1));
        assert!(accepted_as_server(&authority, &signed, "worker-1"));
        assert!(!accepted_as_client(&authority, &signed));
    }

    #[test]
    fn a_certificate_never_outlives_its_authority() {
        let authority = CertificateAuthority::generate("kubernetes", now()).unwrap();
        let mut request = LeafRequest::client(Subject::new("x", &[]));
        request.lifetime = Duration::from_hours(50 * 365 * 24);
        let leaf = authority.issue(&request, now()).unwrap();
        assert_eq!(
            CertificateInfo::from_pem(&leaf.certificate_pem)
                .unwrap()
                .not_after,
            authority.not_after
        );
    }

    #[test]
    fn a_tampered_request_is_refused() {
        let key = PrivateKey::generate().unwrap();
        let subject = Subject::new("aaaa", &[]);
        let pem = CertificateRequest::create(&key, &subject, &SubjectAltNames::default()).unwrap();
        let mut der = crate::pem::decode_all("CERTIFICATE REQUEST", &pem).remove(0);
        let at = der.windows(4).position(|window| window == b"aaaa").unwrap();
        der[at] = b'b';
        let tampered = crate::pem::encode("CERTIFICATE REQUEST", &der);
        let refused = CertificateRequest::from_pem(&tampered);
        assert!(matches!(refused, Err(crate::request::RequestError::Signature)));
    }

    #[test]
    fn the_pin_is_kubeadms() {
        // Pin computed with: openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | sha256sum
        let certificate = include_str!("../tests/ca.crt");
        let pin = "sha256:b06d952d94a5b1a84001433047b80fdbbd485f0cd4b770baf9b6c5bb7fff551c";
        assert_eq!(ca_pin(certificate).unwrap(), pin);
    }
}
