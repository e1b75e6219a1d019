//! Roles and bindings.

use serde_json::Value;

use super::cause::Cause;
use super::names;
use crate::catalog::Resource;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn role(resource: &Resource, role: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (index, rule) in role["rules"].as_array().into_iter().flatten().enumerate() {
        let path = format!("rules[{index}]");
        let given = |key: &str| rule[key].as_array().is_some_and(|items| !items.is_empty());
        if given("nonResourceURLs") {
            if resource.namespaced() {
                causes.push(Cause::invalid(
                    &format!("{path}.nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    "namespaced rules cannot apply to non-resource URLs",
                ));
            }
            if given("apiGroups") || given("resources") || given("resourceNames") {
                causes.push(Cause::invalid(
                    &format!("{path}.nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    "rules cannot apply to both regular resources and non-resource URLs",
                ));
            }
            continue;
        }
        if !given("apiGroups") {
            causes.push(Cause::required(
                &format!("{path}.apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if !given("resources") {
            causes.push(Cause::required(
                &format!("{path}.resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
    causes
}

pub(super) fn binding(resource: &Resource, binding: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let role = &binding["roleRef"];
    if role["apiGroup"] != GROUP {
        causes.push(Cause::not_supported(
            "roleRef.apiGroup",
            &role["apiGroup"],
            &[GROUP],
        ));
    }
    let kinds: &[&str] = if resource.namespaced() {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    if !role["kind"]
        .as_str()
        .is_some_and(|kind| kind.is_empty() || kinds.contains(&kind))
    {
        causes.push(Cause::not_supported("roleRef.kind", &role["kind"], kinds));
    }
    if let Some(problem) = role["name"].as_str().and_then(names::path_segment_problem) {
        causes.push(Cause::invalid("roleRef.name", &role["name"], &problem));
    }
    for (index, subject) in binding["subjects"].as_array().into_iter().flatten().enumerate() {
        let path = format!("subjects[{index}]");
        let text = |key: &str| subject[key].as_str().unwrap_or_default();
        match text("kind") {
            "ServiceAccount" => {
                causes.extend(
                    Some(text("name"))
                        .filter(|name| !name.is_empty())
                        .and_then(names::dns_subdomain_problem)
                        .map(|problem| Cause::invalid(&format!("{path}.name"), &subject["name"], &problem)),
                );
                if !text("apiGroup").is_empty() {
                    causes.push(Cause::not_supported(
                        &format!("{path}.apiGroup"),
                        &subject["apiGroup"],
                        &[""],
                    ));
                }
                if text("namespace").is_empty() && !resource.namespaced() {
                    causes.push(Cause::required(&format!("{path}.namespace"), ""));
                }
            }
            "User" | "Group" => {
                if text("apiGroup") != GROUP {
                    causes.push(Cause::not_supported(
                        &format!("{path}.apiGroup"),
                        &subject["apiGroup"],
                        &[GROUP],
                    ));
                }
            }
            "" => {}
            _ => causes.push(Cause::not_supported(
                &format!("{path}.kind"),
                &subject["kind"],
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
    causes
}

pub(super) fn binding_update(binding: &Value, old: &Value) -> Vec<Cause> {
    if binding["roleRef"] == old["roleRef"] {
        Vec::new()
    } else {
        vec![Cause::invalid(
            "roleRef",
            &binding["roleRef"],
            "cannot change roleRef",
        )]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{refusals, update_refusals};

    #[test]
    fn rules_are_complete() {
        for (plural, rule, expected) in [
            (
                "roles",
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}),
                vec![],
            ),
            (
                "roles",
                json!({"apiGroups": [""], "resources": ["pods"]}),
                vec!["rules[0].verbs: Required value: verbs must contain at least one value"],
            ),
            (
                "roles",
                json!({"verbs": ["get"], "resources": ["pods"]}),
                vec!["rules[0].apiGroups: Required value: resource rules must supply at least one api group"],
            ),
            (
                "roles",
                json!({"verbs": ["get"], "nonResourceURLs": ["/a"]}),
                vec![
                    r#"rules[0].nonResourceURLs: Invalid value: ["/a"]: namespaced rules cannot apply to non-resource URLs"#,
                ],
            ),
        ] {
            assert_eq!(
                refusals(
                    "rbac.authorization.k8s.io",
                    "v1",
                    plural,
                    json!({"rules": [rule]})
                ),
                expected,
                "{rule}"
            );
        }
    }

    #[test]
    fn bindings_name_a_role_and_keep_it() {
        let binding = |kind: &str, name: &str| json!({"roleRef": {"kind": kind, "name": name}, "subjects": [{"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
        assert_eq!(
            refusals(
                "rbac.authorization.k8s.io",
                "v1",
                "clusterrolebindings",
                binding("Role", "r")
            ),
            [r#"roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole""#]
        );
        let text = update_refusals(
            "rbac.authorization.k8s.io",
            "v1",
            "rolebindings",
            binding("Role", "a"),
            binding("Role", "b"),
        );
        assert_eq!(
            text,
            [
                r#"roleRef: Invalid value: {"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"b"}: cannot change roleRef"#
            ]
        );
    }
}
