//! JSON patch, merge patch and strategic merge patch.

mod json;
mod strategic;

use serde_json::{Map, Value};
use thiserror::Error;

use crate::catalog::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    /// Server-side apply: no patch but a configuration, see [`crate::apply`].
    Apply,
}

impl PatchType {
    pub fn parse(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

/// What the Status of a refused patch says.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct PatchError {
    pub code: u16,
    /// `BadRequest`, `Invalid`, `InternalError`
    pub reason: &'static str,
    pub message: String,
    /// A cause with reason `UnexpectedServerResponse`, where upstream gives one.
    pub cause: Option<String>,
}

impl PatchError {
    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            code: 400,
            reason: "BadRequest",
            message: message.into(),
            cause: None,
        }
    }

    fn unprocessable(cause: impl Into<String>) -> Self {
        let message = "the server rejected our request due to an error in our request".into();
        Self {
            code: 422,
            reason: "Invalid",
            message,
            cause: Some(cause.into()),
        }
    }

    fn internal(problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self {
            code: 500,
            reason: "InternalError",
            message: format!("Internal error occurred: {problem}"),
            cause: None,
        }
    }
}

/// The patched object, unchecked: run `fields::check`, `defaults::apply` and `validate` on it next.
pub fn apply(
    kind: &Kind,
    patch_type: PatchType,
    current: &Value,
    patch: &Value,
) -> Result<Value, PatchError> {
    match patch_type {
        PatchType::Json => json::apply(current, patch),
        PatchType::Strategic => strategic::apply(kind, current, patch),
        PatchType::Merge => {
            if !patch.is_object() {
                return Err(PatchError::bad_request("Invalid JSON Patch"));
            }
            let mut result = current.clone();
            merge(&mut result, patch);
            Ok(result)
        }
        PatchType::Apply => Err(PatchError::internal("an apply configuration is not a patch")),
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (key, change) in changes {
        if change.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key).or_insert(Value::Null), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::{Catalog, GroupVersionKind};

    #[test]
    fn merge_patches_follow_rfc_7386() {
        let kind = Catalog::builtin()
            .kind(&GroupVersionKind::new("", "v1", "Pod"))
            .expect("Pod")
            .clone();
        for (current, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            assert_eq!(apply(&kind, PatchType::Merge, &current, &patch), Ok(expected));
        }
        assert_eq!(
            apply(&kind, PatchType::Merge, &json!({}), &json!([])).map_err(|error| error.code),
            Err(400)
        );
    }
}
