//! CSRs: who asked is what authentication says; approval and status are separate powers.

use auth::UserInfo;
use serde_json::{Value, json};

use super::Strategy;
use crate::object;

pub struct CertificateSigningRequest;

impl Strategy for CertificateSigningRequest {
    fn prepare_for_create(&self, object: &mut Value, user: &UserInfo) {
        let spec = object::field(object, "spec");
        spec.insert("username".into(), json!(user.name));
        spec.insert("groups".into(), json!(user.groups));
        for (name, value) in [("uid", json!(user.uid)), ("extra", json!(user.extra))] {
            let empty = value == "" || value.as_object().is_some_and(serde_json::Map::is_empty);
            if empty {
                spec.remove(name)
            } else {
                spec.insert(name.into(), value)
            };
        }
    }

    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        object::copy_field(object, old, "spec");
    }

    fn prepare_for_subresource(&self, subresource: &str, object: &mut Value, wanted: &Value, old: &Value) {
        let list = |csr: &Value| {
            csr["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default()
        };
        let (mut conditions, before) = (list(wanted), list(old));
        let kept = match subresource {
            "approval" => old,
            "status" => {
                for approval in ["Approved", "Denied"] {
                    keep_instances(&mut conditions, &before, approval);
                }
                wanted
            }
            _ => return,
        };
        let mut status = kept["status"].clone();
        if !status.is_object() {
            status = json!({});
        }
        stamp(&mut conditions, &before, &object::time(jiff::Timestamp::now()));
        if conditions.is_empty() {
            status.as_object_mut().map(|fields| fields.remove("conditions"));
        } else {
            status["conditions"] = json!(conditions);
        }
        object["status"] = status;
    }
}

/// Conditions of type `name` as they were, unless some came or went: that is validation's to refuse.
fn keep_instances(conditions: &mut [Value], before: &[Value], name: &str) {
    let old: Vec<&Value> = before.iter().filter(|c| c["type"] == name).collect();
    let new: Vec<&mut Value> = conditions.iter_mut().filter(|c| c["type"] == name).collect();
    if old.len() == new.len() {
        new.into_iter().zip(old).for_each(|(new, old)| *new = old.clone());
    }
}

/// Times that nobody gave: now, or since when the condition has had this status.
fn stamp(conditions: &mut [Value], before: &[Value], now: &str) {
    for condition in conditions {
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = json!(now);
        }
        if condition["lastTransitionTime"].is_null() {
            let same = |old: &&Value| {
                old["type"] == condition["type"]
                    && old["status"] == condition["status"]
                    && !old["lastTransitionTime"].is_null()
            };
            let since = before
                .iter()
                .find(same)
                .map(|old| old["lastTransitionTime"].clone());
            condition["lastTransitionTime"] = since.unwrap_or_else(|| json!(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(subresource: &str, wanted: &Value, old: &Value) -> Value {
        let mut object = old.clone();
        CertificateSigningRequest.prepare_for_subresource(subresource, &mut object, wanted, old);
        object["status"].take()
    }

    #[test]
    fn approval_takes_any_condition_and_nothing_else() {
        let old = json!({"status": {"certificate": "YQ=="}});
        let wanted =
            json!({"status": {"certificate": "Yg==", "conditions": [{"type": "Mine", "status": "True"}]}});
        let status = through("approval", &wanted, &old);
        assert_eq!(status["certificate"], "YQ==");
        assert_eq!(status["conditions"][0]["type"], "Mine");
        assert_eq!(
            status["conditions"][0]["lastUpdateTime"],
            status["conditions"][0]["lastTransitionTime"]
        );
        assert_eq!(
            through("approval", &json!({}), &old),
            json!({"certificate": "YQ=="})
        );
    }

    #[test]
    fn status_leaves_the_approval_as_it_was() {
        let time = "2026-01-01T00:00:00Z";
        let approved = json!({"type": "Approved", "status": "True", "reason": "a", "lastUpdateTime": time, "lastTransitionTime": time});
        let old = json!({"status": {"conditions": [approved]}});
        let wanted = json!({"status": {"certificate": "Yg==", "conditions": [{"type": "Approved", "status": "True", "reason": "b"}]}});
        assert_eq!(
            through("status", &wanted, &old),
            json!({"certificate": "Yg==", "conditions": [approved]})
        );
        let same_status = json!({"status": {"conditions": [{"type": "Failed", "status": "True"}]}});
        let before = json!({"status": {"conditions": [{"type": "Failed", "status": "True", "lastTransitionTime": time}]}});
        assert_eq!(
            through("status", &same_status, &before)["conditions"][0]["lastTransitionTime"],
            time
        );
    }
}
