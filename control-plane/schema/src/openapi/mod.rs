//! OpenAPI v3 and v2 documents, built when asked for.

mod gnostic;
mod pack;
mod paths;
mod schemas;

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

pub use pack::{Descriptions, PackError, build_pack};

use crate::catalog::{Catalog, group_version};
use crate::facts;
use schemas::Dialect;

/// Goes into the hashes; to be raised when the generator changes what it writes.
const GENERATOR: &str = "2";

/// Builds documents for one catalog. Make a new one when the catalog changes.
#[derive(Debug)]
pub struct OpenApi {
    catalog: Catalog,
    descriptions: Option<Arc<Descriptions>>,
}

impl OpenApi {
    pub fn new(catalog: Catalog, descriptions: Option<Arc<Descriptions>>) -> Self {
        Self {
            catalog,
            descriptions,
        }
    }

    /// The same for a changed catalog.
    pub fn with_catalog(&self, catalog: Catalog) -> Self {
        Self::new(catalog, self.descriptions.clone())
    }

    /// `GET /openapi/v3`
    pub fn index(&self) -> Value {
        let mut paths = Map::new();
        for (group, version) in self.group_versions() {
            let path = document_path(&group, &version);
            let hash = self.hash_of(&group, &version);
            paths.insert(
                path.clone(),
                json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
            );
        }
        json!({"paths": paths})
    }

    /// `path` is a key of the index: `api/v1`, `apis/apps/v1`. The hash changes with the document's content.
    pub fn hash(&self, path: &str) -> Option<String> {
        self.find(path)
            .map(|(group, version)| self.hash_of(&group, &version))
    }

