//! Approves the certificate requests of kubelets: client certificates by permission, serving certificates by identity.

mod recognize;

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::condition::{self, Condition};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
pub use recognize::{KUBELET_CLIENT, KUBELET_SERVING, is_kubelet_client, is_kubelet_serving};
use recognize::{Recognized, recognize, serving_names_are_the_nodes};
use std::sync::Arc;
use std::time::Duration;

/// How often to look whether a node reports its addresses by now.
const ADDRESS_WAIT: Duration = Duration::from_secs(5);

struct Approver {
    caches: Arc<Caches>,
    client: kube::Client,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .signing_requests
        .on(move |change| to.add(change.key.clone()));
    let approver = Approver {
        caches: context.caches.clone(),
        client: context.client.clone(),
    };
    Ok(super::spawn(context, approver, queue))
}

impl Controller for Approver {
    const NAME: &'static str = "certificatesigningrequest-approving-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(csr) = self.caches.signing_requests.get(key).filter(|csr| is_open(csr)) else {
            return Ok(Vec::new());
        };
        match recognize(&csr.spec) {
            None => Ok(Vec::new()),
            Some(Recognized::Client { candidates }) => {
                for (subresource, message) in candidates {
                    if self.may(&csr, subresource).await? {
                        return Ok(approve(&csr, message, now));
                    }
                }
                let what = format!(
                    "recognized csr {key:?} but subject access review was not approved",
                    key = key.name
                );
                Err(Error::Observation(what))
            }
            Some(Recognized::Serving { node, names }) => {
                match self.caches.nodes.get(&Key::new("", &node)) {
                    Some(node) if serving_names_are_the_nodes(&names, &node) => {
                        let message =
                            "Auto approving kubelet serving certificate: all its names are the node's own.";
                        Ok(approve(&csr, message, now))
                    }
                    // The node may not have reported its addresses yet. The cleaner ends this in the end.
                    _ => Ok(vec![Action::Requeue(ADDRESS_WAIT)]),
                }
            }
        }
    }
}

impl Approver {
    async fn may(&self, csr: &CertificateSigningRequest, subresource: &str) -> Result<bool, Error> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: csr.spec.username.clone(),
                uid: csr.spec.uid.clone(),
                groups: csr.spec.groups.clone(),
                extra: csr.spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(subresource.into()),
                    verb: Some("create".into()),
                    version: Some("*".into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| Error::Observation(format!("subject access review: {error}")))?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }
}

/// Neither decided nor signed.
fn is_open(csr: &CertificateSigningRequest) -> bool {
    let status = csr.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_ref());
    let decided = ["Approved", "Denied"]
        .iter()
        .any(|kind| condition::find(conditions, kind).is_some());
    !decided
        && status
            .and_then(|s| s.certificate.as_ref())
            .is_none_or(|c| c.0.is_empty())
}

fn approve(csr: &CertificateSigningRequest, message: &str, now: Timestamp) -> Vec<Action> {
    let mut approved = csr.clone();
    let conditions = approved
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    let condition =
        CertificateSigningRequestCondition::new("Approved", "True", "AutoApproved", message, &Time(now));
    condition::set(conditions, condition);
    vec![Action::replace_sub(&approved, "approval")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decided_requests_are_left_alone() {
        let csr = CertificateSigningRequest::default();
        assert!(is_open(&csr));
        let plan = approve(&csr, "m", Timestamp::UNIX_EPOCH);
        let Action::Replace { at, body } = &plan[0] else {
            panic!("{plan:?}")
        };
        assert!(at.url.ends_with("/approval"));
        let approved: CertificateSigningRequest = serde_json::from_value(body.clone()).unwrap();
        assert!(!is_open(&approved));
    }
}
