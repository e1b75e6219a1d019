//! What upstream advises against and accepts all the same: the texts of `Warning` headers
//! (`WarningsOnCreate` and `WarningsOnUpdate` of its strategies).

mod pod;
mod service;

use serde_json::Value;

use crate::Resource;
use crate::quantity::Quantity;
use crate::validate::names::dns_label_problem;

const REVISIONS: &str = "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended";
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// Node labels that have another name now.
const OLD_NODE_LABELS: [(&str, &str); 8] = [
    (
        "beta.kubernetes.io/arch",
        "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
    ),
    (
        "beta.kubernetes.io/os",
        "deprecated since v1.14; use \"kubernetes.io/os\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    (
        "node-role.kubernetes.io/master",
        "use \"node-role.kubernetes.io/control-plane\" instead",
    ),
];

/// On using this version of this kind at all (upstream: `k8s.io/apiserver/pkg/endpoints/deprecation`).
pub fn of_use(resource: &Resource) -> Option<String> {
    if let Some(custom) = &resource.kind.custom {
        return custom.deprecation.clone();
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+".into()),
        ("", "endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into())
        }
        _ => None,
    }
}

pub fn of_creation(resource: &Resource, object: &Value) -> Vec<String> {
    let kind = (resource.group.as_str(), resource.plural.as_str());
    let whose = match kind {
        ("", "pods") => Some("the Pod's hostname"),
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets")
        | ("batch", "jobs" | "cronjobs") => Some("Pod names and hostnames"),
        _ => None,
    };
    let name = text(object, "/metadata/name");
    let problem = whose.and_then(|whose| Some((whose, dns_label_problem(name)?)));
    let mut found: Vec<String> = problem
        .map(|(whose, problem)| {
            format!(
                "metadata.name: this is used in {whose}, which can result in surprising behavior; a DNS label is recommended: [{problem}]"
            )
        })
        .into_iter()
        .collect();
    found.extend(of_template(kind, object));
    found.extend(of_fields(kind, object));
    found
}

pub fn of_update(resource: &Resource, object: &Value, old: &Value) -> Vec<String> {
    let kind = (resource.group.as_str(), resource.plural.as_str());
    let is_changed = object["metadata"]["generation"] != old["metadata"]["generation"];
    // Pods are changed often, and seldom by people.
    let mut found = if is_changed && kind != ("", "pods") {
        of_template(kind, object)
    } else {
        Vec::new()
    };
    found.extend(of_fields(kind, object));
    found
}

fn of_template(kind: (&str, &str), object: &Value) -> Vec<String> {
    let path = match kind {
        ("", "pods") => "",
        ("", "podtemplates") => "template",
        ("", "replicationcontrollers") | ("apps", _) | ("batch", "jobs") => "spec.template",
        ("batch", "cronjobs") => "spec.jobTemplate.spec.template",
        _ => return Vec::new(),
    };
    let template = match path {
        "" => Some(object),
        path => object.pointer(&format!("/{}", path.replace('.', "/"))),
    };
    template.map_or_else(Vec::new, |template| pod::of_template(path, template))
}

fn of_fields(kind: (&str, &str), object: &Value) -> Vec<String> {
    match kind {
        ("", "services") => service::of(object),
        ("", "persistentvolumeclaims") => {
            let mut found = old_class(object);
            found.extend(of_claim("spec", &object["spec"]));
            found
        }
        ("", "persistentvolumes") => old_class(object),
        ("apps", "statefulsets") => {
            let claims = items(&object["spec"]["volumeClaimTemplates"]);
            let of_claims = |(i, claim): (usize, &Value)| {
                of_claim(&format!("spec.volumeClaimTemplates[{i}]"), &claim["spec"])
            };
            let mut found: Vec<String> = claims.flat_map(of_claims).collect();
            let limit = object["spec"]["revisionHistoryLimit"].as_i64();
            found.extend(limit.is_some_and(|limit| limit < 0).then(|| REVISIONS.to_owned()));
            found
        }
        ("node.k8s.io", "runtimeclasses") => {
            let selector = object
                .pointer("/scheduling/nodeSelector")
                .and_then(Value::as_object);
            let old = selector
                .into_iter()
                .flatten()
                .filter_map(|(key, _)| old_node_label(key));
            old.map(|advice| format!("scheduling.nodeSelector: {advice}"))
                .collect()
        }
        _ => Vec::new(),
    }
}

