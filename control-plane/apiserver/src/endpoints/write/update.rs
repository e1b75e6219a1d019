//! Update: what the caller may change of the stored object, then as for a create.

use http::Response;
use serde_json::{Value, json};
use store::{Compare, Txn, TxnResult, Write};

use super::ownership::{Track, check_options};
use super::*;

pub async fn update(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(&request.query, "UpdateOptions")?;
    check_options(request, "UpdateOptions", false)?;
    let catalog = server.registry.catalog();
    let (object, warnings) = body::decode(
        &catalog,
        request,
        &request.resource.kind,
        options.field_validation,
    )?;
    let name = object::name(&object);
    if name != request.info.name {
        return Err(ApiError::bad_request(if name.is_empty() {
            "name must be provided".to_owned()
        } else {
            format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                request.info.name
            )
        }));
    }
    let object = conversion::to_stored(&request.resource, object)?;
    let intent = Intent {
        request,
        dry_run: options.dry_run,
    };
    let result = update_object(server, intent, |_| {
        if strategy::needs_revision(&request.resource) && wanted_revision(&object).is_empty() {
            let cause = Cause {
                reason: "FieldValueInvalid",
                message: "Invalid value: 0: must be specified for an update".into(),
                field: "metadata.resourceVersion".into(),
            };
            return Err(intent.invalid(&request.info.name, vec![cause]));
        }
        Ok(object.clone())
    })
    .await;
    let written = match result {
        Err(error)
            if error.is_not_found()
                && request.info.subresource.is_empty()
                && strategy::creates_on_update(&request.resource.group, &request.resource.plural) =>
        {
            let mut object = object;
            object::metadata(&mut object).remove("resourceVersion");
            create_object(server, intent, object).await?
        }
        other => other?,
    };
    answer(server, request, &written, &warnings)
}

/// Changes the object the request names; `make` turns the current state into the wanted one and is
/// asked again when somebody else was faster.
pub async fn update_object(
    server: &ApiServer,
    intent: Intent<'_>,
    make: impl Fn(&Value) -> Result<Value, ApiError> + Send + Sync,
) -> Result<Written, ApiError> {
    update_as(server, intent, Track::of(intent), make).await
}

pub async fn update_as(
    server: &ApiServer,
    intent: Intent<'_>,
    track: Track<'_>,
    make: impl Fn(&Value) -> Result<Value, ApiError> + Send + Sync,
) -> Result<Written, ApiError> {
    for _ in 0..ATTEMPTS {
        match try_update(server, intent, track, &make).await? {
            Outcome::Done(written) => return Ok(written),
            Outcome::Exists(_) | Outcome::Raced => {}
        }
    }
    Err(exhausted(intent))
}

/// The revision an update insists on: "0" is none, as upstream reads it.
fn wanted_revision(object: &Value) -> &str {
    match object::resource_version(object) {
        "0" => "",
        given => given,
    }
}

