//! From an HTTP request to its answer: who, may they, what, and then the verb's own module.

mod body;
mod component_status;
mod connect;
mod delete;
mod meta;
pub mod openapi;
mod read;
mod respond;
mod reviews;
mod scale;
pub mod secret_token;
mod subresources;
mod watch;
mod write;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth::{Attributes, Credentials, Impersonation, ImpersonationError, Unauthenticated, UserInfo};
use bytes::Bytes;
use futures::FutureExt as _;
use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use schema::Resource;

use crate::aggregation;
use crate::audit::{self, Record};
use crate::connect::Body;
use crate::flow_control::Classified;
use crate::negotiate::{self, Wanted};
use crate::request_info::{RequestInfo, patience, query_values};
use crate::server::trust::Peer;
use crate::state::ApiServer;
use crate::status::ApiError;
use crate::warnings;

pub use crate::connect::BoxError;
pub use delete::delete_object;
pub use respond::plain;
pub use write::{Intent, create_object, update_object};

/// Upstream's `--request-timeout`.
const REQUEST_PATIENCE: Duration = Duration::from_secs(60);
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// What the verbs work on.
pub struct ResourceRequest {
    pub info: RequestInfo,
    pub user: UserInfo,
    pub resource: Arc<Resource>,
    pub headers: HeaderMap,
    pub query: String,
    pub wanted: Wanted,
    pub body: Bytes,
    /// Made here to carry out another request, which passed admission as what it was (a binding, an eviction).
    pub is_admitted: bool,
}

impl ResourceRequest {
    pub fn qualified(&self) -> String {
        self.resource.qualified_name()
    }
}

/// Answers one request; errors become Status objects here.
pub async fn handle(server: Arc<ApiServer>, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
    let started = Instant::now();
    let info = RequestInfo::parse(
        request.method(),
        request.uri().path(),
        request.uri().query().unwrap_or_default(),
    );
    let (verb, resource) = (info.verb.clone(), info.resource.clone());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut classified = None;
    let is_pretty = respond::wants_pretty(request.uri().query().unwrap_or_default(), request.headers());
    let record = Record::new(server.auditor.clone(), &request, peer.address);
    let is_long_running = is_long_running(&info);
    // Boxed: the wrappers would copy what is large already.
    let work = Box::pin(answer_in_time(&server, request, info, peer, &mut classified));
    let work = warnings::collecting(work);
    let work = AssertUnwindSafe(record.scope(work)).catch_unwind().await;
    let (answered, warnings) = work.unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<String>().map(String::as_str);
        let what = what.or_else(|| panic.downcast_ref().copied()).unwrap_or("panic");
        tracing::error!(%method, path, what, "request panicked");
        record.panicked(what);
        (Ok(respond::panicked()), Vec::new())
    });
    let mut response = match answered {
        Ok(response) => response,
        Err(error) => {
            if error.code.is_server_error() {
                tracing::warn!(%method, path, error = error.message, "request failed");
            }
            record.failed(&error.to_value());
            respond::error(&error)
        }
    };
    if is_pretty && !is_long_running {
        response = respond::pretty(response).await;
    }
    respond::set_header(&mut response, AUDIT_ID, &record.shown_id());
    respond::warn(&mut response, &warnings);
    if let Some(classified) = classified {
        respond::classified(&mut response, &classified);
    }
    tracing::debug!(%method, path, code = response.status().as_u16(), "request");
    server
        .metrics
        .request(&verb, &resource, response.status().as_u16(), started.elapsed());
    record.answered(response, is_long_running)
}

/// Answers that last: their beginning is told of, too.
fn is_long_running(info: &RequestInfo) -> bool {
    info.verb == "watch" || connect::is_connect(info)
}

/// Streams take as long as they take; all else has an end.
async fn answer_in_time(
    server: &Arc<ApiServer>,
    request: Request<Incoming>,
    info: RequestInfo,
    peer: &Peer,
    classified: &mut Option<Classified>,
) -> Result<Response<Body>, ApiError> {
    if is_long_running(&info) {
        return answer(server, request, info, peer, classified).await;
    }
    let patience = patience(request.uri().query().unwrap_or_default(), REQUEST_PATIENCE)
        .ok_or_else(|| ApiError::bad_request("invalid timeout specified in the request URL"))?;
    tokio::time::timeout(patience, answer(server, request, info, peer, classified))
        .await
        .unwrap_or_else(|_| {
            Err(ApiError::timeout(
                "Timeout: request did not complete within the allotted timeout",
            ))
        })
}

