//! Writes pod statuses: a strategic merge patch of `/status` that names the pod's uid, so that a namesake is never
//! touched and conditions of others survive.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};

use crate::context::{name, namespace, uid};

/// What the API server is asked to change, or nothing when the statuses are equal.
fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (old, new) = (fields(old), fields(new));
    if old == new {
        return None;
    }
    let mut status: Map<String, Value> = Map::new();
    for key in old.keys().chain(new.keys()) {
        let (before, after) = (old.get(key), new.get(key));
        if before != after {
            status.insert(key.clone(), after.cloned().unwrap_or(Value::Null));
        }
    }
    // These lists merge by key: what is gone must be deleted by name.
    for (list, merge_key) in [("podIPs", "ip"), ("hostIPs", "ip"), ("conditions", "type")] {
        let keys = |value: Option<&Value>| -> BTreeSet<String> {
            let items = value.and_then(Value::as_array).into_iter().flatten();
            items
                .filter_map(|item| item.get(merge_key)?.as_str().map(str::to_owned))
                .collect()
        };
        let gone = &keys(old.get(list)) - &keys(new.get(list));
        let before = old.get(list).and_then(Value::as_array).into_iter().flatten();
        let before: Vec<&Map<String, Value>> = before.filter_map(Value::as_object).collect();
        if let Some(Value::Array(items)) = status.get_mut(list) {
            for item in items.iter_mut().filter_map(Value::as_object_mut) {
                let same = before
                    .iter()
                    .find(|old| old.get(merge_key) == item.get(merge_key));
                for key in same.into_iter().flat_map(|old| old.keys()) {
                    item.entry(key).or_insert(Value::Null);
                }
            }
            items.extend(
                gone.iter()
                    .map(|key| json!({ "$patch": "delete", merge_key: key })),
            );
        }
    }
    Some(json!({ "metadata": { "uid": uid }, "status": status }))
}

fn fields(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// The status as the API server now has it; none when the pod is gone.
pub async fn write(
    client: &kube::Client,
    pod: &Pod,
    old: &PodStatus,
    new: &PodStatus,
) -> Result<Option<PodStatus>, kube::Error> {
    let Some(patch) = patch(uid(pod), old, new) else {
        return Ok(Some(old.clone()));
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace(pod));
    match pods
        .patch_status(name(pod), &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Ok(written) => Ok(Some(written.status.unwrap_or_default())),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodIP};

    fn status(phase: &str, ip: Option<&str>, conditions: &[(&str, &str)]) -> PodStatus {
        PodStatus {
            phase: Some(phase.into()),
            pod_ips: ip.map(|ip| vec![PodIP { ip: ip.into() }]),
            conditions: Some(
                conditions
                    .iter()
                    .map(|(kind, status)| PodCondition {
                        type_: (*kind).into(),
                        status: (*status).into(),
                        ..Default::default()
                    })
                    .collect(),
            ),
            ..Default::default()
        }
    }

    #[test]
    fn equal_statuses_need_no_patch() {
        let same = status("Running", Some("10.0.0.2"), &[("Ready", "True")]);
        assert_eq!(patch("u", &same, &same.clone()), None);
    }

    #[test]
    fn only_differences_are_sent() {
        let old = status("Running", Some("10.0.0.2"), &[("Ready", "True")]);
        let new = status("Running", Some("10.0.0.3"), &[("Ready", "True")]);
        let expected = json!({ "metadata": { "uid": "u" }, "status": {
            "podIPs": [{ "ip": "10.0.0.3" }, { "$patch": "delete", "ip": "10.0.0.2" }],
        } });
        assert_eq!(patch("u", &old, &new), Some(expected));
    }

    #[test]
    fn vanished_fields_of_a_condition_become_null() {
        let mut old = status("Running", None, &[("Ready", "False")]);
        old.conditions.as_mut().unwrap()[0].reason = Some("ContainersNotReady".into());
        let new = status("Running", None, &[("Ready", "True")]);
        let sent = &patch("u", &old, &new).unwrap()["status"]["conditions"];
        assert_eq!(
            *sent,
            json!([{ "type": "Ready", "status": "True", "reason": null }])
        );
    }

    #[test]
    fn vanished_fields_become_null() {
        let old = PodStatus {
            reason: Some("Evicted".into()),
            ..status("Failed", None, &[])
        };
        let new = status("Failed", None, &[]);
        assert_eq!(
            patch("u", &old, &new).unwrap()["status"],
            json!({ "reason": null })
        );
    }
}
