//! Discovery and OpenAPI as if all servers were one.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::registration::priority;
use super::{Aggregator, Remote, reach};
use crate::connect::Body;
use crate::endpoints::plain;
use crate::state::ApiServer;

const OWN: &str = "apiregistration.k8s.io";
/// The priority of groups of custom resources.
const CUSTOM: i64 = 1000;

/// Adds the others' groups and versions to an APIGroupList.
pub fn group_list(aggregator: &Aggregator, list: &mut Value) {
    let remotes = aggregator.remotes();
    let Some(groups) = list["groups"].as_array_mut() else {
        return;
    };
    for remote in remotes.iter() {
        match groups.iter_mut().find(|group| group["name"] == *remote.group) {
            Some(group) => add_version(group, remote),
            None => groups.push(new_group(remote)),
        }
    }
    sort(groups, &remotes, |group| &group["name"]);
}

/// One APIGroup with the others' versions; `own` is what is served here.
pub fn group(aggregator: &Aggregator, own: Option<Value>, name: &str) -> Option<Value> {
    let remotes = aggregator.remotes();
    let others = remotes.iter().filter(|remote| remote.group == name);
    others.fold(own, |group, remote| {
        Some(match group {
            Some(mut group) => {
                add_version(&mut group, remote);
                group
            }
            None => {
                let mut group = new_group(remote);
                group["kind"] = "APIGroup".into();
                group["apiVersion"] = "v1".into();
                group
            }
        })
    })
}

fn version_entry(remote: &Remote) -> Value {
    json!({"groupVersion": remote.group_version(), "version": remote.version})
}

fn new_group(remote: &Remote) -> Value {
    let version = version_entry(remote);
    json!({"name": remote.group, "versions": [version], "preferredVersion": version})
}

fn add_version(group: &mut Value, remote: &Remote) {
    let of = |entry: &Value| {
        let version = entry["version"].as_str().unwrap_or_default();
        match version == remote.version {
            true => remote.version_priority,
            false => priority(&remote.group, version).map_or(100, |(_, of_version)| of_version),
        }
    };
    if let Some(versions) = group["versions"].as_array_mut() {
        versions.retain(|entry| entry["version"] != *remote.version);
        versions.push(version_entry(remote));
        versions.sort_by_key(|entry| std::cmp::Reverse(of(entry)));
        group["preferredVersion"] = group["versions"][0].clone();
    }
}

/// Our own group first, then by priority, then by name.
fn sort(groups: &mut [Value], remotes: &[Remote], name: impl Fn(&Value) -> &Value) {
    groups.sort_by_cached_key(|group| {
        let name = name(group).as_str().unwrap_or_default().to_owned();
        let of_remotes = remotes.iter().filter(|remote| remote.group == name);
        let highest = of_remotes.map(|remote| remote.group_priority).max();
        let of_group = priority(&name, "").map(|(of_group, _)| of_group);
        let weight = highest.max(of_group).unwrap_or(CUSTOM);
        (name != OWN, std::cmp::Reverse(weight), name)
    });
}

/// Adds the others' resources to an APIGroupDiscoveryList.
pub fn aggregated(aggregator: &Aggregator, list: &mut Value) {
    let remotes = aggregator.remotes();
    let Some(groups) = list["items"].as_array_mut() else {
        return;
    };
    for remote in remotes.iter() {
        let known = aggregator.resources(remote);
        let resources = known
            .as_deref()
            .map_or_else(Vec::new, |known| resources(remote, known));
        let freshness = if remote.available { "Current" } else { "Stale" };
        let entry = json!({"version": remote.version, "resources": resources, "freshness": freshness});
        let name = |group: &Value| group["metadata"]["name"] == *remote.group;
        match groups.iter_mut().find(|group| name(group)) {
            Some(group) => {
                if let Some(versions) = group["versions"].as_array_mut() {
                    versions.retain(|version| version["version"] != *remote.version);
                    versions.push(entry);
                }
            }
            None => groups.push(json!({"metadata": {"name": remote.group}, "versions": [entry]})),
        }
    }
    sort(groups, &remotes, |group| &group["metadata"]["name"]);
}

