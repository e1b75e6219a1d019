//! Bootstrap tokens as bearer tokens: a secret in kube-system says whether one is good (upstream:
//! `plugin/pkg/auth/authenticator/token/bootstrap`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use pki::BootstrapToken;
use serde_json::Value;

use crate::user::UserInfo;

pub(crate) const NAMESPACE: &str = "kube-system";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

pub(crate) fn secret_name(token: &BootstrapToken) -> String {
    format!("bootstrap-token-{}", token.id())
}

/// The user this token stands for, if the secret vouches for it.
pub(crate) fn user(token: &BootstrapToken, secret: &Value, now: Timestamp) -> Option<UserInfo> {
    let field = |name: &str| -> Option<String> {
        let bytes = STANDARD.decode(secret["data"][name].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let genuine = secret["metadata"]["deletionTimestamp"].is_null()
        && secret["type"] == SECRET_TYPE
        && equal(&field("token-secret")?, token.secret())
        && field("token-id")? == token.id()
        && field("usage-bootstrap-authentication").as_deref() == Some("true");
    let expired = match field("expiration") {
        None => false,
        // An expiration nobody can read counts as passed.
        Some(text) => text
            .parse::<Timestamp>()
            .map_or(true, |expiration| expiration <= now),
    };
    if !genuine || expired {
        return None;
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in field("auth-extra-groups")
        .iter()
        .flat_map(|groups| groups.split(','))
    {
        // One group outside the allowed pattern spoils the token (upstream: `ValidateBootstrapGroupName`).
        if !group.is_empty() && !valid_group(group) {
            return None;
        }
        groups.extend((!group.is_empty()).then(|| group.to_owned()));
    }
    groups.sort();
    groups.dedup();
    Some(UserInfo {
        name: format!("system:bootstrap:{}", token.id()),
        groups,
        ..UserInfo::default()
    })
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`
fn valid_group(group: &str) -> bool {
    group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        rest.len() <= 256
            && rest
                .bytes()
                .all(|byte| allowed(byte) || matches!(byte, b':' | b'-'))
            && rest.bytes().last().is_some_and(allowed)
    })
}

/// Takes the same time wherever the first difference is.
fn equal(left: &str, right: &str) -> bool {
    left.len() == right.len()
        && left
            .bytes()
            .zip(right.bytes())
            .fold(0, |diff, (l, r)| diff | (l ^ r))
            == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token() -> BootstrapToken {
        BootstrapToken::parse("abcdef.0123456789abcdef").unwrap()
    }

    fn secret() -> Value {
        let encoded = |text: &str| json!(STANDARD.encode(text));
        json!({
            "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
            "type": SECRET_TYPE,
            "data": {
                "token-id": encoded("abcdef"),
                "token-secret": encoded("0123456789abcdef"),
                "usage-bootstrap-authentication": encoded("true"),
                "expiration": encoded("2026-11-23T00:00:00Z"),
                "auth-extra-groups": encoded("system:bootstrappers:kubeadm:default-node-token"),
            },
        })
    }

    #[test]
    fn a_good_token_is_a_bootstrapper() {
        let user = user(&token(), &secret(), "2026-11-22T00:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(
            user.groups,
            [GROUP, "system:bootstrappers:kubeadm:default-node-token"]
        );
    }

    #[test]
    fn each_flaw_spoils_a_token() {
        let now: Timestamp = "2026-11-22T00:00:00Z".parse().unwrap();
        let flaws: [(&str, Value); 8] = [
            ("/data/token-secret", json!(STANDARD.encode("0123456789abcdee"))),
            ("/data/token-id", json!(STANDARD.encode("abcdeg"))),
            (
                "/data/usage-bootstrap-authentication",
                json!(STANDARD.encode("false")),
            ),
            ("/data/expiration", json!(STANDARD.encode("2026-11-22T00:00:00Z"))),
            ("/data/expiration", json!(STANDARD.encode("soon"))),
            (
                "/data/auth-extra-groups",
                json!(STANDARD.encode("system:masters")),
            ),
            ("/type", json!("Opaque")),
            ("/metadata/name", json!("unrelated")),
        ];
        for (pointer, value) in flaws {
            let mut secret = secret();
            *secret.pointer_mut(pointer).unwrap() = value.clone();
            let spoiled = pointer != "/metadata/name";
            assert_eq!(
                user(&token(), &secret, now).is_none(),
                spoiled,
                "{pointer} {value}"
            );
        }
        let mut deleted = secret();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-11-22T00:00:00Z");
        assert!(user(&token(), &deleted, now).is_none());
    }
}