async fn try_update(
    server: &ApiServer,
    intent: Intent<'_>,
    track: Track<'_>,
    make: &(impl Fn(&Value) -> Result<Value, ApiError> + Send + Sync),
) -> Result<Outcome, ApiError> {
    let (info, resource) = (&intent.request.info, intent.resource());
    let (name, qualified) = (info.name.as_str(), intent.request.qualified());
    let key = intent.key(name);
    let (kv, _) = server.store.get(key.clone()).await.map_err(store_error)?;
    let kv = kv.ok_or_else(|| ApiError::not_found(&qualified, name))?;
    let found = object::decode(&kv.value, kv.mod_revision).map_err(ApiError::internal)?;
    let found_as = object::text(&found, "/apiVersion").to_owned();
    let old = conversion::to_current(resource, found)?;
    let is_moved = old["apiVersion"] != found_as;
    let mut object = make(&old)?;
    let given = wanted_revision(&object).to_owned();
    if !given.is_empty() && given != object::resource_version(&old) {
        return Err(ApiError::modified(&qualified, name));
    }
    let given_uid = object::uid(&object);
    if !given_uid.is_empty() && given_uid != object::uid(&old) {
        let why = format!(
            "Precondition failed: UID in precondition: {given_uid}, UID in object meta: {}",
            object::uid(&old)
        );
        return Err(ApiError::conflict(&qualified, name, &why));
    }
    adopt_namespace(&mut object, intent.namespace())?;
    let managed = object["metadata"].get("managedFields").cloned();
    prepare_update(intent, &mut object, &old);
    match managed {
        Some(managed) => object::metadata(&mut object).insert("managedFields".into(), managed),
        None => object::metadata(&mut object).remove("managedFields"),
    };
    let stored = storage_resource(server, &intent.request.resource);
    let kind = &stored.kind;
    schema::defaults::apply(kind, &mut object);
    track.record(intent, kind, Some(&old), &mut object);
    let context = intent.context(server, Operation::Update, Some(&old));
    if !intent.request.is_admitted {
        server.admission.mutate(&context, &mut object).await?;
        schema::defaults::apply(kind, &mut object);
    }
    // Some sub-resources are ways to change the desired state (resize, scale, ephemeralcontainers); a binding is not.
    if !matches!(info.subresource.as_str(), "status" | "binding") {
        let counts = strategy::counts_generations(resource);
        strategy::count_generation(&mut object, Some(&old), counts);
    }
    canonical(kind, &mut object)?;
    let (held, mut requested) = (claims_of(intent, &old), Claims::new());
    if intent.is_service() && info.subresource.is_empty() {
        requested = service::claims(&object);
        server
            .services
            .assign(&mut object, Some(&old))
            .map_err(|causes| intent.invalid(name, causes))?;
    }
    let mut problems = match info.subresource.as_str() {
        "" => causes(schema::validate::update(&stored, &object, &old)),
        subresource => causes(schema::validate::update_subresource(
            &stored,
            subresource,
            &object,
            &old,
        )),
    };
    problems.extend(intent.strategy().validate(&object, Some(&old)));
    if !problems.is_empty() {
        return Err(intent.invalid(name, problems));
    }
    if info.subresource.is_empty() {
        warnings::add_all(schema::advice::of_update(&stored, &object, &old));
    }
    if !intent.request.is_admitted {
        server.admission.validate(&context, Some(&object)).await?;
    }
    let finished = deletion::is_complete(&object);
    let value = object::encode(&object);
    if !finished && !is_moved && !kv.stale && value == object::encode(&old) {
        return Ok(Outcome::Done(Written {
            object: old,
            created: false,
        }));
    }
    if intent.dry_run {
        return Ok(Outcome::Done(Written {
            object,
            created: false,
        }));
    }
    let lease = if intent.is_event() {
        server.lease_for_events().await?
    } else {
        kv.lease
    };
    let write = if finished {
        Write::Delete { key: key.clone() }
    } else {
        Write::Put {
            key: key.clone(),
            value,
            lease,
        }
    };
    let mut txn = Txn {
        compares: vec![Compare {
            key,
            mod_revision: kv.mod_revision,
        }],
        writes: vec![write],
    };
    let claims = if finished {
        Claims::new()
    } else {
        claims_of(intent, &object)
    };
    add_claims(&mut txn, &claims, &held);
    match server.store.txn(txn.clone()).await.map_err(store_error)? {
        TxnResult::Committed { revision } => {
            object::metadata(&mut object).insert("resourceVersion".into(), json!(revision.to_string()));
            Ok(Outcome::Done(Written {
                object,
                created: false,
            }))
        }
        TxnResult::Conflict { current, .. } => {
            let changed = current
                .first()
                .is_none_or(|now| now.as_ref().map(|kv| kv.mod_revision) != Some(kv.mod_revision));
            if changed {
                // The next attempt tells a conflict from a change that can be made again.
                return Ok(Outcome::Raced);
            }
            lost_claim(&txn, &current, &requested).map_or(Ok(Outcome::Raced), |key| {
                Err(intent.invalid(name, service::taken(&object, &key)))
            })
        }
    }
}

/// What the caller may not change comes from the stored object.
fn prepare_update(intent: Intent<'_>, object: &mut Value, old: &Value) {
    let (resource, subresource) = (intent.resource(), intent.request.info.subresource.as_str());
    if subresource.is_empty() {
        let system = [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "generateName",
        ];
        for field in system {
            object::copy_metadata(object, old, field);
        }
        if resource.subresource("status").is_some() {
            object::copy_field(object, old, "status");
        }
        intent.strategy().prepare_for_update(object, old);
    } else if subresource != "binding" {
        // A binding is made from the stored pod by this server, not by the client.
        let wanted = std::mem::replace(object, old.clone());
        if subresource == "status" {
            object::copy_field(object, &wanted, "status");
        }
        for field in strategy::metadata_through(resource, subresource) {
            object::copy_metadata(object, &wanted, field);
        }
        intent
            .strategy()
            .prepare_for_subresource(subresource, object, &wanted, old);
    }
    let metadata = object::metadata(object);
    metadata.remove("selfLink");
    object::copy_metadata(object, old, "resourceVersion");
}
