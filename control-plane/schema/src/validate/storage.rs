//! Volumes, claims, classes and what CSI drivers tell about themselves.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::cause::Cause;
use super::names;
use crate::quantity::Quantity;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Everything of a volume's spec that is not its source.
const VOLUME_FIELDS: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];
const SINGLE_WRITER: &str = "ReadWriteOncePod";

fn source(volume: &Value) -> Vec<(&String, &Value)> {
    let fields = volume["spec"].as_object().into_iter().flatten();
    fields
        .filter(|(key, _)| !VOLUME_FIELDS.contains(&key.as_str()))
        .collect()
}

pub(super) fn volume(volume: &Value) -> Vec<Cause> {
    let spec = &volume["spec"];
    let mut causes = access_modes(spec, "");
    if let Some(capacity) = spec["capacity"].as_object() {
        if !capacity.is_empty() && (capacity.len() != 1 || !capacity.contains_key("storage")) {
            let shown = &spec["capacity"];
            causes.push(Cause::not_supported("spec.capacity", shown, &["storage"]));
        }
        for (name, amount) in capacity {
            causes.extend(positive(amount, &format!("spec.capacity[{name}]")));
        }
    }
    match source(volume).as_slice() {
        [] => causes.push(Cause::required("spec", "must specify a volume type")),
        [_] => {}
        [_, rest @ ..] => causes.extend(rest.iter().map(|(name, _)| {
            Cause::forbidden(&format!("spec.{name}"), "may not specify more than 1 volume type")
        })),
    }
    if text(&spec["hostPath"], "path") == "/" && spec["persistentVolumeReclaimPolicy"] == "Recycle" {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        causes.push(Cause::forbidden("spec.persistentVolumeReclaimPolicy", detail));
    }
    if !spec["local"].is_null() && spec["nodeAffinity"].is_null() {
        let detail = "Local volume requires node affinity";
        causes.push(Cause::required("spec.nodeAffinity", detail));
    }
    causes
}

pub(super) fn volume_update(volume: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if source(volume) != source(old) {
        let detail = "spec.persistentvolumesource is immutable after creation";
        causes.push(Cause::forbidden("spec.persistentvolumesource", detail));
    }
    let (now, was) = (&volume["spec"]["volumeMode"], &old["spec"]["volumeMode"]);
    if now != was {
        causes.push(Cause::invalid("spec.volumeMode", now, "field is immutable"));
    }
    causes
}

pub(super) fn claim_spec(spec: &Value, path: &str) -> Vec<Cause> {
    let mut causes = access_modes(spec, path);
    let amount = &spec["resources"]["requests"]["storage"];
    if amount.is_null() {
        causes.push(Cause::required(&format!("{path}.resources[storage]"), ""));
    } else {
        causes.extend(positive(amount, &format!("{path}.resources[storage]")));
    }
    if spec["dataSource"].is_object() {
        for key in ["name", "kind"] {
            if text(&spec["dataSource"], key).is_empty() {
                causes.push(Cause::required(&format!("{path}.dataSource.{key}"), ""));
            }
        }
    }
    causes
}

fn access_modes(spec: &Value, path: &str) -> Vec<Cause> {
    let modes = items(spec, "accessModes");
    if path.is_empty() || modes.len() < 2 || !modes.contains(&json!(SINGLE_WRITER)) {
        return Vec::new();
    }
    let detail = "may not use ReadWriteOncePod with other access modes";
    vec![Cause::forbidden(&format!("{path}.accessModes"), detail)]
}

fn positive(amount: &Value, field: &str) -> Option<Cause> {
    let quantity = Quantity::parse(amount.as_str()?)?;
    let good = !quantity.is_negative() && quantity.nano() != 0;
    (!good).then(|| Cause::invalid(field, amount, "must be greater than zero"))
}

pub(super) fn class_update(class: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        if class[field] != old[field] {
            causes.push(Cause::forbidden(
                field,
                &format!("updates to {field} are forbidden."),
            ));
        }
    }
    if class["volumeBindingMode"] != old["volumeBindingMode"] {
        let now = &class["volumeBindingMode"];
        causes.push(Cause::invalid("volumeBindingMode", now, "field is immutable"));
    }
    causes
}

/// Upstream's `ValidateCSIDriverName`.
fn driver_name(name: &Value, field: &str) -> Vec<Cause> {
    let text = name.as_str().unwrap_or_default();
    if text.is_empty() {
        return vec![Cause::required(field, "")];
    }
    let mut causes = Vec::new();
    if text.len() > 63 {
        causes.push(Cause::too_long(field, 63));
    }
    causes.extend(
        names::dns_subdomain_problem(&text.to_lowercase())
            .map(|problem| Cause::invalid(field, name, &problem)),
    );
    causes
}

