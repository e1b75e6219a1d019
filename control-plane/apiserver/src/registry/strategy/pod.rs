//! Pods: phase and quality of service at birth, and which part each sub-resource may change.

use auth::UserInfo;
use schema::validate::qos_class;
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
            "status" if text(object, "/status/qosClass").is_empty() => {
                object::field(object, "status").insert("qosClass".into(), old["status"]["qosClass"].clone());
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
    for list in ["containers", "initContainers"] {
        let wanted = wanted["spec"][list].as_array().cloned().unwrap_or_default();
        let Some(containers) = object["spec"].get_mut(list).and_then(Value::as_array_mut) else {
            continue;
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
