//! Paths that are no resources: health, version, discovery, OpenAPI, metrics, token verification keys.

use http::header::{ETAG, IF_NONE_MATCH};
use http::{HeaderMap, Response, StatusCode};
use schema::{Catalog, discovery};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{openapi, respond};
use crate::aggregation::discovery as merged;
use crate::connect::Body;
use crate::negotiate::{self, Wanted, header};
use crate::request_info::{RequestInfo, query_pairs};
use crate::state::ApiServer;
use crate::status::ApiError;
use crate::wire;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const PATHS: &[&str] = &[
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

pub async fn answer(
    server: &ApiServer,
    info: &RequestInfo,
    headers: &HeaderMap,
    query: &str,
) -> Result<Response<Body>, ApiError> {
    if !matches!(info.verb.as_str(), "get" | "head") {
        return Err(ApiError::method_not_allowed());
    }
    // Documents with media types of their own are served to whoever asks.
    let wanted = negotiate::negotiate(headers).unwrap_or_default();
    let segments: Vec<&str> = info.path.split('/').filter(|part| !part.is_empty()).collect();
    let catalog = server.registry.catalog();
    match segments.as_slice() {
        [] => Ok(document(&catalog, &json!({"paths": PATHS}), wanted)),
        ["healthz" | "livez" | "readyz", rest @ ..] => health(server, segments[0], rest, query).await,
        ["version"] => Ok(respond::plain(
            StatusCode::OK,
            "application/json",
            wire::version(&version()),
        )),
        ["metrics"] => {
            let mut text = server.metrics.render();
            server.flow_control.render(&mut text);
            Ok(respond::plain(StatusCode::OK, "text/plain; version=0.0.4", text))
        }
        ["api" | "apis"] if negotiate::wants_aggregated_discovery(headers) => {
            let core = segments[0] == "api";
            let mut list = discovery::aggregated(&catalog, core);
            if !core {
                merged::aggregated(&server.aggregator, &mut list);
            }
            Ok(aggregated(&list, headers, wanted))
        }
        ["api"] => Ok(document(
            &catalog,
            &discovery::api_versions(&server.config.advertise_address.to_string()),
            wanted,
        )),
        ["apis"] => {
            let mut list = discovery::api_group_list(&catalog);
            merged::group_list(&server.aggregator, &mut list);
            Ok(document(&catalog, &list, wanted))
        }
        ["api", version] => resources(&catalog, "", version, wanted),
        ["apis", group] => {
            let own = discovery::api_group(&catalog, group);
            let group = merged::group(&server.aggregator, own, group).ok_or_else(ApiError::no_such_path)?;
            Ok(document(&catalog, &group, wanted))
        }
        ["apis", group, version] => resources(&catalog, group, version, wanted),
        ["openapi", "v2"] => Ok(openapi::v2(server, headers, wanted)),
        ["openapi", "v3"] => Ok(openapi::index(server, wanted).await),
        ["openapi", "v3", rest @ ..] => {
            let path = rest.join("/");
            match merged::openapi_document(server, &path, query).await {
                Some(response) => Ok(response),
                None => openapi::document(server, &path, headers, query, wanted),
            }
        }
        [".well-known", "openid-configuration"] => {
            let issuer = &server.config.service_account.issuer;
            let keys = format!(
                "https://{}:{}/openid/v1/jwks",
                server.config.advertise_address,
                server.config.bind_address.port()
            );
            let configuration = json!({
                "issuer": issuer,
                "jwks_uri": keys,
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            });
            Ok(document(
                &catalog,
                &configuration,
                Wanted {
                    media: schema::MediaType::Json,
                    ..wanted
                },
            ))
        }
        ["openid", "v1", "jwks"] => {
            let keys = server.authenticator.verifier().jwks().to_string();
            Ok(respond::plain(StatusCode::OK, "application/jwk-set+json", keys))
        }
        _ => Err(ApiError::no_such_path()),
    }
}

fn document(catalog: &Catalog, value: &Value, wanted: Wanted) -> Response<Body> {
    respond::value(catalog, StatusCode::OK, value, wanted)
}

fn resources(
    catalog: &Catalog,
    group: &str,
    version: &str,
    wanted: Wanted,
) -> Result<Response<Body>, ApiError> {
    let list = discovery::api_resource_list(catalog, group, version).ok_or_else(ApiError::no_such_path)?;
    Ok(document(catalog, &list, wanted))
}

fn aggregated(list: &Value, headers: &HeaderMap, wanted: Wanted) -> Response<Body> {
    let bytes = list.to_string();
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    let tag = format!("\"{digest}\"");
    let mut response = if header(headers, &IF_NONE_MATCH) == tag {
        respond::plain(StatusCode::NOT_MODIFIED, AGGREGATED, "")
    } else {
        respond::json_bytes(StatusCode::OK, bytes.into(), wanted)
    };
    respond::set_header(&mut response, http::header::CONTENT_TYPE, AGGREGATED);
    respond::set_header(&mut response, ETAG, &tag);
    respond::set_header(&mut response, http::header::VARY, "Accept");
    response
}

pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": "v1.36.0+ironlet",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none (Rust)",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH }),
    })
}

