//! Pod specs: what takes more than one field to judge, and what an update may change.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::cause::Cause;
use super::names;
use crate::quantity::Quantity;

const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

fn items<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object[key].as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn create_only(pod: &Value) -> Vec<Cause> {
    if items(&pod["spec"], "ephemeralContainers").is_empty() {
        Vec::new()
    } else {
        vec![Cause::forbidden(
            "spec.ephemeralContainers",
            "cannot be set on create",
        )]
    }
}

pub(super) fn spec(spec: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    let volumes: HashSet<&str> = items(spec, "volumes")
        .iter()
        .filter_map(|volume| volume["name"].as_str())
        .collect();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        causes.extend(one_of(
            volume,
            &["name"],
            &format!("{path}.volumes[{index}]"),
            "may not specify more than 1 volume type",
            "must specify a volume type",
        ));
    }
    for list in CONTAINER_LISTS {
        for (index, container) in items(spec, list).iter().enumerate() {
            causes.extend(self::container(
                container,
                &format!("{path}.{list}[{index}]"),
                &volumes,
            ));
            causes.extend(sleeps(
                container,
                spec,
                &format!("{path}.{list}[{index}].lifecycle"),
            ));
        }
    }
    let regular: HashSet<&str> = items(spec, "containers")
        .iter()
        .filter_map(|container| container["name"].as_str())
        .collect();
    for (index, container) in items(spec, "initContainers").iter().enumerate() {
        if container["name"]
            .as_str()
            .is_some_and(|name| regular.contains(name))
        {
            causes.push(Cause::duplicate(
                &format!("{path}.initContainers[{index}].name"),
                &container["name"],
            ));
        }
    }
    for (index, toleration) in items(spec, "tolerations").iter().enumerate() {
        causes.extend(self::toleration(
            toleration,
            &format!("{path}.tolerations[{index}]"),
        ));
    }
    if spec["hostNetwork"] == true {
        for (index, container) in items(spec, "containers").iter().enumerate() {
            for (port_index, port) in items(container, "ports").iter().enumerate() {
                if port.get("hostPort").is_some() && port["hostPort"] != port["containerPort"] {
                    let field = format!("{path}.containers[{index}].ports[{port_index}].containerPort");
                    causes.push(Cause::invalid(
                        &field,
                        &port["containerPort"],
                        "must match `hostPort` when `hostNetwork` is true",
                    ));
                }
            }
        }
    }
    causes
}

