//! What an authorizer is asked and what it answers.

use crate::user::UserInfo;

/// One question to the authorizers; strings that do not apply are empty.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// The request path of a non-resource request.
    pub path: &'a str,
    pub is_resource: bool,
    /// The request's `fieldSelector`, decoded; nodes may list only what their selector limits to them.
    pub field_selector: &'a str,
    /// The request's `labelSelector`, decoded.
    pub label_selector: &'a str,
}

impl<'a> Attributes<'a> {
    pub fn non_resource(user: &'a UserInfo, verb: &'a str, path: &'a str) -> Self {
        Self {
            user,
            verb,
            path,
            group: "",
            version: "",
            resource: "",
            subresource: "",
            namespace: "",
            name: "",
            is_resource: false,
            field_selector: "",
            label_selector: "",
        }
    }

    /// A resource question; set the rest with struct update syntax.
    pub fn resource(user: &'a UserInfo, verb: &'a str, group: &'a str, resource: &'a str) -> Self {
        Self {
            group,
            resource,
            is_resource: true,
            ..Self::non_resource(user, verb, "")
        }
    }

    /// True when the field selector demands `field == value`.
    pub(crate) fn selects(&self, field: &str, value: &str) -> bool {
        self.field_selector.split(',').any(|term| {
            let (key, wanted) = match term.split_once("==") {
                Some(pair) => pair,
                None => match term.split_once('=') {
                    Some((key, _)) if key.ends_with('!') => return false,
                    Some(pair) => pair,
                    None => return false,
                },
            };
            key == field && wanted == value
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Allow,
    Deny,
    NoOpinion,
}

/// A decision and upstream's words for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    pub reason: String,
}

impl Verdict {
    pub fn allow(reason: impl Into<String>) -> Self {
        Self {
            decision: Decision::Allow,
            reason: reason.into(),
        }
    }

    pub fn no_opinion(reason: impl Into<String>) -> Self {
        Self {
            decision: Decision::NoOpinion,
            reason: reason.into(),
        }
    }

    pub fn is_allowed(&self) -> bool {
        self.decision == Decision::Allow
    }
}

/// The words after `… is forbidden: ` (upstream: `responsewriters.ForbiddenStatusError`).
pub fn forbidden_message(attributes: &Attributes<'_>, reason: &str) -> String {
    let Attributes {
        verb,
        group,
        namespace,
        ..
    } = attributes;
    let user = &attributes.user.name;
    let mut message = if !attributes.is_resource {
        format!("User {user:?} cannot {verb} path {:?}", attributes.path)
    } else {
        let resource = match attributes.subresource {
            "" => attributes.resource.to_owned(),
            subresource => format!("{}/{subresource}", attributes.resource),
        };
        let scope = match *namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}")
    };
    message = message
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    if !reason.is_empty() {
        message.push_str(": ");
        message.push_str(reason);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_messages_are_upstreams() {
        let user = UserInfo::new("bob", &[]);
        let pods = Attributes {
            namespace: "default",
            ..Attributes::resource(&user, "list", "", "pods")
        };
        let log = Attributes {
            subresource: "log",
            ..pods
        };
        let nodes = Attributes::resource(&user, "get", "", "nodes");
        let path = Attributes::non_resource(&user, "get", "/metrics");
        let cases = [
            (
                pods,
                "",
                r#"User "bob" cannot list resource "pods" in API group "" in the namespace "default""#,
            ),
            (
                log,
                "",
                r#"User "bob" cannot list resource "pods/log" in API group "" in the namespace "default""#,
            ),
            (
                nodes,
                "why",
                r#"User "bob" cannot get resource "nodes" in API group "" at the cluster scope: why"#,
            ),
            (path, "", r#"User "bob" cannot get path "/metrics""#),
        ];
        for (attributes, reason, message) in cases {
            assert_eq!(forbidden_message(&attributes, reason), message);
        }
    }

    #[test]
    fn field_selectors_are_matched_exactly() {
        let user = UserInfo::default();
        let asked = |field_selector| Attributes {
            field_selector,
            ..Attributes::resource(&user, "list", "", "pods")
        };
        for yes in ["spec.nodeName=a", "spec.nodeName==a", "x=y,spec.nodeName=a"] {
            assert!(asked(yes).selects("spec.nodeName", "a"), "{yes}");
        }
        for no in [
            "",
            "spec.nodeName=b",
            "spec.nodeName!=a",
            "spec.nodeName",
            "spec.nodeName=ab",
        ] {
            assert!(!asked(no).selects("spec.nodeName", "a"), "{no}");
        }
    }
}