/// What start-up does, under upstream's names.
const HOOKS: [&str; 24] = [
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/priority-and-fairness-config-consumer",
    "poststarthook/priority-and-fairness-filter",
    "poststarthook/start-apiextensions-informers",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/start-cluster-authentication-info-controller",
    "poststarthook/start-kube-apiserver-identity-lease-controller",
    "poststarthook/start-legacy-token-tracking-controller",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/priority-and-fairness-config-producer",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-status-local-available-controller",
    "poststarthook/apiservice-status-remote-available-controller",
    "poststarthook/apiservice-registration-controller",
    "poststarthook/apiservice-discovery-controller",
    "poststarthook/kube-apiserver-autoregistration",
    "autoregister-completion",
    "poststarthook/apiservice-openapi-controller",
    "poststarthook/apiservice-openapiv3-controller",
];

/// `/livez`, `/readyz/etcd`, `?verbose`, `?exclude=etcd`.
async fn health(
    server: &ApiServer,
    endpoint: &str,
    only: &[&str],
    query: &str,
) -> Result<Response<Body>, ApiError> {
    let store = match server.store.revision().await {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "the store fails its health check");
            Err(())
        }
    };
    let started = if *server.ready.borrow() { Ok(()) } else { Err(()) };
    let mut checks = vec![("ping", Ok(())), ("log", Ok(())), ("etcd", store)];
    if endpoint == "readyz" {
        checks.extend([("etcd-readiness", store), ("informer-sync", started)]);
    }
    checks.extend(HOOKS.map(|hook| (hook, started)));
    if endpoint == "readyz" {
        let leaving = server.leaving.is_cancelled();
        checks.push(("shutdown", if leaving { Err(()) } else { Ok(()) }));
    }
    let pairs: Vec<(String, String)> = query_pairs(query).collect();
    let excluded: Vec<&str> = pairs
        .iter()
        .filter_map(|(key, value)| (key == "exclude").then_some(value.as_str()))
        .collect();
    let unknown = excluded
        .iter()
        .filter(|name| !checks.iter().any(|(check, _)| check == *name));
    let unknown: Vec<String> = unknown.map(|name| format!("\"{name}\"")).collect();
    let only = only.join("/");
    if !only.is_empty() {
        checks.retain(|(name, _)| *name == only);
    }
    if checks.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let mut text = String::new();
    let mut failed = false;
    for (name, result) in &checks {
        text += &match result {
            _ if excluded.contains(name) => format!("[+]{name} excluded: ok\n"),
            Ok(()) => format!("[+]{name} ok\n"),
            Err(()) => {
                failed = true;
                format!("[-]{name} failed: reason withheld\n")
            }
        };
    }
    if !unknown.is_empty() {
        text += &format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            unknown.join(", ")
        );
    }
    let (status, outcome) = if failed {
        (StatusCode::INTERNAL_SERVER_ERROR, "failed")
    } else {
        (StatusCode::OK, "passed")
    };
    let verbose = pairs.iter().any(|(key, _)| key == "verbose");
    if !failed && (!verbose || !only.is_empty()) {
        text = "ok".into();
    } else {
        text += &format!("{endpoint} check {outcome}\n");
    }
    let mut response = respond::plain(status, "text/plain; charset=utf-8", text);
    respond::set_header(&mut response, http::header::CACHE_CONTROL, "no-cache, private");
    Ok(response)
}
