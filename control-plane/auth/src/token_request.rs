//! `serviceaccounts/token`: mints a token bound to its account and, if asked, to a pod, secret or node
//! (upstream: `pkg/registry/core/serviceaccount/storage/token.go`).

use jiff::{SignedDuration, Timestamp};
use pki::{BoundObject, JwtError, KubernetesClaims, ServiceAccountKey, TokenClaims};
use serde_json::{Value, json};
use thiserror::Error;

use crate::lookup::{LookupError, ObjectLookup};

/// The lifetime the ServiceAccount admission plug-in asks for; such tokens live longer, with a warning in between,
/// for clients that never reload them.
const EXTENDABLE_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;
const SHORTEST_SECONDS: i64 = 10 * 60;
const LONGEST_SECONDS: i64 = 1 << 32;
const DEFAULT_SECONDS: i64 = 60 * 60;

#[derive(Debug, Error)]
pub enum TokenRequestError {
    #[error("{0}")]
    BadRequest(String),
    /// 422 on the TokenRequest.
    #[error("{field}: {message}")]
    Invalid {
        field: &'static str,
        value: String,
        message: String,
    },
    #[error("{resource} {name:?} not found")]
    NotFound { resource: &'static str, name: String },
    /// 409 on the bound object.
    #[error("{message}")]
    Conflict {
        resource: &'static str,
        name: String,
        message: String,
    },
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Sign(#[from] JwtError),
}

/// Signs with the cluster's service-account key.
pub struct TokenIssuer {
    key: ServiceAccountKey,
    issuer: String,
}

impl TokenIssuer {
    pub fn new(key: ServiceAccountKey, issuer: impl Into<String>) -> Self {
        Self {
            key,
            issuer: issuer.into(),
        }
    }

    /// Answers `request` (a TokenRequest) for `account` (the ServiceAccount): the request with defaults and status.
    pub async fn issue(
        &self,
        account: &Value,
        request: &Value,
        lookup: &dyn ObjectLookup,
        now: Timestamp,
    ) -> Result<Value, TokenRequestError> {
        let mut answer = request.clone();
        let (namespace, name) = (
            text(&account["metadata"]["namespace"]),
            text(&account["metadata"]["name"]),
        );
        let metadata = &request["metadata"];
        check_name("name", text(&metadata["name"]), name)?;
        check_name("namespace", text(&metadata["namespace"]), namespace)?;
        let seconds = lifetime(&request["spec"]["expirationSeconds"])?;
        let mut audiences: Vec<String> = request["spec"]["audiences"]
            .as_array()
            .map(|list| {
                list.iter()
                    .filter_map(|item| item.as_str().map(str::to_owned))
                    .collect()
            })
            .unwrap_or_default();
        if audiences.is_empty() {
            audiences.push(self.issuer.clone());
        }
        let mut claims = KubernetesClaims {
            namespace: namespace.into(),
            serviceaccount: BoundObject {
                name: name.into(),
                uid: text(&account["metadata"]["uid"]).into(),
            },
            ..KubernetesClaims::default()
        };
        let reference = &request["spec"]["boundObjectRef"];
        if reference.is_object() {
            bind(&mut claims, reference, lookup).await?;
        }
        let now = now.as_second();
        let mut lives = seconds;
        if seconds == EXTENDABLE_SECONDS && audiences == [self.issuer.clone()] {
            claims.warnafter = Some(now + seconds);
            lives = EXTENDED_SECONDS;
        }
        let claims = TokenClaims {
            aud: audiences.clone(),
            exp: now + lives,
            iat: now,
            nbf: now,
            iss: self.issuer.clone(),
            jti: uuid(),
            sub: format!("system:serviceaccount:{namespace}:{name}"),
            kubernetes: claims,
        };
        let expires = Timestamp::from_second(now)
            .and_then(|now| now.checked_add(SignedDuration::from_secs(seconds)))
            .map_err(|_| too_long())?;
        answer["metadata"]["name"] = json!(name);
        answer["metadata"]["namespace"] = json!(namespace);
        answer["metadata"]["creationTimestamp"] = json!(rfc3339(now));
        answer["spec"]["audiences"] = json!(audiences);
        answer["spec"]["expirationSeconds"] = json!(seconds);
        answer["status"] =
            json!({"token": self.key.sign(&claims)?, "expirationTimestamp": rfc3339(expires.as_second())});
        Ok(answer)
    }
}

fn check_name(field: &str, given: &str, expected: &str) -> Result<(), TokenRequestError> {
    if given.is_empty() || given == expected {
        return Ok(());
    }
    let message = if field == "name" {
        format!("metadata.name: {given:?} does not match service account name {expected:?}")
    } else {
        "the namespace of the provided object does not match the namespace sent on the request".to_owned()
    };
    Err(TokenRequestError::BadRequest(message))
}

fn too_long() -> TokenRequestError {
    TokenRequestError::Invalid {
        field: "spec.expirationSeconds",
        value: String::new(),
        message: "may not specify a duration larger than 2^32 seconds".into(),
    }
}

fn lifetime(requested: &Value) -> Result<i64, TokenRequestError> {
    let seconds = requested.as_i64().unwrap_or(DEFAULT_SECONDS);
    let invalid = |message: &str| TokenRequestError::Invalid {
        field: "spec.expirationSeconds",
        value: seconds.to_string(),
        message: message.into(),
    };
    if seconds < SHORTEST_SECONDS {
        return Err(invalid("may not specify a duration less than 10 minutes"));
    }
    if seconds > LONGEST_SECONDS {
        return Err(invalid("may not specify a duration larger than 2^32 seconds"));
    }
    Ok(seconds)
}

async fn bind(
    claims: &mut KubernetesClaims,
    reference: &Value,
    lookup: &dyn ObjectLookup,
) -> Result<(), TokenRequestError> {
    let (kind, name, uid) = (
        text(&reference["kind"]),
        text(&reference["name"]),
        text(&reference["uid"]),
    );
    let (resource, namespace) = match (text(&reference["apiVersion"]), kind) {
        ("v1", "Pod") => ("pods", claims.namespace.clone()),
        ("v1", "Secret") => ("secrets", claims.namespace.clone()),
        ("v1", "Node") => ("nodes", String::new()),
        (version, kind) => {
            return Err(TokenRequestError::BadRequest(format!(
                "cannot bind token to object of type {version}, Kind={kind}"
            )));
        }
    };
    let missing = || TokenRequestError::NotFound {
        resource,
        name: name.into(),
    };
    let object = lookup
        .get("", resource, &namespace, name)
        .await?
        .ok_or_else(missing)?;
    let actual = text(&object["metadata"]["uid"]);
    if !uid.is_empty() && uid != actual {
        let message = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(TokenRequestError::Conflict {
            resource,
            name: name.into(),
            message,
        });
    }
    let bound = Some(BoundObject {
        name: name.into(),
        uid: actual.into(),
    });
    match kind {
        "Pod" => {
            let account = text(&object["spec"]["serviceAccountName"]);
            if account != claims.serviceaccount.name {
                return Err(TokenRequestError::BadRequest(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    claims.serviceaccount.name
                )));
            }
            claims.pod = bound;
            let node = text(&object["spec"]["nodeName"]);
            if !node.is_empty() {
                let object = lookup.get("", "nodes", "", node).await?.unwrap_or_default();
                let uid = text(&object["metadata"]["uid"]).to_owned();
                claims.node = Some(BoundObject {
                    name: node.into(),
                    uid,
                });
            }
        }
        "Secret" => claims.secret = bound,
        _ => claims.node = bound,
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn rfc3339(second: i64) -> String {
    Timestamp::from_second(second).unwrap_or_default().to_string()
}

/// RFC 9562 version 4.
fn uuid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use pki::ServiceAccountVerifier;

    use super::*;

    struct OnePod;

    #[async_trait]
    impl ObjectLookup for OnePod {
        async fn get(
            &self,
            _: &str,
            resource: &str,
            _: &str,
            name: &str,
        ) -> Result<Option<Value>, LookupError> {
            Ok(match (resource, name) {
                ("pods", "p") => Some(json!({
                    "metadata": {"name": "p", "uid": "p-uid"},
                    "spec": {"serviceAccountName": "sa", "nodeName": "n"},
                })),
                ("nodes", "n") => Some(json!({"metadata": {"name": "n", "uid": "n-uid"}})),
                _ => None,
            })
        }
    }

    async fn issue(account: &str, request: Value) -> Result<(Value, TokenClaims), TokenRequestError> {
        let (private, public) = ServiceAccountKey::generate_pem().unwrap();
        let issuer = TokenIssuer::new(ServiceAccountKey::from_pem(&private).unwrap(), "iss");
        let account = json!({"metadata": {"name": account, "namespace": "ns", "uid": "sa-uid"}});
        let now = Timestamp::from_second(1000).unwrap();
        let answer = issuer.issue(&account, &request, &OnePod, now).await?;
        let token = answer["status"]["token"].as_str().unwrap();
        let claims = ServiceAccountVerifier::from_pem(&public)
            .unwrap()
            .verify(token)
            .unwrap();
        Ok((answer, claims))
    }

    #[tokio::test]
    async fn a_plain_request_gets_the_defaults() {
        let (answer, claims) = issue("sa", json!({"spec": {}})).await.unwrap();
        assert_eq!((claims.exp, claims.nbf, claims.iss.as_str()), (4600, 1000, "iss"));
        assert_eq!(claims.aud, ["iss"]);
        assert_eq!(claims.sub, "system:serviceaccount:ns:sa");
        assert_eq!(claims.kubernetes.serviceaccount.uid, "sa-uid");
        assert_eq!(answer["spec"]["expirationSeconds"], 3600);
        assert_eq!(answer["status"]["expirationTimestamp"], "1970-01-01T01:16:40Z");
        assert_eq!(claims.kubernetes.warnafter, None);
    }

    #[tokio::test]
    async fn a_pods_token_names_pod_and_node_and_is_extended() {
        let reference = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "p-uid"});
        let request = json!({"spec": {"expirationSeconds": 3607, "boundObjectRef": reference}});
        let (answer, claims) = issue("sa", request).await.unwrap();
        let bound = |name: &str, uid: &str| {
            Some(BoundObject {
                name: name.into(),
                uid: uid.into(),
            })
        };
        assert_eq!(claims.kubernetes.pod, bound("p", "p-uid"));
        assert_eq!(claims.kubernetes.node, bound("n", "n-uid"));
        assert_eq!(
            (claims.exp, claims.kubernetes.warnafter),
            (1000 + EXTENDED_SECONDS, Some(4607))
        );
        assert_eq!(answer["status"]["expirationTimestamp"], "1970-01-01T01:16:47Z");
    }

    #[tokio::test]
    async fn problems_are_named() {
        let pod = |name: &str, uid: &str| {
            let reference = json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid});
            json!({"spec": {"boundObjectRef": reference}})
        };
        for (account, request, words) in [
            (
                "sa",
                json!({"spec": {"expirationSeconds": 60}}),
                "less than 10 minutes",
            ),
            (
                "sa",
                json!({"spec": {"expirationSeconds": 1_i64 << 33}}),
                "larger than 2^32 seconds",
            ),
            (
                "sa",
                json!({"metadata": {"name": "other"}, "spec": {}}),
                "does not match service account name",
            ),
            ("sa", pod("gone", ""), "pods \"gone\" not found"),
            ("sa", pod("p", "old"), "does not match the UID in record"),
            ("other", pod("p", ""), "different serviceaccount name"),
            (
                "sa",
                json!({"spec": {"boundObjectRef": {"kind": "Service", "apiVersion": "v1"}}}),
                "cannot bind token",
            ),
        ] {
            let error = issue(account, request).await.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
