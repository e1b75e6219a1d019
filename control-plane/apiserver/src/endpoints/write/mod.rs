//! What create, update and patch have in common: who writes, what admission sees, claims, and the answer.

mod apply;
mod create;
mod ownership;
mod patch;
mod update;

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use schema::{Kind, Resource};
use serde_json::{Value, json};
use store::{Compare, Txn, Write};

use super::{ResourceRequest, body, respond};
use crate::cache::store_error;
use crate::connect::Body;
use crate::object::{self, text};
use crate::options::WriteOptions;
use crate::pipeline::{AdmissionContext, Operation};
use crate::registry::conversion;
use crate::registry::service::{self, Claims};
use crate::registry::strategy::{self, Strategy};
use crate::registry::{self, deletion, names};
use crate::state::ApiServer;
use crate::status::{ApiError, Cause};
use crate::warnings;

pub use apply::apply_through;
pub use create::{create, create_object};
pub use ownership::{Track, check_options};
pub use patch::patch;
pub use update::{update, update_as, update_object};

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
            query: &self.request.query,
            reader: server,
            reinvocation: std::sync::Mutex::default(),
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
            &conversion::to_served(&request.resource, written.object.clone())?,
        )
    } else {
        viewer.object(status, &written.object)
    };
    respond::warn(&mut response, warnings);
    Ok(response)
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

/// The resource whose form is stored: what defaults and validation apply to.
fn storage_resource(server: &ApiServer, resource: &Arc<Resource>) -> Arc<Resource> {
    let (group, version) = match resource
        .kind
        .custom
        .as_ref()
        .filter(|custom| custom.converter.is_some())
    {
        Some(custom) => custom.stored_as.split_once('/').unwrap_or_default(),
        None => conversion::stored_as(&resource.group, &resource.version, &resource.plural),
    };
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

fn claims_of(intent: Intent<'_>, object: &Value) -> Claims {
    if intent.is_service() {
        service::claims(object)
    } else {
        Claims::new()
    }
}
