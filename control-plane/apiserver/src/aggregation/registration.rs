//! An APIService for every group version that is served here, as upstream's aggregator registers them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use schema::Catalog;
use serde_json::{Value, json};

use super::{GROUP, PLURAL, availability};
use crate::background::{ensure_object, own_request};
use crate::endpoints::delete_object;
use crate::object;
use crate::pipeline::ObjectReader;
use crate::registry::deletion::DeleteOptions;
use crate::state::ApiServer;
use crate::status::ApiError;

const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
const INTERVAL: Duration = Duration::from_secs(1);
/// Custom resources' (upstream: `crdRegistrationController`).
const CUSTOM: (i64, i64) = (1000, 100);

/// Group, its priority, its versions' priorities; the higher come first.
const PRIORITIES: [(&str, i64, &[(&str, i64)]); 22] = [
    ("", 18000, &[("v1", 1)]),
    ("apps", 17800, &[("v1", 15)]),
    ("events.k8s.io", 17750, &[("v1", 15)]),
    ("authentication.k8s.io", 17700, &[("v1", 15)]),
    ("authorization.k8s.io", 17600, &[("v1", 15)]),
    ("autoscaling", 17500, &[("v2", 30), ("v1", 15)]),
    ("batch", 17400, &[("v1", 15)]),
    ("certificates.k8s.io", 17300, &[("v1", 15)]),
    ("networking.k8s.io", 17200, &[("v1", 15)]),
    ("policy", 17100, &[("v1", 15)]),
    ("rbac.authorization.k8s.io", 17000, &[("v1", 15)]),
    ("storage.k8s.io", 16800, &[("v1", 15)]),
    ("admissionregistration.k8s.io", 16700, &[("v1", 15)]),
    ("apiextensions.k8s.io", 16700, &[("v1", 15)]),
    ("scheduling.k8s.io", 16600, &[("v1", 15)]),
    ("coordination.k8s.io", 16500, &[("v1", 15)]),
    ("node.k8s.io", 16300, &[("v1", 15)]),
    ("discovery.k8s.io", 16200, &[("v1", 15)]),
    ("flowcontrol.apiserver.k8s.io", 16100, &[("v1", 21)]),
    ("internal.apiserver.k8s.io", 16000, &[]),
    ("resource.k8s.io", 15900, &[("v1", 20)]),
    ("storagemigration.k8s.io", 15800, &[]),
];
/// Of versions that the table does not name.
const OTHER_VERSION: i64 = 9;

/// (group, version); None for groups of custom resources.
pub fn priority(group: &str, version: &str) -> Option<(i64, i64)> {
    let (_, of_group, versions) = PRIORITIES.iter().find(|(name, ..)| *name == group)?;
    let of_version = versions.iter().find(|(name, _)| *name == version);
    Some((
        *of_group,
        of_version.map_or(OTHER_VERSION, |(_, priority)| *priority),
    ))
}

/// The APIServices of what the catalog holds. The aggregator's own group needs none.
fn wanted(catalog: &Catalog) -> Vec<Value> {
    let versions = catalog.groups().into_iter().flat_map(|group| {
        let name = group.name.clone();
        group
            .versions
            .into_iter()
            .map(move |version| (name.clone(), version))
    });
    versions
        .filter(|(group, _)| group != GROUP)
        .map(|(group, version)| {
            let builtin = priority(&group, &version);
            let (of_group, of_version) = builtin.unwrap_or(CUSTOM);
            let managed = if builtin.is_some() { "onstart" } else { "true" };
            json!({
                "apiVersion": format!("{GROUP}/v1"),
                "kind": "APIService",
                "metadata": {"name": format!("{version}.{group}"), "labels": {LABEL: managed}},
                "spec": {"group": group, "version": version, "groupPriorityMinimum": of_group, "versionPriority": of_version},
            })
        })
        .collect()
}

pub async fn keep(server: &Arc<ApiServer>) {
    let mut done: Option<Arc<Catalog>> = None;
    let mut at_start = true;
    loop {
        let catalog = server.registry.catalog();
        if !done.as_ref().is_some_and(|done| Arc::ptr_eq(done, &catalog)) {
            match settle(server, &catalog, at_start).await {
                Ok(()) => (done, at_start) = (Some(catalog), false),
                Err(error) => tracing::warn!(error = error.message, "cannot register APIServices"),
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn settle(server: &ApiServer, catalog: &Catalog, at_start: bool) -> Result<(), ApiError> {
    let wanted = wanted(catalog);
    let names: BTreeSet<String> = wanted
        .iter()
        .map(|object| object::name(object).to_owned())
        .collect();
    for object in wanted {
        // A user may delete what is registered at start.
        if !at_start && object["metadata"]["labels"][LABEL] == "onstart" {
            continue;
        }
        let name = object::name(&object).to_owned();
        let request = own_request(server, GROUP, PLURAL, "", &name)?;
        ensure_object(server, &request, object).await?;
        let current = ObjectReader::get(server, GROUP, PLURAL, "", &name).await?;
        if current.is_some_and(|current| current["spec"]["service"].is_null()) {
            let local = (
                "True",
                "Local",
                "Local APIServices are always available".to_owned(),
            );
            availability::write(server, &name, &local).await?;
        }
    }
    for object in server.list(GROUP, PLURAL, "").await? {
        let name = object::name(&object);
        if object["metadata"]["labels"][LABEL] == "true" && !names.contains(name) {
            let mut request = own_request(server, GROUP, PLURAL, "", name)?;
            request.info.verb = "delete".into();
            match delete_object(server, &request, "", name, &DeleteOptions::default()).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_group_version_is_registered_with_its_priority() {
        let catalog = Catalog::builtin();
        let wanted = wanted(&catalog);
        let names: Vec<&str> = wanted.iter().map(object::name).collect();
        assert!(
            names.contains(&"v1.")
                && names.contains(&"v1.apps")
                && !names.contains(&"v1.apiregistration.k8s.io")
        );
        for object in &wanted {
            assert_eq!(
                object["metadata"]["labels"][LABEL],
                "onstart",
                "{}",
                object::name(object)
            );
        }
        assert_eq!(priority("autoscaling", "v2"), Some((17500, 30)));
        assert_eq!(priority("example.com", "v1"), None);
    }
}
