//! Patch: the patched object is an update; an applied configuration may create.

use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use schema::MediaType;
use schema::patch::PatchType;

use super::apply::apply;
use super::ownership::check_options;
use super::*;
use crate::audit;
use crate::negotiate::header;
use crate::options::FieldValidation;

pub async fn patch(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(&request.query, "PatchOptions")?;
    let content_type = header(&request.headers, &CONTENT_TYPE);
    let is_custom = request.resource.kind.custom.is_some();
    let accepted = if is_custom {
        "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    } else {
        "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml"
    };
    let unsupported = || {
        ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        ))
    };
    let patch_type = PatchType::parse(content_type).ok_or_else(unsupported)?;
    if is_custom && patch_type == PatchType::Strategic {
        return Err(unsupported());
    }
    let is_apply = patch_type == PatchType::Apply;
    let force = check_options(request, "PatchOptions", is_apply)?;
    let intent = Intent {
        request,
        dry_run: options.dry_run,
    };
    if is_apply {
        let (written, warnings) = apply(server, intent, force, options.field_validation).await?;
        return answer(server, request, &written, &warnings);
    }
    let (patch, duplicates) =
        schema::codec::parse_patch(MediaType::Json, &request.body).map_err(body::codec_error)?;
    audit::request_object(&patch);
    let kind = &request.resource.kind;
    let warnings = std::sync::Mutex::new(Vec::new());
    let written = update_object(server, intent, |current| {
        let current = conversion::to_served(&request.resource, current.clone())?;
        let mut patched = schema::patch::apply(kind, patch_type, &current, &patch).map_err(|error| {
            let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::BAD_REQUEST);
            ApiError::new(code, error.reason, error.message)
        })?;
        // Upstream shows what it could not take: the patch itself, or what became of it.
        let shown = match patch_type {
            PatchType::Strategic => go_text(&patch),
            _ => patched.to_string(),
        };
        let mut problems = duplicates.clone();
        problems.extend(
            schema::fields::check(kind, &mut patched).map_err(|why| match patch_type {
                PatchType::Strategic => unfit(&shown, restored(&why).as_deref().unwrap_or(&why)),
                _ => unfit(&shown, &why),
            })?,
        );
        let found = match options.field_validation {
            FieldValidation::Strict if !problems.is_empty() => {
                let why = format!("strict decoding error: {}", problems.join(", "));
                return Err(unfit(&shown, &why));
            }
            FieldValidation::Ignore => Vec::new(),
            FieldValidation::Warn | FieldValidation::Strict => problems,
        };
        *warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = found;
        if object::name(&patched) != object::name(&current)
            || object::namespace(&patched) != object::namespace(&current)
        {
            return Err(ApiError::bad_request(
                "the name or namespace of an object cannot be patched",
            ));
        }
        conversion::to_stored(&request.resource, patched)
    })
    .await?;
    let warnings = warnings
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    answer(server, request, &written, &warnings)
}

/// A patch is refused as a field named `patch` of nothing in particular.
fn unfit(shown: &str, why: &str) -> ApiError {
    let cause = Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {shown:?}: {why}"),
        field: "patch".into(),
    };
    ApiError::invalid("", "", "", vec![cause])
}

/// As Go prints a map with `%+v`.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let entries: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name}:{}", go_text(value)))
                .collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

/// A strategic merge works on maps, and what turns those into structs (upstream's `fromUnstructured`) has its own words
/// for what encoding/json calls `json: cannot unmarshal …`.
fn restored(why: &str) -> Option<String> {
    let (from, rest) = why
        .strip_prefix("json: cannot unmarshal ")?
        .split_once(" into ")?;
    let wanted = rest.rsplit_once(" of type ")?.1;
    let kind = match from {
        "array" => "slice",
        "object" => "map",
        "number" => "int64",
        other => other,
    };
    Some(match wanted {
        map if map.starts_with("map[") => format!("cannot restore map from {kind}"),
        slice if slice.starts_with("[]") => format!("cannot restore slice from {kind}"),
        structure if structure.contains('.') => format!("cannot restore struct from: {kind}"),
        scalar => {
            let from = match kind {
                "slice" => "[]interface {}",
                "map" => "map[string]interface {}",
                other => other,
            };
            format!("cannot convert {from} to {scalar}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn strategic_patches_fail_in_upstreams_words() {
        assert_eq!(
            go_text(&json!({"metadata": {"labels": "invalid", "a": [1, null]}})),
            "map[metadata:map[a:[1 <nil>] labels:invalid]]"
        );
        for (why, expected) in [
            (
                "json: cannot unmarshal string into Go struct field ObjectMeta.metadata.labels of type map[string]string",
                Some("cannot restore map from string"),
            ),
            (
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
                Some("cannot restore slice from map"),
            ),
            (
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
                Some("cannot convert string to int32"),
            ),
            ("quantities must match the regular expression", None),
        ] {
            assert_eq!(restored(why).as_deref(), expected, "{why}");
        }
    }
}
