//! Pods: phase and quality of service at birth, and which part each sub-resource may change.

use auth::UserInfo;
use serde_json::{Value, json};

use super::Strategy;
use crate::object::{self, text};
use crate::status::Cause;

pub struct Pod;

impl Strategy for Pod {
    fn prepare_for_create(&self, object: &mut Value, _user: &UserInfo) {
        object["status"] = json!({"phase": "Pending", "qosClass": qos_class(object)});
        // Only the scheduler (pods/binding) and the pod's own spec choose the node; a nominee is status.
        object::field(object, "spec").remove("ephemeralContainers");
    }

    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        let ephemeral = old["spec"].get("ephemeralContainers").cloned();
        let spec = object::field(object, "spec");
        match ephemeral {
            Some(containers) => spec.insert("ephemeralContainers".into(), containers),
            None => spec.remove("ephemeralContainers"),
        };
    }

    fn prepare_for_subresource(&self, subresource: &str, object: &mut Value, wanted: &Value, old: &Value) {
        match subresource {
            "status" => {
                for field in ["labels", "annotations"] {
                    object::copy_metadata(object, wanted, field);
                }
                if text(object, "/status/qosClass").is_empty() {
                    object::field(object, "status")
                        .insert("qosClass".into(), old["status"]["qosClass"].clone());
                }
            }
            "ephemeralcontainers" => {
                if let Some(containers) = wanted["spec"].get("ephemeralContainers") {
                    object::field(object, "spec").insert("ephemeralContainers".into(), containers.clone());
                }
            }
            "resize" => resize(object, wanted),
            _ => {}
        }
    }

    fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let Some(old) = old else { return Vec::new() };
        let names = |pod: &Value| -> Vec<String> {
            let list = pod["spec"]["ephemeralContainers"].as_array();
            list.into_iter()
                .flatten()
                .map(|c| text(c, "/name").to_owned())
                .collect()
        };
        let now = names(object);
        let removed = names(old).iter().any(|name| !now.contains(name));
        removed
            .then(|| Cause {
                reason: "FieldValueForbidden",
                message: "Forbidden: existing ephemeral containers may not be removed".into(),
                field: "spec.ephemeralContainers".into(),
            })
            .into_iter()
            .collect()
    }

    fn is_graceful(&self) -> bool {
        true
    }
}

fn resize(object: &mut Value, wanted: &Value) {
    let wanted = wanted["spec"]["containers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let Some(containers) = object["spec"]["containers"].as_array_mut() else {
        return;
    };
    for container in containers {
        let same = wanted
            .iter()
            .find(|candidate| candidate["name"] == container["name"]);
        for field in ["resources", "resizePolicy"] {
            if let Some(value) = same.and_then(|c| c.get(field)) {
                container[field] = value.clone();
            }
        }
    }
}

/// Upstream: `qos.ComputePodQOS`.
fn qos_class(pod: &Value) -> &'static str {
    let containers = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|field| pod["spec"][field].as_array())
        .flatten();
    let mut guaranteed = true;
    let mut any = false;
    for container in containers {
        let resources = &container["resources"];
        for resource in ["cpu", "memory"] {
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

fn is_set(quantity: &Value) -> bool {
    !quantity.is_null() && quantity != "0" && quantity != 0
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let pod = json!({"spec": {"containers": [{"resources": resources}]}});
            assert_eq!(qos_class(&pod), expected, "{resources}");
        }
    }

    #[test]
    fn ephemeral_containers_go_through_their_subresource() {
        let old = json!({"metadata": {}, "spec": {"containers": []}});
        let wanted =
            json!({"metadata": {}, "spec": {"containers": [], "ephemeralContainers": [{"name": "e"}]}});
        let mut plain = wanted.clone();
        Pod.prepare_for_update(&mut plain, &old);
        assert_eq!(plain, old);
        let mut added = old.clone();
        Pod.prepare_for_subresource("ephemeralcontainers", &mut added, &wanted, &old);
        assert_eq!(added, wanted);
        assert_eq!(Pod.validate(&old, Some(&wanted)).len(), 1);
    }
}
