//! Whose certificates are believed.

use std::sync::Arc;

use pki::CertificateInfo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Upstream's transport for pods and services, and for kubelets without a CA: encrypted, not authenticated.
#[derive(Debug)]
pub struct AnyCertificate(pub Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A bundle's authorities and whom they vouch for, and a server that shows a certificate of the bundle itself, even
/// one that could be an authority: webpki refuses those, Go takes them, and self-signed webhooks live by it.
#[derive(Debug)]
pub struct Believed {
    issued: Arc<WebPkiServerVerifier>,
    bundle: Vec<CertificateDer<'static>>,
}

impl Believed {
    pub fn new(
        bundle: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        for certificate in &bundle {
            roots.add(certificate.clone())?;
        }
        let issued = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { issued, bundle })
    }
}

/// Its name and its time; who signed it does not matter any more.
fn verify_itself(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
    let info = CertificateInfo::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < info.not_before.as_second() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > info.not_after.as_second() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

impl ServerCertVerifier for Believed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.bundle.iter().any(|known| known == end_entity) {
            verify_itself(end_entity, server_name, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.issued
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::{CertificateAuthority, LeafRequest, Subject, SubjectAltNames};
    use rustls::crypto::ring;
    use rustls::pki_types::pem::PemObject as _;
    use std::time::Duration;

    const DAY: i64 = 24 * 3600;

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    /// As `openssl req -x509` makes it: an authority by its own word.
    fn self_signed() -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new(["webhook.example.com".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn the_bundle_and_whom_it_vouches_for_are_believed() {
        let now = jiff::Timestamp::now();
        let authority = CertificateAuthority::generate("webhook.example.com", now).unwrap();
        let other = CertificateAuthority::generate("other", now).unwrap();
        let mut names = SubjectAltNames::default();
        names.dns_names.push("webhook.example.com".into());
        let request = LeafRequest::server(Subject::new("w", &[]), names);
        let leaf = |from: &CertificateAuthority| der(&from.issue(&request, now).unwrap().certificate_pem);
        let own = self_signed();
        let bundle = vec![der(authority.certificate_pem()), own.clone()];
        let believed = Believed::new(bundle, Arc::new(ring::default_provider())).unwrap();
        let check = |certificate: &CertificateDer<'_>, name: &str, seconds: i64| {
            let at = Duration::from_secs(u64::try_from(now.as_second() + seconds).unwrap());
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let at = UnixTime::since_unix_epoch(at);
            believed
                .verify_server_cert(certificate, &[], &name, &[], at)
                .is_ok()
        };
        let cases = [
            (leaf(&authority), "webhook.example.com", 0, true),
            (leaf(&other), "webhook.example.com", 0, false),
            (own.clone(), "webhook.example.com", 0, true),
            (own.clone(), "another.example.com", 0, false),
            (own, "webhook.example.com", 40_000 * DAY, false),
        ];
        for (i, (certificate, name, seconds, expected)) in cases.into_iter().enumerate() {
            assert_eq!(check(&certificate, name, seconds), expected, "case {i}");
        }
    }
}
