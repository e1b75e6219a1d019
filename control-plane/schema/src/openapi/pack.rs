//! The description pack: upstream's prose for types and fields, compressed, read only when a document is built.

use std::collections::HashMap;
use std::io;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::types::Types;

/// First line of the uncompressed text; then `@type` lines and, after each, its fields, texts JSON-escaped.
const HEADER: &str = "openapi-descriptions 1";
const LEVEL: i32 = 19;

#[derive(Debug, Error)]
pub enum PackError {
    #[error("the definitions are not JSON: {0}")]
    Definitions(serde_json::Error),
    #[error("the definitions hold no descriptions of this Kubernetes version's types")]
    Empty,
    #[error("compression: {0}")]
    Compression(io::Error),
    #[error("not a description pack: it does not start with \"{HEADER}\"")]
    Header,
}

/// Upstream's prose, still compressed.
#[derive(Debug)]
pub struct Descriptions {
    packed: Vec<u8>,
    digest: [u8; 32],
}

impl Descriptions {
    /// Keeps the pack's bytes after a look at them.
    pub fn parse(packed: &[u8]) -> Result<Self, PackError> {
        let text = zstd::decode_all(packed).map_err(PackError::Compression)?;
        if !text.starts_with(HEADER.as_bytes()) {
            return Err(PackError::Header);
        }
        Ok(Self {
            packed: packed.to_vec(),
            digest: Sha256::digest(packed).into(),
        })
    }

    pub(super) fn digest(&self) -> &[u8] {
        &self.digest
    }

    pub(super) fn texts(&self) -> Texts {
        let text = zstd::decode_all(self.packed.as_slice()).unwrap_or_default();
        let mut texts = Texts::default();
        let mut owner = String::new();
        for line in String::from_utf8_lossy(&text).lines().skip(1) {
            let Some((name, text)) = line.split_once(' ') else {
                continue;
            };
            let text: String = serde_json::from_str(text).unwrap_or_default();
            match name.strip_prefix('@') {
                Some(ty) => {
                    ty.clone_into(&mut owner);
                    texts.0.insert(owner.clone(), text);
                }
                None => {
                    texts.0.insert(format!("{owner}#{name}"), text);
                }
            }
        }
        texts
    }
}

/// Texts by `type` and `type#field`.
#[derive(Debug, Default)]
pub(super) struct Texts(HashMap<String, String>);

impl Texts {
    pub fn ty(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    }

    pub fn field(&self, ty: &str, field: &str) -> Option<&str> {
        self.ty(&format!("{ty}#{field}"))
    }
}

/// Builds a pack from the `_definitions.json` of the `kubernetes-validate` package: the texts of the types that are served.
pub fn build_pack(definitions: &[u8]) -> Result<Vec<u8>, PackError> {
    let document: Value = serde_json::from_slice(definitions).map_err(PackError::Definitions)?;
    let definitions = document
        .get("$defs")
        .or_else(|| document.get("definitions"))
        .and_then(Value::as_object)
        .ok_or(PackError::Empty)?;
    let types = Types::builtin();
    let description = |schema: &Value| {
        schema
            .get("description")
            .map_or_else(|| "\"\"".to_owned(), Value::to_string)
    };
    let mut text = format!("{HEADER}\n");
    let mut count = 0;
    for (name, schema) in definitions {
        let special = schema.get("properties").is_none();
        if types.by_name(name).is_none() && !special {
            continue;
        }
        text.push_str(&format!("@{name} {}\n", description(schema)));
        for (field, property) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            text.push_str(&format!("{field} {}\n", description(property)));
            count += 1;
        }
    }
    if count == 0 {
        return Err(PackError::Empty);
    }
    zstd::encode_all(text.as_bytes(), LEVEL).map_err(PackError::Compression)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::catalog::Catalog;
    use crate::openapi::OpenApi;

    #[test]
    fn texts_reach_the_documents() {
        let definitions = json!({"$defs": {
            "io.k8s.api.core.v1.Pod": {"description": "A \"pod\".\nTwo lines.", "properties": {"spec": {"description": "What it shall be."}}},
            "io.k8s.api.old.v1.Gone": {"description": "x", "properties": {"a": {}}}}});
        let pack = build_pack(definitions.to_string().as_bytes()).expect("packs");
        let descriptions = Arc::new(Descriptions::parse(&pack).expect("parses"));
        assert!(descriptions.texts().ty("io.k8s.api.old.v1.Gone").is_none());
        let with = OpenApi::new(Catalog::builtin(), Some(descriptions));
        let document: Value =
            serde_json::from_slice(&with.document("api/v1").expect("served")).expect("JSON");
        let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["description"], "A \"pod\".\nTwo lines.");
        assert_eq!(pod["properties"]["spec"]["description"], "What it shall be.");
        assert_ne!(
            with.hash("api/v1"),
            OpenApi::new(Catalog::builtin(), None).hash("api/v1")
        );
    }

    #[test]
    fn other_files_are_refused() {
        assert!(matches!(build_pack(b"{"), Err(PackError::Definitions(_))));
        assert!(matches!(build_pack(b"{\"$defs\":{}}"), Err(PackError::Empty)));
        assert!(matches!(
            Descriptions::parse(b"x"),
            Err(PackError::Compression(_))
        ));
        let foreign = zstd::encode_all(&b"hello"[..], 1).expect("compresses");
        assert!(matches!(Descriptions::parse(&foreign), Err(PackError::Header)));
    }
}