/// An APIResourceList's entries in the aggregated form.
fn resources(remote: &Remote, list: &Value) -> Vec<Value> {
    let entries = list["resources"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let kind = |entry: &Value| {
        let or = |field: &str, default: &str| {
            let given = entry[field].as_str().filter(|text| !text.is_empty());
            given.unwrap_or(default).to_owned()
        };
        json!({"group": or("group", &remote.group), "version": or("version", &remote.version), "kind": entry["kind"]})
    };
    let name = |entry: &Value| entry["name"].as_str().unwrap_or_default().to_owned();
    let whole = entries.iter().filter(|entry| !name(entry).contains('/'));
    whole
        .map(|entry| {
            let mut item = json!({
                "resource": entry["name"],
                "responseKind": kind(entry),
                "scope": if entry["namespaced"] == true { "Namespaced" } else { "Cluster" },
                "singularResource": entry["singularName"].as_str().unwrap_or_default(),
                "verbs": entry["verbs"],
            });
            for field in ["shortNames", "categories"] {
                if entry[field].is_array() {
                    item[field] = entry[field].clone();
                }
            }
            let prefix = format!("{}/", name(entry));
            let parts: Vec<Value> = entries
                .iter()
                .filter_map(|part| {
                    let sub = name(part).strip_prefix(&prefix)?.to_owned();
                    Some(json!({"subresource": sub, "responseKind": kind(part), "verbs": part["verbs"]}))
                })
                .collect();
            if !parts.is_empty() {
                item["subresources"] = parts.into();
            }
            item
        })
        .collect()
}

/// Adds the others' documents to the index of `/openapi/v3`; those of servers that have none are left out.
pub async fn openapi_index(server: &ApiServer, index: &mut Value) {
    for remote in server
        .aggregator
        .remotes()
        .iter()
        .filter(|remote| remote.available)
    {
        let Ok((StatusCode::OK, body)) = reach::fetch(server, remote, "/openapi/v3", true).await else {
            continue;
        };
        let theirs: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = format!("apis/{}", remote.group_version());
        if let (Some(entry), Some(paths)) = (theirs["paths"].get(&path), index["paths"].as_object_mut()) {
            paths.insert(path, entry.clone());
        }
    }
}

/// The document `/openapi/v3/PATH` of the server that has it.
pub async fn openapi_document(server: &ApiServer, path: &str, query: &str) -> Option<Response<Body>> {
    let remotes = server.aggregator.remotes();
    let remote = remotes
        .iter()
        .find(|remote| path == format!("apis/{}", remote.group_version()))?;
    let separator = if query.is_empty() { "" } else { "?" };
    let path = format!("/openapi/v3/{path}{separator}{query}");
    Some(match reach::fetch(server, remote, &path, true).await {
        Ok((status, body)) => plain(status, "application/json", body),
        Err(error) => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain; charset=utf-8",
            error,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aggregator() -> Aggregator {
        let aggregator = Aggregator::default();
        let service = json!({"metadata": {"name": "v1alpha1.wardle.example.com"}, "spec": {"group": "wardle.example.com",
            "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200, "service": {"namespace": "ns", "name": "s"}}});
        let remote = Remote::of(&service).unwrap();
        aggregator.set_remotes(vec![remote.clone()]);
        aggregator.set_resources(&remote, json!({"resources": [
            {"name": "flunders", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["update"]}]}));
        aggregator
    }

    #[test]
    fn groups_of_others_take_their_place() {
        let group = |name: &str| json!({"name": name, "versions": [{"groupVersion": format!("{name}/v1"), "version": "v1"}]});
        let mut list = json!({"groups": [group("example.com"), group("apps"), group(OWN)]});
        group_list(&aggregator(), &mut list);
        let names: Vec<&str> = list["groups"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|g| g["name"].as_str())
            .collect();
        assert_eq!(names, [OWN, "apps", "wardle.example.com", "example.com"]);
        let known = super::group(&aggregator(), None, "wardle.example.com").unwrap();
        assert_eq!(
            known["preferredVersion"]["groupVersion"],
            "wardle.example.com/v1alpha1"
        );
        assert_eq!(super::group(&aggregator(), None, "other"), None);
        let mixed = json!({"versions": [{"version": "v1"}]});
        let mixed = super::group(&aggregator(), Some(mixed), "wardle.example.com").unwrap();
        assert_eq!(
            mixed["preferredVersion"]["version"], "v1alpha1",
            "200 is before a custom resource's 100"
        );
    }

    #[test]
    fn resource_lists_become_aggregated() {
        let mut list = json!({"items": [{"metadata": {"name": "apps"}, "versions": []}]});
        aggregated(&aggregator(), &mut list);
        let version = &list["items"][1]["versions"][0];
        assert_eq!(version["freshness"], "Stale", "nothing has found it available");
        assert_eq!(
            version["resources"],
            json!([{"resource": "flunders", "scope": "Namespaced", "singularResource": "", "verbs": ["get"],
            "responseKind": {"group": "wardle.example.com", "version": "v1alpha1", "kind": "Flunder"},
            "subresources": [{"subresource": "status", "verbs": ["update"],
                "responseKind": {"group": "wardle.example.com", "version": "v1alpha1", "kind": "Flunder"}}]}])
        );
    }
}
