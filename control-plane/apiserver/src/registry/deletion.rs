//! What a delete request does to an object, decided without doing it.
//! Upstream: `rest.BeforeDelete` and `registry.Store.deletionFinalizersForGarbageCollection`.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::object::{self, text};
use crate::status::{ApiError, Cause};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From a `DeleteOptions` object (null for none); query parameters fill what it leaves open.
    pub fn parse(body: &Value, query: &str) -> Result<Self, ApiError> {
        let parameter = |name: &str| crate::request_info::query_values(query, name).next();
        let invalid = |field: &str, reason, message: String| {
            let cause = Cause {
                reason,
                message,
                field: field.to_owned(),
            };
            ApiError::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause])
        };
        let number = |text: String| {
            let bad =
                format!("unable to convert query parameter gracePeriodSeconds: invalid value \"{text}\"");
            text.parse().map_err(|_| ApiError::bad_request(bad))
        };
        let grace = match body["gracePeriodSeconds"].as_i64() {
            Some(seconds) => Some(seconds),
            None => parameter("gracePeriodSeconds").map(number).transpose()?,
        };
        let policy = match text(body, "/propagationPolicy") {
            "" => parameter("propagationPolicy").unwrap_or_default(),
            policy => policy.to_owned(),
        };
        let orphan = body["orphanDependents"]
            .as_bool()
            .or_else(|| Some(parameter("orphanDependents")? == "true"));
        let propagation = match (policy.as_str(), orphan) {
            ("", None) => None,
            ("", Some(true)) | ("Orphan", None) => Some(Propagation::Orphan),
            ("", Some(false)) | ("Background", None) => Some(Propagation::Background),
            ("Foreground", None) => Some(Propagation::Foreground),
            (_, Some(_)) => {
                let message =
                    "Invalid value: orphanDependents and propagationPolicy cannot be both set".into();
                return Err(invalid("propagationPolicy", "FieldValueInvalid", message));
            }
            (other, None) => {
                let message = format!(
                    "Unsupported value: \"{other}\": supported values: \"Background\", \"Foreground\", \"Orphan\", \"nil\""
                );
                return Err(invalid("propagationPolicy", "FieldValueNotSupported", message));
            }
        };
        let dry_run = match body["dryRun"].as_array().map(Vec::as_slice) {
            None | Some([]) => crate::options::WriteOptions::parse(query, "DeleteOptions")?.dry_run,
            Some([only]) if only == "All" => true,
            Some(_) => {
                let message = "Unsupported value: supported values: \"All\"".into();
                return Err(invalid("dryRun", "FieldValueNotSupported", message));
            }
        };
        let precondition = |name: &str| body["preconditions"][name].as_str().map(str::to_owned);
        Ok(Self {
            grace_period_seconds: grace,
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            dry_run,
        })
    }

    /// A failed precondition is a conflict.
    pub fn check(&self, qualified: &str, current: &Value) -> Result<(), ApiError> {
        let mismatch = |what: &str, wanted: &str, is: &str| {
            let why =
                format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {is}");
            Err(ApiError::conflict(qualified, object::name(current), &why))
        };
        if let Some(wanted) = self
            .uid
            .as_deref()
            .filter(|wanted| *wanted != object::uid(current))
        {
            return mismatch("UID", wanted, object::uid(current));
        }
        match self.resource_version.as_deref() {
            Some(wanted) if wanted != object::resource_version(current) => {
                mismatch("ResourceVersion", wanted, object::resource_version(current))
            }
            _ => Ok(()),
        }
    }
}

/// What to do with the object.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    Remove,
    /// Deletion begins, or goes on differently.
    Update(Value),
    /// Deletion is under way already.
    Nothing,
}

