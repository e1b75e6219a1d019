//! Tokens that are kept in Secrets of type `kubernetes.io/service-account-token`: good while the Secret holds them and
//! its account lives (upstream: `pkg/serviceaccount/legacy.go`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use pki::{LEGACY_ISSUER, LegacyClaims};
use serde_json::Value;

use crate::authenticate::Unauthenticated;
use crate::lookup::{LookupError, ObjectLookup, SecretTokenFate, SecretTokenUse};
use crate::user::{UserInfo, service_account_parts};

const LAST_USED_LABEL: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE_LABEL: &str = "kubernetes.io/legacy-token-invalid-since";

/// The claims alone. Returns why not.
fn judge(claims: &LegacyClaims) -> Result<(), &'static str> {
    let needed = [
        (&claims.sub, "sub claim is missing"),
        (&claims.namespace, "namespace claim is missing"),
        (&claims.secret_name, "secretName claim is missing"),
        (
            &claims.service_account_name,
            "serviceAccountName claim is missing",
        ),
        (&claims.service_account_uid, "serviceAccountUID claim is missing"),
    ];
    if let Some((_, why)) = needed.iter().find(|(claim, _)| claim.is_empty()) {
        return Err(why);
    }
    let subject = service_account_parts(&claims.sub);
    if claims.iss != LEGACY_ISSUER {
        Err("token has another issuer")
    } else if subject != Some((&claims.namespace, &claims.service_account_name)) {
        Err("sub claim is invalid")
    } else {
        Ok(())
    }
}

/// Why the token is not good, in the state its objects are in.
fn refusal(token: &str, claims: &LegacyClaims, secret: &Value, account: &Value) -> Option<String> {
    let kept = secret["data"]["token"].as_str().unwrap_or_default();
    let kept = STANDARD.decode(kept).unwrap_or_default();
    let (namespace, name) = (&claims.namespace, &claims.service_account_name);
    let uid = account["metadata"]["uid"].as_str().unwrap_or_default();
    if secret.is_null() || secret["metadata"]["deletionTimestamp"].is_string() {
        Some("Token has been invalidated".into())
    } else if kept != token.as_bytes() {
        Some("Token does not match server's copy".into())
    } else if account.is_null() || account["metadata"]["deletionTimestamp"].is_string() {
        Some(format!("ServiceAccount {namespace}/{name} has been deleted"))
    } else if uid != claims.service_account_uid {
        Some(format!(
            "ServiceAccount UID ({uid}) does not match claim ({})",
            claims.service_account_uid
        ))
    } else {
        None
    }
}

/// The user of a token whose signature is good; the use is told to `lookup`.
pub(crate) async fn user(
    token: &str,
    claims: &LegacyClaims,
    lookup: &dyn ObjectLookup,
    now: Timestamp,
) -> Result<UserInfo, Unauthenticated> {
    let reject = |why: String| Unauthenticated::Rejected(why);
    judge(claims).map_err(|why| reject(why.into()))?;
    let (namespace, name) = (&claims.namespace, &claims.service_account_name);
    let read = async |resource: &str, name: &str| -> Result<Value, LookupError> {
        let found = lookup.get("", resource, namespace, name).await?;
        Ok(found.unwrap_or_default())
    };
    let secret = read("secrets", &claims.secret_name).await?;
    let account = read("serviceaccounts", name).await?;
    if let Some(why) = refusal(token, claims, &secret, &account) {
        return Err(reject(why));
    }
    let usage = usage(claims, &secret, &account, now);
    let fate = usage.fate;
    lookup.secret_token_used(usage).await;
    match fate {
        SecretTokenFate::Invalidated => Err(reject(format!(
            "the token in secret {namespace}/{} for service account {namespace}/{name} has been marked invalid. Use \
             tokens from the TokenRequest API or manually created secret-based tokens, or remove the \
             '{INVALID_SINCE_LABEL}' label from the secret to temporarily allow use of this token",
            claims.secret_name
        ))),
        SecretTokenFate::Generated | SecretTokenFate::Manual => Ok(UserInfo::service_account(
            namespace,
            name,
            &claims.service_account_uid,
        )),
    }
}