pub(super) fn driver(driver: &Value) -> Vec<Cause> {
    let mut causes = driver_name(&driver["metadata"]["name"], "metadata.name");
    let mut audiences = HashSet::new();
    for (index, request) in items(&driver["spec"], "tokenRequests").iter().enumerate() {
        let field = format!("spec.tokenRequests[{index}]");
        if !audiences.insert(text(request, "audience")) {
            causes.push(Cause::duplicate(
                &format!("{field}.audience"),
                &request["audience"],
            ));
        }
        if request["expirationSeconds"]
            .as_i64()
            .is_some_and(|seconds| seconds < 600)
        {
            let detail = "may not specify a duration less than 10 minutes";
            let field = format!("{field}.expirationSeconds");
            causes.push(Cause::invalid(&field, &request["expirationSeconds"], detail));
        }
    }
    causes
}

pub(super) fn node(node: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut seen = HashSet::new();
    for (index, driver) in items(&node["spec"], "drivers").iter().enumerate() {
        let field = format!("spec.drivers[{index}]");
        causes.extend(driver_name(&driver["name"], &format!("{field}.name")));
        if text(driver, "nodeID").is_empty() {
            causes.push(Cause::required(&format!("{field}.nodeID"), ""));
        }
        if !seen.insert(text(driver, "name")) {
            causes.push(Cause::duplicate(&format!("{field}.name"), &driver["name"]));
        }
        let mut keys = HashSet::new();
        for (place, key) in items(driver, "topologyKeys").iter().enumerate() {
            let field = format!("{field}.topologyKeys[{place}]");
            let name = key.as_str().unwrap_or_default();
            if !keys.insert(name) {
                causes.push(Cause::duplicate(&field, key));
            }
            causes.extend(
                names::qualified_name_problem(name).map(|problem| Cause::invalid(&field, key, &problem)),
            );
        }
    }
    causes
}

/// A driver's entry is replaced as a whole or not at all.
pub(super) fn node_update(node: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for now in items(&node["spec"], "drivers") {
        let mut same = items(&old["spec"], "drivers").iter();
        let Some(was) = same.find(|was| was["name"] == now["name"]) else {
            continue;
        };
        let fixed = |driver: &Value| (driver["nodeID"].clone(), driver["topologyKeys"].clone());
        if fixed(now) != fixed(was) {
            causes.push(Cause::invalid("CSINodeDriver", now, "field is immutable"));
        }
    }
    causes
}

pub(super) fn attachment(attachment: &Value) -> Vec<Cause> {
    let spec = &attachment["spec"];
    let (inline, by_name) = (
        !spec["source"]["inlineVolumeSpec"].is_null(),
        !text(&spec["source"], "persistentVolumeName").is_empty(),
    );
    let mut causes = driver_name(&spec["attacher"], "spec.attacher");
    causes.retain(|cause| cause.message != "Required value");
    match (inline, by_name) {
        (false, false) => {
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            causes.push(Cause::required("spec.source", detail));
        }
        (true, true) => {
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            causes.push(Cause::forbidden("spec.source", detail));
        }
        _ => {}
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refusals, update_refusals};
    use super::*;

    #[test]
    fn volumes_claims_and_drivers() {
        let one = |group: &str, plural: &str, object: Value, expected: &[&str]| {
            assert_eq!(refusals(group, "v1", plural, object), expected, "{plural}");
        };
        let volume = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/a"}});
        one("", "persistentvolumes", json!({"spec": volume}), &[]);
        one(
            "",
            "persistentvolumes",
            json!({"spec": {"capacity": {"storage": "0"}, "accessModes": ["ReadWriteOnce"]}}),
            &[
                "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
                "spec: Required value: must specify a volume type",
            ],
        );
        one(
            "",
            "persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOncePod", "ReadOnlyMany"]}}),
            &[
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
                "spec.resources[storage]: Required value",
            ],
        );
        one(
            "storage.k8s.io",
            "csinodes",
            json!({"spec": {"drivers": [{"name": "a", "nodeID": "n"}, {"name": "a", "nodeID": ""}]}}),
            &[
                "spec.drivers[1].nodeID: Required value",
                "spec.drivers[1].name: Duplicate value: \"a\"",
            ],
        );
        one(
            "storage.k8s.io",
            "volumeattachments",
            json!({"spec": {"attacher": "a", "nodeName": "n", "source": {}}}),
            &[
                "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ],
        );
    }

    #[test]
    fn what_is_in_use_does_not_change() {
        let class =
            |provisioner: &str, mode: &str| json!({"provisioner": provisioner, "volumeBindingMode": mode});
        assert_eq!(
            update_refusals(
                "storage.k8s.io",
                "v1",
                "storageclasses",
                class("a", "Immediate"),
                class("b", "WaitForFirstConsumer")
            ),
            [
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                "volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable",
            ]
        );
        let volume = |path: &str| json!({"spec": {"capacity": {"storage": "1"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": path}}});
        assert_eq!(
            update_refusals("", "v1", "persistentvolumes", volume("/a"), volume("/b")),
            [
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"
            ]
        );
    }
}
