//! Create, update and patch: decode, defaults, admission, strategy, validation, one store transaction.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use schema::patch::PatchType;
use schema::{Kind, MediaType, Resource};
use serde_json::{Value, json};
use store::{Compare, Txn, TxnResult, Write};

use super::{ResourceRequest, body, respond};
use crate::cache::store_error;
use crate::connect::Body;
use crate::negotiate::header;
use crate::object::{self, text};
use crate::options::WriteOptions;
use crate::pipeline::{AdmissionContext, Operation};
use crate::registry::conversion;
use crate::registry::service::{self, Claims};
use crate::registry::strategy::{self, Strategy};
use crate::registry::{self, deletion, names};
use crate::state::ApiServer;
use crate::status::{ApiError, Cause};

/// Lost races are run again this often.
const ATTEMPTS: usize = 16;

/// Who writes what, and how seriously.
#[derive(Clone, Copy)]
pub struct Intent<'a> {
    pub request: &'a ResourceRequest,
    pub dry_run: bool,
}

impl Intent<'_> {
    fn resource(&self) -> &Resource {
        &self.request.resource
    }

    fn strategy(&self) -> &'static dyn Strategy {
        strategy::strategy(&self.resource().group, &self.resource().plural)
    }

    fn namespace(&self) -> &str {
        if self.resource().namespaced() {
            &self.request.info.namespace
        } else {
            ""
        }
    }

    fn key(&self, name: &str) -> Bytes {
        registry::key(
            &self.resource().group,
            &self.resource().plural,
            self.namespace(),
            name,
        )
    }

    fn context<'a>(
        &'a self,
        server: &'a ApiServer,
        operation: Operation,
        old: Option<&'a Value>,
    ) -> AdmissionContext<'a> {
        AdmissionContext {
            operation,
            info: &self.request.info,
            kind: &self.resource().kind.gvk.kind,
            user: &self.request.user,
            old,
            dry_run: self.dry_run,
            reader: server,
        }
    }

    fn is_service(&self) -> bool {
        self.resource().group.is_empty() && self.resource().plural == "services"
    }

    fn is_event(&self) -> bool {
        self.resource().plural == "events"
    }

    fn invalid(&self, name: &str, causes: Vec<Cause>) -> ApiError {
        let gvk = &self.resource().kind.gvk;
        ApiError::invalid(&gvk.group, &gvk.kind, name, causes)
    }
}

/// The object as it is now, and whether it is new.
pub struct Written {
    pub object: Value,
    pub created: bool,
}

