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
        let shown = patched.clone();
        let mut problems = duplicates.clone();
        problems.extend(schema::fields::check(kind, &mut patched).map_err(|why| unfit(&shown, &why))?);
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
fn unfit(patched: &Value, why: &str) -> ApiError {
    let cause = Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {:?}: {why}", patched.to_string()),
        field: "patch".into(),
    };
    ApiError::invalid("", "", "", vec![cause])
}
