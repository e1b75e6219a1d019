//! Which token has been unused for how long.

use crate::action::Action;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::jiff::civil::Date;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp, ToSpan as _};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

pub struct Observed<'a> {
    pub secret: &'a Secret,
    pub is_generated: bool,
    /// Secrets that pods of the namespace use.
    pub mounted: &'a dyn Fn() -> BTreeSet<String>,
    /// What is younger stays.
    pub limit: Timestamp,
    pub now: Timestamp,
}

pub fn parse_date(text: &str) -> Option<Date> {
    Date::strptime("%Y-%m-%d", text).ok()
}

fn date(time: Timestamp) -> Date {
    time.to_zoned(TimeZone::UTC).date()
}

/// The time before which tokens are old; `None` while uses have been recorded for less than a period, counted from
/// the end of the day it began.
pub fn limit(since: Date, period: SignedDuration, now: Timestamp) -> Option<Timestamp> {
    let begin = since.checked_add(1.day()).ok()?;
    let begin = begin.to_zoned(TimeZone::UTC).ok()?.timestamp();
    let ripe = begin.checked_add(period).ok()?;
    (ripe <= now).then(|| now.checked_sub(period).ok()).flatten()
}

pub fn reconcile(observed: &Observed) -> Option<Action> {
    let meta = &observed.secret.metadata;
    let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key));
    let old = date(observed.limit);
    let is_young = meta
        .creation_timestamp
        .as_ref()
        .is_none_or(|time| time.0 >= observed.limit);
    // A date that cannot be read tells nothing, so the token stays.
    let is_used = label(LAST_USED).is_some_and(|text| parse_date(text).is_none_or(|day| day >= old));
    if is_young || is_used || meta.deletion_timestamp.is_some() || !observed.is_generated {
        return None;
    }
    if (observed.mounted)().contains(meta.name.as_deref().unwrap_or_default()) {
        return None;
    }
    match label(INVALID_SINCE).and_then(|text| parse_date(text)) {
        None => {
            let labels = json!({INVALID_SINCE: date(observed.now).to_string()});
            let patch = json!({"metadata": {"uid": meta.uid, "labels": labels}});
            Some(Action::patch(observed.secret, patch).unobserved())
        }
        Some(day) if day < old => Some(Action::delete_as_seen(observed.secret)),
        Some(_) => None,
    }
}

/// Secrets a pod's containers and volumes name (upstream's `VisitPodSecretNames`).
pub fn secret_names(pod: &Pod) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let spec = serde_json::to_value(&pod.spec).unwrap_or_default();
    visit(&spec, &mut names);
    names
}

fn visit(value: &Value, names: &mut BTreeSet<String>) {
    let mut found = |name: &Value| {
        if let Some(name) = name.as_str() {
            names.insert(name.into());
        }
    };
    for (key, field) in value.as_object().into_iter().flatten() {
        match key.as_str() {
            "secretName" => found(field),
            "secret" | "secretRef" | "secretKeyRef" | "nodePublishSecretRef" => found(&field["name"]),
            "imagePullSecrets" => field
                .as_array()
                .into_iter()
                .flatten()
                .for_each(|r| found(&r["name"])),
            _ => {}
        }
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|field| visit(field, names)),
        Value::Array(items) => items.iter().for_each(|item| visit(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    const DAY: i64 = 24 * 60 * 60;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn recording_must_have_lasted_a_period() {
        let limit = |now| {
            limit(
                parse_date("2025-01-01").unwrap(),
                SignedDuration::from_secs(10 * DAY),
                time(now),
            )
        };
        assert_eq!(limit("2025-01-11T23:59:59Z"), None);
        assert_eq!(limit("2025-01-12T00:00:00Z"), Some(time("2025-01-02T00:00:00Z")));
        assert!(parse_date("2025-1").is_none() && parse_date("2025-01-01T00:00:00Z").is_none());
    }

    #[test]
    fn only_what_is_old_unused_generated_and_unmounted_goes() {
        let secret = |created: &str, labels: Value| -> Secret {
            from_value(
                json!({"metadata": {"name": "s", "namespace": "n", "uid": "u", "resourceVersion": "5",
                "creationTimestamp": created, "labels": labels}}),
            )
            .unwrap()
        };
        let plan = |secret: &Secret, is_generated: bool, mounted: &str| {
            reconcile(&Observed {
                secret,
                is_generated,
                mounted: &|| BTreeSet::from([mounted.to_owned()]),
                limit: time("2025-06-01T12:00:00Z"),
                now: time("2026-06-01T12:00:00Z"),
            })
        };
        let old = "2025-01-01T00:00:00Z";
        let unused = secret(old, json!({}));
        let Some(Action::Patch { at, patch }) = plan(&unused, true, "other") else {
            panic!("unused tokens are marked")
        };
        assert_eq!(at.url, "/api/v1/namespaces/n/secrets/s");
        assert_eq!(
            patch["metadata"],
            json!({"uid": "u", "labels": {INVALID_SINCE: "2026-06-01"}})
        );
        assert_eq!(plan(&unused, false, "other"), None);
        assert_eq!(plan(&unused, true, "s"), None);
        let kept = [
            secret("2025-06-01T12:00:00Z", json!({})),
            secret(old, json!({LAST_USED: "2025-06-01"})),
            secret(old, json!({LAST_USED: "yesterday"})),
            secret(old, json!({INVALID_SINCE: "2025-06-01"})),
        ];
        for secret in &kept {
            assert_eq!(plan(secret, true, "other"), None, "{secret:?}");
        }
        let marked = [
            json!({INVALID_SINCE: "2025-05-31"}),
            json!({INVALID_SINCE: "2025-05-31", LAST_USED: "2025-05-31"}),
        ];
        for labels in marked {
            let Some(Action::Delete { options, .. }) = plan(&secret(old, labels), true, "other") else {
                panic!("tokens long marked are deleted")
            };
            assert_eq!(options["preconditions"]["resourceVersion"], "5");
        }
    }

    #[test]
    fn all_places_of_a_pod_are_searched() {
        let pod: Pod = from_value(json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "from"}}],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "volume"}},
                {"name": "b", "projected": {"sources": [{"secret": {"name": "projected"}}]}},
                {"name": "c", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "csi"}}},
                {"name": "d", "configMap": {"name": "map"}}],
        }}))
        .unwrap();
        let names = secret_names(&pod);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(names, ["csi", "from", "key", "projected", "pull", "volume"]);
    }
}
