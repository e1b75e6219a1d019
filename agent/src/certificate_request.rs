//! Certificates through the CertificateSigningRequest API: ask, wait for approval and signature.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, PostParams};
use pki::{CertificateRequest, PrivateKey, Subject, SubjectAltNames};
use thiserror::Error;
use tracing::info;

const POLL: Duration = Duration::from_millis(500);
const SLOW_POLL: Duration = Duration::from_secs(5);
/// Polls at the quick pace before slowing down.
const QUICK_POLLS: u32 = 60;

#[derive(Debug, Error)]
pub enum RequestError {
    #[error("certificate key: {0}")]
    Key(#[from] pki::KeyError),
    #[error("certificate request: {0}")]
    Api(#[source] Box<kube::Error>),
    #[error("certificate request {name} was denied: {message}")]
    Denied { name: String, message: String },
    #[error("certificate request {name} failed: {message}")]
    Failed { name: String, message: String },
    #[error("certificate request {0} was deleted before it was signed")]
    Deleted(String),
    #[error("the issued certificate is not text")]
    Encoding,
}

/// A signer and what its certificates are for.
pub struct Kind {
    pub signer: &'static str,
    pub usages: &'static [&'static str],
}

pub const CLIENT: Kind = Kind {
    signer: "kubernetes.io/kube-apiserver-client-kubelet",
    usages: &["digital signature", "client auth"],
};
pub const SERVING: Kind = Kind {
    signer: "kubernetes.io/kubelet-serving",
    usages: &["digital signature", "server auth"],
};

/// A key with the certificate issued for it, both PEM.
#[derive(Clone)]
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// The name every node's certificates carry.
pub fn node_subject(node_name: &str) -> Subject {
    Subject::new(format!("system:node:{node_name}"), &["system:nodes"])
}

/// Requests a certificate for a fresh key and waits until it is issued, for as long as that takes.
pub async fn obtain(
    client: &Client,
    kind: &Kind,
    node_name: &str,
    alt_names: &SubjectAltNames,
) -> Result<Issued, RequestError> {
    let key = PrivateKey::generate()?;
    let request = CertificateRequest::create(&key, &node_subject(node_name), alt_names)?;
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let object = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".into()),
            ..Default::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: kind.signer.into(),
            usages: Some(kind.usages.iter().map(|usage| (*usage).to_owned()).collect()),
            ..Default::default()
        },
        status: None,
    };
    let api = |error| RequestError::Api(Box::new(error));
    let created = requests
        .create(&PostParams::default(), &object)
        .await
        .map_err(api)?;
    let name = created.metadata.name.unwrap_or_default();
    info!(request = name, signer = kind.signer, "certificate requested");
    let mut polls = 0;
    loop {
        let request = requests
            .get_opt(&name)
            .await
            .map_err(api)?
            .ok_or_else(|| RequestError::Deleted(name.clone()))?;
        if let Some(certificate) = issued(&name, &request)? {
            return Ok(Issued {
                certificate_pem: certificate,
                key_pem: key.to_pem(),
            });
        }
        polls += 1;
        tokio::time::sleep(if polls < QUICK_POLLS { POLL } else { SLOW_POLL }).await;
    }
}

/// The certificate of a signed request; none while it is undecided.
fn issued(name: &str, request: &CertificateSigningRequest) -> Result<Option<String>, RequestError> {
    let Some(status) = &request.status else {
        return Ok(None);
    };
    for condition in status.conditions.iter().flatten() {
        let message = || condition.message.clone().unwrap_or_default();
        match condition.type_.as_str() {
            "Denied" => {
                return Err(RequestError::Denied {
                    name: name.to_owned(),
                    message: message(),
                });
            }
            "Failed" => {
                return Err(RequestError::Failed {
                    name: name.to_owned(),
                    message: message(),
                });
            }
            _ => {}
        }
    }
    let Some(certificate) = status.certificate.as_ref().filter(|bytes| !bytes.0.is_empty()) else {
        return Ok(None);
    };
    String::from_utf8(certificate.0.clone())
        .map(Some)
        .map_err(|_| RequestError::Encoding)
}

/// When to replace a certificate: between 70 and 90 % of its lifetime, spread by `seed` so that nodes take turns.
pub fn renewal(not_before: Timestamp, not_after: Timestamp, seed: u64) -> Timestamp {
    let lifetime = not_after.duration_since(not_before).as_secs().max(0);
    let permille = 700 + i64::try_from(seed % 200).unwrap_or(0);
    let after =
        jiff::SignedDuration::from_secs(lifetime / 1000 * permille + lifetime % 1000 * permille / 1000);
    not_before.checked_add(after).unwrap_or(not_after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    };

    fn request(condition: &str, certificate: &str) -> CertificateSigningRequest {
        let condition = CertificateSigningRequestCondition {
            type_: condition.into(),
            message: Some("why".into()),
            ..Default::default()
        };
        let status = CertificateSigningRequestStatus {
            conditions: Some(vec![condition]),
            certificate: Some(ByteString(certificate.into())),
        };
        CertificateSigningRequest {
            status: Some(status),
            ..Default::default()
        }
    }

    #[test]
    fn verdicts() {
        assert!(
            issued("x", &CertificateSigningRequest::default())
                .unwrap()
                .is_none()
        );
        assert!(issued("x", &request("Approved", "")).unwrap().is_none());
        assert_eq!(
            issued("x", &request("Approved", "PEM")).unwrap().as_deref(),
            Some("PEM")
        );
        let denied = issued("x", &request("Denied", "")).unwrap_err().to_string();
        assert_eq!(denied, "certificate request x was denied: why");
        assert!(matches!(
            issued("x", &request("Failed", "")),
            Err(RequestError::Failed { .. })
        ));
    }

    #[test]
    fn renewal_falls_between_70_and_90_percent() {
        let at = |second| Timestamp::from_second(second).unwrap();
        for (seed, expected) in [(0, 700), (100, 800), (199, 899), (200, 700)] {
            assert_eq!(renewal(at(0), at(1000), seed), at(expected));
        }
        assert_eq!(renewal(at(500), at(500), 7), at(500));
    }
}
