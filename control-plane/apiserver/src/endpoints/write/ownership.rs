//! Who owns the fields that a request writes: `managedFields` follow every write.

use http::header::USER_AGENT;
use schema::Kind;
use schema::apply::{Writer, track_update};
use serde_json::Value;

use super::Intent;
use crate::endpoints::ResourceRequest;
use crate::negotiate::header;
use crate::object;
use crate::registry::strategy;
use crate::request_info::query_values;
use crate::status::{ApiError, Cause};

/// Upstream's limit of a manager's name.
const LONGEST_NAME: usize = 128;

/// How a write changes ownership.
#[derive(Clone, Copy)]
pub enum Track<'a> {
    /// By what differs, through this sub-resource.
    Update { subresource: &'a str },
    /// The object already says who owns what.
    Kept,
}

impl<'a> Track<'a> {
    /// A binding is this server's own doing; it takes no fields from anyone.
    pub fn of(intent: Intent<'a>) -> Self {
        match intent.request.info.subresource.as_str() {
            "binding" => Self::Kept,
            subresource => Self::Update { subresource },
        }
    }

    /// `object` is complete but for what admission adds: that has no owner, as upstream.
    pub(super) fn record(self, intent: Intent<'_>, kind: &Kind, old: Option<&Value>, object: &mut Value) {
        let Self::Update { subresource } = self else {
            return;
        };
        let manager = manager(intent.request);
        if manager.is_empty() {
            // The server itself writes: nobody's fields become somebody's.
            match old {
                Some(old) => object::copy_metadata(object, old, "managedFields"),
                None => drop(object::metadata(object).remove("managedFields")),
            }
            return;
        }
        let now = object::time(jiff::Timestamp::now());
        let writer = Writer {
            manager: &manager,
            subresource,
            now: &now,
            reset: reset_fields(intent.request, subresource),
        };
        track_update(kind, old, object, writer);
    }
}

/// `fieldManager`, or the first part of the User-Agent.
pub fn manager(request: &ResourceRequest) -> String {
    let given = query_values(&request.query, "fieldManager")
        .next()
        .unwrap_or_default();
    if !given.is_empty() {
        return given.to_string();
    }
    let agent = header(&request.headers, &USER_AGENT);
    let program = agent.split('/').next().unwrap_or_default();
    program.chars().take(LONGEST_NAME).collect()
}

/// Upstream's `ValidateFieldManager` and what patches add to it; answers with `force`.
pub fn check_options(request: &ResourceRequest, kind: &str, is_apply: bool) -> Result<bool, ApiError> {
    let value = |name: &str| {
        query_values(&request.query, name)
            .next()
            .unwrap_or_default()
            .to_string()
    };
    let (name, force) = (value("fieldManager"), value("force"));
    let refuse = |reason, field: &str, message: String| {
        let field = field.into();
        Err(ApiError::invalid(
            "meta.k8s.io",
            kind,
            "",
            vec![Cause {
                reason,
                message,
                field,
            }],
        ))
    };
    if name.chars().count() > LONGEST_NAME {
        let message = format!("Too long: may not be more than {LONGEST_NAME} bytes");
        return refuse("FieldValueTooLong", "fieldManager", message);
    }
    if let Some(odd) = name.chars().find(|c| c.is_control()) {
        let message = format!(
            "Invalid value: {name:?}: invalid character {odd:?}: should only contain printable characters"
        );
        return refuse("FieldValueInvalid", "fieldManager", message);
    }
    if is_apply && name.is_empty() {
        let message = "Required value: is required for apply patch".into();
        return refuse("FieldValueRequired", "fieldManager", message);
    }
    if !is_apply && !force.is_empty() {
        let message = "Forbidden: may not be specified for non-apply patch".into();
        return refuse("FieldValueForbidden", "force", message);
    }
    Ok(matches!(
        force.as_str(),
        "true" | "True" | "TRUE" | "1" | "t" | "T"
    ))
}

/// What a request cannot change on this path (upstream's `GetResetFields`).
pub fn reset_fields(request: &ResourceRequest, subresource: &str) -> &'static [&'static str] {
    let resource = &request.resource;
    match subresource {
        "status" if strategy::metadata_through(resource, subresource).is_empty() => &["spec", "metadata"],
        "status" => &["spec"],
        "" | "scale" if resource.subresource("status").is_some() => &["status"],
        _ => &[],
    }
}
