//! Service-account tokens judged: whose, for whom, until when, and whether what they are bound to still exists
//! (upstream: `pkg/serviceaccount/claims.go`).

use jiff::Timestamp;
use pki::{BoundObject, TokenClaims};
use serde_json::Value;

use crate::lookup::{LookupError, ObjectLookup};
use crate::user::{UserInfo, service_account_parts};

/// A deleted object's token keeps working this long, so that shutdown code can still reach the API.
const DELETION_LEEWAY_SECONDS: i64 = 60;

/// The claims alone: issuer, audience, times, subject. Returns why not.
pub(crate) fn judge(
    claims: &TokenClaims,
    issuer: &str,
    audiences: &[String],
    now: Timestamp,
) -> Result<(), &'static str> {
    let now = now.as_second();
    let kubernetes = &claims.kubernetes;
    let subject = service_account_parts(&claims.sub);
    if claims.iss != issuer {
        Err("token has another issuer")
    } else if !claims.aud.iter().any(|audience| audiences.contains(audience)) {
        Err("token audiences do not match")
    } else if now < claims.nbf {
        Err("token is not valid yet")
    } else if now >= claims.exp {
        Err("service account token has expired")
    } else if subject != Some((&kubernetes.namespace, &kubernetes.serviceaccount.name)) {
        Err("token subject and service account differ")
    } else {
        Ok(())
    }
}

/// The user of judged claims; `None` when the account or the bound object is gone or another one.
pub(crate) async fn user(
    claims: &TokenClaims,
    lookup: &dyn ObjectLookup,
    now: Timestamp,
) -> Result<Option<UserInfo>, LookupError> {
    let kubernetes = &claims.kubernetes;
    let namespace = &kubernetes.namespace;
    let bound = [
        (
            "serviceaccounts",
            namespace.as_str(),
            Some(&kubernetes.serviceaccount),
        ),
        ("secrets", namespace, kubernetes.secret.as_ref()),
        ("pods", namespace, kubernetes.pod.as_ref()),
        // A node next to a pod tells where the pod ran; alone it is what the token is bound to.
        (
            "nodes",
            "",
            kubernetes.node.as_ref().filter(|_| kubernetes.pod.is_none()),
        ),
    ];
    for (resource, namespace, reference) in bound {
        let Some(reference) = reference else { continue };
        let object = lookup.get("", resource, namespace, &reference.name).await?;
        if !object.is_some_and(|object| is_alive(&object, reference, now)) {
            return Ok(None);
        }
    }
    let account = &kubernetes.serviceaccount;
    let mut user = UserInfo::service_account(namespace, &account.name, &account.uid);
    if !claims.jti.is_empty() {
        user = user.with_extra("credential-id", format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &kubernetes.pod {
        user = user
            .with_extra("pod-name", &pod.name)
            .with_extra("pod-uid", &pod.uid);
    }
    if let Some(node) = &kubernetes.node {
        user = user.with_extra("node-name", &node.name);
        if !node.uid.is_empty() {
            user = user.with_extra("node-uid", &node.uid);
        }
    }
    Ok(Some(user))
}

fn is_alive(object: &Value, reference: &BoundObject, now: Timestamp) -> bool {
    let metadata = &object["metadata"];
    let deleted = metadata["deletionTimestamp"]
        .as_str()
        .and_then(|time| time.parse::<Timestamp>().ok());
    metadata["uid"] == reference.uid.as_str()
        && deleted.is_none_or(|time| now.as_second() < time.as_second() + DELETION_LEEWAY_SECONDS)
}
