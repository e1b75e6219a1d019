//! The node's certificates in use: replaceable while connections use them, kept on disk, renewed in time.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use pki::{CertificateAuthority, CertificateInfo, Credentials, Kubeconfig, LeafRequest, SubjectAltNames};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tracing::{info, warn};

use crate::certificate_request::{self, Issued, Kind, node_subject, renewal};

const RETRY: Duration = Duration::from_secs(60);

#[derive(Debug, Error)]
pub enum IdentityError {
    #[error("{operation} {path}: {source}", path = path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("certificate or key: {0}")]
    Pem(String),
    #[error("self-signed certificate: {0}")]
    SelfSigned(String),
}

/// A certificate that every new connection picks up anew.
#[derive(Debug)]
pub struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    pub fn new(issued: &Issued) -> Result<Arc<Self>, IdentityError> {
        Ok(Arc::new(Self(RwLock::new(Arc::new(certified(issued)?)))))
    }

    pub fn replace(&self, issued: &Issued) -> Result<(), IdentityError> {
        *self.0.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(certified(issued)?);
        Ok(())
    }

    fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

fn certified(issued: &Issued) -> Result<CertifiedKey, IdentityError> {
    let pem = |error: &dyn std::fmt::Display| IdentityError::Pem(error.to_string());
    let chain =
        CertificateDer::pem_slice_iter(issued.certificate_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).map_err(|error| pem(&error))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| pem(&error))?;
    Ok(CertifiedKey::new(chain.map_err(|error| pem(&error))?, key))
}

/// Replaces a file in one step, readable by its owner alone.
pub fn write_private(path: &Path, content: &str) -> Result<(), IdentityError> {
    let fail = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::File {
            operation,
            path,
            source,
        }
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail("create", parent))?;
    }
    let temporary = path.with_extension("new");
    // A leftover of a crash may have other permissions.
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(fail("create", &temporary))?;
    file.write_all(content.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(fail("write", &temporary))?;
    fs::rename(&temporary, path).map_err(fail("rename", &temporary))
}

/// The kubeconfig at `path` when its certificate can still be used; the error says why not.
pub fn usable_kubeconfig(path: &Path, now: Timestamp) -> Result<Kubeconfig, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let kubeconfig = Kubeconfig::parse(&text).map_err(|error| error.to_string())?;
    let Credentials::ClientCertificate { certificate_pem, .. } = &kubeconfig.credentials else {
        return Err("it holds no client certificate".into());
    };
    let info = CertificateInfo::from_pem(certificate_pem).map_err(|error| error.to_string())?;
    if info.not_after <= now {
        return Err(format!("its certificate expired at {}", info.not_after));
    }
    Ok(kubeconfig)
}

pub fn credentials(kubeconfig: &Kubeconfig) -> Option<Issued> {
    match &kubeconfig.credentials {
        Credentials::ClientCertificate {
            certificate_pem,
            key_pem,
        } => Some(Issued {
            certificate_pem: certificate_pem.clone(),
            key_pem: key_pem.clone(),
        }),
        _ => None,
    }
}

/// A stand-in until the cluster has signed a serving certificate.
pub fn self_signed(node_name: &str, names: &SubjectAltNames) -> Result<Issued, IdentityError> {
    let fail = |error: pki::AuthorityError| IdentityError::SelfSigned(error.to_string());
    let now = Timestamp::now();
    let authority = CertificateAuthority::generate(&format!("{node_name}-ca"), now).map_err(fail)?;
    let leaf = authority
        .issue(&LeafRequest::server(node_subject(node_name), names.clone()), now)
        .map_err(fail)?;
    Ok(Issued {
        certificate_pem: leaf.certificate_pem,
        key_pem: leaf.key_pem,
    })
}

/// Certificate and key in one file, as upstream keeps them.
pub fn read_pair(path: &Path, now: Timestamp) -> Option<Issued> {
    let text = fs::read_to_string(path).ok()?;
    let info = CertificateInfo::from_pem(&text).ok()?;
    (info.not_after > now).then(|| Issued {
        certificate_pem: text.clone(),
        key_pem: text,
    })
}

/// Where a renewed certificate goes.
pub type Store = Box<dyn Fn(&Issued) -> Result<(), IdentityError> + Send + Sync>;

/// What renewing one certificate takes.
pub struct Renewal {
    pub client: Client,
    pub node_name: String,
    pub kind: &'static Kind,
    pub names: SubjectAltNames,
    pub current: Arc<Current>,
    /// None = not signed by the cluster yet.
    pub certificate_pem: Option<String>,
    pub store: Store,
}

impl Renewal {
    /// Obtains the certificate when there is none, then a new one before each ends.
    pub async fn keep_fresh(mut self) {
        let seed = self.node_name.bytes().fold(7_u64, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        loop {
            if let Some(due) = self
                .certificate_pem
                .as_deref()
                .and_then(|pem| CertificateInfo::from_pem(pem).ok())
            {
                let due = renewal(due.not_before, due.not_after, seed);
                let left = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
                if !left.is_zero() {
                    // Clocks jump and machines sleep: look at the time again every hour.
                    tokio::time::sleep(left.min(Duration::from_secs(3600))).await;
                    continue;
                }
            }
            match self.renew().await {
                Ok(pem) => self.certificate_pem = Some(pem),
                Err(error) => {
                    warn!(signer = self.kind.signer, error, "certificate not renewed");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn renew(&self) -> Result<String, String> {
        let issued = certificate_request::obtain(&self.client, self.kind, &self.node_name, &self.names).await;
        let issued = issued.map_err(|error| error.to_string())?;
        (self.store)(&issued).map_err(|error| error.to_string())?;
        self.current.replace(&issued).map_err(|error| error.to_string())?;
        info!(signer = self.kind.signer, "certificate in use");
        Ok(issued.certificate_pem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn kubeconfigs_are_private_and_checked() {
        let dir = std::env::temp_dir().join(format!("agent-identity-{}", std::process::id()));
        let path = dir.join("sub/kubeconfig");
        assert!(usable_kubeconfig(&path, Timestamp::now()).is_err());
        let issued = self_signed(
            "n",
            &SubjectAltNames {
                dns_names: vec!["n".into()],
                ..Default::default()
            },
        )
        .unwrap();
        let kubeconfig = Kubeconfig {
            cluster: "c".into(),
            user: "u".into(),
            server: "https://h:1".into(),
            ca_pem: issued.certificate_pem.clone(),
            credentials: Credentials::ClientCertificate {
                certificate_pem: issued.certificate_pem.clone(),
                key_pem: issued.key_pem.clone(),
            },
        };
        write_private(&path, &kubeconfig.render()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(usable_kubeconfig(&path, Timestamp::now()), Ok(kubeconfig));
        let later = Timestamp::now()
            .checked_add(jiff::SignedDuration::from_hours(24 * 365 * 20))
            .unwrap();
        assert!(
            usable_kubeconfig(&path, later)
                .unwrap_err()
                .starts_with("its certificate expired at ")
        );
        write_private(&path, "replaced").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "replaced");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_replaced_certificate_is_the_one_presented() {
        let names = SubjectAltNames {
            dns_names: vec!["n".into()],
            ..Default::default()
        };
        let (first, second) = (
            self_signed("n", &names).unwrap(),
            self_signed("n", &names).unwrap(),
        );
        let current = Current::new(&first).unwrap();
        let before = current.get().cert[0].clone();
        current.replace(&second).unwrap();
        assert_ne!(current.get().cert[0], before);
    }
}
