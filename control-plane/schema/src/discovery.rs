//! Discovery documents, plain and aggregated.

use serde_json::{Value, json};

use crate::catalog::Catalog;

/// `GET /api`
pub fn api_versions(server_address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]})
}

/// `GET /apis`
pub fn api_group_list(catalog: &Catalog) -> Value {
    let _ = catalog;
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})
}

/// `GET /apis/GROUP`
pub fn api_group(catalog: &Catalog, group: &str) -> Option<Value> {
    let _ = (catalog, group);
    None
}

/// `GET /api/v1`, `GET /apis/GROUP/VERSION`
pub fn api_resource_list(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let _ = (catalog, group, version);
    None
}

/// `GET /api` (core group) or `/apis` (the others) with `as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io`.
pub fn aggregated(catalog: &Catalog, core: bool) -> Value {
    let _ = (catalog, core);
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": []})
}