fn container(container: &Value, path: &str, volumes: &HashSet<&str>) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (index, variable) in items(container, "env").iter().enumerate() {
        let field = format!("{path}.env[{index}].valueFrom");
        if let Some(source) = variable.get("valueFrom") {
            if variable["value"].as_str().is_some_and(|value| !value.is_empty()) {
                causes.push(Cause::invalid(
                    &field,
                    &json!(""),
                    "may not be specified when `value` is not empty",
                ));
            } else {
                let none = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
                match source.as_object().map_or(0, Map::len) {
                    0 => causes.push(Cause::invalid(&field, &json!(""), none)),
                    1 => {}
                    _ => causes.push(Cause::invalid(
                        &field,
                        &json!(""),
                        "may not have more than one field specified at a time",
                    )),
                }
            }
        }
    }
    for (list, name) in [("volumeMounts", "name"), ("volumeDevices", "name")] {
        for (index, mount) in items(container, list).iter().enumerate() {
            if mount[name]
                .as_str()
                .is_some_and(|name| !name.is_empty() && !volumes.contains(name))
            {
                causes.push(Cause::not_found(
                    &format!("{path}.{list}[{index}].name"),
                    &mount[name],
                ));
            }
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(value) = container.get(probe) else {
            continue;
        };
        let field = format!("{path}.{probe}");
        causes.extend(handler(value, &field));
        if probe != "readinessProbe"
            && value["successThreshold"]
                .as_i64()
                .is_some_and(|threshold| threshold > 1)
        {
            causes.push(Cause::invalid(
                &format!("{field}.successThreshold"),
                &value["successThreshold"],
                "must be 1",
            ));
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(value) = container["lifecycle"].get(hook) {
            causes.extend(handler(value, &format!("{path}.lifecycle.{hook}")));
        }
    }
    let security = &container["securityContext"];
    if security["privileged"] == true && security["allowPrivilegeEscalation"] == false {
        causes.push(Cause::invalid(
            &format!("{path}.securityContext"),
            security,
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ));
    }
    causes.extend(resources(&container["resources"], &format!("{path}.resources")));
    causes
}

/// A hook's sleep ends before the pod's grace does (upstream: `validateSleepAction`).
fn sleeps(container: &Value, spec: &Value, path: &str) -> Vec<Cause> {
    let Some(grace) = spec["terminationGracePeriodSeconds"].as_i64() else {
        return Vec::new();
    };
    let problem = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
    let hooks = ["postStart", "preStop"].into_iter();
    hooks
        .filter_map(|hook| {
            let seconds = &container["lifecycle"][hook]["sleep"]["seconds"];
            let too_long = seconds
                .as_i64()
                .is_some_and(|seconds| !(0..=grace).contains(&seconds));
            too_long.then(|| Cause::invalid(&format!("{path}.{hook}.sleep.seconds"), seconds, &problem))
        })
        .collect()
}

fn handler(value: &Value, path: &str) -> Vec<Cause> {
    let handlers: Vec<&str> = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"]
        .into_iter()
        .filter(|name| value.get(*name).is_some())
        .collect();
    match handlers.as_slice() {
        [] => vec![Cause::required(path, "must specify a handler type")],
        [_] => Vec::new(),
        [_, rest @ ..] => rest
            .iter()
            .map(|name| {
                Cause::forbidden(
                    &format!("{path}.{name}"),
                    "may not specify more than 1 handler type",
                )
            })
            .collect(),
    }
}

fn one_of(value: &Value, others: &[&str], path: &str, several: &str, none: &str) -> Vec<Cause> {
    let given: Vec<&String> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
        .filter(|key| !others.contains(&key.as_str()))
        .collect();
    match given.as_slice() {
        [] => vec![Cause::required(path, none)],
        [_] => Vec::new(),
        [_, rest @ ..] => rest
            .iter()
            .map(|name| Cause::forbidden(&format!("{path}.{name}"), several))
            .collect(),
    }
}

fn resources(resources: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    let amount = |value: &Value| value.as_str().and_then(Quantity::parse);
    for list in ["limits", "requests"] {
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            let field = format!("{path}.{list}[{name}]");
            let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || name.starts_with("hugepages-");
            if !standard && !name.contains('/') {
                causes.push(Cause::invalid(
                    &format!("{path}.{list}[{name}]"),
                    &json!(name),
                    "must be a standard resource type or fully qualified",
                ));
                continue;
            }
            causes.extend(
                names::qualified_name_problem(name)
                    .map(|problem| Cause::invalid(&field, &json!(name), &problem)),
            );
            let Some(quantity) = amount(value) else { continue };
            if quantity.is_negative() {
                causes.push(Cause::invalid(
                    &field,
                    value,
                    "must be greater than or equal to 0",
                ));
            } else if !standard && !quantity.is_whole() {
                causes.push(Cause::invalid(&field, value, "must be an integer"));
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let Some(limit) = resources["limits"].get(name) else {
            continue;
        };
        let (Some(wanted), Some(most)) = (amount(request), amount(limit)) else {
            continue;
        };
        let extended = name.contains('/') || name.starts_with("hugepages-");
        if extended && wanted.nano() != most.nano() {
            causes.push(Cause::invalid(
                &format!("{path}.requests"),
                request,
                &format!(
                    "must be equal to {name} limit of {}",
                    limit.as_str().unwrap_or_default()
                ),
            ));
        } else if wanted.nano() > most.nano() {
            causes.push(Cause::invalid(
                &format!("{path}.requests"),
                request,
                &format!(
                    "must be less than or equal to {name} limit of {}",
                    limit.as_str().unwrap_or_default()
                ),
            ));
        }
    }
    causes
}

fn toleration(toleration: &Value, path: &str) -> Vec<Cause> {
    let text = |key: &str| toleration[key].as_str().unwrap_or_default();
    let mut causes = Vec::new();
    if text("key").is_empty() && text("operator") != "Exists" {
        let detail =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        causes.push(Cause::invalid(
            &format!("{path}.operator"),
            &json!(text("operator")),
            detail,
        ));
    }
    if toleration.get("tolerationSeconds").is_some() && text("effect") != "NoExecute" {
        causes.push(Cause::invalid(
            &format!("{path}.effect"),
            &json!(text("effect")),
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        ));
    }
    if text("operator") == "Exists" && !text("value").is_empty() {
        causes.push(Cause::invalid(
            &format!("{path}.operator"),
            &json!(text("value")),
            "value must be empty when `operator` is 'Exists'",
        ));
    }
    causes
}

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn update(pod: &Value, old: &Value) -> Vec<Cause> {
    let (spec, before) = (&pod["spec"], &old["spec"]);
    let mut causes = Vec::new();
    for list in ["containers", "initContainers"] {
        if items(spec, list).len() != items(before, list).len() {
            return vec![Cause::forbidden(
                &format!("spec.{list}"),
                "pod updates may not add or remove containers",
            )];
        }
        for (index, container) in items(spec, list).iter().enumerate() {
            if container["image"].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::required(&format!("spec.{list}[{index}].image"), ""));
            }
        }
    }
    let (deadline, earlier) = (
        spec["activeDeadlineSeconds"].as_i64(),
        before["activeDeadlineSeconds"].as_i64(),
    );
    match (deadline, earlier) {
        (Some(new), Some(old)) if new > old => {
            causes.push(Cause::invalid(
                "spec.activeDeadlineSeconds",
                &json!(new),
                "must be less than or equal to previous value",
            ));
        }
        (None, Some(_)) => causes.push(Cause::invalid(
            "spec.activeDeadlineSeconds",
            &Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => {}
    }
    if items(before, "tolerations")
        .iter()
        .any(|toleration| !items(spec, "tolerations").contains(toleration))
    {
        causes.push(Cause::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    let (mut changed, fixed) = (spec.clone(), before);
    for key in ["activeDeadlineSeconds", "tolerations"] {
        restore(&mut changed, fixed, key);
    }
    if before["terminationGracePeriodSeconds"]
        .as_i64()
        .is_some_and(|period| period < 0)
        && spec["terminationGracePeriodSeconds"] == 1
    {
        restore(&mut changed, fixed, "terminationGracePeriodSeconds");
    }
    for list in ["containers", "initContainers"] {
        for (container, original) in changed
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .zip(items(fixed, list))
        {
            restore(container, original, "image");
        }
    }
    if scheduling_gated(before) {
        restore(&mut changed, fixed, "schedulingGates");
        restore(&mut changed, fixed, "nodeSelector");
        restore(&mut changed, fixed, "affinity");
    }
    if changed != *fixed {
        causes.push(Cause::forbidden("spec", MUTABLE));
    }
    causes
}

fn scheduling_gated(spec: &Value) -> bool {
    !items(spec, "schedulingGates").is_empty()
}

fn restore(object: &mut Value, original: &Value, key: &str) {
    let Value::Object(fields) = object else { return };
    match original.get(key) {
        Some(value) => fields.insert(key.to_owned(), value.clone()),
        None => fields.remove(key),
    };
}

/// Ephemeral containers are added, never changed or removed.
pub(super) fn ephemeral_update(pod: &Value, old: &Value) -> Vec<Cause> {
    let now = items(&pod["spec"], "ephemeralContainers");
    let mut causes = Vec::new();
    for container in items(&old["spec"], "ephemeralContainers") {
        let name = container["name"].as_str().unwrap_or_default();
        match now
            .iter()
            .position(|candidate| candidate["name"] == container["name"])
        {
            None => causes.push(Cause::forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers \"{name}\" may not be removed\n"),
            )),
            Some(index) if now[index] != *container => {
                causes.push(Cause::forbidden(
                    "spec.ephemeralContainers",
                    &format!("existing ephemeral containers \"{name}\" may not be changed\n"),
                ));
            }
            Some(_) => {}
        }
    }
    let others: HashSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| items(&pod["spec"], list))
        .filter_map(|container| container["name"].as_str())
        .collect();
    for (index, container) in now.iter().enumerate() {
        let name = container["name"].as_str().unwrap_or_default();
        let field = format!("spec.ephemeralContainers[{index}].name");
        if others.contains(name)
            || now[..index]
                .iter()
                .any(|earlier| earlier["name"] == container["name"])
        {
            causes.push(Cause::duplicate(&field, &container["name"]));
        }
        causes.extend(
            names::dns_label_problem(name)
                .map(|problem| Cause::invalid(&field, &container["name"], &problem)),
        );
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refusals, update_refusals};
    use super::*;

    fn pod(container: Value) -> Value {
        let mut full = json!({"name": "c", "image": "i"});
        full.as_object_mut()
            .expect("object")
            .extend(container.as_object().expect("object").clone());
        json!({"spec": {"containers": [full]}})
    }

    #[test]
    fn refuses_with_upstreams_words() {
        for (object, expected) in [
            (json!({"spec": {}}), "spec.containers: Required value"),
            (
                json!({"spec": {"containers": [{"name": "a"}]}}),
                "spec.containers[0].image: Required value",
            ),
            (
                json!({"spec": {"containers": [{"image": "a"}]}}),
                "spec.containers[0].name: Required value",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}}),
                "spec.containers[1].name: Duplicate value: \"a\"",
            ),
            (
                pod(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ),
            (
                pod(json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}})),
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                pod(json!({"resources": {"limits": {"gpu": "1"}}})),
                "spec.containers[0].resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
            ),
            (
                pod(json!({"readinessProbe": {}})),
                "spec.containers[0].readinessProbe: Required value: must specify a handler type",
            ),
            (
                pod(json!({"livenessProbe": {"exec": {"command": ["a"]}, "successThreshold": 2}})),
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ),
            (
                pod(
                    json!({"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}),
                ),
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "image": "i"}], "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}}),
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "image": "i"}], "tolerations": [{"effect": "NoExecute"}]}}),
                "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ),
            (
                json!({"spec": {"terminationGracePeriodSeconds": 5, "containers": [
                    {"name": "a", "image": "i", "lifecycle": {"preStop": {"sleep": {"seconds": 6}}}}]}}),
                "spec.containers[0].lifecycle.preStop.sleep.seconds: Invalid value: 6: must be non-negative and less than terminationGracePeriodSeconds (5)",
            ),
            (
                pod(json!({"envFrom": [{"prefix": "a=b", "configMapRef": {"name": "c"}}]})),
                "spec.containers[0].envFrom[0].prefix: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "image": "i"}], "terminationGracePeriodSeconds": -1}}),
                "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
            ),
        ] {
            let text = refusals("", "v1", "pods", object);
            assert!(
                text.len() <= 2 && text.iter().any(|line| line == expected),
                "{expected}\n{text:#?}"
            );
        }
        for good in [
            json!({"resources": {"limits": {"example.com/gpu": "1"}}}),
            json!({"lifecycle": {"preStop": {"sleep": {"seconds": 0}}, "postStart": {"sleep": {"seconds": 30}}}}),
            json!({"envFrom": [{"prefix": "", "configMapRef": {"name": "c"}}, {"prefix": "a.b-", "secretRef": {"name": "s"}}]}),
        ] {
            let text = refusals("", "v1", "pods", pod(good));
            assert!(text.is_empty(), "{text:#?}");
        }
    }

    #[test]
    fn only_images_and_a_few_fields_change() {
        let before = pod(json!({}));
        for (after, good) in [
            (pod(json!({"image": "j"})), true),
            (pod(json!({"command": ["x"]})), false),
            (
                json!({"spec": {"containers": [{"name": "c", "image": "i"}], "tolerations": [{"key": "a", "operator": "Exists"}]}}),
                true,
            ),
            (
                json!({"spec": {"containers": [{"name": "c", "image": "i"}], "activeDeadlineSeconds": 5}}),
                true,
            ),
            (
                json!({"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]}}),
                false,
            ),
            (
                json!({"spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": "n"}}),
                false,
            ),
        ] {
            assert_eq!(
                update_refusals("", "v1", "pods", before.clone(), after.clone()).is_empty(),
                good,
                "{after}"
            );
        }
        let text = update_refusals("", "v1", "pods", before, pod(json!({"command": ["x"]})));
        assert!(text[0].starts_with("spec: Forbidden: pod updates may not change fields other than"));
    }
}
