//! On pods and their templates (upstream: `pkg/api/pod/warnings.go`).

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{fraction, items, of_claim, old_node_label, text};

const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_OF_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_FIELD: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
const APPARMOR_FIELD: &str = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
const OLD_VOLUMES: [(&str, &str); 9] = [
    (
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
    ("gitRepo", "deprecated in v1.11"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// `path` is where the template is in its object; empty: a pod itself.
pub fn of_template(path: &str, template: &Value) -> Vec<String> {
    let advisor = Advisor {
        at: if path.is_empty() {
            String::new()
        } else {
            format!("{path}.")
        },
        annotations: &template["metadata"]["annotations"],
        spec: &template["spec"],
    };
    [
        advisor.placement(),
        advisor.annotations(),
        advisor.volumes(),
        advisor.duplicates(),
        advisor.containers(),
        advisor.ports(),
    ]
    .concat()
}

struct Advisor<'a> {
    at: String,
    annotations: &'a Value,
    spec: &'a Value,
}

impl<'a> Advisor<'a> {
    fn containers_with_paths(&self) -> impl Iterator<Item = (String, &'a Value)> {
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|list| items(&self.spec[list]).map(move |(i, container)| (list, i, container)))
            .map(|(list, i, container)| (format!("{}spec.{list}[{i}]", self.at), container))
    }

    fn placement(&self) -> Vec<String> {
        let (at, spec) = (&self.at, self.spec);
        let selector = spec["nodeSelector"].as_object().into_iter().flatten();
        let mut found: Vec<String> = selector
            .filter_map(|(key, _)| Some(format!("{at}spec.nodeSelector[{key}]: {}", old_node_label(key)?)))
            .collect();
        let affinity = &spec["affinity"];
        let node = format!("{at}spec.affinity.nodeAffinity");
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in items(&affinity["nodeAffinity"][required]["nodeSelectorTerms"]) {
            let path = format!("{node}.{required}.nodeSelectorTerms[{i}]");
            found.extend(old_labels_of_term(&path, term));
        }
        for (i, term) in items(&affinity["nodeAffinity"][preferred]) {
            let path = format!("{node}.{preferred}[{i}].preference");
            found.extend(old_labels_of_term(&path, &term["preference"]));
        }
        for (i, constraint) in items(&spec["topologySpreadConstraints"]) {
            let path = format!("{at}spec.topologySpreadConstraints[{i}]");
            let key = text(constraint, "/topologyKey");
            found.extend(old_node_label(key).map(|advice| format!("{path}.topologyKey: {key} is {advice}")));
            found.extend(without_selector(&format!("{path}.labelSelector"), constraint));
        }
        for kind in ["podAffinity", "podAntiAffinity"] {
            let path = format!("{at}spec.affinity.{kind}");
            for (i, term) in items(&affinity[kind][required]) {
                found.extend(without_selector(
                    &format!("{path}.{required}[{i}].labelSelector"),
                    term,
                ));
            }
            for (i, term) in items(&affinity[kind][preferred]) {
                let path = format!("{path}.{preferred}[{i}].podAffinityTerm.labelSelector");
                found.extend(without_selector(&path, &term["podAffinityTerm"]));
            }
        }
        let grace = spec["terminationGracePeriodSeconds"].as_i64();
        found.extend(grace.is_some_and(|seconds| seconds < 0).then(|| {
            format!(
                "{at}spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
            )
        }));
        found
    }

    fn annotation(&self, key: &str, advice: &str) -> Option<String> {
        self.annotations
            .get(key)
            .map(|_| format!("{}metadata.annotations[{key}]: {advice}", self.at))
    }

    fn annotations(&self) -> Vec<String> {
        let old = OLD_ANNOTATIONS
            .iter()
            .filter_map(|(key, advice)| self.annotation(key, advice));
        let mut found: Vec<String> = old.collect();
        if self.spec.pointer("/securityContext/seccompProfile").is_none() {
            found.extend(self.annotation(SECCOMP_OF_POD, SECCOMP_FIELD));
        }
        found
    }

    fn volumes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (i, volume) in items(&self.spec["volumes"]) {
            let path = format!("{}spec.volumes[{i}]", self.at);
            let old = OLD_VOLUMES.iter().filter(|(kind, _)| volume.get(kind).is_some());
            found.extend(old.map(|(kind, advice)| format!("{path}.{}: {advice}", field_name(kind))));
            if let Some(claim) = volume.pointer("/ephemeral/volumeClaimTemplate") {
                let path = format!("{path}.ephemeral.volumeClaimTemplate.spec");
                found.extend(of_claim(&path, &claim["spec"]));
            }
        }
        found.extend(self.paths_of_tokens());
        found
    }

    /// What else a projected volume puts where it has a token.
    fn paths_of_tokens(&self) -> Vec<String> {
        let sources = |volume: &'a Value| items(&volume["projected"]["sources"]).map(|(_, source)| source);
        let volumes = || items(&self.spec["volumes"]);
        let tokens: HashSet<&str> = volumes()
            .flat_map(|(_, volume)| sources(volume))
            .filter_map(|source| source.pointer("/serviceAccountToken/path")?.as_str())
            .collect();
        let mut found = Vec::new();
        for (i, volume) in volumes() {
            for source in sources(volume) {
                for (kind, shown) in [
                    ("configMap", "configMap"),
                    ("secret", "secrets"),
                    ("downwardAPI", "downwardAPI"),
                ] {
                    for (j, item) in items(&source[kind]["items"]) {
                        let path = text(item, "/path");
                        found.extend(tokens.contains(path).then(|| {
                            format!(
                                "{}spec.volumes[{i}].projected.sources.{shown}[{j}]: has duplicated path with ServiceAccountToken \"{path}\"",
                                self.at
                            )
                        }));
                    }
                }
            }
        }
        found
    }

    fn duplicates(&self) -> Vec<String> {
        let (at, spec) = (&self.at, self.spec);
        let mut found = Vec::new();
        for (list, field) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
            let mut seen = HashSet::new();
            for (i, item) in items(&spec[list]) {
                let value = item[field].as_str().unwrap_or_default();
                let is_new = seen.insert(value);
                let advice = match list {
                    "imagePullSecrets" if value.is_empty() => format!("invalid empty name {value:?}"),
                    _ if is_new => continue,
                    _ => format!("duplicate {field} {value:?}"),
                };
                found.push(format!("{at}spec.{list}[{i}].{field}: {advice}"));
            }
        }
        for resource in ["memory", "ephemeral-storage"] {
            found.extend(fraction(
                &format!("{at}spec.overhead"),
                resource,
                &spec["overhead"],
            ));
        }
        found
    }

    fn containers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let pod_apparmor = self.spec.pointer("/securityContext/appArmorProfile").is_some();
        for (path, container) in self.containers_with_paths() {
            let name = text(container, "/name");
            if container.pointer("/securityContext/seccompProfile").is_none() {
                found.extend(self.annotation(&format!("{SECCOMP_OF_CONTAINER}{name}"), SECCOMP_FIELD));
            }
            let has_apparmor =
                pod_apparmor || container.pointer("/securityContext/appArmorProfile").is_some();
            // Of a pod itself the annotation has become the field.
            if !self.at.is_empty() && !has_apparmor {
                found.extend(self.annotation(&format!("{APPARMOR_OF_CONTAINER}{name}"), APPARMOR_FIELD));
            }
            for resource in ["memory", "ephemeral-storage"] {
                for list in ["limits", "requests"] {
                    let amounts = &container["resources"][list];
                    found.extend(fraction(&format!("{path}.resources.{list}"), resource, amounts));
                }
            }
            found.extend(hidden_variables(&path, container));
        }
        found
    }

    fn ports(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut known: HashMap<(i64, &str), Vec<(String, &str, i64)>> = HashMap::new();
        for (path, container) in self.containers_with_paths() {
            for (i, port) in items(&container["ports"]) {
                let path = format!("{path}.ports[{i}]");
                let address = text(port, "/hostIP");
                let host = port["hostPort"].as_i64().unwrap_or_default();
                let protocol = text(port, "/protocol");
                let others = known
                    .entry((port["containerPort"].as_i64().unwrap_or_default(), protocol))
                    .or_default();
                for (other, other_address, other_host) in others.iter() {
                    let how = if address == *other_address && host == *other_host {
                        "duplicate"
                    } else if host == 0 || *other_host == 0 {
                        "overlapping"
                    } else if host == *other_host && address.is_empty() != other_address.is_empty() {
                        "dangerously ambiguous"
                    } else {
                        continue;
                    };
                    found.push(format!("{path}: {how} port definition with {other}"));
                }
                others.push((path, address, host));
            }
        }
        found
    }
}

