//! Paths that are no resources: health, version, discovery, OpenAPI, metrics, token verification keys.

use http::header::{ETAG, IF_NONE_MATCH};
use http::{HeaderMap, Response, StatusCode};
use schema::{Catalog, discovery};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{openapi, respond};
use crate::connect::Body;
use crate::negotiate::{self, Wanted, header};
use crate::request_info::{RequestInfo, query_pairs};
use crate::state::ApiServer;
use crate::status::ApiError;

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
        ["healthz" | "livez" | "readyz", rest @ ..] => {
            health(server, segments[0], rest.first().copied(), query).await
        }
        ["version"] => Ok(document(
            &catalog,
            &version(),
            Wanted {
                media: schema::MediaType::Json,
                ..wanted
            },
        )),
        ["metrics"] => Ok(respond::plain(
            StatusCode::OK,
            "text/plain; version=0.0.4",
            server.metrics.render(),
        )),
        ["api" | "apis"] if negotiate::wants_aggregated_discovery(headers) => {
            Ok(aggregated(&catalog, segments[0] == "api", headers, wanted))
        }
        ["api"] => Ok(document(
            &catalog,
            &discovery::api_versions(&server.config.advertise_address.to_string()),
            wanted,
        )),
        ["apis"] => Ok(document(&catalog, &discovery::api_group_list(&catalog), wanted)),
        ["api", version] => resources(&catalog, "", version, wanted),
        ["apis", group] => {
            let group = discovery::api_group(&catalog, group).ok_or_else(ApiError::no_such_path)?;
            Ok(document(&catalog, &group, wanted))
        }
        ["apis", group, version] => resources(&catalog, group, version, wanted),
        ["openapi", "v2"] => Ok(openapi::v2(server, headers, wanted)),
        ["openapi", "v3"] => Ok(openapi::index(server, wanted)),
        ["openapi", "v3", rest @ ..] => openapi::document(server, &rest.join("/"), headers, query, wanted),
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

fn aggregated(catalog: &Catalog, core: bool, headers: &HeaderMap, wanted: Wanted) -> Response<Body> {
    let bytes = discovery::aggregated(catalog, core).to_string();
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

/// `/livez`, `/readyz/etcd`, `?verbose`, `?exclude=etcd`.
async fn health(
    server: &ApiServer,
    endpoint: &str,
    only: Option<&str>,
    query: &str,
) -> Result<Response<Body>, ApiError> {
    let mut checks = vec![("ping", Ok(()))];
    if endpoint != "livez" {
        let store = server
            .store
            .revision()
            .await
            .map(drop)
            .map_err(|error| error.to_string());
        checks.push(("etcd", store));
        let started = *server.ready.borrow();
        checks.push((
            "poststarthook/bootstrap",
            if started {
                Ok(())
            } else {
                Err("not finished".to_owned())
            },
        ));
        let leaving = server.shutdown.is_cancelled();
        checks.push((
            "shutdown",
            if leaving {
                Err("the server is shutting down".into())
            } else {
                Ok(())
            },
        ));
    }
    let pairs: Vec<(String, String)> = query_pairs(query).collect();
    checks.retain(|(name, _)| {
        only.is_none_or(|only| only == *name)
            && !pairs.iter().any(|(key, value)| key == "exclude" && value == name)
    });
    if checks.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let failed = checks.iter().any(|(_, result)| result.is_err());
    let status = if failed {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::OK
    };
    let verbose = pairs.iter().any(|(key, _)| key == "verbose");
    if !failed && !verbose {
        return Ok(respond::plain(status, "text/plain; charset=utf-8", "ok"));
    }
    let mut text = String::new();
    for (name, result) in &checks {
        text += &match result {
            Ok(()) => format!("[+]{name} ok\n"),
            Err(why) => format!("[-]{name} failed: {why}\n"),
        };
    }
    text += &format!("{endpoint} check {}\n", if failed { "failed" } else { "passed" });
    Ok(respond::plain(status, "text/plain; charset=utf-8", text))
}
