//! Role-based access control: roles and bindings kept as an index by subject, asked on every request.
//! Semantics and reasons: upstream's `plugin/pkg/auth/authorizer/rbac`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;

use crate::attributes::{Attributes, Verdict};
use crate::user::{UserInfo, service_account_parts};

/// rbac.authorization.k8s.io/v1 `PolicyRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    pub fn allows(&self, attributes: &Attributes<'_>) -> bool {
        let has = |list: &[String], value: &str| list.iter().any(|item| item == "*" || item == value);
        if !has(&self.verbs, attributes.verb) {
            return false;
        }
        if !attributes.is_resource {
            return self
                .non_resource_urls
                .iter()
                .any(|url| url_matches(url, attributes.path));
        }
        has(&self.api_groups, attributes.group)
            && self
                .resources
                .iter()
                .any(|rule| resource_matches(rule, attributes))
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|name| name == attributes.name))
    }
}

fn url_matches(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

fn resource_matches(rule: &str, attributes: &Attributes<'_>) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => attributes.subresource.is_empty() && rule == attributes.resource,
        Some((resource, subresource)) => {
            !attributes.subresource.is_empty()
                && subresource == attributes.subresource
                && (resource == "*" || resource == attributes.resource)
        }
    }
}

/// The rules that apply to a user, for the rules review.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ResourceRules {
    pub rules: Vec<Rule>,
    /// Problems met on the way; the list may then be short.
    pub errors: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
struct RoleObject {
    metadata: Metadata,
    // Null and absent both mean none.
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BindingObject {
    metadata: Metadata,
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
}

#[derive(Debug)]
struct Binding {
    /// Empty for a ClusterRoleBinding.
    namespace: String,
    name: String,
    role: RoleRef,
    subjects: Vec<Subject>,
}

/// Who a subject is, as a user name or a group; the form requests are looked up by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Principal {
    User(String),
    Group(String),
}

/// (namespace, name); the namespace is empty for cluster-wide objects.
type Key = (String, String);

#[derive(Debug, Default)]
pub(crate) struct Rbac {
    roles: HashMap<Key, Arc<[Rule]>>,
    bindings: HashMap<Key, Arc<Binding>>,
    /// Scope (empty: the cluster) → who → bindings by name.
    by_principal: HashMap<String, HashMap<Principal, BTreeMap<String, Arc<Binding>>>>,
}

impl Rbac {
    pub(crate) fn set_role(&mut self, object: &[u8]) -> Result<(), serde_json::Error> {
        let role: RoleObject = serde_json::from_slice(object)?;
        let key = (role.metadata.namespace, role.metadata.name);
        self.roles.insert(key, role.rules.unwrap_or_default().into());
        Ok(())
    }

    pub(crate) fn remove_role(&mut self, namespace: &str, name: &str) {
        self.roles.remove(&(namespace.to_owned(), name.to_owned()));
    }

    pub(crate) fn set_binding(&mut self, object: &[u8]) -> Result<(), serde_json::Error> {
        let object: BindingObject = serde_json::from_slice(object)?;
        let Metadata { name, namespace } = object.metadata;
        self.remove_binding(&namespace, &name);
        let subjects = object.subjects.unwrap_or_default();
        let binding = Arc::new(Binding {
            namespace,
            name,
            role: object.role_ref,
            subjects,
        });
        let scope = self.by_principal.entry(binding.namespace.clone()).or_default();
        for subject in &binding.subjects {
            if let Some(principal) = principal(subject, &binding.namespace) {
                scope
                    .entry(principal)
                    .or_default()
                    .insert(binding.name.clone(), binding.clone());
            }
        }
        self.bindings
            .insert((binding.namespace.clone(), binding.name.clone()), binding);
        Ok(())
    }

