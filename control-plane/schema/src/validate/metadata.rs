//! Object metadata: names by kind, labels, annotations, owners, and what an update may not change.

use serde_json::{Value, json};

use super::cause::Cause;
use super::names;
use crate::catalog::Resource;

const MAX_ANNOTATIONS: usize = 256 * 1024;
const IMMUTABLE: &str = "field is immutable";

pub(super) fn create(resource: &Resource, object: &Value) -> Vec<Cause> {
    let metadata = &object["metadata"];
    let text = |key: &str| metadata[key].as_str().unwrap_or_default();
    let mut causes = Vec::new();
    let check_name = name_check(resource);
    if !text("generateName").is_empty() {
        // The suffix makes a trailing hyphen legal.
        let prefix = text("generateName").trim_end_matches('-');
        if let Some(problem) = check_name(if prefix.is_empty() { "-" } else { prefix }) {
            causes.push(Cause::invalid(
                "metadata.generateName",
                &metadata["generateName"],
                &problem,
            ));
        }
    }
    if text("name").is_empty() {
        causes.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else if let Some(problem) = check_name(text("name")) {
        causes.push(Cause::invalid("metadata.name", &metadata["name"], &problem));
    }
    if !resource.namespaced() && !text("namespace").is_empty() {
        causes.push(Cause::forbidden("metadata.namespace", "not allowed on this type"));
    } else if resource.namespaced() {
        match text("namespace") {
            "" => causes.push(Cause::required("metadata.namespace", "")),
            namespace => causes.extend(
                names::dns_label_problem(namespace)
                    .map(|problem| Cause::invalid("metadata.namespace", &metadata["namespace"], &problem)),
            ),
        }
    }
    causes.extend(shared(metadata, "metadata"));
    causes.extend(finalizer_names(resource, metadata));
    causes
}

pub(super) fn update(resource: &Resource, object: &Value, old: &Value) -> Vec<Cause> {
    let (metadata, before) = (&object["metadata"], &old["metadata"]);
    let mut causes = Vec::new();
    if metadata["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .is_empty()
    {
        causes.push(Cause::invalid(
            "metadata.resourceVersion",
            &json!(0),
            "must be specified for an update",
        ));
    }
    let frozen: &[&str] = if resource.namespaced() {
        &["name", "namespace", "uid", "creationTimestamp"]
    } else {
        &["name", "uid", "creationTimestamp"]
    };
    for key in frozen {
        if metadata[*key] != before[*key] {
            causes.push(Cause::invalid(
                &format!("metadata.{key}"),
                &metadata[*key],
                IMMUTABLE,
            ));
        }
    }
    let finalizers = |metadata: &Value| metadata["finalizers"].as_array().cloned().unwrap_or_default();
    if !before["deletionTimestamp"].is_null() {
        let kept = finalizers(before);
        let added: Vec<Value> = finalizers(metadata)
            .into_iter()
            .filter(|name| !kept.contains(name))
            .collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {}",
                json!(added)
            );
            causes.push(Cause::forbidden("metadata.finalizers", &detail));
        }
    }
    causes.extend(shared(metadata, "metadata"));
    causes.extend(finalizer_names(resource, metadata));
    causes
}

/// Labels, annotations, owners and finalizers of an object or a template at `path`.
pub(super) fn shared(metadata: &Value, path: &str) -> Vec<Cause> {
    let mut causes = labels(&metadata["labels"], &format!("{path}.labels"));
    let field = format!("{path}.annotations");
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        causes.extend(
            names::qualified_name_problem(&key.to_lowercase())
                .map(|problem| Cause::invalid(&field, &json!(key), &problem)),
        );
    }
    if size > MAX_ANNOTATIONS {
        causes.push(Cause::too_long(&field, MAX_ANNOTATIONS));
    }
    let mut controllers: Vec<String> = Vec::new();
    for (index, owner) in metadata["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let field = format!("{path}.ownerReferences[{index}]");
        for (key, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if owner[key].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::invalid(&format!("{field}.{key}"), &json!(""), detail));
            }
        }
        if owner["controller"] == true {
            controllers.push(format!(
                "{}/{}",
                owner["kind"].as_str().unwrap_or_default(),
                owner["name"].as_str().unwrap_or_default()
            ));
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        causes.push(Cause::invalid(
            &format!("{path}.ownerReferences"),
            &metadata["ownerReferences"],
            &detail,
        ));
    }
    for (index, finalizer) in metadata["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let problem = names::qualified_name_problem(finalizer.as_str().unwrap_or_default());
        causes.extend(
            problem
                .map(|problem| Cause::invalid(&format!("{path}.finalizers[{index}]"), finalizer, &problem)),
        );
    }
    causes
}

