//! Cells of volumes, quotas, certificates, bindings and extension kinds.

use jiff::Timestamp;
use serde_json::Value;

use super::age::human_duration;
use super::text::{condition, int, joined, list, plain, text, text_or};

pub(super) fn phase(object: &Value, _: Timestamp) -> Value {
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        "Terminating".into()
    } else {
        text(object, "/status/phase").into()
    }
}

pub(super) fn access_modes(modes: &[Value]) -> Value {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    joined(
        [
            "ReadWriteOnce",
            "ReadOnlyMany",
            "ReadWriteMany",
            "ReadWriteOncePod",
        ]
        .into_iter()
        .filter(|mode| modes.iter().any(|given| given == mode))
        .map(short),
        ",",
    )
    .into()
}

/// What a claim got is told once it is bound.
pub(super) fn claim_capacity(claim: &Value, _: Timestamp) -> Value {
    if text(claim, "/spec/volumeName").is_empty() {
        "".into()
    } else {
        claim
            .pointer("/status/capacity/storage")
            .map_or_else(String::new, plain)
            .into()
    }
}

pub(super) fn claim_modes(claim: &Value, _: Timestamp) -> Value {
    if text(claim, "/spec/volumeName").is_empty() {
        "".into()
    } else {
        access_modes(list(claim, "/status/accessModes"))
    }
}

pub(super) fn volume_claim(volume: &Value, _: Timestamp) -> Value {
    match text(volume, "/spec/claimRef/name") {
        "" => "".into(),
        name => format!("{}/{name}", text(volume, "/spec/claimRef/namespace")).into(),
    }
}

pub(super) fn class_name(class: &Value, _: Timestamp) -> Value {
    let annotations = class.pointer("/metadata/annotations");
    let default = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ]
    .iter()
    .any(|key| annotations.is_some_and(|annotations| annotations[*key] == "true"));
    format!(
        "{}{}",
        text(class, "/metadata/name"),
        if default { " (default)" } else { "" }
    )
    .into()
}

/// `cpu: 1/2, pods: 3/10`; limits and everything else have a column each.
pub(super) fn quota(quota: &Value, limits: bool) -> Value {
    let hard = quota.pointer("/status/hard").and_then(Value::as_object);
    let used = |name: &str| {
        quota
            .pointer("/status/used")
            .and_then(|used| used.get(name))
            .map_or_else(|| "0".to_owned(), plain)
    };
    let parts: Vec<String> = hard
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("limits") == limits)
        .map(|(name, amount)| format!("{name}: {}/{}", used(name), plain(amount)))
        .collect();
    parts.join(", ").into()
}

pub(super) fn request_status(request: &Value, _: Timestamp) -> Value {
    let has = |name| condition(request, name).is_some();
    let mut status = String::from(if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    });
    if has("Failed") {
        status.push_str(",Failed");
    }
    if !text(request, "/status/certificate").is_empty() {
        status.push_str(",Issued");
    }
    status.into()
}

pub(super) fn requested_duration(request: &Value, _: Timestamp) -> Value {
    match request.pointer("/spec/expirationSeconds").and_then(Value::as_i64) {
        None => "<none>".into(),
        Some(seconds) => human_duration(seconds).into(),
    }
}

pub(super) fn role_reference(binding: &Value, _: Timestamp) -> Value {
    format!(
        "{}/{}",
        text(binding, "/roleRef/kind"),
        text(binding, "/roleRef/name")
    )
    .into()
}

pub(super) fn subjects(binding: &Value, kind: &str) -> Value {
    let names: Vec<String> = list(binding, "/subjects")
        .iter()
        .filter(|subject| subject["kind"] == kind)
        .map(|subject| {
            if kind == "ServiceAccount" {
                format!("{}/{}", text(subject, "/namespace"), text(subject, "/name"))
            } else {
                text(subject, "/name").to_owned()
            }
        })
        .collect();
    names.join(", ").into()
}

pub(super) fn api_service(service: &Value, _: Timestamp) -> Value {
    match service.pointer("/spec/service") {
        None => "Local".into(),
        Some(target) => format!("{}/{}", text(target, "/namespace"), text(target, "/name")).into(),
    }
}

pub(super) fn api_available(service: &Value, _: Timestamp) -> Value {
    match condition(service, "Available") {
        None => "Unknown".into(),
        Some(condition) if condition["status"] == "True" => "True".into(),
        Some(condition) => format!("{} ({})", text(condition, "/status"), text(condition, "/reason")).into(),
    }
}

pub(super) fn claim_state(claim: &Value, _: Timestamp) -> Value {
    let deleted = claim.pointer("/metadata/deletionTimestamp").is_some();
    let allocated = claim.pointer("/status/allocation").is_some();
    let states = [
        (deleted, "deleted"),
        (!allocated && !deleted, "pending"),
        (allocated, "allocated"),
        (
            allocated && !list(claim, "/status/reservedFor").is_empty(),
            "reserved",
        ),
    ];
    joined(
        states
            .into_iter()
            .filter(|(holds, _)| *holds)
            .map(|(_, name)| name),
        ",",
    )
    .into()
}

