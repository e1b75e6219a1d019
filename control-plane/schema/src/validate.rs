//! What upstream refuses, as causes with its reasons and texts.

use serde_json::Value;

use crate::catalog::Resource;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CauseReason {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl CauseReason {
    /// The `reason` of a StatusCause.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub reason: CauseReason,
    /// Without the field: `Invalid value: "X": must be …`, as in StatusCause.
    pub message: String,
    pub field: String,
}

/// The text after `Pod "x" is invalid: `.
pub fn aggregate(causes: &[Cause]) -> String {
    let texts: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    match texts.as_slice() {
        [only] => only.clone(),
        _ => format!("[{}]", texts.join(", ")),
    }
}

pub fn create(resource: &Resource, object: &Value) -> Vec<Cause> {
    let _ = (resource, object);
    Vec::new()
}

pub fn update(resource: &Resource, object: &Value, old: &Value) -> Vec<Cause> {
    let _ = (resource, object, old);
    Vec::new()
}

pub fn update_subresource(resource: &Resource, subresource: &str, object: &Value, old: &Value) -> Vec<Cause> {
    let _ = (resource, subresource, object, old);
    Vec::new()
}
