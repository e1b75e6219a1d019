//! What the Secrets of one account lack, and which have lost it.

use super::{ACCOUNT_NAME, ACCOUNT_UID};
use crate::action::Action;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use pki::{JwtError, LEGACY_ISSUER, LegacyClaims};
use std::collections::BTreeSet;
use std::sync::Arc;

const TOKEN: &str = "token";
const NAMESPACE: &str = "namespace";
const ROOT_CA: &str = "ca.crt";

pub struct Observed<'a> {
    pub account: Option<&'a ServiceAccount>,
    /// Those that name the account.
    pub secrets: &'a [Arc<Secret>],
    /// Deleted ones the account still refers to.
    pub gone: &'a BTreeSet<String>,
    pub root_ca_pem: Option<&'a str>,
}

pub fn reconcile(
    observed: &Observed,
    sign: impl Fn(&LegacyClaims) -> Result<String, JwtError>,
) -> Result<Vec<Action>, JwtError> {
    let mut plan = Vec::new();
    for secret in observed.secrets {
        match observed.account {
            Some(account) if belongs(secret, Some(account)) => {
                if let Some(filled) = filled(secret, account, observed.root_ca_pem, &sign)? {
                    plan.push(Action::replace(&filled).unobserved());
                }
            }
            _ => plan.push(Action::delete(&**secret)),
        }
    }
    if let Some(account) = observed.account
        && !observed.gone.is_empty()
    {
        let mut account = account.clone();
        let secrets = account.secrets.get_or_insert_default();
        secrets.retain(|reference| !reference.name.as_ref().is_some_and(|n| observed.gone.contains(n)));
        plan.push(Action::replace(&account));
    }
    Ok(plan)
}

/// The account is the one the Secret was made for: a namesake that came later is not.
pub fn belongs(secret: &Secret, account: Option<&ServiceAccount>) -> bool {
    let Some(account) = account else { return false };
    let annotations = secret.metadata.annotations.as_ref();
    let wanted = annotations
        .and_then(|a| a.get(ACCOUNT_UID))
        .filter(|uid| !uid.is_empty());
    wanted.is_none_or(|uid| account.metadata.uid.as_ref() == Some(uid))
}

pub fn refers_to(account: Option<&ServiceAccount>, secret: &str) -> bool {
    let references = account.and_then(|account| account.secrets.as_ref());
    let mut references = references.into_iter().flatten();
    references.any(|reference| reference.name.as_deref() == Some(secret))
}