/// As upstream's field paths spell it.
fn field_name(volume: &str) -> &str {
    match volume {
        "storageos" => "storageOS",
        name => name,
    }
}

fn without_selector(path: &str, term: &Value) -> Option<String> {
    term.get("labelSelector")
        .is_none_or(Value::is_null)
        .then(|| format!("{path}: {NULL_SELECTOR}"))
}

fn old_labels_of_term(path: &str, term: &Value) -> Vec<String> {
    items(&term["matchExpressions"])
        .filter_map(|(i, expression)| {
            let key = text(expression, "/key");
            let advice = old_node_label(key)?;
            Some(format!("{path}.matchExpressions[{i}].key: {key} is {advice}"))
        })
        .collect()
}

/// A variable set twice is one when applied, unless the second is made of the first.
fn hidden_variables(path: &str, container: &Value) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for (i, variable) in items(&container["env"]) {
        let (name, value) = (text(variable, "/name"), text(variable, "/value"));
        let reference = format!("$({name})");
        let extends = value != reference && value.contains(&reference) && variable.get("valueFrom").is_none();
        if !seen.insert(name) && !extends {
            found.push(format!(
                "{path}.env[{i}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_odd_is_said_where_it_is() {
        let cases = [
            (json!({"containers": [{"name": "c"}]}), vec![]),
            (
                json!({"nodeSelector": {"beta.kubernetes.io/arch": "amd64"}}),
                vec![
                    "spec.nodeSelector[beta.kubernetes.io/arch]: deprecated since v1.14; use \"kubernetes.io/arch\" instead",
                ],
            ),
            (
                json!({"topologySpreadConstraints": [{"topologyKey": "zone"}]}),
                vec![
                    "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
                ],
            ),
            (
                json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"podAffinityTerm": {}}]}}}),
                vec![
                    "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod",
                ],
            ),
            (
                json!({"volumes": [{"name": "v", "gitRepo": {}}, {"name": "w", "storageos": {}}]}),
                vec![
                    "spec.volumes[0].gitRepo: deprecated in v1.11",
                    "spec.volumes[1].storageOS: deprecated in v1.22, non-functional in v1.25+",
                ],
            ),
            (
                json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}},
                    {"configMap": {"items": [{"path": "t"}]}}]}}]}),
                vec![
                    "spec.volumes[0].projected.sources.configMap[0]: has duplicated path with ServiceAccountToken \"t\"",
                ],
            ),
            (
                json!({"hostAliases": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.1"}], "imagePullSecrets": [{}, {"name": "a"}, {"name": "a"}]}),
                vec![
                    "spec.hostAliases[1].ip: duplicate ip \"1.1.1.1\"",
                    "spec.imagePullSecrets[0].name: invalid empty name \"\"",
                    "spec.imagePullSecrets[2].name: duplicate name \"a\"",
                ],
            ),
            (
                json!({"containers": [{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}, {"name": "A", "value": "3"}],
                    "resources": {"limits": {"memory": "1500m"}}}]}),
                vec![
                    "spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" is invalid, must be an integer",
                    "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
                ],
            ),
            (
                json!({"initContainers": [{"ports": [{"containerPort": 80, "protocol": "TCP"}]}],
                    "containers": [{"ports": [{"containerPort": 80, "protocol": "TCP", "hostPort": 8080}, {"containerPort": 80, "protocol": "UDP"}]}]}),
                vec![
                    "spec.containers[0].ports[0]: overlapping port definition with spec.initContainers[0].ports[0]",
                ],
            ),
            (
                json!({"terminationGracePeriodSeconds": -1}),
                vec![
                    "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
                ],
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(of_template("", &json!({"metadata": {}, "spec": spec})), expected);
        }
    }

    #[test]
    fn annotations_give_way_to_fields() {
        let annotations = json!({SECCOMP_OF_POD: "x", format!("{APPARMOR_OF_CONTAINER}c"): "unconfined"});
        let with = |context: Value| json!({"metadata": {"annotations": annotations}, "spec": {"securityContext": context, "containers": [{"name": "c"}]}});
        let found = of_template("spec.template", &with(json!({})));
        assert_eq!(
            found,
            [
                format!("spec.template.metadata.annotations[{SECCOMP_OF_POD}]: {SECCOMP_FIELD}"),
                format!("spec.template.metadata.annotations[{APPARMOR_OF_CONTAINER}c]: {APPARMOR_FIELD}"),
            ]
        );
        let profiles =
            json!({"seccompProfile": {"type": "Unconfined"}, "appArmorProfile": {"type": "Unconfined"}});
        assert!(of_template("spec.template", &with(profiles)).is_empty());
    }
}
