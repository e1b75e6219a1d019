//! Impersonation (`kubectl --as`): the requester must hold the right to be everyone they claim to be.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::attributes::{Attributes, Verdict, forbidden_message};
use crate::authorize::Authorizer;
use crate::user::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, UserInfo, service_account_parts};

/// The `Impersonate-*` headers of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Impersonation {
    pub user: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ImpersonationError {
    /// Upstream answers 500 with this text.
    #[error("requested {0} without impersonating a user name")]
    NoUser(String),
    #[error("{message}")]
    Forbidden {
        group: &'static str,
        resource: &'static str,
        name: String,
        message: String,
    },
}

impl Impersonation {
    /// Header names in any case. `None`: the request impersonates nobody.
    pub fn from_headers<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        let mut found = Self::default();
        for (name, value) in headers {
            let name = name.to_ascii_lowercase();
            match name.strip_prefix("impersonate-") {
                Some("user") => found.user = value.into(),
                Some("uid") => found.uid = value.into(),
                Some("group") => found.groups.push(value.into()),
                Some(rest) => {
                    if let Some(key) = rest.strip_prefix("extra-") {
                        found.extra.entry(unescape(key)).or_default().push(value.into());
                    }
                }
                None => {}
            }
        }
        (found != Self::default()).then_some(found)
    }
}

/// The user the request acts as from here on.
pub fn impersonate(
    authorizer: &Authorizer,
    requester: &UserInfo,
    wanted: &Impersonation,
) -> Result<UserInfo, ImpersonationError> {
    if wanted.user.is_empty() {
        return Err(ImpersonationError::NoUser(format!("{wanted:?}")));
    }
    let check =
        |group: &'static str, resource: &'static str, subresource: &str, namespace: &str, name: &str| {
            let attributes = Attributes {
                subresource,
                namespace,
                name,
                ..Attributes::resource(requester, "impersonate", group, resource)
            };
            let verdict: Verdict = authorizer.authorize(&attributes);
            if verdict.is_allowed() {
                return Ok(());
            }
            let message = forbidden_message(&attributes, &verdict.reason);
            Err(ImpersonationError::Forbidden {
                group,
                resource,
                name: name.into(),
                message,
            })
        };
    let account = service_account_parts(&wanted.user);
    match account {
        Some((namespace, name)) => check("", "serviceaccounts", "", namespace, name)?,
        None => check("", "users", "", "", &wanted.user)?,
    }
    for group in &wanted.groups {
        check("", "groups", "", "", group)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            check("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    if !wanted.uid.is_empty() {
        check("authentication.k8s.io", "uids", "", "", &wanted.uid)?;
    }
    let mut user = UserInfo {
        name: wanted.user.clone(),
        uid: wanted.uid.clone(),
        groups: wanted.groups.clone(),
        extra: wanted.extra.clone(),
    };
    if let (Some((namespace, name)), true) = (account, user.groups.is_empty()) {
        user.groups = UserInfo::service_account(namespace, name, "").groups;
    }
    if user.name == ANONYMOUS {
        user.join(UNAUTHENTICATED);
    } else if !user.in_group(UNAUTHENTICATED) {
        user.join(AUTHENTICATED);
    }
    Ok(user)
}

/// Header names carry extra keys percent-encoded; what does not decode stays as it is.
fn unescape(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn authorizer() -> Authorizer {
        let authorizer = Authorizer::default();
        let role = json!({"metadata": {"name": "r"}, "rules": [
            {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users", "groups"], "resourceNames": ["jane", "dev"]},
        ]});
        let binding = json!({
            "metadata": {"name": "b"},
            "roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "User", "name": "bob"}],
        });
        authorizer
            .set("clusterroles", role.to_string().as_bytes())
            .unwrap();
        authorizer
            .set("clusterrolebindings", binding.to_string().as_bytes())
            .unwrap();
        authorizer
    }

    fn headers(pairs: &[(&str, &str)]) -> Option<Impersonation> {
        Impersonation::from_headers(pairs.iter().copied())
    }

    #[test]
    fn every_claim_needs_its_own_right() {
        let bob = UserInfo::new("bob", &[]);
        let masters = UserInfo::new("root", &["system:masters"]);
        assert_eq!(headers(&[("accept", "x")]), None);

        let jane = headers(&[("Impersonate-User", "jane"), ("Impersonate-Group", "dev")]).unwrap();
        let user = impersonate(&authorizer(), &bob, &jane).unwrap();
        assert_eq!(
            (user.name.as_str(), &user.groups[..]),
            ("jane", &["dev".into(), AUTHENTICATED.into()][..])
        );

        let ops = headers(&[("Impersonate-User", "jane"), ("Impersonate-Group", "ops")]).unwrap();
        let refused = impersonate(&authorizer(), &bob, &ops).unwrap_err();
        assert_eq!(
            refused.to_string(),
            r#"User "bob" cannot impersonate resource "groups" in API group "" at the cluster scope"#
        );
        let account = headers(&[("Impersonate-User", "system:serviceaccount:a:b")]).unwrap();
        assert!(impersonate(&authorizer(), &bob, &account).is_err());
        let user = impersonate(&authorizer(), &masters, &account).unwrap();
        assert!(user.in_group("system:serviceaccounts:a") && user.in_group(AUTHENTICATED));

        let extra = headers(&[
            ("impersonate-user", "jane"),
            ("impersonate-extra-acme.com%2fteam", "x"),
        ])
        .unwrap();
        assert_eq!(extra.extra["acme.com/team"], ["x"]);
        assert!(impersonate(&authorizer(), &bob, &extra).is_err());
        let groups_only = headers(&[("Impersonate-Group", "dev")]).unwrap();
        let refused = impersonate(&authorizer(), &masters, &groups_only).unwrap_err();
        assert!(matches!(refused, ImpersonationError::NoUser(_)));
    }
}
