//! What a request asks for, and how authorization calls it.

use auth::{Attributes, UserInfo, forbidden_message};
use http::Method;
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReviewSpec,
};

use crate::objects::GROUP;

/// The path of `metrics.k8s.io/v1beta1`'s resources.
const ROOT: &str = "/apis/metrics.k8s.io/v1beta1/";

/// `[namespaces/NAMESPACE/]nodes|pods[/NAME]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub resource: String,
    pub namespace: Option<String>,
    pub name: Option<String>,
}

impl Target {
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path
            .strip_prefix(ROOT)?
            .trim_end_matches('/')
            .split('/')
            .collect();
        let (namespace, rest) = match parts.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let (resource, name) = match rest {
            [resource] => (*resource, None),
            [resource, name] => (*resource, Some((*name).to_owned())),
            _ => return None,
        };
        let target = Self {
            resource: resource.to_owned(),
            namespace,
            name,
        };
        (!resource.is_empty()).then_some(target)
    }
}

/// What authorization is asked.
pub struct Question {
    pub target: Option<Target>,
    verb: String,
    path: String,
}

impl Question {
    pub fn new(method: &Method, path: &str) -> Self {
        let target = Target::parse(path);
        let verb = match (method.as_str(), &target) {
            (method, None) => method.to_ascii_lowercase(),
            (method, Some(target)) => {
                let verb = match (method, &target.name) {
                    ("POST", _) => "create",
                    ("PUT", _) => "update",
                    ("PATCH", _) => "patch",
                    ("DELETE", Some(_)) => "delete",
                    ("DELETE", None) => "deletecollection",
                    (_, Some(_)) => "get",
                    (_, None) => "list",
                };
                verb.to_owned()
            }
        };
        Self {
            target,
            verb,
            path: path.to_owned(),
        }
    }

    pub fn review(&self, user: &UserInfo) -> SubjectAccessReviewSpec {
        let mut question = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: (!user.uid.is_empty()).then(|| user.uid.clone()),
            groups: Some(user.groups.clone()),
            extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
            ..SubjectAccessReviewSpec::default()
        };
        match &self.target {
            Some(target) => {
                question.resource_attributes = Some(ResourceAttributes {
                    verb: Some(self.verb.clone()),
                    group: Some(GROUP.to_owned()),
                    version: Some("v1beta1".to_owned()),
                    resource: Some(target.resource.clone()),
                    namespace: target.namespace.clone(),
                    name: target.name.clone(),
                    ..ResourceAttributes::default()
                });
            }
            None => {
                question.non_resource_attributes = Some(NonResourceAttributes {
                    verb: Some(self.verb.clone()),
                    path: Some(self.path.clone()),
                });
            }
        }
        question
    }

    /// Upstream's words for a no.
    pub fn forbidden(&self, user: &UserInfo, reason: &str) -> String {
        let Some(target) = &self.target else {
            let attributes = Attributes::non_resource(user, &self.verb, &self.path);
            return format!("forbidden: {}", forbidden_message(&attributes, reason));
        };
        let attributes = Attributes {
            namespace: target.namespace.as_deref().unwrap_or_default(),
            name: target.name.as_deref().unwrap_or_default(),
            ..Attributes::resource(user, &self.verb, GROUP, &target.resource)
        };
        let name = target.name.as_ref().map(|name| format!(" {name:?}"));
        let (resource, name) = (&target.resource, name.unwrap_or_default());
        let words = forbidden_message(&attributes, reason);
        format!("{resource}.{GROUP}{name} is forbidden: {words}")
    }
}

/// Decoded query parameter, the first of that name.
pub fn parameter(query: Option<&str>, wanted: &str) -> Option<String> {
    let mut pairs = query?
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs
        .find(|(name, _)| *name == wanted)
        .map(|(_, value)| decode(value))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten();
        let escaped = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        rest = match escaped {
            Some(byte) => {
                bytes.push(byte);
                &tail[2..]
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                tail
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `metadata.name` and `metadata.namespace`, equal or not, are all that can be asked for.
pub fn field_matches(selector: &str, name: &str, namespace: Option<&str>) -> Result<bool, String> {
    let mut holds = true;
    for term in selector.split(',').filter(|term| !term.is_empty()) {
        let (field, wanted, equal) = match (term.split_once("!="), term.split_once("==")) {
            (Some((field, value)), _) => (field, value, false),
            (_, Some((field, value))) => (field, value, true),
            _ => match term.split_once('=') {
                Some((field, value)) => (field, value, true),
                None => {
                    return Err(format!(
                        "invalid selector: '{selector}'; can't understand '{term}'"
                    ));
                }
            },
        };
        let value = match field {
            "metadata.name" => name,
            "metadata.namespace" => namespace.unwrap_or_default(),
            _ => return Err(format!("field label not supported: {field}")),
        };
        holds &= (value == wanted) == equal;
    }
    Ok(holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_their_target() {
        for (path, want) in [
            ("nodes", Some((None, "nodes", None))),
            ("nodes/a", Some((None, "nodes", Some("a")))),
            ("pods", Some((None, "pods", None))),
            ("namespaces/n/pods", Some((Some("n"), "pods", None))),
            ("namespaces/n/pods/p", Some((Some("n"), "pods", Some("p")))),
            ("namespaces/n/pods/p/log", None),
            ("", None),
        ] {
            let want = want.map(
                |(namespace, resource, name): (Option<&str>, &str, Option<&str>)| Target {
                    resource: resource.into(),
                    namespace: namespace.map(Into::into),
                    name: name.map(Into::into),
                },
            );
            assert_eq!(Target::parse(&format!("{ROOT}{path}")), want, "{path}");
        }
        assert_eq!(Target::parse("/apis/metrics.k8s.io/v1beta1"), None);
    }

    #[test]
    fn refusals_are_upstreams() {
        let user = UserInfo::new("jane", &[]);
        for (method, path, want) in [
            (
                Method::GET,
                "/apis/metrics.k8s.io/v1beta1/namespaces/n/pods/p",
                "pods.metrics.k8s.io \"p\" is forbidden: User \"jane\" cannot get resource \"pods\" in API group \
                 \"metrics.k8s.io\" in the namespace \"n\": why",
            ),
            (
                Method::GET,
                "/apis/metrics.k8s.io/v1beta1/nodes",
                "nodes.metrics.k8s.io is forbidden: User \"jane\" cannot list resource \"nodes\" in API group \
                 \"metrics.k8s.io\" at the cluster scope: why",
            ),
            (
                Method::POST,
                "/metrics",
                "forbidden: User \"jane\" cannot post path \"/metrics\": why",
            ),
        ] {
            assert_eq!(Question::new(&method, path).forbidden(&user, "why"), want);
        }
    }

    #[test]
    fn selectors_arrive_decoded_and_fields_are_compared() {
        let query = Some("labelSelector=a%3Db%2Cc+in+%28d%29&limit=500");
        assert_eq!(parameter(query, "labelSelector").as_deref(), Some("a=b,c in (d)"));
        assert_eq!(parameter(query, "fieldSelector"), None);
        for (selector, want) in [
            ("", Ok(true)),
            ("metadata.name=p", Ok(true)),
            ("metadata.name==q", Ok(false)),
            ("metadata.namespace!=n", Ok(false)),
            ("metadata.name=p,metadata.namespace=n", Ok(true)),
            (
                "spec.nodeName=x",
                Err("field label not supported: spec.nodeName".to_owned()),
            ),
        ] {
            assert_eq!(field_matches(selector, "p", Some("n")), want, "{selector}");
        }
    }
}
