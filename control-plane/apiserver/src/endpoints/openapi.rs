//! OpenAPI v2 and v3: documents from the catalog, with prose from the description pack if there is one.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, ETAG, EXPIRES, IF_NONE_MATCH, LOCATION, VARY};
use http::{HeaderMap, Response, StatusCode};
use schema::Catalog;
use schema::openapi::{Descriptions, OpenApi};

use super::respond;
use crate::connect::Body;
use crate::negotiate::{Wanted, header};
use crate::request_info::query_values;
use crate::state::ApiServer;
use crate::status::ApiError;

pub fn load(catalog: &Arc<Catalog>, pack: Option<&Path>) -> OpenApi {
    let descriptions = pack.and_then(|path| {
        let read = std::fs::read(path).map_err(|error| error.to_string());
        match read.and_then(|bytes| Descriptions::parse(&bytes).map_err(|error| error.to_string())) {
            Ok(descriptions) => Some(Arc::new(descriptions)),
            Err(error) => {
                tracing::warn!(path = %path.display(), error, "OpenAPI is served without descriptions");
                None
            }
        }
    });
    OpenApi::new(catalog.as_ref().clone(), descriptions)
}

pub async fn index(server: &ApiServer, wanted: Wanted) -> Response<Body> {
    let mut index = server.openapi().index();
    crate::aggregation::discovery::openapi_index(server, &mut index).await;
    respond::json_bytes(StatusCode::OK, index.to_string().into(), wanted)
}

/// One group version's document. Its hash in the query makes it immutable for caches.
pub fn document(
    server: &ApiServer,
    path: &str,
    headers: &HeaderMap,
    query: &str,
    wanted: Wanted,
) -> Result<Response<Body>, ApiError> {
    let openapi = server.openapi();
    let hash = openapi.hash(path).ok_or_else(ApiError::no_such_path)?;
    let asked = query_values(query, "hash").next();
    if asked.as_ref().is_some_and(|asked| *asked != hash) {
        let mut response = respond::plain(StatusCode::MOVED_PERMANENTLY, "text/plain", "");
        respond::set_header(
            &mut response,
            LOCATION,
            &format!("/openapi/v3/{path}?hash={hash}"),
        );
        return Ok(response);
    }
    let tag = format!("\"{hash}\"");
    let mut response = if header(headers, &IF_NONE_MATCH) == tag {
        respond::plain(StatusCode::NOT_MODIFIED, "application/json", "")
    } else {
        let bytes = openapi.document(path).ok_or_else(ApiError::no_such_path)?;
        respond::json_bytes(StatusCode::OK, Bytes::from(bytes), wanted)
    };
    respond::set_header(&mut response, ETAG, &tag);
    if asked.is_some() {
        respond::set_header(&mut response, CACHE_CONTROL, "public, immutable");
        respond::set_header(&mut response, EXPIRES, "Fri, 31 Dec 2100 23:59:59 GMT");
    }
    Ok(response)
}

/// What gnostic's clients ask for, by its present name and by the one from before.
const GNOSTIC: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
];

pub fn v2(server: &ApiServer, headers: &HeaderMap, wanted: Wanted) -> Response<Body> {
    let openapi = server.openapi();
    let tag = format!("\"{}\"", openapi.v2_hash());
    let accept = header(headers, &ACCEPT);
    let as_protobuf = accept
        .split(',')
        .map(|clause| clause.split(';').next().unwrap_or_default().trim());
    let as_protobuf = as_protobuf.take(1).any(|media| GNOSTIC.contains(&media));
    let mut response = if header(headers, &IF_NONE_MATCH) == tag {
        respond::plain(StatusCode::NOT_MODIFIED, "application/json", "")
    } else if as_protobuf {
        respond::plain(StatusCode::OK, GNOSTIC[0], openapi.v2_protobuf())
    } else {
        respond::json_bytes(StatusCode::OK, Bytes::from(openapi.v2()), wanted)
    };
    respond::set_header(&mut response, ETAG, &tag);
    respond::set_header(&mut response, VARY, "Accept");
    response
}