pub async fn create(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(&request.query, "CreateOptions")?;
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

pub fn answer(
    server: &ApiServer,
    request: &ResourceRequest,
    written: &Written,
    warnings: &[String],
) -> Result<Response<Body>, ApiError> {
    let status = if written.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let catalog = server.registry.catalog();
    let viewer = respond::Viewer::new(&catalog, &request.resource, request.wanted, &request.query)?;
    let mut response = if conversion::converts(&request.resource) {
        viewer.object(
            status,
            &conversion::to_served(&request.resource, written.object.clone()),
        )
    } else {
        viewer.object(status, &written.object)
    };
    respond::warn(&mut response, warnings);
    Ok(response)
}

/// Creates an object; `object` is decoded and pruned.
pub async fn create_object(
    server: &ApiServer,
    intent: Intent<'_>,
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
    object = conversion::to_stored(intent.resource(), object);
    let metadata = object::metadata(&mut object);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
    ] {
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
        match try_create(server, intent, candidate).await? {
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

enum Outcome {
    Done(Written),
    Exists(String),
    /// Somebody else was faster; look again.
    Raced,
}

fn exhausted(intent: Intent<'_>) -> ApiError {
    ApiError::conflict(
        &intent.request.qualified(),
        &intent.request.info.name,
        "too many concurrent changes; please try again",
    )
}

async fn try_create(server: &ApiServer, intent: Intent<'_>, mut object: Value) -> Result<Outcome, ApiError> {
    let resource = intent.resource();
    let stored = storage_resource(server, &intent.request.resource);
    let kind = &stored.kind;
    schema::defaults::apply(kind, &mut object);
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

/// The resource whose form is stored: what defaults and validation apply to.
fn storage_resource(server: &ApiServer, resource: &Arc<Resource>) -> Arc<Resource> {
    let (group, version) = conversion::stored_as(&resource.group, &resource.version, &resource.plural);
    let stored = server
        .registry
        .catalog()
        .resource(group, version, &resource.plural)
        .cloned();
    stored.unwrap_or_else(|| resource.clone())
}

fn adopt_namespace(object: &mut Value, namespace: &str) -> Result<(), ApiError> {
    let given = object::namespace(object);
    if !given.is_empty() && given != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if namespace.is_empty() {
        object::metadata(object).remove("namespace");
    } else {
        object::metadata(object).insert("namespace".into(), json!(namespace));
    }
    Ok(())
}

/// What strategies and admission wrote is brought into canonical form, too.
fn canonical(kind: &Kind, object: &mut Value) -> Result<(), ApiError> {
    schema::fields::check(kind, object)
        .map(drop)
        .map_err(ApiError::bad_request)
}

fn causes(causes: Vec<schema::validate::Cause>) -> Vec<Cause> {
    causes
        .into_iter()
        .map(|c| Cause {
            reason: c.reason.as_str(),
            message: c.message,
            field: c.field,
        })
        .collect()
}

/// New claims must be free; given-up ones are deleted in the same transaction.
fn add_claims(txn: &mut Txn, now: &Claims, before: &Claims) {
    for (key, value) in now.iter().filter(|(key, _)| !before.contains_key(*key)) {
        txn.compares.push(Compare {
            key: key.clone(),
            mod_revision: 0,
        });
        txn.writes.push(Write::Put {
            key: key.clone(),
            value: value.clone(),
            lease: 0,
        });
    }
    for key in before.keys().filter(|key| !now.contains_key(*key)) {
        txn.writes.push(Write::Delete { key: key.clone() });
    }
}

/// The taken key that the user asked for by name; a random pick that was taken is picked anew.
fn lost_claim(txn: &Txn, current: &[Option<store::KeyValue>], requested: &Claims) -> Option<Bytes> {
    let taken = txn
        .compares
        .iter()
        .zip(current)
        .skip(1)
        .filter(|(_, kv)| kv.is_some());
    taken
        .map(|(compare, _)| compare.key.clone())
        .find(|key| requested.contains_key(key))
}

pub async fn update(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(&request.query, "UpdateOptions")?;
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
    let object = conversion::to_stored(&request.resource, object);
    let intent = Intent {
        request,
        dry_run: options.dry_run,
    };
    let result = update_object(server, intent, |_| {
        if strategy::needs_revision(&request.resource) && object::resource_version(&object).is_empty() {
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

pub async fn patch(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(&request.query, "PatchOptions")?;
    let content_type = header(&request.headers, &CONTENT_TYPE);
    let is_custom = request.resource.kind.custom.is_some();
    let accepted = if is_custom {
        "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    } else {
        "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
    };
    let unsupported = |why: &str| {
        ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format{why} - accepted media types include: {accepted}"
        ))
    };
    let patch_type = PatchType::parse(content_type).ok_or_else(|| unsupported(""))?;
    if is_custom && patch_type == PatchType::Strategic {
        return Err(unsupported(""));
    }
    if patch_type == PatchType::Apply {
        return Err(unsupported(" (server-side apply is not served yet)"));
    }
    let patch = schema::codec::parse_patch(MediaType::Json, &request.body).map_err(body::codec_error)?;
    let kind = &request.resource.kind;
    let intent = Intent {
        request,
        dry_run: options.dry_run,
    };
    let warnings = std::sync::Mutex::new(Vec::new());
    let written = update_object(server, intent, |current| {
        let current = conversion::to_served(&request.resource, current.clone());
        let mut patched = schema::patch::apply(kind, patch_type, &current, &patch).map_err(|error| {
            let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::BAD_REQUEST);
            ApiError::new(code, error.reason, error.message)
        })?;
        let problems = schema::fields::check(kind, &mut patched).map_err(ApiError::bad_request)?;
        let found = body::strictness(kind, problems, options.field_validation)?;
        *warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = found;
        if object::name(&patched) != object::name(&current)
            || object::namespace(&patched) != object::namespace(&current)
        {
            return Err(ApiError::bad_request(
                "the name or namespace of an object cannot be patched",
            ));
        }
        Ok(conversion::to_stored(&request.resource, patched))
    })
    .await?;
    let warnings = warnings
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    answer(server, request, &written, &warnings)
}

/// Changes the object the request names; `make` turns the current state into the wanted one and is
/// asked again when somebody else was faster.
pub async fn update_object(
    server: &ApiServer,
    intent: Intent<'_>,
    make: impl Fn(&Value) -> Result<Value, ApiError> + Send + Sync,
) -> Result<Written, ApiError> {
    for _ in 0..ATTEMPTS {
        match try_update(server, intent, &make).await? {
            Outcome::Done(written) => return Ok(written),
            Outcome::Exists(_) | Outcome::Raced => {}
        }
    }
    Err(exhausted(intent))
}

async fn try_update(
    server: &ApiServer,
    intent: Intent<'_>,
    make: &(impl Fn(&Value) -> Result<Value, ApiError> + Send + Sync),
) -> Result<Outcome, ApiError> {
    let (info, resource) = (&intent.request.info, intent.resource());
    let (name, qualified) = (info.name.as_str(), intent.request.qualified());
    let key = intent.key(name);
    let (kv, _) = server.store.get(key.clone()).await.map_err(store_error)?;
    let kv = kv.ok_or_else(|| ApiError::not_found(&qualified, name))?;
    let old = object::decode(&kv.value, kv.mod_revision).map_err(ApiError::internal)?;
    let mut object = make(&old)?;
    let given = object::resource_version(&object).to_owned();
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
    prepare_update(intent, &mut object, &old);
    let stored = storage_resource(server, &intent.request.resource);
    let kind = &stored.kind;
    schema::defaults::apply(kind, &mut object);
    let context = intent.context(server, Operation::Update, Some(&old));
    server.admission.mutate(&context, &mut object).await?;
    schema::defaults::apply(kind, &mut object);
    if info.subresource.is_empty() {
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
    server.admission.validate(&context, Some(&object)).await?;
    let finished = deletion::is_complete(&object);
    let value = object::encode(&object);
    if !finished && value == object::encode(&old) {
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

fn claims_of(intent: Intent<'_>, object: &Value) -> Claims {
    if intent.is_service() {
        service::claims(object)
    } else {
        Claims::new()
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
        intent
            .strategy()
            .prepare_for_subresource(subresource, object, &wanted, old);
    }
    let metadata = object::metadata(object);
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    object::copy_metadata(object, old, "resourceVersion");
}
