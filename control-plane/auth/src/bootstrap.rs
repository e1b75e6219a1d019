//! The default roles and bindings of a cluster, from a compact table.

use serde_json::{Value, json};

use crate::rbac::Rule;

const POLICY: &str = include_str!("data/bootstrap_policy.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

/// One object every cluster starts with; missing rules and subjects are added back at each start (reconciliation).
#[derive(Debug, Clone, PartialEq)]
pub struct BootstrapObject {
    /// `clusterroles`, `roles`, `clusterrolebindings` or `rolebindings`, all of rbac.authorization.k8s.io/v1.
    pub resource: &'static str,
    /// Empty for the cluster-scoped ones.
    pub namespace: String,
    pub name: String,
    pub object: Value,
}

/// In an order that can be created from top to bottom.
pub fn bootstrap_policy() -> Vec<BootstrapObject> {
    let mut objects: Vec<BootstrapObject> = Vec::new();
    for line in POLICY.lines().filter(|line| !line.starts_with('#')) {
        if let Some(rule) = line.strip_prefix("  ") {
            if let Some(rules) = objects
                .last_mut()
                .and_then(|role| role.object["rules"].as_array_mut())
            {
                rules.push(parse_rule(rule));
            }
        } else {
            objects.extend(parse_object(line));
        }
    }
    let for_controller_manager: Vec<_> = objects.iter().filter_map(controller_manager_binding).collect();
    objects.extend(for_controller_manager);
    objects
}

/// Our controllers share one client, so its user holds each controller's role (upstream: a controller manager that
/// runs without `--use-service-account-credentials` "must be granted all the relevant roles").
fn controller_manager_binding(object: &BootstrapObject) -> Option<BootstrapObject> {
    let controller = object.name.strip_prefix("system:controller:")?;
    if !object.resource.ends_with("bindings") {
        return None;
    }
    let mut copy = object.clone();
    copy.name = format!("ironlet:controller:{controller}");
    copy.object["metadata"]["name"] = json!(copy.name);
    copy.object["subjects"] =
        json!([{"apiGroup": GROUP, "kind": "User", "name": "system:kube-controller-manager"}]);
    Some(copy)
}

/// What every node may do, short of what the Node authorizer subdivides.
pub(crate) fn node_rules() -> Vec<Rule> {
    bootstrap_policy()
        .into_iter()
        .find(|object| object.resource == "clusterroles" && object.name == "system:node")
        .and_then(|mut object| serde_json::from_value(object.object["rules"].take()).ok())
        .unwrap_or_default()
}

fn list(text: &str) -> Vec<&str> {
    text.split(',').collect()
}

fn parse_rule(line: &str) -> Value {
    let mut words = line.split(' ');
    let verbs = list(words.next().unwrap_or_default());
    let words: Vec<&str> = words.collect();
    let Some((groups, resources)) = words.first().and_then(|word| word.split_once(':')) else {
        return json!({"nonResourceURLs": words, "verbs": verbs});
    };
    let groups: Vec<&str> = groups
        .split(',')
        .map(|group| if group == "core" { "" } else { group })
        .collect();
    let mut rule = json!({"apiGroups": groups, "resources": list(resources), "verbs": verbs});
    if let Some(names) = words.get(1).map(|names| names.trim_matches(['[', ']'])) {
        rule["resourceNames"] = json!(list(names));
    }
    rule
}

fn parse_object(line: &str) -> Option<BootstrapObject> {
    let mut words = line.split(' ');
    let kind = words.next()?;
    let resource = match kind {
        "ClusterRole" => "clusterroles",
        "Role" => "roles",
        "ClusterRoleBinding" => "clusterrolebindings",
        "RoleBinding" => "rolebindings",
        _ => return None,
    };
    let qualified = words.next()?;
    let (namespace, name) = qualified.split_once('/').unwrap_or(("", qualified));
    let mut object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name},
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    if !name.starts_with("kubeadm:") && !name.starts_with("ironlet:") {
        object["metadata"]["labels"] = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
        object["metadata"]["annotations"] = json!({"rbac.authorization.kubernetes.io/autoupdate": "true"});
    }
    if resource.ends_with("bindings") {
        let (kind, name) = words.next()?.split_once(':')?;
        object["roleRef"] = json!({"apiGroup": GROUP, "kind": kind, "name": name});
        let subjects: Vec<Value> = words.filter_map(parse_subject).collect();
        if !subjects.is_empty() {
            object["subjects"] = json!(subjects);
        }
    } else {
        object["rules"] = json!([]);
        for word in words {
            if let Some(label) = word.strip_prefix('+') {
                object["metadata"]["labels"][format!("{GROUP}/{label}")] = json!("true");
            } else if let Some(label) = word.strip_prefix('=') {
                let selector = json!({"matchLabels": {format!("{GROUP}/{label}"): "true"}});
                object["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
            }
        }
    }
    Some(BootstrapObject {
        resource,
        namespace: namespace.into(),
        name: name.into(),
        object,
    })
}

fn parse_subject(word: &str) -> Option<Value> {
    let (kind, name) = word.split_once(':')?;
    Some(match name.split_once('/') {
        Some((namespace, name)) if kind == "ServiceAccount" => {
            json!({"kind": kind, "name": name, "namespace": namespace})
        }
        _ => json!({"apiGroup": GROUP, "kind": kind, "name": name}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(resource: &str, name: &str) -> Value {
        let found = bootstrap_policy()
            .into_iter()
            .find(|o| o.resource == resource && o.name == name);
        found
            .unwrap_or_else(|| panic!("{resource} {name} is missing"))
            .object
    }

    #[test]
    fn every_line_becomes_an_object_or_a_rule() {
        let objects = bootstrap_policy();
        let lines = POLICY.lines().filter(|line| !line.starts_with('#')).count();
        let objects: Vec<_> = objects
            .into_iter()
            .filter(|object| !object.name.starts_with("ironlet:controller:"))
            .collect();
        let rules: usize = objects
            .iter()
            .filter_map(|o| o.object["rules"].as_array())
            .map(Vec::len)
            .sum();
        assert_eq!(objects.len() + rules, lines);
        for resource in ["clusterroles", "roles", "clusterrolebindings", "rolebindings"] {
            assert!(
                objects.iter().any(|object| object.resource == resource),
                "{resource}"
            );
        }
    }

    #[test]
    fn every_binding_refers_to_a_role_that_exists() {
        let objects = bootstrap_policy();
        for binding in objects
            .iter()
            .filter(|object| object.resource.ends_with("bindings"))
        {
            let role = &binding.object["roleRef"];
            let (resource, namespace) = match role["kind"].as_str() {
                Some("ClusterRole") => ("clusterroles", ""),
                _ => ("roles", binding.namespace.as_str()),
            };
            let exists = objects.iter().any(|o| {
                o.resource == resource && o.namespace == namespace && role["name"] == o.name.as_str()
            });
            assert!(exists, "{} refers to {role}", binding.name);
        }
    }

    #[test]
    fn objects_have_upstreams_shape() {
        assert_eq!(
            find("clusterroles", "cluster-admin"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {
                    "name": "cluster-admin",
                    "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
                    "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
                },
                "rules": [
                    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
                    {"nonResourceURLs": ["*"], "verbs": ["*"]},
                ],
            })
        );
        assert_eq!(
            find("rolebindings", "system:controller:token-cleaner")["subjects"],
            json!([{"kind": "ServiceAccount", "name": "token-cleaner", "namespace": "kube-system"}])
        );
        let view = find("clusterroles", "view");
        assert_eq!(
            view["aggregationRule"]["clusterRoleSelectors"][0]["matchLabels"],
            json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"})
        );
        let signer = find("roles", "kubeadm:bootstrap-signer-clusterinfo");
        assert_eq!(signer["rules"][0]["resourceNames"], json!(["cluster-info"]));
        assert!(!node_rules().is_empty());
    }
}
