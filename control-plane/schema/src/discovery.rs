//! Discovery documents, plain and aggregated.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::catalog::{ApiGroup, Catalog, GroupVersionKind, Resource, Scope, group_version};

/// `GET /api`
pub fn api_versions(server_address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]})
}

/// `GET /apis`
pub fn api_group_list(catalog: &Catalog) -> Value {
    let groups: Vec<Value> = catalog
        .groups()
        .iter()
        .filter(|group| !group.name.is_empty())
        .map(group_fields)
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/GROUP`
pub fn api_group(catalog: &Catalog, group: &str) -> Option<Value> {
    let group = catalog
        .groups()
        .into_iter()
        .find(|candidate| candidate.name == group && !group.is_empty())?;
    let mut document = group_fields(&group);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

fn group_fields(group: &ApiGroup) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| json!({"groupVersion": group_version(&group.name, version), "version": version}))
        .collect();
    json!({"name": group.name, "preferredVersion": versions.first(), "versions": versions})
}

/// `GET /api/v1`, `GET /apis/GROUP/VERSION`
pub fn api_resource_list(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let mut resources: Vec<(String, Value)> = Vec::new();
    for resource in catalog
        .resources()
        .filter(|resource| resource.group == group && resource.version == version)
    {
        let mut entry = json!({"name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced(),
            "kind": resource.kind.gvk.kind, "verbs": resource.verbs});
        add_names(&mut entry, resource);
        if resource.supports("get") && resource.supports("create") {
            entry["storageVersionHash"] = storage_version_hash(&resource.kind.gvk).into();
        }
        resources.push((resource.plural.clone(), entry));
        for subresource in &resource.subresources {
            let name = format!("{}/{}", resource.plural, subresource.name);
            let gvk = &subresource.kind.gvk;
            let mut entry = json!({"name": name, "singularName": "", "namespaced": resource.namespaced(), "kind": gvk.kind, "verbs": subresource.verbs});
            if gvk.group != group || gvk.version != version {
                entry["group"] = gvk.group.as_str().into();
                entry["version"] = gvk.version.as_str().into();
            }
            resources.push((name, entry));
        }
    }
    if resources.is_empty() {
        return None;
    }
    resources.sort_by(|left, right| left.0.cmp(&right.0));
    let resources: Vec<Value> = resources.into_iter().map(|(_, entry)| entry).collect();
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group, version), "resources": resources}),
    )
}

fn add_names(entry: &mut Value, resource: &Resource) {
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
}

/// Opaque to clients; equal for servers that store the kind alike.
fn storage_version_hash(gvk: &GroupVersionKind) -> String {
    let digest = Sha256::digest(format!("{}/{}/{}", gvk.group, gvk.version, gvk.kind));
    STANDARD.encode(&digest[..8])
}

/// `GET /api` (core group) or `/apis` (the others) with `as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io`.
pub fn aggregated(catalog: &Catalog, core: bool) -> Value {
    let groups = catalog
        .groups()
        .into_iter()
        .filter(|group| group.name.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|version| aggregated_version(catalog, &group.name, version))
                .collect();
            let metadata = if core {
                Map::new()
            } else {
                Map::from_iter([("name".to_owned(), Value::from(group.name.as_str()))])
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_version(catalog: &Catalog, group: &str, version: &str) -> Value {
    let mut resources: Vec<&Resource> = catalog
        .resources()
        .map(AsRef::as_ref)
        .filter(|resource| resource.group == group && resource.version == version)
        .collect();
    resources.sort_by(|left, right| left.plural.cmp(&right.plural));
    let resources: Vec<Value> = resources.into_iter().map(aggregated_resource).collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": response_kind(&resource.kind.gvk),
        "scope": if resource.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    add_names(&mut entry, resource);
    if !resource.subresources.is_empty() {
        let subresources = resource.subresources.iter().map(|subresource| {
            json!({"subresource": subresource.name, "responseKind": response_kind(&subresource.kind.gvk), "verbs": subresource.verbs})
        });
        entry["subresources"] = subresources.collect();
    }
    entry
}

fn response_kind(gvk: &GroupVersionKind) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_lists_name_subresources_and_foreign_kinds() {
        let list = api_resource_list(&Catalog::builtin(), "apps", "v1").expect("served");
        let resources = list["resources"].as_array().expect("list");
        let find = |name: &str| {
            resources
                .iter()
                .find(|entry| entry["name"] == name)
                .unwrap_or_else(|| panic!("{name}"))
        };
        assert_eq!(
            find("deployments"),
            &json!({"name": "deployments", "singularName": "deployment", "namespaced": true, "kind": "Deployment",
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"], "shortNames": ["deploy"],
            "categories": ["all"], "storageVersionHash": "8aSe+NMegvE="})
        );
        assert_eq!(
            find("deployments/scale"),
            &json!({"name": "deployments/scale", "singularName": "", "namespaced": true, "kind": "Scale",
            "group": "autoscaling", "version": "v1", "verbs": ["get", "patch", "update"]})
        );
        assert!(api_resource_list(&Catalog::builtin(), "apps", "v2").is_none());
    }

    #[test]
    fn groups_prefer_their_first_version() {
        let catalog = Catalog::builtin();
        let group = api_group(&catalog, "autoscaling").expect("served");
        assert_eq!(
            group["preferredVersion"],
            json!({"groupVersion": "autoscaling/v2", "version": "v2"})
        );
        assert_eq!(group["versions"].as_array().map(Vec::len), Some(2));
        assert!(api_group(&catalog, "").is_none());
        assert_eq!(
            api_group_list(&catalog)["groups"].as_array().map(Vec::len),
            Some(20)
        );
    }

    #[test]
    fn aggregated_documents_hold_every_resource_once() {
        let catalog = Catalog::builtin();
        let count = |core| {
            let document = aggregated(&catalog, core);
            let items = document["items"].as_array().expect("items").clone();
            items
                .iter()
                .flat_map(|item| item["versions"].as_array().expect("versions").clone())
                .map(|version| version["resources"].as_array().map_or(0, Vec::len))
                .sum::<usize>()
        };
        assert_eq!(count(true) + count(false), catalog.resources().count());
        assert!(count(true) > 10 && count(false) > 10);
    }
}