/// `graceful` kinds (pods) wait for their grace period.
pub fn decide(current: &Value, options: &DeleteOptions, graceful: bool, now: Timestamp) -> Decision {
    let held = super::custom::held_for_cleanup(current, now);
    let current = held.as_ref().unwrap_or(current);
    let grace = if graceful { pod_grace(current, options) } else { 0 };
    let mut next = current.clone();
    let finalizers = finalizers_for(current, options.propagation);
    object::set_finalizers(&mut next, &finalizers);
    let terminating = object::is_terminating(current);
    if terminating && grace > 0 {
        let before = current["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0);
        if grace < before {
            shorten(&mut next, before, grace);
        }
    } else {
        let held = !finalizers.is_empty() || !namespace_finalizers(current).is_empty();
        if grace == 0 && !held {
            return Decision::Remove;
        }
        if !terminating {
            mark(&mut next, now, grace);
        } else if next["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            > 0
        {
            let metadata = object::metadata(&mut next);
            metadata.insert("deletionGracePeriodSeconds".into(), json!(0));
            metadata.insert("deletionTimestamp".into(), json!(object::time(now)));
        }
    }
    if next == *current {
        Decision::Nothing
    } else {
        Decision::Update(next)
    }
}

/// An update took the last obstacle to a deletion away.
pub fn is_complete(updated: &Value) -> bool {
    object::is_terminating(updated)
        && object::finalizers(updated).is_empty()
        && namespace_finalizers(updated).is_empty()
        && updated["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            == 0
}

fn namespace_finalizers(object: &Value) -> &[Value] {
    if object["kind"] != "Namespace" {
        return &[];
    }
    object["spec"]["finalizers"].as_array().map_or(&[], Vec::as_slice)
}

fn pod_grace(pod: &Value, options: &DeleteOptions) -> i64 {
    if text(pod, "/spec/nodeName").is_empty() || matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
    {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"]
        .as_i64()
        .unwrap_or(30);
    match options.grace_period_seconds.unwrap_or(own) {
        seconds if seconds < 0 => 1,
        seconds => seconds,
    }
}

/// What is said to those who delete a job without a word on its pods.
const JOB_WARNING: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background \
    to remove them or set propagationPolicy=Orphan to suppress this warning";

/// The warning that goes with a deletion.
pub fn warning(group: &str, plural: &str, options: &DeleteOptions) -> Option<&'static str> {
    let is_job = (group, plural) == ("batch", "jobs");
    (is_job && options.propagation.is_none()).then_some(JOB_WARNING)
}

/// Objects whose dependents stay unless the request says otherwise, as they did before there was a garbage collector
/// (upstream: `DefaultGarbageCollectionPolicy`).
fn orphans_by_default(object: &Value) -> bool {
    let kind = (text(object, "/apiVersion"), text(object, "/kind"));
    matches!(kind, ("v1", "ReplicationController") | ("batch/v1", "Job"))
}

fn finalizers_for(object: &Value, propagation: Option<Propagation>) -> Vec<String> {
    let mut finalizers = object::finalizers(object);
    let decided = finalizers
        .iter()
        .any(|finalizer| finalizer == ORPHAN || finalizer == FOREGROUND);
    let by_default = (!decided && orphans_by_default(object)).then_some(Propagation::Orphan);
    let Some(propagation) = propagation.or(by_default) else {
        return finalizers;
    };
    finalizers.retain(|finalizer| finalizer != ORPHAN && finalizer != FOREGROUND);
    match propagation {
        Propagation::Orphan => finalizers.push(ORPHAN.into()),
        Propagation::Foreground => finalizers.push(FOREGROUND.into()),
        Propagation::Background => {}
    }
    finalizers
}

fn mark(object: &mut Value, now: Timestamp, grace: i64) {
    let end = now
        .saturating_add(SignedDuration::from_secs(grace))
        .unwrap_or(now);
    let is_namespace = object["kind"] == "Namespace";
    let metadata = object::metadata(object);
    metadata.insert("deletionTimestamp".into(), json!(object::time(end)));
    metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
    if let Some(generation) = metadata
        .get("generation")
        .and_then(Value::as_i64)
        .filter(|g| *g > 0)
    {
        metadata.insert("generation".into(), json!(generation + 1));
    }
    if is_namespace {
        object::field(object, "status").insert("phase".into(), json!("Terminating"));
    }
}

fn shorten(object: &mut Value, before: i64, grace: i64) {
    let metadata = object::metadata(object);
    let end = metadata
        .get("deletionTimestamp")
        .and_then(Value::as_str)
        .and_then(|t| t.parse::<Timestamp>().ok());
    if let Some(end) = end {
        let end = end
            .saturating_sub(SignedDuration::from_secs(before - grace))
            .unwrap_or(end);
        metadata.insert("deletionTimestamp".into(), json!(object::time(end)));
    }
    metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn pod(node: &str, metadata: Value) -> Value {
        json!({"kind": "Pod", "metadata": metadata, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}})
    }

    fn options(grace: Option<i64>, propagation: Option<Propagation>) -> DeleteOptions {
        DeleteOptions {
            grace_period_seconds: grace,
            propagation,
            ..DeleteOptions::default()
        }
    }

    /// (deletionTimestamp, deletionGracePeriodSeconds, finalizers) of an update.
    fn update(decision: Decision) -> (String, i64, Vec<String>) {
        let Decision::Update(object) = decision else {
            panic!("{decision:?}")
        };
        (
            text(&object, "/metadata/deletionTimestamp").into(),
            object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap(),
            object::finalizers(&object),
        )
    }

    #[test]
    fn pods_end_gracefully() {
        let none = options(None, None);
        assert_eq!(
            decide(&pod("", json!({})), &none, true, now()),
            Decision::Remove,
            "unscheduled"
        );
        assert_eq!(
            decide(&pod("n", json!({})), &options(Some(0), None), true, now()),
            Decision::Remove
        );
        let running = decide(&pod("n", json!({})), &none, true, now());
        assert_eq!(update(running), ("2026-01-01T00:00:30Z".into(), 30, vec![]));
        let asked = decide(&pod("n", json!({})), &options(Some(5), None), true, now());
        assert_eq!(update(asked), ("2026-01-01T00:00:05Z".into(), 5, vec![]));
        let mut finished = pod("n", json!({}));
        finished["status"] = json!({"phase": "Succeeded"});
        assert_eq!(decide(&finished, &none, true, now()), Decision::Remove);
    }

    #[test]
    fn a_second_delete_can_only_hurry() {
        let dying = json!({"deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30});
        let dying = pod("n", dying);
        assert_eq!(
            decide(&dying, &options(None, None), true, now()),
            Decision::Nothing
        );
        assert_eq!(
            decide(&dying, &options(Some(60), None), true, now()),
            Decision::Nothing
        );
        let sooner = decide(&dying, &options(Some(10), None), true, now());
        assert_eq!(update(sooner), ("2026-01-01T00:00:10Z".into(), 10, vec![]));
        assert_eq!(
            decide(&dying, &options(Some(0), None), true, now()),
            Decision::Remove
        );
    }

    #[test]
    fn finalizers_hold_objects() {
        let plain = json!({"kind": "ConfigMap", "metadata": {}});
        let held = json!({"kind": "ConfigMap", "metadata": {"finalizers": ["a/b"]}});
        assert_eq!(
            decide(&plain, &options(None, None), false, now()),
            Decision::Remove
        );
        let marked = decide(&held, &options(None, None), false, now());
        assert_eq!(update(marked), (NOW.into(), 0, vec!["a/b".into()]));
        let foreground = decide(
            &plain,
            &options(None, Some(Propagation::Foreground)),
            false,
            now(),
        );
        assert_eq!(update(foreground).2, [FOREGROUND]);
        let orphan = decide(&held, &options(None, Some(Propagation::Orphan)), false, now());
        assert_eq!(update(orphan).2, ["a/b", ORPHAN]);
        assert_eq!(
            decide(
                &plain,
                &options(None, Some(Propagation::Background)),
                false,
                now()
            ),
            Decision::Remove
        );
    }

    #[test]
    fn what_has_kept_its_dependents_always_keeps_them() {
        let finalizers = |version: &str, kind: &str, finalizers: Value, propagation| {
            let object = json!({"apiVersion": version, "kind": kind, "metadata": {"finalizers": finalizers}});
            match decide(&object, &options(None, propagation), false, now()) {
                Decision::Update(object) => object::finalizers(&object),
                _ => Vec::new(),
            }
        };
        let none = Vec::<String>::new();
        assert_eq!(
            finalizers("v1", "ReplicationController", json!([]), None),
            [ORPHAN]
        );
        assert_eq!(finalizers("batch/v1", "Job", json!([]), None), [ORPHAN]);
        assert_eq!(finalizers("batch/v1", "CronJob", json!([]), None), none);
        assert_eq!(finalizers("example.com/v1", "Job", json!([]), None), none);
        assert_eq!(
            finalizers("batch/v1", "Job", json!([FOREGROUND]), None),
            [FOREGROUND]
        );
        assert_eq!(
            finalizers("batch/v1", "Job", json!([]), Some(Propagation::Background)),
            none
        );
    }

    #[test]
    fn namespaces_terminate_until_finalized() {
        let live = json!({"kind": "Namespace", "metadata": {}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Decision::Update(dying) = decide(&live, &options(None, None), false, now()) else {
            panic!()
        };
        assert_eq!(dying["status"]["phase"], "Terminating");
        assert_eq!(
            decide(&dying, &options(None, None), false, now()),
            Decision::Nothing
        );
        assert!(!is_complete(&dying));
        let mut done = dying.clone();
        done["spec"] = json!({});
        assert!(is_complete(&done));
        assert!(!is_complete(&json!({"kind": "Namespace", "metadata": {}})));
    }

    #[test]
    fn options_come_from_body_and_query() {
        let body = json!({"propagationPolicy": "Foreground", "preconditions": {"uid": "u"}});
        let parsed = DeleteOptions::parse(&body, "gracePeriodSeconds=7&dryRun=All").unwrap();
        assert_eq!(parsed.grace_period_seconds, Some(7));
        assert_eq!(parsed.propagation, Some(Propagation::Foreground));
        assert!(parsed.dry_run);
        let object = json!({"metadata": {"name": "x", "uid": "other"}});
        assert!(parsed.check("pods", &object).unwrap_err().is_conflict());
        for bad in [
            json!({"propagationPolicy": "Now"}),
            json!({"propagationPolicy": "Orphan", "orphanDependents": true}),
        ] {
            assert!(DeleteOptions::parse(&bad, "").is_err(), "{bad}");
        }
    }
}
