//! Causes: upstream's `field.Error`, worded alike.

use serde_json::Value;

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

impl Cause {
    fn new(reason: CauseReason, field: &str, head: &str, detail: &str) -> Self {
        let message = if detail.is_empty() {
            head.to_owned()
        } else {
            format!("{head}: {detail}")
        };
        Self {
            reason,
            message,
            field: field.to_owned(),
        }
    }

    /// A value of the wrong type; `value` is the type it has.
    pub fn type_invalid(field: &str, value: &Value, detail: &str) -> Self {
        Self {
            reason: CauseReason::TypeInvalid,
            ..Self::invalid(field, value, detail)
        }
    }

    pub fn invalid(field: &str, value: &Value, detail: &str) -> Self {
        Self::new(
            CauseReason::Invalid,
            field,
            &format!("Invalid value: {value}"),
            detail,
        )
    }

    pub fn required(field: &str, detail: &str) -> Self {
        Self::new(CauseReason::Required, field, "Required value", detail)
    }

    pub fn forbidden(field: &str, detail: &str) -> Self {
        Self::new(CauseReason::Forbidden, field, "Forbidden", detail)
    }

    pub fn duplicate(field: &str, value: &Value) -> Self {
        Self::new(
            CauseReason::Duplicate,
            field,
            "Duplicate value",
            &value.to_string(),
        )
    }

    pub fn not_found(field: &str, value: &Value) -> Self {
        Self::new(CauseReason::NotFound, field, "Not found", &value.to_string())
    }

    pub fn not_supported<S: AsRef<str>>(field: &str, value: &Value, supported: &[S]) -> Self {
        let mut names: Vec<String> = supported
            .iter()
            .map(|name| format!("\"{}\"", name.as_ref()))
            .collect();
        names.sort();
        Self::new(
            CauseReason::NotSupported,
            field,
            &format!("Unsupported value: {value}"),
            &format!("supported values: {}", names.join(", ")),
        )
    }

    pub fn too_long(field: &str, limit: usize) -> Self {
        Self::new(
            CauseReason::TooLong,
            field,
            "Too long",
            &format!("may not be more than {limit} bytes"),
        )
    }

    pub fn too_many(field: &str, count: usize, limit: usize) -> Self {
        Self::new(
            CauseReason::TooMany,
            field,
            &format!("Too many: {count}"),
            &format!("must have at most {limit} items"),
        )
    }
}

/// The text after `Pod "x" is invalid: `.
pub fn aggregate(causes: &[Cause]) -> String {
    let texts: Vec<String> = causes
        .iter()
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect();
    match texts.as_slice() {
        [only] => only.clone(),
        _ => format!("[{}]", texts.join(", ")),
    }
}
