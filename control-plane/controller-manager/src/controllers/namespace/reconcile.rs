//! The next step in emptying a namespace, and what to tell about it (upstream's `namespacedResourcesDeleter`).

use crate::action::Action;
use crate::discovery::Kind;
use api::condition::{self, Condition};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// The finalizer in `spec.finalizers` that is this controller's.
const FINALIZER: &str = "kubernetes";
const SOON: Duration = Duration::from_millis(200);
/// Everything left is on its way out: it waits for grace periods and finalizers.
const LATER: Duration = Duration::from_secs(1);

/// Objects of one kind that are still there.
pub struct Found {
    pub kind: Kind,
    pub objects: Vec<ObjectMeta>,
}

pub fn is_to_be_emptied(namespace: &Namespace) -> bool {
    let finalizers = namespace
        .spec
        .as_ref()
        .and_then(|s| s.finalizers.as_deref())
        .unwrap_or_default();
    namespace.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|f| f == FINALIZER)
}

pub fn reconcile(namespace: &Namespace, found: &[Found], now: Timestamp) -> Vec<Action> {
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let mut plan = Vec::new();
    let old = namespace.status.clone().unwrap_or_default();
    let status = status(&old, found, now);
    if old != status {
        plan.push(Action::patch_status(namespace, &old, &status));
    }
    if found.is_empty() {
        let mut emptied = namespace.clone();
        emptied.status = Some(status);
        if let Some(finalizers) = emptied.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
            finalizers.retain(|f| f != FINALIZER);
        }
        // The status patch before has made a new version.
        emptied.metadata.resource_version = None;
        plan.push(Action::replace_sub(&emptied, "finalize"));
        return plan;
    }
    // What pods use (secrets, service accounts, network policies) outlives them.
    let pods_left = found.iter().any(is_pods);
    let mut waiting = true;
    for found in found.iter().filter(|f| !pods_left || is_pods(f)) {
        let live: Vec<&ObjectMeta> = found
            .objects
            .iter()
            .filter(|o| o.deletion_timestamp.is_none())
            .collect();
        if live.is_empty() {
            continue;
        }
        waiting = false;
        let url = found.kind.url(name);
        if found.kind.collectively {
            plan.push(Action::delete_at(url));
        } else {
            let each = live.iter().filter_map(|o| o.name.as_deref());
            plan.extend(each.map(|object| Action::delete_at(format!("{url}/{object}"))));
        }
    }
    plan.push(Action::Requeue(if waiting { LATER } else { SOON }));
    plan
}

fn is_pods(found: &Found) -> bool {
    found.kind.resource.group.is_empty() && found.kind.resource.plural == "pods"
}

fn status(old: &NamespaceStatus, found: &[Found], now: Timestamp) -> NamespaceStatus {
    let remaining: Vec<String> = found
        .iter()
        .map(|f| format!("{} has {} resource instances", f.kind.title(), f.objects.len()))
        .collect();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for finalizer in found
        .iter()
        .flat_map(|f| &f.objects)
        .flat_map(|o| o.finalizers.iter().flatten())
    {
        *finalizers.entry(finalizer).or_default() += 1;
    }
    let held: Vec<String> = finalizers
        .iter()
        .map(|(f, n)| format!("{f} in {n} resource instances"))
        .collect();
    let some_remain = format!("Some resources are remaining: {}", remaining.join(", "));
    let some_held = format!(
        "Some content in the namespace has finalizers remaining: {}",
        held.join(", ")
    );
    let mut conditions = old.conditions.clone().unwrap_or_default();
    for (kind, holds, reason, message) in [
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            false,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        if remaining.is_empty() {
            (
                "NamespaceContentRemaining",
                false,
                "ContentRemoved",
                "All content successfully removed",
            )
        } else {
            (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                some_remain.as_str(),
            )
        },
        if held.is_empty() {
            (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            )
        } else {
            (
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                some_held.as_str(),
            )
        },
    ] {
        let status = if holds { "True" } else { "False" };
        let new = NamespaceCondition::new(kind, status, reason, message, &Time(now));
        if condition::find(Some(&conditions), kind).is_some_and(|c| c.message() != message) {
            conditions.retain(|c| c.kind() != kind);
        }
        condition::set(&mut conditions, new);
    }
    NamespaceStatus {
        phase: Some("Terminating".into()),
        conditions: Some(conditions),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::discovery::ApiResource;
    use serde_json::{from_value, json};

    fn kind(group: &str, plural: &str, collectively: bool) -> Kind {
        let resource = ApiResource {
            group: group.into(),
            version: "v1".into(),
            api_version: String::new(),
            kind: String::new(),
            plural: plural.into(),
        };
        Kind {
            resource,
            namespaced: true,
            collectively,
            watchable: true,
        }
    }

    fn found(kind: Kind, deleting: bool) -> Found {
        let time = deleting.then_some("2026-01-01T00:00:00Z");
        let object = json!({"name": "o", "deletionTimestamp": time, "finalizers": ["f"]});
        Found {
            kind,
            objects: vec![from_value(object).unwrap()],
        }
    }

    fn run(found: &[Found]) -> Vec<Action> {
        let namespace: Namespace = from_value(json!({
            "metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"finalizers": ["kubernetes", "mine"]}}))
        .unwrap();
        assert!(is_to_be_emptied(&namespace));
        reconcile(&namespace, found, "2026-01-01T00:00:00Z".parse().unwrap())
    }

    fn deleted(plan: &[Action]) -> Vec<&str> {
        plan.iter()
            .filter_map(|a| {
                if let Action::Delete { at, .. } = a {
                    Some(at.url.as_str())
                } else {
                    None
                }
            })
            .collect()
    }

    #[test]
    fn pods_go_first_then_the_rest() {
        let plan = run(&[
            found(kind("", "pods", true), false),
            found(kind("", "secrets", true), false),
        ]);
        assert_eq!(deleted(&plan), ["/api/v1/namespaces/n/pods"]);
        let plan = run(&[
            found(kind("", "pods", true), true),
            found(kind("", "secrets", true), false),
        ]);
        assert_eq!(
            deleted(&plan),
            Vec::<&str>::new(),
            "waits for pods that are going"
        );
        assert_eq!(plan.last(), Some(&Action::Requeue(LATER)));
        let plan = run(&[
            found(kind("apps", "deployments", true), false),
            found(kind("", "services", false), false),
        ]);
        assert_eq!(
            deleted(&plan),
            [
                "/apis/apps/v1/namespaces/n/deployments",
                "/api/v1/namespaces/n/services/o"
            ]
        );
        let Action::Patch { patch, .. } = &plan[0] else {
            panic!("{plan:?}")
        };
        let text = patch.to_string();
        assert!(text.contains(
            "Some resources are remaining: deployments.apps has 1 resource instances, services. has"
        ));
        assert!(text.contains("finalizers remaining: f in 2 resource instances"));
    }

    #[test]
    fn an_empty_namespace_is_let_go() {
        let plan = run(&[]);
        let Some(Action::Replace { at, body }) = plan.last() else {
            panic!("{plan:?}")
        };
        assert_eq!(at.url, "/api/v1/namespaces/n/finalize");
        assert_eq!(body["spec"]["finalizers"], json!(["mine"]));
    }
}
