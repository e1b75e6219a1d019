//! ConfigMaps, Secrets, claims and nodes.

use serde_json::{Value, json};

use super::cause::Cause;
use crate::quantity::Quantity;

/// The most that a ConfigMap or Secret may hold.
const MAX_BYTES: usize = 1024 * 1024;

fn size(object: &Value, key: &str, base64: bool) -> usize {
    let values = object[key]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, value)| value.as_str());
    values
        .map(|value| {
            if base64 {
                value.len() / 4 * 3 - value.bytes().rev().take_while(|byte| *byte == b'=').count()
            } else {
                value.len()
            }
        })
        .sum()
}

pub(super) fn config_map(map: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, _) in map["binaryData"].as_object().into_iter().flatten() {
        if map["data"].get(key).is_some() {
            let detail = "duplicate of key present in data";
            causes.push(Cause::invalid(&format!("binaryData[{key}]"), &json!(key), detail));
        }
    }
    if size(map, "data", false) + size(map, "binaryData", true) > MAX_BYTES {
        causes.push(Cause::too_long("", MAX_BYTES));
    }
    causes
}

pub(super) fn secret(secret: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if size(secret, "data", true) > MAX_BYTES {
        causes.push(Cause::too_long("data", MAX_BYTES));
    }
    let data = |key: &str| secret["data"].get(key).is_some();
    let needed: &[&str] = match secret["type"].as_str().unwrap_or_default() {
        "kubernetes.io/service-account-token" => {
            let account = "kubernetes.io/service-account.name";
            if secret["metadata"]["annotations"][account]
                .as_str()
                .unwrap_or_default()
                .is_empty()
            {
                causes.push(Cause::required(&format!("metadata.annotations[{account}]"), ""));
            }
            &[]
        }
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/basic-auth" => {
            if !data("username") && !data("password") {
                causes.push(Cause::required("data[username]", ""));
                causes.push(Cause::required("data[password]", ""));
            }
            &[]
        }
        _ => &[],
    };
    causes.extend(
        needed
            .iter()
            .filter(|key| !data(key))
            .map(|key| Cause::required(&format!("data[{key}]"), "")),
    );
    causes
}

/// An immutable ConfigMap or Secret stays as it is.
pub(super) fn update(object: &Value, old: &Value) -> Vec<Cause> {
    if old["immutable"] != true {
        return Vec::new();
    }
    let changed = ["immutable", "data", "binaryData"]
        .into_iter()
        .filter(|key| object.get(*key) != old.get(*key));
    changed
        .map(|key| Cause::forbidden(key, "field is immutable when `immutable` is set"))
        .collect()
}

pub(super) fn node_update(node: &Value, old: &Value) -> Vec<Cause> {
    let (spec, before) = (&node["spec"], &old["spec"]);
    let mut causes = Vec::new();
    if before.get("podCIDRs").is_some() && spec.get("podCIDRs") != before.get("podCIDRs") {
        causes.push(Cause::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    if before["providerID"].as_str().is_some_and(|id| !id.is_empty())
        && spec["providerID"] != before["providerID"]
    {
        causes.push(Cause::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    causes
}

pub(super) fn claim_update(claim: &Value, old: &Value) -> Vec<Cause> {
    let settled = |claim: &Value, before: &Value| {
        let mut spec = claim["spec"].clone();
        if let Value::Object(fields) = &mut spec {
            fields.remove("resources");
            fields.remove("volumeAttributesClassName");
            for late in ["volumeName", "storageClassName"] {
                if before["spec"][late].as_str().unwrap_or_default().is_empty() {
                    fields.remove(late);
                }
            }
        }
        spec
    };
    let mut causes = Vec::new();
    if settled(claim, old) != settled(old, old) {
        causes.push(Cause::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    let requested = |claim: &Value| amount(&claim["spec"]["resources"]["requests"]["storage"]);
    let (now, before) = (requested(claim), requested(old));
    // A failed expansion may be taken back, but never below what the volume has.
    let has = amount(&old["status"]["capacity"]["storage"]);
    if now < before && now <= has {
        causes.push(Cause::forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        ));
    }
    causes
}

fn amount(quantity: &Value) -> Option<Quantity> {
    Quantity::parse(quantity.as_str()?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refusals, update_refusals};
    use super::*;

    #[test]
    fn keys_types_and_sizes() {
        let text = refusals("", "v1", "configmaps", json!({"data": {"a/b": ""}}));
        assert!(
            text[0].starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key must consist of"),
            "{text:?}"
        );
        let big = "x".repeat(MAX_BYTES + 1);
        assert_eq!(
            refusals("", "v1", "configmaps", json!({"data": {"a": big}})),
            [": Too long: may not be more than 1048576 bytes"]
        );
        assert_eq!(
            refusals(
                "",
                "v1",
                "secrets",
                json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})
            ),
            ["data[tls.key]: Required value"]
        );
    }

    #[test]
    fn immutable_objects_stay() {
        let map = |value: &str, immutable: bool| json!({"data": {"a": value}, "immutable": immutable});
        assert_eq!(
            update_refusals("", "v1", "configmaps", map("1", true), map("2", true)),
            ["data: Forbidden: field is immutable when `immutable` is set"]
        );
        assert_eq!(
            update_refusals("", "v1", "configmaps", map("1", true), map("1", false)),
            ["immutable: Forbidden: field is immutable when `immutable` is set"]
        );
        assert!(update_refusals("", "v1", "configmaps", map("1", false), map("2", true)).is_empty());
        let secret = |kind: &str| json!({"type": kind});
        assert_eq!(
            update_refusals("", "v1", "secrets", secret("a"), secret("b")),
            [r#"type: Invalid value: "b": field is immutable"#]
        );
    }

    #[test]
    fn a_nodes_range_is_given_once() {
        let node = |range: &str| {
            if range.is_empty() {
                json!({})
            } else {
                json!({"spec": {"podCIDR": range, "podCIDRs": [range]}})
            }
        };
        assert!(update_refusals("", "v1", "nodes", node(""), node("10.0.0.0/24")).is_empty());
        assert_eq!(
            update_refusals("", "v1", "nodes", node("10.0.0.0/24"), node("10.0.1.0/24")).len(),
            1
        );
    }

    #[test]
    fn claims_shrink_only_while_they_grow() {
        let claim = |size: &str| {
            json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
                "status": {"phase": "Bound", "capacity": {"storage": "2Gi"}}})
        };
        let told = |from: &str, to: &str| -> Vec<String> {
            let causes = claim_update(&claim(to), &claim(from));
            causes
                .iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect()
        };
        for (from, to) in [("2Gi", "2Gi"), ("2Gi", "3Gi"), ("5Gi", "3Gi"), ("1Gi", "1024Mi")] {
            assert!(told(from, to).is_empty(), "{from} {to}");
        }
        let refused =
            ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"];
        for (from, to) in [("5Gi", "2Gi"), ("2Gi", "1Gi")] {
            assert_eq!(told(from, to), refused, "{from} {to}");
        }
    }
}
