//! Which objects a quota's scopes take in.

use serde_json::Value;

use crate::resources::{containers, parse};

/// Every scope of the quota fits. Only pods have scopes; a quota with scopes takes in nothing else.
pub(crate) fn fits(quota: &Value, resource: &str, object: &Value) -> bool {
    let spec = &quota["spec"];
    let plain = list(&spec["scopes"]).map(|scope| (scope, "Exists", &Value::Null));
    let chosen = list(&spec["scopeSelector"]["matchExpressions"])
        .map(|term| (&term["scopeName"], text(&term["operator"]), &term["values"]));
    plain.chain(chosen).all(|(scope, operator, values)| {
        resource == "pods" && pod_fits(object, text(scope), operator, values)
    })
}

fn pod_fits(pod: &Value, scope: &str, operator: &str, values: &Value) -> bool {
    let spec = &pod["spec"];
    match scope {
        "Terminating" => ends_by_itself(spec),
        "NotTerminating" => !ends_by_itself(spec),
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "CrossNamespacePodAffinity" => looks_into_other_namespaces(&spec["affinity"]),
        "PriorityClass" => {
            let class = text(&spec["priorityClassName"]);
            let listed = list(values).any(|value| value == class);
            match operator {
                "Exists" => !class.is_empty(),
                "DoesNotExist" => class.is_empty(),
                "In" => !class.is_empty() && listed,
                "NotIn" => class.is_empty() || !listed,
                _ => false,
            }
        }
        _ => false,
    }
}

fn ends_by_itself(spec: &Value) -> bool {
    spec["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds >= 0)
}

fn is_best_effort(spec: &Value) -> bool {
    let asks = |holder: &Value| {
        ["requests", "limits"].into_iter().any(|which| {
            let list = parse(&holder["resources"][which]);
            ["cpu", "memory"]
                .into_iter()
                .any(|name| list.get(name).is_some_and(|amount| amount.nano() > 0))
        })
    };
    !asks(spec)
        && !["containers", "initContainers"]
            .into_iter()
            .any(|which| containers(spec, which).any(asks))
}

fn looks_into_other_namespaces(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].into_iter().any(|side| {
        let required = list(&affinity[side]["requiredDuringSchedulingIgnoredDuringExecution"]);
        let preferred = list(&affinity[side]["preferredDuringSchedulingIgnoredDuringExecution"])
            .map(|weighted| &weighted["podAffinityTerm"]);
        required
            .chain(preferred)
            .any(|term| list(&term["namespaces"]).next().is_some() || !term["namespaceSelector"].is_null())
    })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scopes_choose_pods() {
        let plain = json!({"spec": {"containers": [{"name": "c"}]}});
        let sized = json!({"spec": {"containers": [{"resources": {"limits": {"memory": "1"}}}], "priorityClassName": "high", "activeDeadlineSeconds": 3}});
        let class = |operator: &str, values: Value| json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}});
        for (spec, fits_plain, fits_sized) in [
            (json!({}), true, true),
            (json!({"scopes": ["BestEffort"]}), true, false),
            (json!({"scopes": ["NotBestEffort", "Terminating"]}), false, true),
            (json!({"scopes": ["NotTerminating"]}), true, false),
            (class("In", json!(["high"])), false, true),
            (class("NotIn", json!(["high"])), true, false),
            (class("Exists", Value::Null), false, true),
            (class("DoesNotExist", Value::Null), true, false),
            (json!({"scopes": ["CrossNamespacePodAffinity"]}), false, false),
        ] {
            let quota = json!({"spec": spec});
            let found = (fits(&quota, "pods", &plain), fits(&quota, "pods", &sized));
            assert_eq!(found, (fits_plain, fits_sized), "{spec}");
        }
        let scoped = json!({"spec": {"scopes": ["NotTerminating"]}});
        assert!(!fits(&scoped, "services", &json!({})));
    }
}
