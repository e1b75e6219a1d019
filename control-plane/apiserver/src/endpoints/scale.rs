//! The scale sub-resource: replicas of any workload through one kind.

use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use schema::patch::PatchType;
use schema::{Kind, MediaType, Resource};
use serde_json::{Value, json};

use super::write::{Intent, Track, apply_through, check_options, update_as};
use super::{ResourceRequest, body, respond};
use crate::connect::Body;
use crate::negotiate::header;
use crate::object::{self, text};
use crate::options::WriteOptions;
use crate::registry::custom::{scale_pointers, set_at};
use crate::selectors;
use crate::state::ApiServer;
use crate::status::{ApiError, Cause};

/// The Scale to reach from a workload's current state.
type Wanted = Box<dyn Fn(&Value) -> Result<Value, ApiError> + Send + Sync>;

pub async fn answer(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let (resource, info) = (&request.resource, &request.info);
    let subresource = resource.subresource("scale").ok_or_else(ApiError::no_such_path)?;
    let kind = &subresource.kind;
    let scale = match info.verb.as_str() {
        "get" => {
            let object = server
                .read(&resource.group, &resource.plural, &info.namespace, &info.name)
                .await?;
            of(
                resource,
                kind,
                &object.ok_or_else(|| ApiError::not_found(&request.qualified(), &info.name))?,
            )?
        }
        verb => {
            let options = WriteOptions::parse(&request.query, "UpdateOptions")?;
            let wanted: Wanted = if verb == "update" {
                let scale = body::decode(
                    &server.registry.catalog(),
                    request,
                    kind,
                    options.field_validation,
                )?
                .0;
                Box::new(move |_| Ok(scale.clone()))
            } else {
                let unsupported =
                    || ApiError::unsupported_media_type("the body of the request was in an unknown format");
                let patch_type =
                    PatchType::parse(header(&request.headers, &CONTENT_TYPE)).ok_or_else(unsupported)?;
                if patch_type == PatchType::Apply {
                    return configure(server, request, kind).await;
                }
                let (patch, _) =
                    schema::codec::parse_patch(MediaType::Json, &request.body).map_err(body::codec_error)?;
                let (kind, resource) = (kind.clone(), resource.clone());
                Box::new(move |current| {
                    schema::patch::apply(&kind, patch_type, &of(&resource, &kind, current)?, &patch)
                        .map_err(|error| ApiError::bad_request(error.message))
                })
            };
            let parent = on_workload(request);
            let intent = Intent {
                request: &parent,
                dry_run: options.dry_run,
            };
            let track = Track::Update { subresource: "scale" };
            let written = update_as(server, intent, track, |current| {
                apply(resource, current, &wanted(current)?)
            })
            .await?;
            of(resource, kind, &written.object)?
        }
    };
    let catalog = server.registry.catalog();
    Ok(respond::Viewer::new(&catalog, resource, request.wanted, &request.query)?.scale(&scale))
}

/// The change is one of the workload's spec, so it counts as a new generation.
fn on_workload(request: &ResourceRequest) -> ResourceRequest {
    ResourceRequest {
        info: crate::request_info::RequestInfo {
            subresource: String::new(),
            ..request.info.clone()
        },
        user: request.user.clone(),
        resource: request.resource.clone(),
        headers: request.headers.clone(),
        query: request.query.clone(),
        wanted: request.wanted,
        body: bytes::Bytes::new(),
        is_admitted: false,
    }
}

/// An applied Scale owns the workload's replicas.
async fn configure(
    server: &ApiServer,
    request: &ResourceRequest,
    kind: &Kind,
) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(&request.query, "PatchOptions")?;
    let force = check_options(request, "PatchOptions", true)?;
    let (scale, _) = schema::codec::parse_patch(MediaType::Yaml, &request.body).map_err(body::codec_error)?;
    let (version, name) = (text(&scale, "/apiVersion"), text(&scale, "/kind"));
    if (version, name) != (kind.gvk.api_version().as_str(), kind.gvk.kind.as_str()) {
        let wanted = kind.gvk.api_version();
        return Err(ApiError::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {wanted}"
        )));
    }
    let gvk = &request.resource.kind.gvk;
    let mut config = json!({
        "apiVersion": gvk.api_version(),
        "kind": gvk.kind,
        "metadata": {"name": request.info.name, "namespace": request.info.namespace},
    });
    if let Some(replicas) = scale.pointer("/spec/replicas") {
        let place = scale_pointers(&request.resource).replicas;
        set_at(&mut config, &place, replicas.clone());
    }
    let parent = on_workload(request);
    let intent = Intent {
        request: &parent,
        dry_run: options.dry_run,
    };
    let written = apply_through(server, intent, "scale", &config, force).await?;
    let scale = of(&request.resource, kind, &written.object)?;
    let catalog = server.registry.catalog();
    Ok(respond::value(&catalog, StatusCode::OK, &scale, request.wanted))
}

/// A workload as a Scale.
fn of(resource: &Resource, kind: &Kind, object: &Value) -> Result<Value, ApiError> {
    let places = scale_pointers(resource);
    let count = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64);
    if resource.kind.custom.is_some() && count(&places.replicas).is_none() {
        let path = places.replicas.replace('/', ".");
        return Err(ApiError::internal(format!(
            "the spec replicas field \"{path}\" does not exist"
        )));
    }
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        metadata[field] = object["metadata"][field].clone();
    }
    let selector = match &places.selector {
        Some(pointer) => text(object, pointer).to_owned(),
        None => selectors::render(&object["spec"]["selector"]),
    };
    Ok(json!({
        "kind": kind.gvk.kind,
        "apiVersion": kind.gvk.api_version(),
        "metadata": metadata,
        "spec": {"replicas": count(&places.replicas).unwrap_or(0)},
        "status": {
            "replicas": count(&places.status_replicas).unwrap_or(0),
            "selector": selector,
        },
    }))
}

/// The workload with the Scale's replicas.
fn apply(resource: &Resource, current: &Value, scale: &Value) -> Result<Value, ApiError> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let cause = Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
            field: "spec.replicas".into(),
        };
        return Err(ApiError::invalid(
            "autoscaling",
            "Scale",
            object::name(current),
            vec![cause],
        ));
    }
    let mut object = current.clone();
    set_at(&mut object, &scale_pointers(resource).replicas, json!(replicas));
    let given = text(scale, "/metadata/resourceVersion");
    if given.is_empty() {
        object::metadata(&mut object).remove("resourceVersion");
    } else {
        object::metadata(&mut object).insert("resourceVersion".into(), json!(given));
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_travel_through_scale() {
        let catalog = schema::Catalog::builtin();
        let deployments = catalog.resource("apps", "v1", "deployments").unwrap();
        let deployment = json!({"metadata": {"name": "d", "resourceVersion": "5"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}});
        let mut scaled = apply(
            deployments,
            &deployment,
            &json!({"metadata": {}, "spec": {"replicas": 4}}),
        )
        .unwrap();
        assert_eq!(scaled["spec"]["replicas"], 4);
        assert!(
            scaled["metadata"].get("resourceVersion").is_none(),
            "unconditional"
        );
        scaled = apply(
            deployments,
            &deployment,
            &json!({"metadata": {"resourceVersion": "4"}, "spec": {}}),
        )
        .unwrap();
        assert_eq!(
            (
                &scaled["spec"]["replicas"],
                &scaled["metadata"]["resourceVersion"]
            ),
            (&json!(0), &json!("4"))
        );
        assert!(apply(deployments, &deployment, &json!({"spec": {"replicas": -1}})).is_err());
    }
}
