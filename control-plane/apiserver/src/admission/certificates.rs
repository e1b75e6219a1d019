//! Who may approve and sign certificate requests, and which nobody may ask for.

use std::sync::Arc;

use async_trait::async_trait;
use auth::{Attributes, Authorizer, UserInfo};
use pki::CertificateRequest;
use serde_json::Value;

use super::{forbidden, is, is_sub, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub struct CertificateApproval {
    pub authorizer: Arc<Authorizer>,
}

pub struct CertificateSigning {
    pub authorizer: Arc<Authorizer>,
}

pub struct CertificateSubjectRestriction;

#[async_trait]
impl Admission for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    async fn validate(
        &self,
        context: &AdmissionContext<'_>,
        request: Option<&Value>,
    ) -> Result<(), ApiError> {
        if context.operation != Operation::Update || !is_sub(context, GROUP, REQUESTS, "approval") {
            return Ok(());
        }
        let signer = context
            .old
            .map(|old| text(&old["spec"]["signerName"]))
            .unwrap_or_default();
        if may(&self.authorizer, context.user, "approve", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to approve requests with signerName {signer:?}");
        Err(forbidden(context, request, why))
    }
}

#[async_trait]
impl Admission for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    async fn validate(
        &self,
        context: &AdmissionContext<'_>,
        request: Option<&Value>,
    ) -> Result<(), ApiError> {
        let (Operation::Update, Some(old), Some(new)) = (context.operation, context.old, request) else {
            return Ok(());
        };
        let (old_status, new_status) = (&old["status"], &new["status"]);
        let unchanged = old_status["certificate"] == new_status["certificate"]
            && old_status["conditions"] == new_status["conditions"];
        if unchanged || !is_sub(context, GROUP, REQUESTS, "status") {
            return Ok(());
        }
        let signer = text(&old["spec"]["signerName"]);
        if may(&self.authorizer, context.user, "sign", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to sign requests with signerName {signer:?}");
        Err(forbidden(context, request, why))
    }
}

#[async_trait]
impl Admission for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    async fn validate(
        &self,
        context: &AdmissionContext<'_>,
        request: Option<&Value>,
    ) -> Result<(), ApiError> {
        let Some(request) = request.filter(|_| is(context, GROUP, REQUESTS)) else {
            return Ok(());
        };
        if context.operation != Operation::Create || request["spec"]["signerName"] != CLIENT_SIGNER {
            return Ok(());
        }
        let parsed =
            decode(&request["spec"]["request"]).and_then(|pem| CertificateRequest::from_pem(&pem).ok());
        let Some(parsed) = parsed else {
            return Err(forbidden(context, Some(request), "unable to parse csr"));
        };
        if parsed
            .subject
            .organizations
            .iter()
            .any(|group| group == "system:masters")
        {
            let why = format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed");
            return Err(forbidden(context, Some(request), why));
        }
        Ok(())
    }
}

fn decode(encoded: &Value) -> Option<String> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded.as_str()?)
        .ok()?;
    String::from_utf8(bytes).ok()
}

/// The right on the signer itself, or on all of its domain.
fn may(authorizer: &Authorizer, user: &UserInfo, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    [signer, &domain].into_iter().any(|name| {
        let attributes = Attributes {
            name,
            ..Attributes::resource(user, verb, GROUP, "signers")
        };
        authorizer.authorize(&attributes).is_allowed()
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use pki::{PrivateKey, Subject, SubjectAltNames};
    use serde_json::json;

    use super::super::testing::{Objects, Request};
    use super::*;

    fn authorizer(name: &str) -> Arc<Authorizer> {
        let authorizer = Authorizer::default();
        let rule = json!({"verbs": ["approve", "sign"], "apiGroups": [GROUP], "resources": ["signers"], "resourceNames": [name]});
        let role = json!({"metadata": {"name": "r"}, "rules": [rule]});
        let binding = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "bob"}]});
        authorizer
            .set("clusterroles", role.to_string().as_bytes())
            .unwrap();
        authorizer
            .set("clusterrolebindings", binding.to_string().as_bytes())
            .unwrap();
        Arc::new(authorizer)
    }

    #[test]
    fn approving_and_signing_need_the_right_on_the_signer() {
        let old = json!({"metadata": {"name": "c"}, "spec": {"signerName": "acme.com/x"}});
        let mut new = old.clone();
        new["status"] = json!({"certificate": "eA=="});
        let approve = Request::update(
            "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/approval",
            "CertificateSigningRequest",
            old.clone(),
        );
        let sign = Request::update(
            "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/status",
            "CertificateSigningRequest",
            old.clone(),
        );
        for (granted, allowed) in [("acme.com/x", true), ("acme.com/*", true), ("acme.com/y", false)] {
            let authorizer = authorizer(granted);
            let approval = CertificateApproval {
                authorizer: authorizer.clone(),
            };
            let signing = CertificateSigning { authorizer };
            let objects = Objects::default();
            let approved = approve.run(&approval, &objects, Some(new.clone()));
            let signed = sign.run(&signing, &objects, Some(new.clone()));
            assert_eq!(
                (approved.is_ok(), signed.is_ok()),
                (allowed, allowed),
                "{granted}"
            );
            if let Err(error) = approved {
                assert!(
                    error.ends_with(r#"user not permitted to approve requests with signerName "acme.com/x""#),
                    "{error}"
                );
            }
            assert!(
                sign.run(&signing, &objects, Some(old.clone())).is_ok(),
                "nothing signed, nothing to forbid"
            );
        }
    }

    #[test]
    fn nobody_asks_for_the_masters_group() {
        let request = |organization: &str| {
            let key = PrivateKey::generate().unwrap();
            let subject = Subject::new("x", &[organization]);
            let pem = CertificateRequest::create(&key, &subject, &SubjectAltNames::default()).unwrap();
            let encoded = base64::engine::general_purpose::STANDARD.encode(pem);
            let object =
                json!({"metadata": {"name": "c"}, "spec": {"signerName": CLIENT_SIGNER, "request": encoded}});
            Request::create(
                "/apis/certificates.k8s.io/v1/certificatesigningrequests",
                "CertificateSigningRequest",
            )
            .run(&CertificateSubjectRestriction, &Objects::default(), Some(object))
        };
        assert!(request("dev").is_ok());
        let error = request("system:masters").unwrap_err();
        assert!(
            error.ends_with("signer with system:masters group is not allowed"),
            "{error}"
        );
    }
}
