//! Revisions and the other annotations by which deployments and ReplicaSets remember each other.

use super::numbers::{max_surge, wanted};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const LONGEST_HISTORY: usize = 2000;

/// Annotations that are about one object and not copied to another.
const PRIVATE: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

pub fn get<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn revision(meta: &ObjectMeta) -> i64 {
    get(meta, REVISION)
        .and_then(|v| v.parse().ok())
        .unwrap_or_default()
}

pub fn number(set: &ReplicaSet, key: &str) -> Option<i32> {
    get(&set.metadata, key).and_then(|v| v.parse().ok())
}

/// The sizes a ReplicaSet is told, to scale in proportion later.
pub fn set_sizes(set: &mut ReplicaSet, deployment: &Deployment) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED_REPLICAS.into(), wanted(deployment).to_string());
    annotations.insert(
        MAX_REPLICAS.into(),
        (wanted(deployment) + max_surge(deployment)).to_string(),
    );
}

/// Makes `set` the deployment's newest revision and gives it the deployment's annotations
/// (upstream's `SetNewReplicaSetAnnotations`).
pub fn set_newest(set: &mut ReplicaSet, deployment: &Deployment, newest: i64, existing: bool) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    copy_public(deployment.metadata.annotations.as_ref(), annotations);
    let old = annotations.get(REVISION).cloned();
    let older = old
        .as_deref()
        .and_then(|v| v.parse::<i64>().ok())
        .unwrap_or_default();
    if older < newest {
        annotations.insert(REVISION.into(), newest.to_string());
        if let Some(old) = old.filter(|_| existing) {
            let history = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
            let mut list: Vec<&str> = history.split(',').filter(|h| !h.is_empty()).collect();
            list.push(&old);
            while list.iter().map(|h| h.len() + 1).sum::<usize>() > LONGEST_HISTORY {
                list.remove(0);
            }
            annotations.insert(REVISION_HISTORY.into(), list.join(","));
        }
    }
    if !existing {
        set_sizes(set, deployment);
    }
}

fn copy_public(from: Option<&BTreeMap<String, String>>, to: &mut BTreeMap<String, String>) {
    let public = from
        .into_iter()
        .flatten()
        .filter(|(k, _)| !PRIVATE.contains(&k.as_str()));
    to.extend(public.map(|(k, v)| (k.clone(), v.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn a_rolled_back_set_remembers_its_revisions() {
        let deployment: Deployment = from_value(json!({
            "metadata": {"annotations": {"note": "x", REVISION: "3"}},
            "spec": {"selector": {}, "template": {}}}))
        .unwrap();
        let mut set: ReplicaSet =
            from_value(json!({"metadata": {"annotations": {REVISION: "1"}}, "spec": {"selector": {}}}))
                .unwrap();
        set_newest(&mut set, &deployment, 4, true);
        assert_eq!(get(&set.metadata, REVISION), Some("4"));
        assert_eq!(get(&set.metadata, REVISION_HISTORY), Some("1"));
        assert_eq!(get(&set.metadata, "note"), Some("x"));
    }
}
