//! Create: decode, defaults, admission, strategy, validation, one store transaction.

use http::Response;
use serde_json::{Value, json};
use store::{Compare, Txn, TxnResult, Write};

use super::ownership::{Track, check_options};
use super::*;

pub async fn create(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(&request.query, "CreateOptions")?;
    check_options(request, "CreateOptions", false)?;
    let catalog = server.registry.catalog();
    let (object, warnings) = body::decode(
        &catalog,
        request,
        &request.resource.kind,
        options.field_validation,
    )?;
    let intent = Intent {
        request,
        dry_run: options.dry_run,
    };
    let written = create_object(server, intent, object).await?;
    answer(server, request, &written, &warnings)
}

/// Creates an object; `object` is decoded and pruned.
pub async fn create_object(
    server: &ApiServer,
    intent: Intent<'_>,
    object: Value,
) -> Result<Written, ApiError> {
    create_as(server, intent, Track::of(intent), object).await
}

pub(super) async fn create_as(
    server: &ApiServer,
    intent: Intent<'_>,
    track: Track<'_>,
    mut object: Value,
) -> Result<Written, ApiError> {
    adopt_namespace(&mut object, intent.namespace())?;
    if !object::resource_version(&object).is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let generated = object::name(&object).is_empty();
    let base = text(&object, "/metadata/generateName").to_owned();
    if generated && base.is_empty() {
        let cause = Cause {
            reason: "FieldValueRequired",
            message: "Required value: name or generateName is required".into(),
            field: "metadata.name".into(),
        };
        return Err(intent.invalid("", vec![cause]));
    }
    object = conversion::to_stored(intent.resource(), object)?;
    let metadata = object::metadata(&mut object);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), json!(names::uid()));
    metadata.insert(
        "creationTimestamp".into(),
        json!(object::time(jiff::Timestamp::now())),
    );
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut candidate = object.clone();
        if generated {
            object::metadata(&mut candidate).insert("name".into(), json!(names::generate(&base)));
        }
        match try_create(server, intent, track, candidate).await? {
            Outcome::Done(written) => return Ok(written),
            Outcome::Exists(_) if generated && attempt < ATTEMPTS => {}
            Outcome::Raced if attempt < ATTEMPTS => {}
            Outcome::Exists(name) => {
                return Err(ApiError::already_exists(&intent.request.qualified(), &name));
            }
            Outcome::Raced => return Err(exhausted(intent)),
        }
    }
}

async fn try_create(
    server: &ApiServer,
    intent: Intent<'_>,
    track: Track<'_>,
    mut object: Value,
) -> Result<Outcome, ApiError> {
    let resource = intent.resource();
    let stored = storage_resource(server, &intent.request.resource);
    let kind = &stored.kind;
    schema::defaults::apply(kind, &mut object);
    track.record(intent, kind, None, &mut object);
    let context = intent.context(server, Operation::Create, None);
    server.admission.mutate(&context, &mut object).await?;
    schema::defaults::apply(kind, &mut object);
    let strategy = intent.strategy();
    if resource.subresource("status").is_some()
        && !strategy.keeps_status_on_create()
        && let Some(object) = object.as_object_mut()
    {
        object.remove("status");
    }
    strategy.prepare_for_create(&mut object, &intent.request.user);
    let counts = strategy::counts_generations(resource);
    strategy::count_generation(&mut object, None, counts);
    canonical(kind, &mut object)?;
    let name = object::name(&object).to_owned();
    let mut requested = Claims::new();
    if intent.is_service() {
        requested = service::claims(&object);
        server
            .services
            .assign(&mut object, None)
            .map_err(|causes| intent.invalid(&name, causes))?;
    }
    let mut causes = causes(schema::validate::create(&stored, &object));
    causes.extend(strategy.validate(&object, None));
    if !causes.is_empty() {
        return Err(intent.invalid(&name, causes));
    }
    warnings::add_all(schema::advice::of_creation(&stored, &object));
    server.admission.validate(&context, Some(&object)).await?;
    let claims = if intent.is_service() {
        service::claims(&object)
    } else {
        Claims::new()
    };
    let key = intent.key(&name);
    if intent.dry_run {
        let (existing, _) = server.store.get(key).await.map_err(store_error)?;
        return Ok(match existing {
            Some(_) => Outcome::Exists(name),
            None => Outcome::Done(Written {
                object,
                created: true,
            }),
        });
    }
    let lease = if intent.is_event() {
        server.lease_for_events().await?
    } else {
        0
    };
    let mut txn = Txn {
        compares: vec![Compare {
            key: key.clone(),
            mod_revision: 0,
        }],
        writes: vec![Write::Put {
            key,
            value: object::encode(&object),
            lease,
        }],
    };
    add_claims(&mut txn, &claims, &Claims::new());
    match server.store.txn(txn.clone()).await.map_err(store_error)? {
        TxnResult::Committed { revision } => {
            object::metadata(&mut object).insert("resourceVersion".into(), json!(revision.to_string()));
            Ok(Outcome::Done(Written {
                object,
                created: true,
            }))
        }
        TxnResult::Conflict { current, .. } => {
            if current.first().is_some_and(Option::is_some) {
                return Ok(Outcome::Exists(name));
            }
            lost_claim(&txn, &current, &requested).map_or(Ok(Outcome::Raced), |key| {
                Err(intent.invalid(&name, service::taken(&object, &key)))
            })
        }
    }
}