async fn answer(
    server: &Arc<ApiServer>,
    request: Request<Incoming>,
    info: RequestInfo,
    peer: &Peer,
    classified: &mut Option<Classified>,
) -> Result<Response<Body>, ApiError> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let user = authenticate(server, &info, request.headers(), peer).await?;
    // Streams would hold their seat for as long as they last.
    let seat = if connect::is_connect(&info) {
        None
    } else {
        server.flow_control.enter(&user, &info).await
    };
    let _seat = match seat {
        None => None,
        Some((of, seat)) => {
            *classified = Some(of);
            match seat {
                Ok(seat) => Some(seat),
                Err(_) => return Ok(respond::too_many_requests()),
            }
        }
    };
    authorize(server, &user, &info, &query).await?;
    if let Some(remote) = server.aggregator.find(&info) {
        return Ok(aggregation::proxy(server, &remote, &user, request).await);
    }
    if !info.is_resource {
        return meta::answer(server, &info, request.headers(), &query).await;
    }
    let catalog = server.registry.catalog();
    let resource = catalog
        .resource(&info.group, &info.version, &info.resource)
        .cloned()
        .ok_or_else(ApiError::no_such_path)?;
    check_shape(&info, &resource)?;
    if connect::is_connect(&info) {
        return connect::answer(server, info, user, request).await;
    }
    let (parts, incoming) = request.into_parts();
    let wanted = negotiate::negotiate(&parts.headers)?;
    if resource.kind.custom.is_some()
        && info.subresource != "scale"
        && (wanted.media, wanted.view) == (schema::MediaType::Protobuf, negotiate::View::Object)
    {
        return Err(ApiError::not_acceptable("application/json, application/yaml"));
    }
    let body = body::collect(incoming).await?;
    let request = ResourceRequest {
        info,
        user,
        resource,
        headers: parts.headers,
        query,
        wanted,
        body,
        is_admitted: false,
    };
    dispatch(server, request).await
}

/// The path must fit the kind's scope and sub-resources.
fn check_shape(info: &RequestInfo, resource: &Resource) -> Result<(), ApiError> {
    for segment in [&info.namespace, &info.name] {
        if segment.contains('/') || segment == "." || segment == ".." {
            return Err(ApiError::bad_request(format!(
                "invalid name {segment:?} in the path"
            )));
        }
    }
    let is_namespaces = resource.group.is_empty() && resource.plural == "namespaces";
    if !resource.namespaced() && !info.namespace.is_empty() && !is_namespaces {
        return Err(ApiError::no_such_path());
    }
    if resource.namespaced() && info.namespace.is_empty() && !matches!(info.verb.as_str(), "list" | "watch") {
        // Across namespaces there is only looking.
        return Err(if info.name.is_empty() {
            ApiError::method_not_allowed()
        } else {
            ApiError::no_such_path()
        });
    }
    if !info.subresource.is_empty() && resource.subresource(&info.subresource).is_none() {
        return Err(ApiError::no_such_path());
    }
    Ok(())
}

