//! Signs approved certificate requests of the signers that belong to the cluster itself.

use super::csr_approving::{KUBELET_CLIENT, KUBELET_SERVING, is_kubelet_client, is_kubelet_serving};
use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::{Config, Error as StartError};
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::condition::{self, Condition};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use pki::{CertificateAuthority, CertificateRequest, Usage};
use std::sync::Arc;
use std::time::Duration;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Upstream's floor for `spec.expirationSeconds`.
const SHORTEST: Duration = Duration::from_secs(600);

struct Signer {
    caches: Arc<Caches>,
    config: Arc<Config>,
    authority: CertificateAuthority,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let Some(signer) = &context.config.cluster_signing else {
        return Ok(Box::pin(std::future::pending()));
    };
    let authority = CertificateAuthority::from_pem(&signer.cert_pem, &signer.key_pem).map_err(|error| {
        StartError::InvalidSigner {
            reason: error.to_string(),
        }
    })?;
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .signing_requests
        .on(move |change| to.add(change.key.clone()));
    let signer = Signer {
        caches: context.caches.clone(),
        config: context.config.clone(),
        authority,
    };
    Ok(super::spawn(context, signer, queue))
}

impl Controller for Signer {
    const NAME: &'static str = "certificatesigningrequest-signing-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(csr) = self.caches.signing_requests.get(key) else {
            return Ok(Vec::new());
        };
        reconcile(&csr, &self.authority, self.config.cluster_signing_duration, now)
    }
}

fn reconcile(
    csr: &CertificateSigningRequest,
    authority: &CertificateAuthority,
    longest: Duration,
    now: Timestamp,
) -> Result<Vec<Action>, Error> {
    let status = csr.status.as_ref();
    let is = |kind| condition::find(status.and_then(|s| s.conditions.as_ref()), kind).is_some();
    let signed = status
        .and_then(|s| s.certificate.as_ref())
        .is_some_and(|c| !c.0.is_empty());
    let ours = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING].contains(&csr.spec.signer_name.as_str());
    if !ours || signed || !is("Approved") || is("Denied") || is("Failed") {
        return Ok(Vec::new());
    }
    let mut answered = csr.clone();
    let answer = answered.status.get_or_insert_default();
    match check(&csr.spec) {
        Ok((request, usages)) => {
            let asked = csr
                .spec
                .expiration_seconds
                .map(|s| Duration::from_secs(s.max(0).unsigned_abs().into()));
            let lifetime = asked.map_or(longest, |a| a.max(SHORTEST).min(longest));
            let pem = authority
                .sign_csr(&request, &usages, lifetime, now)
                .map_err(|error| Error::Observation(format!("signing {:?}: {error}", csr.metadata.name)))?;
            answer.certificate = Some(ByteString(pem.into_bytes()));
        }
        Err(message) => {
            let failed = CertificateSigningRequestCondition::new(
                "Failed",
                "True",
                "SignerValidationFailure",
                &message,
                &Time(now),
            );
            condition::set(answer.conditions.get_or_insert_default(), failed);
        }
    }
    Ok(vec![Action::replace_sub(&answered, "status")])
}

/// What the signer promises to sign, and nothing else.
fn check(spec: &CertificateSigningRequestSpec) -> Result<(CertificateRequest, Vec<Usage>), String> {
    let text = std::str::from_utf8(&spec.request.0).map_err(|_| "spec.request is not PEM text".to_owned())?;
    let request = CertificateRequest::from_pem(text).map_err(|error| format!("spec.request: {error}"))?;
    let usages: Option<Vec<Usage>> = spec.usages.iter().flatten().map(|u| Usage::parse(u)).collect();
    let usages = usages.ok_or("spec.usages: unknown usage")?;
    let fits = match spec.signer_name.as_str() {
        KUBELET_CLIENT => is_kubelet_client(&request, spec),
        KUBELET_SERVING => is_kubelet_serving(&request, spec),
        _ => {
            usages.contains(&Usage::ClientAuth)
                && usages.iter().all(|u| {
                    matches!(
                        u,
                        Usage::ClientAuth | Usage::DigitalSignature | Usage::KeyEncipherment
                    )
                })
        }
    };
    if !fits {
        return Err(format!(
            "the request doesn't satisfy the signer {:?}: wrong subject, names or usages",
            spec.signer_name
        ));
    }
    Ok((request, usages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::{CertificateInfo, PrivateKey, Subject, SubjectAltNames};
    use serde_json::{from_value, json};

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn csr(
        signer: &str,
        usages: &[&str],
        expiration: Option<i32>,
        conditions: &[&str],
    ) -> CertificateSigningRequest {
        let subject = Subject::new("system:node:n1", &["system:nodes"]);
        let key = PrivateKey::generate().unwrap();
        let pem = CertificateRequest::create(&key, &subject, &SubjectAltNames::default()).unwrap();
        let conditions: Vec<_> = conditions
            .iter()
            .map(|c| json!({"type": c, "status": "True"}))
            .collect();
        let mut csr: CertificateSigningRequest = from_value(json!({
            "metadata": {"name": "c"},
            "spec": {"request": "", "signerName": signer, "usages": usages, "expirationSeconds": expiration},
            "status": {"conditions": conditions}}))
        .unwrap();
        csr.spec.request = ByteString(pem.into_bytes());
        csr
    }

    fn run(csr: &CertificateSigningRequest) -> Vec<Action> {
        let authority = CertificateAuthority::generate("ca", now()).unwrap();
        reconcile(csr, &authority, Duration::from_secs(86_400), now()).unwrap()
    }

    #[test]
    fn approved_requests_are_signed_for_as_long_as_allowed() {
        for (expiration, seconds) in [
            (None, 86_400),
            (Some(1), 600),
            (Some(3600), 3600),
            (Some(1_000_000), 86_400),
        ] {
            let plan = run(&csr(
                KUBELET_CLIENT,
                &["digital signature", "client auth"],
                expiration,
                &["Approved"],
            ));
            let [Action::Replace { at, body }] = &plan[..] else {
                panic!("{plan:?}")
            };
            assert!(at.url.ends_with("/status"));
            let signed: CertificateSigningRequest = from_value(body.clone()).unwrap();
            let pem = String::from_utf8(signed.status.unwrap().certificate.unwrap().0).unwrap();
            let info = CertificateInfo::from_pem(&pem).unwrap();
            assert_eq!(info.subject.common_name, "system:node:n1");
            assert_eq!(info.not_after.as_second() - now().as_second(), seconds);
        }
    }

    #[test]
    fn only_approved_requests_of_our_signers() {
        let usages = &["digital signature", "client auth"];
        for (signer, conditions) in [
            (KUBELET_CLIENT, &[][..]),
            (KUBELET_CLIENT, &["Approved", "Denied"]),
            ("example.com/x", &["Approved"]),
        ] {
            assert_eq!(run(&csr(signer, usages, None, conditions)), []);
        }
    }

    #[test]
    fn what_the_signer_does_not_promise_fails() {
        let plan = run(&csr(KUBELET_CLIENT, &["server auth"], None, &["Approved"]));
        let [Action::Replace { body, .. }] = &plan[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(
            body["status"]["conditions"][1]["reason"],
            "SignerValidationFailure"
        );
    }
}
