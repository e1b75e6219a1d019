//! Request bodies: bounded, decoded by their content type, checked against the kind's schema.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use schema::codec::{self, CodecError};
use schema::{Catalog, Kind, MediaType};
use serde_json::Value;

use super::ResourceRequest;
use crate::audit;
use crate::negotiate::header;
use crate::options::FieldValidation;
use crate::status::ApiError;

/// Upstream's limit of a request body.
const LIMIT: usize = 3 * 1024 * 1024;

pub async fn collect(incoming: Incoming) -> Result<Bytes, ApiError> {
    match Limited::new(incoming, LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(LIMIT)),
        Err(error) => Err(ApiError::bad_request(format!(
            "error reading the request body: {error}"
        ))),
    }
}

pub fn media_type(request: &ResourceRequest) -> Result<MediaType, ApiError> {
    let content_type = header(&request.headers, &CONTENT_TYPE);
    if content_type.is_empty() {
        return Ok(MediaType::Json);
    }
    let is_custom = request.resource.kind.custom.is_some();
    // What is sent about a custom resource may be protobuf: a Scale, DeleteOptions.
    let brings_custom =
        is_custom && request.info.subresource != "scale" && !request.info.verb.starts_with("delete");
    MediaType::parse(content_type)
        .filter(|media| !(brings_custom && *media == MediaType::Protobuf))
        .ok_or_else(|| {
            let more = if is_custom { "" } else { ", application/vnd.kubernetes.protobuf" };
            ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml{more}"
            ))
        })
}

/// The object in the body, and warnings about it.
pub fn decode(
    catalog: &Catalog,
    request: &ResourceRequest,
    kind: &Kind,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), ApiError> {
    let decoded =
        codec::decode(catalog, media_type(request)?, &request.body, Some(&kind.gvk)).map_err(codec_error)?;
    if decoded.gvk != kind.gvk {
        let (is, wanted) = (decoded.gvk.api_version(), kind.gvk.api_version());
        return Err(ApiError::bad_request(if is == wanted {
            format!(
                "{} in version \"{is}\" cannot be handled as a {}",
                decoded.gvk.kind, kind.gvk.kind
            )
        } else {
            format!("the API version in the data ({is}) does not match the expected API version ({wanted})")
        }));
    }
    let warnings = strictness(kind, decoded.strict, validation)?;
    audit::request_object(&decoded.object);
    Ok((decoded.object, warnings))
}

/// Strict problems are an error, warnings or nothing.
pub fn strictness(
    kind: &Kind,
    problems: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    match validation {
        FieldValidation::Strict if !problems.is_empty() => Err(ApiError::bad_request(codec::strict_message(
            &kind.gvk,
            &kind.gvk.kind,
            &problems,
        ))),
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn | FieldValidation::Strict => Ok(problems),
    }
}

pub fn codec_error(error: CodecError) -> ApiError {
    ApiError::bad_request(error.to_string())
}
