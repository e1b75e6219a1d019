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
        let conditions = |csr: &Value, approval: bool| -> Vec<Value> {
            let list = csr["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            list.into_iter()
                .filter(|c| matches!(c["type"].as_str(), Some("Approved" | "Denied")) == approval)
                .collect()
        };
        let (mut approval, rest) = match subresource {
            "approval" => (conditions(wanted, true), conditions(old, false)),
            "status" => (conditions(old, true), conditions(wanted, false)),
            _ => return,
        };
        let mut status = if subresource == "approval" {
            old["status"].clone()
        } else {
            wanted["status"].clone()
        };
        approval.extend(rest);
        let now = object::time(jiff::Timestamp::now());
        for condition in &mut approval {
            for field in ["lastTransitionTime", "lastUpdateTime"] {
                if condition[field].is_null() {
                    condition[field] = json!(now);
                }
            }
        }
        if !status.is_object() {
            status = json!({});
        }
        if !approval.is_empty() {
            status["conditions"] = json!(approval);
        }
        object["status"] = status;
    }
}
