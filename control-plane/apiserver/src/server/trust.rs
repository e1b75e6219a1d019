//! Whose certificates we believe, and our own: replaceable while serving. TLS lets every client certificate in whose
//! key its sender holds; which authority vouches for it decides later who that is, so that a foreign certificate is
//! a `401` and no broken connection.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use pki::CertificateInfo;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};

use crate::RunError;
use crate::config::{Config, KeyPair};

/// What a connection's client certificate proves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// A certificate was shown.
    pub shown: bool,
    /// The leaf, when the client CA vouches for it.
    pub client: Option<Bytes>,
    /// The leaf's common name, when the front proxies' CA vouches for it.
    pub front_proxy: Option<String>,
    /// Where the connection comes from.
    pub address: Option<std::net::IpAddr>,
}

#[derive(Debug)]
struct Believed {
    clients: Option<Arc<dyn ClientCertVerifier>>,
    front_proxies: Option<Arc<dyn ClientCertVerifier>>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Trust {
    provider: Arc<CryptoProvider>,
    /// Names of the authorities at start; clients pick their certificate by them.
    hints: Vec<DistinguishedName>,
    believed: RwLock<Believed>,
    own: RwLock<Arc<CertifiedKey>>,
}

fn bad(field: &'static str) -> impl Fn(String) -> RunError {
    move |message| RunError::Config { field, message }
}

impl Trust {
    pub fn new(config: &Config) -> Result<Arc<Self>, RunError> {
        let provider = Arc::new(ring::default_provider());
        let believed = believed(&provider, &config.client_ca, &config.front_proxy.client_ca)?;
        let verifiers = [&believed.clients, &believed.front_proxies];
        let hints = verifiers
            .into_iter()
            .flatten()
            .flat_map(|verifier| verifier.root_hint_subjects().to_vec());
        Ok(Arc::new(Self {
            hints: hints.collect(),
            own: RwLock::new(own(&provider, &config.serving)?),
            believed: RwLock::new(believed),
            provider,
        }))
    }

    /// For connections to come.
    pub fn replace(&self, serving: &KeyPair, client_ca: &str, front_proxy_ca: &str) -> Result<(), RunError> {
        let (own, believed) = (
            own(&self.provider, serving)?,
            believed(&self.provider, client_ca, front_proxy_ca)?,
        );
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = own;
        *self.believed.write().unwrap_or_else(PoisonError::into_inner) = believed;
        Ok(())
    }

    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, RunError> {
        let mut tls = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("serving")(e.to_string()))?
            .with_client_cert_verifier(self.clone())
            .with_cert_resolver(self.clone());
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(tls))
    }

    /// Who vouches for this chain now.
    pub fn judge(&self, chain: Option<&[CertificateDer<'_>]>) -> Peer {
        let Some((leaf, others)) = chain.and_then(<[_]>::split_first) else {
            return Peer::default();
        };
        let believed = self.believed.read().unwrap_or_else(PoisonError::into_inner);
        let vouched = |by: &Option<Arc<dyn ClientCertVerifier>>| {
            by.as_ref()
                .is_some_and(|by| by.verify_client_cert(leaf, others, UnixTime::now()).is_ok())
        };
        let common_name = || Some(CertificateInfo::from_der(leaf).ok()?.subject.common_name);
        Peer {
            shown: true,
            client: vouched(&believed.clients).then(|| Bytes::copy_from_slice(leaf)),
            front_proxy: vouched(&believed.front_proxies).then(common_name).flatten(),
            address: None,
        }
    }
}

fn own(provider: &CryptoProvider, serving: &KeyPair) -> Result<Arc<CertifiedKey>, RunError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(serving.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| bad("serving.certificate")(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(serving.key.as_bytes())
        .map_err(|e| bad("serving.key")(e.to_string()))?;
    CertifiedKey::from_der(chain, key, provider)
        .map(Arc::new)
        .map_err(|e| bad("serving")(e.to_string()))
}

fn believed(provider: &Arc<CryptoProvider>, clients: &str, proxies: &str) -> Result<Believed, RunError> {
    let verifier = |pem: &str, field: &'static str| {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|e| bad(field)(e.to_string()))?;
            roots.add(certificate).map_err(|e| bad(field)(e.to_string()))?;
        }
        if roots.is_empty() {
            return Ok(None);
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map(Some)
            .map_err(|e| bad(field)(e.to_string()))
    };
    Ok(Believed {
        clients: verifier(clients, "client_ca")?,
        front_proxies: verifier(proxies, "front_proxy.client_ca")?,
    })
}

impl ResolvesServerCert for Trust {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.own.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl ClientCertVerifier for Trust {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