fn usage<'a>(
    claims: &'a LegacyClaims,
    secret: &'a Value,
    account: &Value,
    now: Timestamp,
) -> SecretTokenUse<'a> {
    let label = |name: &str| secret["metadata"]["labels"][name].as_str().unwrap_or_default();
    let mut referenced = account["secrets"].as_array().into_iter().flatten();
    let fate = if !label(INVALID_SINCE_LABEL).is_empty() {
        SecretTokenFate::Invalidated
    } else if referenced.any(|reference| reference["name"] == claims.secret_name.as_str()) {
        SecretTokenFate::Generated
    } else {
        SecretTokenFate::Manual
    };
    let today = now.to_zoned(TimeZone::UTC).date();
    // Servers' clocks differ a little: another one's tomorrow may have begun.
    let recent = [Some(today), today.checked_add(1.day()).ok()];
    let known = recent
        .iter()
        .flatten()
        .any(|day| day.to_string() == label(LAST_USED_LABEL));
    SecretTokenUse {
        namespace: &claims.namespace,
        name: &claims.secret_name,
        uid: secret["metadata"]["uid"].as_str().unwrap_or_default(),
        fate,
        label: (!known).then(|| (LAST_USED_LABEL, today.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claims() -> LegacyClaims {
        LegacyClaims {
            iss: LEGACY_ISSUER.into(),
            namespace: "ns".into(),
            secret_name: "s".into(),
            service_account_name: "sa".into(),
            service_account_uid: "u".into(),
            sub: "system:serviceaccount:ns:sa".into(),
        }
    }

    fn secret() -> Value {
        json!({"metadata": {"name": "s", "uid": "s-uid"}, "data": {"token": STANDARD.encode("tok")}})
    }

    fn account() -> Value {
        json!({"metadata": {"name": "sa", "uid": "u"}})
    }

    #[test]
    fn each_claim_is_needed() {
        type Spoil = fn(&mut LegacyClaims);
        assert_eq!(judge(&claims()), Ok(()));
        let flaws: [(Spoil, &str); 7] = [
            (|c| c.sub.clear(), "sub claim is missing"),
            (|c| c.namespace.clear(), "namespace claim is missing"),
            (|c| c.secret_name.clear(), "secretName claim is missing"),
            (
                |c| c.service_account_name.clear(),
                "serviceAccountName claim is missing",
            ),
            (
                |c| c.service_account_uid.clear(),
                "serviceAccountUID claim is missing",
            ),
            (|c| c.iss = "other".into(), "token has another issuer"),
            (
                |c| c.sub = "system:serviceaccount:ns:other".into(),
                "sub claim is invalid",
            ),
        ];
        for (spoil, why) in flaws {
            let mut claims = claims();
            spoil(&mut claims);
            assert_eq!(judge(&claims), Err(why));
        }
    }

    #[test]
    fn the_objects_must_be_there_and_the_same() {
        let with = |mut object: Value, field: &str, value: Value| {
            object["metadata"][field] = value;
            object
        };
        let time = json!("2026-01-01T00:00:00Z");
        let cases = [
            (secret(), account(), None),
            (Value::Null, account(), Some("Token has been invalidated")),
            (
                with(secret(), "deletionTimestamp", time.clone()),
                account(),
                Some("Token has been invalidated"),
            ),
            (
                json!({"metadata": {}, "data": {"token": STANDARD.encode("new")}}),
                account(),
                Some("Token does not match server's copy"),
            ),
            (
                secret(),
                Value::Null,
                Some("ServiceAccount ns/sa has been deleted"),
            ),
            (
                secret(),
                with(account(), "deletionTimestamp", time),
                Some("ServiceAccount ns/sa has been deleted"),
            ),
            (
                secret(),
                with(account(), "uid", json!("v")),
                Some("ServiceAccount UID (v) does not match claim (u)"),
            ),
        ];
        for (secret, account, why) in cases {
            assert_eq!(refusal("tok", &claims(), &secret, &account).as_deref(), why);
        }
    }

    #[test]
    fn uses_are_dated_once_a_day() {
        let now = "2026-02-28T23:30:00Z".parse().unwrap();
        let label = |labels: Value| {
            let mut secret = secret();
            secret["metadata"]["labels"] = labels;
            usage(&claims(), &secret, &account(), now).label
        };
        let wanted = Some((LAST_USED_LABEL, "2026-02-28".to_owned()));
        assert_eq!(label(Value::Null), wanted);
        assert_eq!(label(json!({LAST_USED_LABEL: "2026-02-27"})), wanted);
        assert_eq!(label(json!({LAST_USED_LABEL: "2026-02-28"})), None);
        assert_eq!(label(json!({LAST_USED_LABEL: "2026-03-01"})), None);
    }

    #[test]
    fn what_is_said_of_a_use() {
        let now = Timestamp::UNIX_EPOCH;
        let fate = |secret: &Value, account: &Value| usage(&claims(), secret, account, now).fate;
        assert_eq!(fate(&secret(), &account()), SecretTokenFate::Manual);
        let mut referring = account();
        referring["secrets"] = json!([{"name": "other"}, {"name": "s"}]);
        assert_eq!(fate(&secret(), &referring), SecretTokenFate::Generated);
        let mut invalid = secret();
        invalid["metadata"]["labels"] = json!({INVALID_SINCE_LABEL: "2026-01-01"});
        assert_eq!(fate(&invalid, &referring), SecretTokenFate::Invalidated);
    }
}