    /// JSON bytes of `GET /openapi/v3/PATH`.
    pub fn document(&self, path: &str) -> Option<Vec<u8>> {
        let (group, version) = self.find(path)?;
        let mut roots = schemas::Roots::default();
        let mut paths = Map::new();
        for resource in self
            .catalog
            .resources()
            .filter(|resource| resource.group == group && resource.version == version)
        {
            paths::of_resource(resource, Dialect::V3, &mut paths);
            roots.add_resource(&self.catalog, resource);
        }
        roots.add_shared(&self.catalog);
        let schemas = schemas::definitions(&self.catalog, &roots, Dialect::V3, &self.texts());
        let document = json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "unversioned"},
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"BearerToken": {"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}},
            },
        });
        serde_json::to_vec(&document).ok()
    }

    /// JSON bytes of `GET /openapi/v2`.
    pub fn v2(&self) -> Vec<u8> {
        serde_json::to_vec(&self.v2_document()).unwrap_or_default()
    }

    /// The same in gnostic's protobuf.
    pub fn v2_protobuf(&self) -> Vec<u8> {
        gnostic::encode(&self.v2_document())
    }

    /// Changes with any document.
    pub fn v2_hash(&self) -> String {
        let mut hasher = Sha256::new();
        for (group, version) in self.group_versions() {
            hasher.update(self.hash_of(&group, &version));
        }
        hex(&hasher.finalize())
    }

    fn v2_document(&self) -> Value {
        let mut roots = schemas::Roots::default();
        let mut paths = Map::new();
        for resource in self.catalog.resources() {
            paths::of_resource(resource, Dialect::V2, &mut paths);
            roots.add_resource(&self.catalog, resource);
        }
        roots.add_shared(&self.catalog);
        let definitions = schemas::definitions(&self.catalog, &roots, Dialect::V2, &self.texts());
        json!({
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": "unversioned"},
            "paths": paths,
            "definitions": definitions,
            "securityDefinitions": {"BearerToken": {"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}},
            "security": [{"BearerToken": []}],
        })
    }

    fn texts(&self) -> pack::Texts {
        self.descriptions
            .as_ref()
            .map(|descriptions| descriptions.texts())
            .unwrap_or_default()
    }

    fn group_versions(&self) -> Vec<(String, String)> {
        self.catalog
            .groups()
            .into_iter()
            .flat_map(|group| {
                group
                    .versions
                    .into_iter()
                    .map(move |version| (group.name.clone(), version))
            })
            .collect()
    }

    fn find(&self, path: &str) -> Option<(String, String)> {
        self.group_versions()
            .into_iter()
            .find(|(group, version)| document_path(group, version) == path)
    }

    /// Over everything a document is made from, so that it need not be built to be named.
    fn hash_of(&self, group: &str, version: &str) -> String {
        let mut hasher = Sha256::new();
        for part in [
            GENERATOR,
            facts::TYPES,
            facts::RESOURCES,
            &group_version(group, version),
        ] {
            hasher.update(part);
        }
        for resource in self
            .catalog
            .resources()
            .filter(|resource| resource.group == group && resource.version == version)
        {
            hasher.update(&resource.plural);
            if let Some(custom) = &resource.kind.custom {
                hasher.update(format!("{} {:?} ", resource.kind.gvk, resource.scope));
                hasher.update(custom.schema.to_string());
            }
        }
        if let Some(descriptions) = &self.descriptions {
            hasher.update(descriptions.digest());
        }
        hex(&hasher.finalize())
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut hash, byte| {
        let _ = write!(hash, "{byte:02X}");
        hash
    })
}

fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(path: &str) -> Value {
        let openapi = OpenApi::new(Catalog::builtin(), None);
        serde_json::from_slice(&openapi.document(path).expect(path)).expect("JSON")
    }

    #[test]
    fn every_reference_in_a_document_resolves() {
        let openapi = OpenApi::new(Catalog::builtin(), None);
        let index = openapi.index();
        let paths: Vec<&String> = index["paths"].as_object().expect("paths").keys().collect();
        assert_eq!(paths.len(), 22);
        for path in paths {
            let document = document(path);
            let text = document.to_string();
            let mut seen = 0;
            for reference in text.split("\"#/components/schemas/").skip(1) {
                let name = reference.split('"').next().expect("closed");
                assert!(
                    document["components"]["schemas"].get(name).is_some(),
                    "{path}: {name}"
                );
                seen += 1;
            }
            assert!(seen > 10, "{path}");
        }
    }

    /// kubectl looks for the parameter on the PATCH of the kind before it trusts the server to validate.
    #[test]
    fn patch_declares_field_validation() {
        let document = document("apis/apps/v1");
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        assert_eq!(
            (&patch["x-kubernetes-action"], &patch["operationId"]),
            (&json!("patch"), &json!("patchAppsV1NamespacedDeployment"))
        );
        assert!(
            patch["parameters"]
                .as_array()
                .expect("list")
                .iter()
                .any(|parameter| parameter["name"] == "fieldValidation")
        );
    }

    #[test]
    fn schemas_say_what_upstreams_say() {
        let document = document("api/v1");
        let schema =
            |name: &str| document["components"]["schemas"][format!("io.k8s.api.core.v1.{name}")].clone();
        assert_eq!(
            schema("ServicePort")["properties"]["protocol"],
            json!({"type": "string", "default": "TCP", "enum": ["SCTP", "TCP", "UDP"]})
        );
        assert_eq!(
            schema("PodSpec")["properties"]["containers"],
            json!({"type": "array", "items": {"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"},
            "x-kubernetes-list-map-keys": ["name"], "x-kubernetes-list-type": "map", "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge"})
        );
        assert_eq!(
            schema("Pod")["x-kubernetes-group-version-kind"],
            json!([{"group": "", "kind": "Pod", "version": "v1"}])
        );
        assert!(
            schema("Volume")["properties"].get("emptyDir").is_some(),
            "inlined"
        );
    }

    #[test]
    fn hashes_follow_content() {
        let openapi = OpenApi::new(Catalog::builtin(), None);
        let smaller = OpenApi::new(Catalog::builtin().without("", "v1", "pods"), None);
        assert_eq!(openapi.hash("apis/apps/v1"), smaller.hash("apis/apps/v1"));
        assert_ne!(openapi.hash("api/v1"), smaller.hash("api/v1"));
        assert_eq!(openapi.hash("api/v2"), None);
    }

    #[test]
    fn v2_has_definitions_and_paths() {
        let document: Value =
            serde_json::from_slice(&OpenApi::new(Catalog::builtin(), None).v2()).expect("JSON");
        assert_eq!(
            document["definitions"]["io.k8s.api.core.v1.Pod"]["properties"]["spec"]["$ref"],
            "#/definitions/io.k8s.api.core.v1.PodSpec"
        );
        assert!(
            document["paths"]["/api/v1/namespaces/{namespace}/pods"]["post"]["parameters"]
                .as_array()
                .is_some_and(|list| list.iter().any(|it| it["in"] == "body"))
        );
    }
}