/// Finalizers of Kubernetes' own kinds are the standard ones or name their domain.
fn finalizer_names(resource: &Resource, metadata: &Value) -> Vec<Cause> {
    if resource.kind.custom.is_some() || resource.group == "apiextensions.k8s.io" {
        return Vec::new();
    }
    let unqualified =
        |name: &str| !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion");
    let given = metadata["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate();
    let detail = "name is neither a standard finalizer name nor is it fully qualified";
    given
        .filter(|(_, name)| name.as_str().is_some_and(unqualified))
        .map(|(index, name)| Cause::invalid(&format!("metadata.finalizers[{index}]"), name, detail))
        .collect()
}

/// A map of labels; the field is the map's, the value what is wrong in it.
pub(super) fn labels(labels: &Value, field: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        causes.extend(
            names::qualified_name_problem(key).map(|problem| Cause::invalid(field, &json!(key), &problem)),
        );
        causes.extend(
            names::label_value_problem(value.as_str().unwrap_or_default())
                .map(|problem| Cause::invalid(field, value, &problem)),
        );
    }
    causes
}

fn name_check(resource: &Resource) -> fn(&str) -> Option<String> {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "namespaces" | "services") | ("apps", "statefulsets") => names::dns_label_problem,
        ("rbac.authorization.k8s.io" | "flowcontrol.apiserver.k8s.io" | "apiregistration.k8s.io", _) => {
            names::path_segment_problem
        }
        ("networking.k8s.io", "ipaddresses") => |name| match name.parse::<std::net::IpAddr>() {
            Ok(address) if address.to_string() == name => None,
            Ok(_) => Some("must be a canonical IP address".to_owned()),
            Err(_) => Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()),
        },
        _ => names::dns_subdomain_problem,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{refusals, update_refusals};

    #[test]
    fn names_follow_the_kind() {
        for (group, plural, name, good) in [
            ("", "configmaps", "a.b", true),
            ("", "configmaps", "A", false),
            ("", "namespaces", "a.b", false),
            ("", "services", "1a", true),
            ("", "services", "a.b", false),
            ("", "services", "a1", true),
            ("rbac.authorization.k8s.io", "clusterroles", "system:a", true),
            ("rbac.authorization.k8s.io", "clusterroles", "a/b", false),
        ] {
            let object = if plural == "services" {
                json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 1}]}})
            } else {
                json!({"metadata": {"name": name}})
            };
            assert_eq!(
                refusals(group, "v1", plural, object).is_empty(),
                good,
                "{plural} {name}"
            );
        }
        let text = refusals("", "v1", "configmaps", json!({"metadata": {"name": "A"}})).concat();
        assert!(
            text.starts_with(
                "metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of"
            ),
            "{text}"
        );
    }

    #[test]
    fn labels_annotations_and_owners() {
        let text = refusals(
            "",
            "v1",
            "configmaps",
            json!({"metadata": {"labels": {"a b": "c", "ok": "-x"}, "annotations": {"x/y/z": ""},
            "ownerReferences": [{"apiVersion": "v1", "kind": "", "name": "n", "uid": "u"}]}}),
        );
        assert_eq!(text.len(), 4, "{text:?}");
        assert!(text[0].starts_with("metadata.labels: Invalid value: \"a b\": name part must consist of"));
        assert!(text[1].starts_with("metadata.labels: Invalid value: \"-x\": a valid label must be"));
        assert_eq!(
            text[3],
            "metadata.ownerReferences[0].kind: Invalid value: \"\": must not be empty"
        );
    }

    #[test]
    fn identity_does_not_change() {
        let text = update_refusals(
            "",
            "v1",
            "configmaps",
            json!({"metadata": {"name": "a"}}),
            json!({"metadata": {"name": "b"}}),
        );
        assert_eq!(text, [r#"metadata.name: Invalid value: "b": field is immutable"#]);
        let deleting =
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a.b/c"]}});
        let mut more = deleting.clone();
        more["metadata"]["finalizers"] = json!(["a.b/c", "a.b/d"]);
        assert_eq!(
            update_refusals("", "v1", "configmaps", deleting.clone(), more).len(),
            1
        );
        assert!(
            update_refusals(
                "",
                "v1",
                "configmaps",
                deleting,
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
            )
            .is_empty()
        );
    }
}