async fn dispatch(server: &Arc<ApiServer>, request: ResourceRequest) -> Result<Response<Body>, ApiError> {
    let verbs = match request.info.subresource.as_str() {
        "" => &request.resource.verbs,
        name => {
            &request
                .resource
                .subresource(name)
                .ok_or_else(ApiError::no_such_path)?
                .verbs
        }
    };
    // New objects come to the collection, changes go to one of it.
    let fits = match request.info.verb.as_str() {
        "create" => !request.info.subresource.is_empty() || request.info.name.is_empty(),
        "update" | "patch" => !request.info.name.is_empty(),
        _ => true,
    };
    if !fits || !verbs.contains(&request.info.verb) {
        return Err(ApiError::method_not_allowed());
    }
    warnings::add_all(schema::advice::of_use(&request.resource));
    if reviews::is_review(&request.resource) {
        return reviews::answer(server, &request).await;
    }
    match (request.info.subresource.as_str(), request.info.verb.as_str()) {
        ("", "get" | "list") if component_status::is_about(&request.resource) => {
            component_status::answer(server, &request).await
        }
        ("", "get") => read::get(server, &request).await,
        ("", "list") => read::list(server, &request).await,
        ("", "watch") => watch::start(server, request).await,
        ("", "create") => match request.resource.plural.as_str() {
            "bindings" => subresources::bind(server, &request).await,
            _ => write::create(server, &request).await,
        },
        ("", "update") => write::update(server, &request).await,
        ("", "patch") => write::patch(server, &request).await,
        ("", "delete") => delete::one(server, &request).await,
        ("", "deletecollection") => delete::collection(server, &request).await,
        ("scale", _) => scale::answer(server, &request).await,
        ("binding", "create") => subresources::bind(server, &request).await,
        ("eviction", "create") => subresources::evict(server, &request).await,
        ("token", "create") => subresources::token(server, &request).await,
        (_, "get") => read::get(server, &request).await,
        (_, "update") => write::update(server, &request).await,
        (_, "patch") => write::patch(server, &request).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn authenticate(
    server: &ApiServer,
    info: &RequestInfo,
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<UserInfo, ApiError> {
    let pairs: Vec<(&str, &str)> = headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect();
    let user = match front_proxy_user(server, peer, &pairs) {
        Some(user) => user,
        None => own_user(server, info, headers, peer)
            .await
            .inspect_err(|_| audit::unauthenticated(info, headers))?,
    };
    audit::begin(&user, info);
    match Impersonation::from_headers(pairs.into_iter()) {
        None => Ok(user),
        Some(wanted) => auth::impersonate(&server.authorizer, &user, &wanted)
            .inspect(audit::impersonated)
            .map_err(|error| match error {
                ImpersonationError::NoUser(_) => ApiError::internal(error),
                ImpersonationError::Forbidden {
                    group,
                    resource,
                    name,
                    message,
                } => ApiError::forbidden(&crate::status::qualified(resource, group), &name, &message),
            }),
    }
}

/// Whom a proxy that we believe asks for.
fn front_proxy_user(server: &ApiServer, peer: &Peer, headers: &[(&str, &str)]) -> Option<UserInfo> {
    let config = &server.config.front_proxy;
    let name = peer.front_proxy.as_ref()?;
    let believed = config.allowed_names.is_empty() || config.allowed_names.contains(name);
    believed
        .then(|| config.headers.user(headers.iter().copied()))
        .flatten()
}

/// Whom a certificate or token of its own makes the sender.
async fn own_user(
    server: &ApiServer,
    info: &RequestInfo,
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<UserInfo, ApiError> {
    let text = |name: &http::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let credentials = Credentials {
        certificate: peer.client.as_deref(),
        authorization: text(&AUTHORIZATION),
        websocket_protocol: text(&http::header::SEC_WEBSOCKET_PROTOCOL),
    };
    match server
        .authenticator
        .authenticate(credentials, server, jiff::Timestamp::now())
        .await
    {
        Ok(user) if peer.shown && peer.client.is_none() && user.is_anonymous() => {
            tracing::info!("unauthenticated: a client certificate of an unknown authority");
            Err(ApiError::unauthorized())
        }
        Ok(user) if user.is_anonymous() && !server.anonymous.may_ask(&info.path) => {
            Err(ApiError::unauthorized())
        }
        Ok(user) => Ok(user),
        Err(Unauthenticated::Rejected(reason)) => {
            tracing::info!(reason, "unauthenticated");
            Err(ApiError::unauthorized())
        }
        Err(Unauthenticated::Lookup(error)) => Err(ApiError::internal(error)),
    }
}

async fn authorize(
    server: &ApiServer,
    user: &UserInfo,
    info: &RequestInfo,
    query: &str,
) -> Result<(), ApiError> {
    let selects = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
    let selector = |kind| {
        let given = query_values(query, kind).next().filter(|_| selects);
        given.unwrap_or_default()
    };
    let attributes = Attributes {
        user,
        verb: &info.verb,
        group: &info.group,
        version: &info.version,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        path: &info.path,
        is_resource: info.is_resource,
        field_selector: &selector("fieldSelector"),
        label_selector: &selector("labelSelector"),
    };
    let verdict = server.authorizer.authorize_request(&attributes).await;
    let decision = if verdict.is_allowed() { "allow" } else { "forbid" };
    audit::annotate("authorization.k8s.io/decision", decision);
    audit::annotate("authorization.k8s.io/reason", verdict.reason.as_str());
    if verdict.is_allowed() {
        return Ok(());
    }
    let why = auth::forbidden_message(&attributes, &verdict.reason);
    let qualified = if info.is_resource {
        crate::status::qualified(&info.resource, &info.group)
    } else {
        String::new()
    };
    Err(ApiError::forbidden(&qualified, &info.name, &why))
}
