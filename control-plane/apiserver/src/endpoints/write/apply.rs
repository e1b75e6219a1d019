//! Server-side apply: a configuration becomes an update, or a create where there is nothing yet.

use http::StatusCode;
use schema::MediaType;
use schema::apply::{ApplyError, Writer};

use super::create::create_as;
use super::ownership::{Track, manager, reset_fields};
use super::*;
use crate::audit;
use crate::options::FieldValidation;

pub async fn apply(
    server: &ApiServer,
    intent: Intent<'_>,
    force: bool,
    validation: FieldValidation,
) -> Result<(Written, Vec<String>), ApiError> {
    let (config, mut duplicates) = schema::codec::parse_patch(MediaType::Yaml, &intent.request.body)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    audit::request_object(&config);
    check(intent, &config)?;
    match (validation, duplicates.first()) {
        (FieldValidation::Strict, Some(told)) => {
            return Err(ApiError::bad_request(format!(
                "error strict decoding YAML: error converting YAML to JSON: {told}"
            )));
        }
        (FieldValidation::Ignore, _) => duplicates.clear(),
        _ => {}
    }
    Ok((configure(server, intent, config, force).await?, duplicates))
}

async fn configure(
    server: &ApiServer,
    intent: Intent<'_>,
    config: Value,
    force: bool,
) -> Result<Written, ApiError> {
    let (request, resource) = (intent.request, intent.resource());
    let mut config = conversion::to_stored(resource, config)?;
    object::metadata(&mut config).insert("name".into(), json!(request.info.name));
    adopt_namespace(&mut config, intent.namespace())?;
    let stored = storage_resource(server, &request.resource);
    let (manager, now) = (manager(request), object::time(jiff::Timestamp::now()));
    let writer = Writer {
        manager: &manager,
        subresource: &request.info.subresource,
        now: &now,
        reset: reset_fields(request, &request.info.subresource),
    };
    let make = |live: Option<&Value>| {
        schema::apply::apply(&stored.kind, live, &config, writer, force)
            .map_err(|error| refused(intent, &config, error))
    };
    for _ in 0..ATTEMPTS {
        match update_as(server, intent, Track::Kept, |live| make(Some(live))).await {
            Err(error) if error.is_not_found() && request.info.subresource.is_empty() => {}
            other => return other,
        }
        let uid = object::uid(&config);
        if !uid.is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(ApiError::conflict(&request.qualified(), &request.info.name, &why));
        }
        match create_as(server, intent, Track::Kept, make(None)?).await {
            Err(error) if error.reason == "AlreadyExists" && !intent.dry_run => {}
            other => return other,
        }
    }
    Err(exhausted(intent))
}

/// A configuration of what is there already, owned through a sub-resource.
pub async fn apply_through(
    server: &ApiServer,
    intent: Intent<'_>,
    subresource: &str,
    config: &Value,
    force: bool,
) -> Result<Written, ApiError> {
    let stored = storage_resource(server, &intent.request.resource);
    let (manager, now) = (manager(intent.request), object::time(jiff::Timestamp::now()));
    let writer = Writer {
        manager: &manager,
        subresource,
        now: &now,
        reset: reset_fields(intent.request, subresource),
    };
    update_as(server, intent, Track::Kept, |live| {
        schema::apply::apply(&stored.kind, Some(live), config, writer, force)
            .map_err(|error| refused(intent, config, error))
    })
    .await
}

/// The configuration must be of the kind and the name that the path says.
fn check(intent: Intent<'_>, config: &Value) -> Result<(), ApiError> {
    let gvk = &intent.resource().kind.gvk;
    let (version, kind) = (text(config, "/apiVersion"), text(config, "/kind"));
    if kind != gvk.kind {
        return Err(ApiError::bad_request(if kind.is_empty() {
            "Object 'Kind' is missing".to_owned()
        } else {
            format!("invalid object type: {version}, Kind={kind}")
        }));
    }
    if version != gvk.api_version() {
        return Err(ApiError::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {}",
            gvk.api_version()
        )));
    }
    let (name, expected) = (object::name(config), &intent.request.info.name);
    if !name.is_empty() && name != expected {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({expected})"
        )));
    }
    Ok(())
}

fn refused(intent: Intent<'_>, config: &Value, error: ApplyError) -> ApiError {
    let message = error.to_string();
    match error {
        ApplyError::BadRequest(_) => ApiError::bad_request(message),
        ApplyError::Untyped(why) => {
            let (gvk, namespace) = (&intent.resource().kind.gvk, intent.namespace());
            let name = object::name(config);
            let name = if namespace.is_empty() {
                format!("/{name}")
            } else {
                format!("{namespace}/{name}")
            };
            let message = format!("failed to create typed patch object ({name}; {gvk}): {why}");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
        }
        ApplyError::Conflicts(conflicts) => {
            let causes: Vec<Value> = conflicts
                .iter()
                .map(|conflict| {
                    json!({
                        "reason": "FieldManagerConflict",
                        "message": format!("conflict with {}", conflict.manager),
                        "field": conflict.field,
                    })
                })
                .collect();
            let mut error = ApiError::new(StatusCode::CONFLICT, "Conflict", message);
            *error.details = json!({"causes": causes});
            error
        }
    }
}