    pub(crate) fn remove_binding(&mut self, namespace: &str, name: &str) {
        let Some(binding) = self.bindings.remove(&(namespace.to_owned(), name.to_owned())) else {
            return;
        };
        let Some(scope) = self.by_principal.get_mut(namespace) else {
            return;
        };
        for subject in &binding.subjects {
            let Some(principal) = principal(subject, namespace) else {
                continue;
            };
            if let Some(names) = scope.get_mut(&principal) {
                names.remove(name);
                if names.is_empty() {
                    scope.remove(&principal);
                }
            }
        }
        if scope.is_empty() {
            self.by_principal.remove(namespace);
        }
    }

    pub(crate) fn authorize(&self, attributes: &Attributes<'_>) -> Verdict {
        let mut errors = Vec::new();
        let mut seen = HashSet::new();
        for (binding, principal) in self.bindings_of(attributes.user, attributes.namespace) {
            match self.rules_of(binding) {
                Ok(rules) => {
                    if rules.iter().any(|rule| rule.allows(attributes)) {
                        return Verdict::allow(format!("RBAC: allowed by {}", describe(binding, &principal)));
                    }
                }
                Err(error) => {
                    if seen.insert(error.clone()) {
                        errors.push(error);
                    }
                }
            }
        }
        Verdict::no_opinion(match errors.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    pub(crate) fn rules_for(&self, user: &UserInfo, namespace: &str) -> ResourceRules {
        let mut found = ResourceRules::default();
        for (binding, _) in self.bindings_of(user, namespace) {
            match self.rules_of(binding) {
                Ok(rules) => found.rules.extend(rules.iter().cloned()),
                Err(error) => found.errors.push(error),
            }
        }
        found
    }

    /// Cluster-wide bindings first, then the namespace's; each with the name or group it matched by.
    fn bindings_of<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a Binding, Principal)> {
        let scopes = std::iter::once("").chain((!namespace.is_empty()).then_some(namespace));
        let scopes: Vec<_> = scopes.filter_map(|scope| self.by_principal.get(scope)).collect();
        let principals = std::iter::once(Principal::User(user.name.clone()))
            .chain(user.groups.iter().cloned().map(Principal::Group));
        let principals: Vec<Principal> = principals.collect();
        scopes.into_iter().flat_map(move |scope| {
            let found = principals
                .iter()
                .filter_map(|principal| scope.get(principal).map(|bindings| (bindings, principal.clone())));
            let found: Vec<_> = found.collect();
            found.into_iter().flat_map(|(bindings, principal)| {
                bindings
                    .values()
                    .map(move |binding| (&**binding, principal.clone()))
            })
        })
    }

    fn rules_of(&self, binding: &Binding) -> Result<&[Rule], String> {
        let (namespace, resource) = match binding.role.kind.as_str() {
            "ClusterRole" => ("", "clusterrole"),
            "Role" => (binding.namespace.as_str(), "role"),
            other => return Err(format!("unsupported role reference kind: {other:?}")),
        };
        self.roles
            .get(&(namespace.to_owned(), binding.role.name.clone()))
            .map(|rules| &**rules)
            .ok_or_else(|| {
                format!(
                    "{resource}.rbac.authorization.k8s.io {:?} not found",
                    binding.role.name
                )
            })
    }
}

fn principal(subject: &Subject, binding_namespace: &str) -> Option<Principal> {
    match subject.kind.as_str() {
        "User" => Some(Principal::User(subject.name.clone())),
        "Group" => Some(Principal::Group(subject.name.clone())),
        "ServiceAccount" => {
            let namespace = if subject.namespace.is_empty() {
                binding_namespace
            } else {
                &subject.namespace
            };
            let user = format!("system:serviceaccount:{namespace}:{}", subject.name);
            service_account_parts(&user)
                .is_some()
                .then_some(Principal::User(user))
        }
        _ => None,
    }
}

fn describe(binding: &Binding, matched: &Principal) -> String {
    let subject = binding
        .subjects
        .iter()
        .find(|subject| principal(subject, &binding.namespace).as_ref() == Some(matched));
    let subject = match subject {
        Some(subject) if subject.kind == "ServiceAccount" => {
            let namespace = if subject.namespace.is_empty() {
                &binding.namespace
            } else {
                &subject.namespace
            };
            format!("ServiceAccount {:?}", format!("{}/{namespace}", subject.name))
        }
        Some(subject) => format!("{} {:?}", subject.kind, subject.name),
        None => String::new(),
    };
    let RoleRef { kind, name } = &binding.role;
    if binding.namespace.is_empty() {
        format!(
            "ClusterRoleBinding {:?} of {kind} {name:?} to {subject}",
            binding.name
        )
    } else {
        let binding = format!("{}/{}", binding.name, binding.namespace);
        format!("RoleBinding {binding:?} of {kind} {name:?} to {subject}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn role(namespace: &str, name: &str, rules: Value) -> Vec<u8> {
        json!({"metadata": {"name": name, "namespace": namespace}, "rules": rules})
            .to_string()
            .into_bytes()
    }

    fn binding(namespace: &str, name: &str, role: (&str, &str), subjects: Value) -> Vec<u8> {
        let role = json!({"kind": role.0, "name": role.1});
        let object = json!({"metadata": {"name": name, "namespace": namespace}, "roleRef": role, "subjects": subjects});
        object.to_string().into_bytes()
    }

    fn user(name: &str) -> Value {
        json!([{"kind": "User", "name": name}])
    }

    /// Verdict of one question; `what` is `resource[/subresource]` of the core group.
    fn ask(rbac: &Rbac, user: &UserInfo, verb: &str, what: &str, namespace: &str, name: &str) -> Verdict {
        let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
        rbac.authorize(&Attributes {
            subresource,
            namespace,
            name,
            ..Attributes::resource(user, verb, "", resource)
        })
    }

    #[test]
    fn rules_match_as_upstreams() {
        let rule = |value: Value| serde_json::from_value::<Rule>(value).unwrap();
        let bob = UserInfo::new("bob", &[]);
        let core =
            |resources: Value| rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": resources}));
        let named =
            rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}));
        let all = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        let attributes = |verb, group, resource, subresource, name| Attributes {
            subresource,
            name,
            ..Attributes::resource(&bob, verb, group, resource)
        };
        let cases = [
            (
                &core(json!(["pods"])),
                attributes("get", "", "pods", "", "a"),
                true,
            ),
            (
                &core(json!(["pods"])),
                attributes("list", "", "pods", "", "a"),
                false,
            ),
            (
                &core(json!(["pods"])),
                attributes("get", "apps", "pods", "", "a"),
                false,
            ),
            (
                &core(json!(["pods"])),
                attributes("get", "", "pods", "log", "a"),
                false,
            ),
            (
                &core(json!(["pods/log"])),
                attributes("get", "", "pods", "log", "a"),
                true,
            ),
            (
                &core(json!(["pods/log"])),
                attributes("get", "", "pods", "", "a"),
                false,
            ),
            (
                &core(json!(["*/log"])),
                attributes("get", "", "pods", "log", "a"),
                true,
            ),
            (
                &core(json!(["*/log"])),
                attributes("get", "", "pods", "", "a"),
                false,
            ),
            (
                &core(json!(["*"])),
                attributes("get", "", "pods", "log", "a"),
                true,
            ),
            (&named, attributes("get", "", "pods", "", "a"), true),
            (&named, attributes("get", "", "pods", "", "b"), false),
            (&named, attributes("get", "", "pods", "", ""), false),
            (
                &all,
                attributes("delete", "apps", "deployments", "scale", "x"),
                true,
            ),
        ];
        for (rule, attributes, allowed) in cases {
            assert_eq!(rule.allows(&attributes), allowed, "{rule:?} {attributes:?}");
        }
        for (urls, path, allowed) in [
            (json!(["*"]), "/metrics", true),
            (json!(["/healthz"]), "/healthz", true),
            (json!(["/healthz"]), "/healthz/etcd", false),
            (json!(["/healthz/*"]), "/healthz/etcd", true),
            (json!(["/healthz/*"]), "/healthz", false),
        ] {
            let rule = rule(json!({"verbs": ["get"], "nonResourceURLs": urls}));
            assert_eq!(
                rule.allows(&Attributes::non_resource(&bob, "get", path)),
                allowed,
                "{urls} {path}"
            );
        }
        assert!(
            !all.allows(&Attributes::non_resource(&bob, "get", "/metrics")),
            "resources are not URLs"
        );
    }

    #[test]
    fn bindings_reach_their_scope_and_say_why() {
        let mut rbac = Rbac::default();
        let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        rbac.set_role(&role("", "reader", rules.clone())).unwrap();
        rbac.set_role(&role("a", "local", rules)).unwrap();
        rbac.set_binding(&binding(
            "",
            "all",
            ("ClusterRole", "reader"),
            json!([{"kind": "Group", "name": "ops"}]),
        ))
        .unwrap();
        rbac.set_binding(&binding("a", "in-a", ("ClusterRole", "reader"), user("bob")))
            .unwrap();
        let account = json!([{"kind": "ServiceAccount", "name": "sa"}]);
        rbac.set_binding(&binding("a", "for-sa", ("Role", "local"), account))
            .unwrap();

        let ops = UserInfo::new("olga", &["ops"]);
        let bob = UserInfo::new("bob", &[]);
        let sa = UserInfo::service_account("a", "sa", "");
        let other = UserInfo::service_account("b", "sa", "");
        for (user, namespace, reason) in [
            (
                &ops,
                "",
                r#"RBAC: allowed by ClusterRoleBinding "all" of ClusterRole "reader" to Group "ops""#,
            ),
            (
                &ops,
                "b",
                r#"RBAC: allowed by ClusterRoleBinding "all" of ClusterRole "reader" to Group "ops""#,
            ),
            (
                &bob,
                "a",
                r#"RBAC: allowed by RoleBinding "in-a/a" of ClusterRole "reader" to User "bob""#,
            ),
            (
                &sa,
                "a",
                r#"RBAC: allowed by RoleBinding "for-sa/a" of Role "local" to ServiceAccount "sa/a""#,
            ),
        ] {
            assert_eq!(
                ask(&rbac, user, "get", "pods", namespace, "p"),
                Verdict::allow(reason)
            );
        }
        for (user, verb, namespace) in [
            (&bob, "get", "b"),
            (&bob, "get", ""),
            (&bob, "list", "a"),
            (&sa, "get", "b"),
            (&other, "get", "a"),
        ] {
            assert_eq!(
                ask(&rbac, user, verb, "pods", namespace, "p"),
                Verdict::no_opinion(""),
                "{}",
                user.name
            );
        }
    }

    #[test]
    fn the_index_follows_every_change() {
        let mut rbac = Rbac::default();
        let bob = UserInfo::new("bob", &[]);
        let amy = UserInfo::new("amy", &[]);
        let get = |rbac: &Rbac, user: &UserInfo| ask(rbac, user, "get", "pods", "a", "p");
        rbac.set_binding(&binding("a", "b", ("Role", "r"), user("bob")))
            .unwrap();
        let missing = Verdict::no_opinion(r#"RBAC: role.rbac.authorization.k8s.io "r" not found"#);
        assert_eq!(get(&rbac, &bob), missing);
        let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        rbac.set_role(&role("a", "r", rules)).unwrap();
        assert!(get(&rbac, &bob).is_allowed());
        rbac.set_binding(&binding("a", "b", ("Role", "r"), user("amy")))
            .unwrap();
        assert!(!get(&rbac, &bob).is_allowed() && get(&rbac, &amy).is_allowed());
        rbac.set_role(&role("a", "r", Value::Null)).unwrap();
        assert_eq!(get(&rbac, &amy), Verdict::no_opinion(""));
        rbac.remove_role("a", "r");
        rbac.remove_binding("a", "b");
        assert_eq!(get(&rbac, &amy), Verdict::no_opinion(""));
        assert!(rbac.by_principal.is_empty() && rbac.bindings.is_empty() && rbac.roles.is_empty());
    }
}