pub(super) fn token_requests(driver: &Value, _: Timestamp) -> Value {
    let audiences = list(driver, "/spec/tokenRequests")
        .iter()
        .map(|request| text(request, "/audience"));
    match joined(audiences, ",") {
        none if none.is_empty() => "<unset>".into(),
        audiences => audiences.into(),
    }
}

pub(super) fn modes(driver: &Value, _: Timestamp) -> Value {
    match joined(
        list(driver, "/spec/volumeLifecycleModes")
            .iter()
            .filter_map(Value::as_str),
        ",",
    ) {
        none if none.is_empty() => "<none>".into(),
        modes => modes.into(),
    }
}

pub(super) fn param_kind(policy: &Value, _: Timestamp) -> Value {
    match policy.pointer("/spec/paramKind") {
        None => "<unset>".into(),
        Some(kind) => format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")).into(),
    }
}

pub(super) fn param_ref(binding: &Value, _: Timestamp) -> Value {
    match binding.pointer("/spec/paramRef") {
        None => "<unset>".into(),
        Some(reference) if reference.get("namespace").is_some() => format!(
            "{}/{}",
            text(reference, "/namespace"),
            text_or(reference, "/name", "*")
        )
        .into(),
        Some(reference) => format!("*/{}", text_or(reference, "/name", "*")).into(),
    }
}

pub(super) fn missing_level(schema: &Value, _: Timestamp) -> Value {
    condition(schema, "Dangling")
        .map_or("?", |condition| text(condition, "/status"))
        .into()
}

/// A number of a limited level's queues, where it has queues.
pub(super) fn queuing(level: &Value, field: &str) -> Value {
    let pointer = format!("/spec/limited/limitResponse/queuing/{field}");
    level
        .pointer(&pointer)
        .map_or_else(|| "<none>".into(), |_| int(level, &pointer).to_string().into())
}

pub(super) fn concurrency_shares(level: &Value, _: Timestamp) -> Value {
    let shares = level
        .pointer("/spec/limited/nominalConcurrencyShares")
        .or_else(|| level.pointer("/spec/exempt/nominalConcurrencyShares"));
    shares.map_or_else(|| "<none>".into(), |shares| plain(shares).into())
}

pub(super) fn component_health(component: &Value, _: Timestamp) -> Value {
    let healthy = list(component, "/conditions")
        .iter()
        .find(|condition| condition["type"] == "Healthy");
    match healthy.map(|condition| text(condition, "/status")) {
        Some("True") => "Healthy".into(),
        Some("False") => "Unhealthy".into(),
        _ => "Unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::cells_of;
    use super::*;

    #[test]
    fn certificate_requests_tell_how_far_they_are() {
        for (conditions, certificate, expected) in [
            (json!([]), "", "Pending"),
            (json!([{"type": "Approved"}]), "", "Approved"),
            (json!([{"type": "Approved"}]), "x", "Approved,Issued"),
            (json!([{"type": "Denied"}]), "", "Denied"),
            (
                json!([{"type": "Approved"}, {"type": "Failed"}]),
                "",
                "Approved,Failed",
            ),
        ] {
            let request = json!({"metadata": {"name": "c"}, "spec": {"signerName": "s", "username": "u", "expirationSeconds": 86400}, "status": {"conditions": conditions, "certificate": certificate}});
            assert_eq!(
                cells_of(
                    "certificates.k8s.io",
                    "v1",
                    "certificatesigningrequests",
                    &request
                )[2..],
                ["s", "u", "24h", expected].map(Value::from)
            );
        }
    }

    #[test]
    fn bindings_quotas_and_volumes() {
        let binding = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]});
        assert_eq!(
            cells_of("rbac.authorization.k8s.io", "v1", "rolebindings", &binding)[1..],
            ["Role/r", "<unknown>", "u", "", "n/s"].map(Value::from)
        );
        let quota = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "10", "limits.cpu": "2", "cpu": "1"}, "used": {"pods": "3"}}});
        assert_eq!(
            cells_of("", "v1", "resourcequotas", &quota)[1..3],
            ["cpu: 0/1, pods: 3/10", "limits.cpu: 0/2"].map(Value::from)
        );
        let claim = json!({"metadata": {"name": "c"}, "spec": {"volumeName": "v", "storageClassName": "fast"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}});
        assert_eq!(
            cells_of("", "v1", "persistentvolumeclaims", &claim)[1..7],
            ["Bound", "v", "1Gi", "RWO,RWX", "fast", "<unset>"].map(Value::from)
        );
    }
}
