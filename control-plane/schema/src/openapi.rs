//! OpenAPI v3 and v2 documents, built when asked for.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::catalog::Catalog;

/// Upstream's prose for types and fields; see `openapi-pack`.
#[derive(Debug, Default)]
pub struct Descriptions {}

/// Builds documents for one catalog. Make a new one when the catalog changes.
#[derive(Debug)]
pub struct OpenApi {
    catalog: Catalog,
    descriptions: Option<Arc<Descriptions>>,
}

impl OpenApi {
    pub fn new(catalog: Catalog, descriptions: Option<Arc<Descriptions>>) -> Self {
        Self { catalog, descriptions }
    }

    /// `GET /openapi/v3`
    pub fn index(&self) -> Value {
        let _ = (&self.catalog, &self.descriptions);
        json!({"paths": {}})
    }

    /// `path` is a key of the index: `api/v1`, `apis/apps/v1`.
    pub fn hash(&self, path: &str) -> Option<String> {
        let _ = path;
        None
    }

    /// JSON bytes of `GET /openapi/v3/PATH`.
    pub fn document(&self, path: &str) -> Option<Vec<u8>> {
        let _ = path;
        None
    }

    /// JSON bytes of `GET /openapi/v2`.
    pub fn v2(&self) -> Vec<u8> {
        Vec::new()
    }
}
