//! Delete and deletecollection: carries out what `registry::deletion` decides.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use store::{Compare, Txn, TxnResult, Write};

use super::{ResourceRequest, body, read, respond};
use crate::audit;
use crate::cache::store_error;
use crate::connect::Body;
use crate::object;
use crate::options::ListOptions;
use crate::pipeline::{AdmissionContext, Operation};
use crate::registry::deletion::{self, Decision, DeleteOptions};
use crate::registry::{self, service, strategy};
use crate::state::ApiServer;
use crate::status::ApiError;
use crate::warnings;

const ATTEMPTS: usize = 16;

/// What became of the object.
pub struct Deleted {
    pub object: Value,
    pub gone: bool,
}

fn options(server: &ApiServer, request: &ResourceRequest) -> Result<DeleteOptions, ApiError> {
    let body = if request.body.is_empty() {
        Value::Null
    } else {
        let catalog = server.registry.catalog();
        let kind = schema::GroupVersionKind::new("", "v1", "DeleteOptions");
        schema::codec::decode(&catalog, body::media_type(request)?, &request.body, Some(&kind))
            .map_err(body::codec_error)?
            .object
    };
    if !body.is_null() {
        audit::request_object(&body);
    }
    let options = DeleteOptions::parse(&body, &request.query)?;
    let resource = &request.resource;
    if let Some(warning) = deletion::warning(&resource.group, &resource.plural, &options) {
        warnings::add(warning);
    }
    Ok(options)
}

pub async fn one(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = options(server, request)?;
    let namespace = if request.resource.namespaced() {
        request.info.namespace.as_str()
    } else {
        ""
    };
    let deleted = delete_object(server, request, namespace, &request.info.name, &options).await?;
    let resource = &request.resource;
    let catalog = server.registry.catalog();
    let viewer = respond::Viewer::new(&catalog, resource, request.wanted, &request.query)?;
    if !deleted.gone || strategy::returns_deleted(&resource.group, &resource.plural) {
        let shown = crate::registry::conversion::to_served(resource, deleted.object)?;
        return Ok(viewer.object(StatusCode::OK, &shown));
    }
    let mut details = json!({
        "name": object::name(&deleted.object),
        "kind": resource.plural,
        "uid": object::uid(&deleted.object),
    });
    if !resource.group.is_empty() {
        details["group"] = json!(resource.group);
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(respond::value(&catalog, StatusCode::OK, &status, request.wanted))
}

pub async fn collection(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = options(server, request)?;
    let list_options = ListOptions::parse(&request.query)?;
    list_options.validate(false)?;
    let selection = read::selection(request, &list_options)?;
    let cache = server.cache(&request.resource.group, &request.resource.plural);
    cache.wait_for_newest().await?;
    let listed = cache.list(&selection, list_options.limit);
    let mut items = Vec::with_capacity(listed.entries.len());
    for entry in &listed.entries {
        match delete_object(server, request, entry.namespace(), entry.name(), &options).await {
            Ok(deleted) => items.push(read::present(&request.resource, object_bytes(&deleted.object))?),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let metadata = json!({"resourceVersion": listed.revision.to_string()});
    let catalog = server.registry.catalog();
    respond::Viewer::new(&catalog, &request.resource, request.wanted, &request.query)?.list(&items, &metadata)
}

fn object_bytes(object: &Value) -> bytes::Bytes {
    object.to_string().into()
}

/// Deletes one object, or begins to.
pub async fn delete_object(
    server: &ApiServer,
    request: &ResourceRequest,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, ApiError> {
    let resource = &request.resource;
    let qualified = request.qualified();
    let key = registry::key(&resource.group, &resource.plural, namespace, name);
    let graceful = strategy::strategy(&resource.group, &resource.plural).is_graceful();
    for _ in 0..ATTEMPTS {
        let (kv, _) = server.store.get(key.clone()).await.map_err(store_error)?;
        let kv = kv.ok_or_else(|| ApiError::not_found(&qualified, name))?;
        let current = object::decode(&kv.value, kv.mod_revision).map_err(ApiError::internal)?;
        options.check(&qualified, &current)?;
        let context = AdmissionContext {
            operation: Operation::Delete,
            info: &request.info,
            kind: &resource.kind.gvk.kind,
            user: &request.user,
            old: Some(&current),
            dry_run: options.dry_run,
            query: &request.query,
            reader: server,
            reinvocation: std::sync::Mutex::default(),
        };
        if !request.is_admitted {
            server.admission.validate(&context, None).await?;
        }
        let decision = deletion::decide(&current, options, graceful, jiff::Timestamp::now());
        let (mut object, gone) = match &decision {
            Decision::Nothing => {
                return Ok(Deleted {
                    object: current,
                    gone: false,
                });
            }
            Decision::Update(next) => (next.clone(), false),
            Decision::Remove => (current.clone(), true),
        };
        if options.dry_run {
            return Ok(Deleted { object, gone });
        }
        let mut writes = Vec::new();
        if gone {
            writes.push(Write::Delete { key: key.clone() });
            if resource.group.is_empty() && resource.plural == "services" {
                writes.extend(
                    service::claims(&current)
                        .into_keys()
                        .map(|key| Write::Delete { key }),
                );
            }
        } else {
            writes.push(Write::Put {
                key: key.clone(),
                value: object::encode(&object),
                lease: kv.lease,
            });
        }
        let compares = vec![Compare {
            key: key.clone(),
            mod_revision: kv.mod_revision,
        }];
        if let TxnResult::Committed { revision } = server
            .store
            .txn(Txn { compares, writes })
            .await
            .map_err(store_error)?
        {
            object::metadata(&mut object).insert("resourceVersion".into(), json!(revision.to_string()));
            return Ok(Deleted { object, gone });
        }
    }
    Err(ApiError::conflict(
        &qualified,
        name,
        "too many concurrent changes; please try again",
    ))
}