fn old_class(object: &Value) -> Vec<String> {
    let has_it = object["metadata"]["annotations"].get(CLASS_ANNOTATION).is_some();
    let advice = || {
        format!(
            "metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
        )
    };
    has_it.then(advice).into_iter().collect()
}

fn of_claim(path: &str, spec: &Value) -> Vec<String> {
    ["requests", "limits"]
        .into_iter()
        .filter_map(|list| {
            let path = format!("{path}.resources.{list}");
            fraction(&path, "storage", &spec["resources"][list])
        })
        .collect()
}

/// Of bytes there are no halves.
fn fraction(path: &str, resource: &str, list: &Value) -> Option<String> {
    let amount = list.get(resource)?.as_str()?;
    let is_whole = Quantity::parse(amount)?.is_whole();
    (!is_whole).then(|| {
        format!("{path}[{resource}]: fractional byte value \"{amount}\" is invalid, must be an integer")
    })
}

fn old_node_label(key: &str) -> Option<&'static str> {
    OLD_NODE_LABELS
        .iter()
        .find_map(|(old, advice)| (*old == key).then_some(*advice))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn items(list: &Value) -> impl Iterator<Item = (usize, &Value)> {
    list.as_array().into_iter().flatten().enumerate()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalog;
    use serde_json::json;

    fn told(group: &str, plural: &str, object: &Value) -> Vec<String> {
        let catalog = Catalog::builtin();
        let found = catalog.resource(group, "v1", plural);
        of_creation(found.unwrap(), object)
    }

    #[test]
    fn kinds_have_their_own_advice() {
        let dotted =
            "which can result in surprising behavior; a DNS label is recommended: [must not contain dots]";
        let template =
            json!({"metadata": {"annotations": {"security.alpha.kubernetes.io/sysctls": ""}}, "spec": {}});
        let cases = [
            (
                ("", "pods"),
                json!({"metadata": {"name": "a.b"}}),
                vec![format!("metadata.name: this is used in the Pod's hostname, {dotted}")],
            ),
            (
                ("apps", "deployments"),
                json!({"metadata": {"name": "a.b"}, "spec": {"template": template}}),
                vec![
                    format!("metadata.name: this is used in Pod names and hostnames, {dotted}"),
                    "spec.template.metadata.annotations[security.alpha.kubernetes.io/sysctls]: non-functional in v1.11+; use the \"sysctls\" field instead".into(),
                ],
            ),
            (
                ("apps", "statefulsets"),
                json!({"metadata": {"name": "a"}, "spec": {"revisionHistoryLimit": -1, "volumeClaimTemplates": [
                    {"spec": {"resources": {"requests": {"storage": "500m"}}}}]}}),
                vec![
                    "spec.volumeClaimTemplates[0].resources.requests[storage]: fractional byte value \"500m\" is invalid, must be an integer".into(),
                    REVISIONS.into(),
                ],
            ),
            (
                ("", "persistentvolumes"),
                json!({"metadata": {"name": "a.b", "annotations": {CLASS_ANNOTATION: "fast"}}}),
                vec!["metadata.annotations[volume.beta.kubernetes.io/storage-class]: deprecated since v1.8; use \"storageClassName\" attribute instead".into()],
            ),
            (
                ("node.k8s.io", "runtimeclasses"),
                json!({"metadata": {"name": "a"}, "scheduling": {"nodeSelector": {"beta.kubernetes.io/os": "linux"}}}),
                vec!["scheduling.nodeSelector: deprecated since v1.14; use \"kubernetes.io/os\" instead".into()],
            ),
            (("", "configmaps"), json!({"metadata": {"name": "a.b"}}), vec![]),
        ];
        for ((group, plural), object, expected) in cases {
            assert_eq!(told(group, plural, &object), expected, "{plural}");
        }
    }

    #[test]
    fn changes_are_looked_at_once_they_count() {
        let catalog = Catalog::builtin();
        let of = |group, plural, generation| {
            let resource = catalog.resource(group, "v1", plural).unwrap();
            let body = json!({"terminationGracePeriodSeconds": -1});
            let spec = if plural == "pods" {
                body
            } else {
                json!({"template": {"spec": body}})
            };
            let object = json!({"metadata": {"name": "a.b", "generation": generation}, "spec": spec});
            of_update(resource, &object, &json!({"metadata": {"generation": 1}})).len()
        };
        assert_eq!(of("apps", "deployments", 2), 1);
        assert_eq!(of("apps", "deployments", 1), 0);
        assert_eq!(of("", "pods", 2), 0);
    }
}
