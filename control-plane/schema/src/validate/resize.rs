//! Resizing a running pod's containers (upstream's `ValidatePodResize`), and the quality of service it must keep.

use serde_json::{Map, Value, json};

use super::cause::Cause;

const MIRROR: &str = "kubernetes.io/config.mirror";
const MUTABLE: [&str; 2] = ["cpu", "memory"];

/// `pod` is `old` with other container resources.
pub(super) fn check(pod: &Value, old: &Value) -> Vec<Cause> {
    if !old["metadata"]["annotations"][MIRROR].is_null() {
        return vec![Cause::forbidden("", "static pods cannot be resized")];
    }
    let mut causes = Vec::new();
    let class = match old["status"]["qosClass"].as_str() {
        Some(class) => class,
        None => qos_class(old),
    };
    if class != qos_class(pod) {
        let shown = pod["status"]["qosClass"].clone();
        let detail = "Pod QOS Class may not change as a result of resizing";
        causes.push(Cause::invalid("spec", &shown, detail));
    }
    let mut only_mutable = true;
    for list in ["containers", "initContainers"] {
        for (index, (now, was)) in items(pod, list).iter().zip(items(old, list)).enumerate() {
            let field = format!("spec.{list}[{index}].resources");
            let (now_resources, was_resources) = (&now["resources"], &was["resources"]);
            if now_resources == was_resources {
                continue;
            }
            if list == "initContainers" && now["restartPolicy"] != "Always" {
                let detail = "resources for non-sidecar init containers are immutable";
                causes.push(Cause::forbidden(&field, detail));
                continue;
            }
            for part in ["requests", "limits"] {
                let gone = MUTABLE.iter().any(|name| {
                    !was_resources[part][*name].is_null() && now_resources[part][*name].is_null()
                });
                if gone {
                    let detail = format!("resource {part} cannot be removed");
                    causes.push(Cause::forbidden(&format!("{field}.{part}"), &detail));
                }
                only_mutable &= fixed(&now_resources[part]) == fixed(&was_resources[part]);
            }
            only_mutable &= now_resources["claims"] == was_resources["claims"];
        }
    }
    if !only_mutable {
        causes.push(Cause::forbidden(
            "spec",
            "only cpu and memory resources are mutable",
        ));
    }
    causes
}

fn items<'a>(pod: &'a Value, list: &str) -> &'a [Value] {
    pod["spec"][list].as_array().map_or(&[], Vec::as_slice)
}

/// What may not change among quantities.
fn fixed(quantities: &Value) -> Map<String, Value> {
    let all = quantities.as_object().into_iter().flatten();
    all.filter(|(name, _)| !MUTABLE.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Upstream: `qos.ComputePodQOS`.
pub fn qos_class(pod: &Value) -> &'static str {
    let is_set = |quantity: &Value| !quantity.is_null() && *quantity != json!("0") && *quantity != json!(0);
    let containers = || {
        items(pod, "containers")
            .iter()
            .chain(items(pod, "initContainers"))
    };
    let whole = &pod["spec"]["resources"];
    let parts: Vec<&Value> = if whole["requests"].is_object() || whole["limits"].is_object() {
        vec![whole]
    } else {
        containers().map(|container| &container["resources"]).collect()
    };
    let mut guaranteed = true;
    let mut any = false;
    for resources in parts {
        for resource in MUTABLE {
            let (request, limit) = (&resources["requests"][resource], &resources["limits"][resource]);
            any |= is_set(request) || is_set(limit);
            guaranteed &= is_set(limit) && (request.is_null() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: Value) -> Value {
        json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn quality_of_service() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        for (resources, expected) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": both}), "Guaranteed"),
            (json!({"limits": both, "requests": both}), "Guaranteed"),
            (json!({"limits": both, "requests": {"cpu": "500m"}}), "Burstable"),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
        ] {
            assert_eq!(qos_class(&pod(resources.clone())), expected, "{resources}");
        }
    }

    #[test]
    fn a_resize_keeps_class_limits_and_everything_else() {
        let burstable = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}});
        for (was, now, refusal) in [
            (
                burstable.clone(),
                json!({"requests": {"cpu": "1500m"}, "limits": {"cpu": "2"}}),
                "",
            ),
            (
                json!({}),
                json!({"requests": {"cpu": "1"}}),
                "Pod QOS Class may not change as a result of resizing",
            ),
            (
                burstable.clone(),
                json!({"requests": {"cpu": "1"}}),
                "resource limits cannot be removed",
            ),
            (
                burstable.clone(),
                json!({"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}, "limits": {"cpu": "2"}}),
                "only cpu and memory resources are mutable",
            ),
        ] {
            let causes = check(&pod(now.clone()), &pod(was));
            let told: Vec<&str> = causes.iter().map(|cause| cause.message.as_str()).collect();
            assert_eq!(told.is_empty(), refusal.is_empty(), "{now} {told:?}");
            assert!(told.iter().all(|told| told.ends_with(refusal)), "{told:?}");
        }
    }
}