/// The Secret with what it lacks; `None` when it has all.
fn filled(
    secret: &Secret,
    account: &ServiceAccount,
    root_ca_pem: Option<&str>,
    sign: impl Fn(&LegacyClaims) -> Result<String, JwtError>,
) -> Result<Option<Secret>, JwtError> {
    let has = |name: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(name));
        data.map(|bytes| bytes.0.as_slice()).unwrap_or_default()
    };
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let namespace = text(&secret.metadata.namespace);
    let mut additions = Vec::new();
    if let Some(pem) = root_ca_pem.filter(|pem| !pem.is_empty() && has(ROOT_CA) != pem.as_bytes()) {
        additions.push((ROOT_CA, pem.to_owned()));
    }
    if has(NAMESPACE).is_empty() {
        additions.push((NAMESPACE, namespace.clone()));
    }
    if has(TOKEN).is_empty() {
        let name = text(&account.metadata.name);
        let claims = LegacyClaims {
            iss: LEGACY_ISSUER.into(),
            sub: format!("system:serviceaccount:{namespace}:{name}"),
            namespace,
            secret_name: text(&secret.metadata.name),
            service_account_name: name,
            service_account_uid: text(&account.metadata.uid),
        };
        additions.push((TOKEN, sign(&claims)?));
    }
    if additions.is_empty() {
        return Ok(None);
    }
    let mut filled = secret.clone();
    let data = filled.data.get_or_insert_default();
    data.extend(
        additions
            .into_iter()
            .map(|(name, value)| (name.to_owned(), ByteString(value.into_bytes()))),
    );
    let annotations = filled.metadata.annotations.get_or_insert_default();
    annotations.insert(ACCOUNT_NAME.into(), text(&account.metadata.name));
    annotations.insert(ACCOUNT_UID.into(), text(&account.metadata.uid));
    Ok(Some(filled))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn account(uid: &str) -> ServiceAccount {
        from_value(json!({
            "metadata": {"name": "sa", "namespace": "ns", "uid": uid, "resourceVersion": "3"},
            "secrets": [{"name": "kept"}, {"name": "gone"}],
        }))
        .unwrap()
    }

    fn secret(uid: Option<&str>, data: Value) -> Arc<Secret> {
        let mut secret: Secret = from_value(json!({
            "metadata": {"name": "s", "namespace": "ns", "uid": "s-uid", "resourceVersion": "7",
                "annotations": {ACCOUNT_NAME: "sa"}},
            "type": "kubernetes.io/service-account-token",
            "data": data,
        }))
        .unwrap();
        if let Some(uid) = uid {
            let annotations = secret.metadata.annotations.get_or_insert_default();
            annotations.insert(ACCOUNT_UID.into(), uid.into());
        }
        Arc::new(secret)
    }

    fn plan(account: Option<&ServiceAccount>, secret: Arc<Secret>) -> Vec<Action> {
        let observed = Observed {
            account,
            secrets: &[secret],
            gone: &BTreeSet::new(),
            root_ca_pem: Some("pem"),
        };
        reconcile(&observed, |claims| Ok(claims.sub.clone())).unwrap()
    }

    fn written(plan: &[Action]) -> (&str, Secret) {
        let [Action::Replace { at, body }] = plan else {
            panic!("{plan:?}")
        };
        (&at.url, from_value(body.clone()).unwrap())
    }

    fn data(secret: &Secret) -> Vec<(&str, &str)> {
        let data = secret.data.iter().flatten();
        data.map(|(k, v)| (k.as_str(), std::str::from_utf8(&v.0).unwrap()))
            .collect()
    }

    #[test]
    fn an_empty_secret_is_filled_once() {
        let made = plan(Some(&account("u")), secret(None, json!({"mine": "eA=="})));
        let (url, filled) = written(&made);
        assert_eq!(url, "/api/v1/namespaces/ns/secrets/s");
        assert_eq!(
            data(&filled),
            [
                ("ca.crt", "pem"),
                ("mine", "x"),
                ("namespace", "ns"),
                ("token", "system:serviceaccount:ns:sa")
            ]
        );
        assert_eq!(filled.metadata.annotations.as_ref().unwrap()[ACCOUNT_UID], "u");
        assert_eq!(filled.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(plan(Some(&account("u")), Arc::new(filled)), []);
    }

    #[test]
    fn only_what_is_missing_or_another_authoritys_is_written() {
        let full = json!({"ca.crt": "b2xk", "namespace": "bnM=", "token": "dG9r"});
        let made = plan(Some(&account("u")), secret(Some("u"), full));
        let expected = [("ca.crt", "pem"), ("namespace", "ns"), ("token", "tok")];
        assert_eq!(data(&written(&made).1), expected);
    }

    #[test]
    fn secrets_of_accounts_that_are_gone_or_others_go() {
        for account in [None, Some(account("new"))] {
            let made = plan(account.as_ref(), secret(Some("u"), json!({})));
            assert!(matches!(&made[..], [Action::Delete { at, .. }] if at.key.name == "s"));
        }
    }

    #[test]
    fn accounts_stop_referring_to_deleted_secrets() {
        let account = account("u");
        let observed = Observed {
            account: Some(&account),
            secrets: &[],
            gone: &BTreeSet::from(["gone".to_owned()]),
            root_ca_pem: None,
        };
        let made = reconcile(&observed, |_| Err(JwtError::Sign)).unwrap();
        let [Action::Replace { at, body }] = &made[..] else {
            panic!("{made:?}")
        };
        assert_eq!(at.url, "/api/v1/namespaces/ns/serviceaccounts/sa");
        assert_eq!(body["secrets"], json!([{"name": "kept"}]));
        assert_eq!(body["metadata"]["resourceVersion"], "3");
        assert!(refers_to(Some(&account), "gone") && !refers_to(Some(&account), "s"));
    }
}
