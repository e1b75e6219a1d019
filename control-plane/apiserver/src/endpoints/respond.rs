//! Answers: objects and lists in the form the client wants.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, USER_AGENT, VARY, WARNING};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use schema::table::{IncludeObject, TableOptions};
use schema::{Catalog, MediaType, Resource};
use serde_json::{Value, json};

use crate::audit;
use crate::connect::Body;
use crate::flow_control::Classified;
use crate::negotiate::{View, Wanted, header};
use crate::request_info::query_values;
use crate::status::ApiError;
use crate::wire;

/// Upstream compresses bodies larger than this.
const GZIP_FROM: usize = 128 * 1024;
const METADATA_LIST: &str = "PartialObjectMetadataList";

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub fn plain(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// JSON bytes, compressed when large and wanted.
pub fn json_bytes(status: StatusCode, bytes: Bytes, wanted: Wanted) -> Response<Body> {
    audit::response_object(|| serde_json::from_slice(&bytes).ok());
    finish(status, "application/json", bytes, wanted)
}

fn finish(status: StatusCode, content_type: &'static str, bytes: Bytes, wanted: Wanted) -> Response<Body> {
    if wanted.gzip && bytes.len() >= GZIP_FROM {
        let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
        if let Ok(compressed) = encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
            let mut response = plain(status, content_type, compressed);
            response
                .headers_mut()
                .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
                .headers_mut()
                .insert(VARY, HeaderValue::from_static("Accept-Encoding"));
            return response;
        }
    }
    plain(status, content_type, bytes)
}

/// Any registered kind, in the wanted encoding.
pub fn value(catalog: &Catalog, status: StatusCode, value: &Value, wanted: Wanted) -> Response<Body> {
    if value["kind"] == "Status" && value["apiVersion"] == "v1" {
        audit::response_status(value);
    } else {
        audit::response_object(|| Some(value.clone()));
    }
    match wanted.media {
        MediaType::Json => finish(status, "application/json", wire::text(value).into(), wanted),
        MediaType::Yaml => finish(
            status,
            "application/yaml",
            schema::codec::to_yaml(value).into(),
            wanted,
        ),
        MediaType::Protobuf => match schema::codec::encode_protobuf(catalog, value) {
            Ok(bytes) => finish(
                status,
                "application/vnd.kubernetes.protobuf",
                bytes.into(),
                wanted,
            ),
            // A kind without a protobuf form is answered in JSON, as the content type says.
            Err(_) => finish(status, "application/json", wire::text(value).into(), wanted),
        },
    }
}

pub fn error(error: &ApiError) -> Response<Body> {
    let mut response = plain(error.code, "application/json", wire::text(&error.to_value()));
    if let Some(seconds) = error.details.get("retryAfterSeconds").and_then(Value::as_u64) {
        response
            .headers_mut()
            .insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// What upstream says when it panics.
pub fn panicked() -> Response<Body> {
    let text = "This request caused apiserver to panic. Look in the logs for details.\n";
    plain(
        StatusCode::INTERNAL_SERVER_ERROR,
        "text/plain; charset=utf-8",
        text,
    )
}

/// Flow control's refusal: plain text, since it costs nothing.
pub fn too_many_requests() -> Response<Body> {
    let text = "Too many requests, please try again later.\n";
    let mut response = plain(StatusCode::TOO_MANY_REQUESTS, "text/plain; charset=utf-8", text);
    response
        .headers_mut()
        .insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Says where flow control put the request.
pub fn classified(response: &mut Response<Body>, to: &Classified) {
    let schema = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
    set_header(response, schema, &to.schema_uid);
    let level = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
    set_header(response, level, &to.level_uid);
}

/// Adds `Warning: 299 - "…"` headers.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c => vec![c],
            })
            .collect();
        if let Ok(header) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, header);
        }
    }
}

/// People at a terminal or browser want to read it, unless `pretty` says otherwise.
pub fn wants_pretty(query: &str, headers: &HeaderMap) -> bool {
    match query_values(query, "pretty").next().as_deref() {
        None | Some("") => {
            let agent = header(headers, &USER_AGENT);
            ["curl", "Wget", "Mozilla/5.0"]
                .iter()
                .any(|reader| agent.starts_with(reader))
        }
        Some(asked) => matches!(asked, "1" | "t" | "T" | "true" | "TRUE" | "True"),
    }
}

/// JSON with line breaks; anything else stays as it is.
pub async fn pretty(response: Response<Body>) -> Response<Body> {
    let is_json = header(response.headers(), &CONTENT_TYPE) == "application/json";
    if !is_json || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(why) => return error(&ApiError::internal(why)),
    };
    let read = serde_json::from_slice::<Value>(&bytes).and_then(|value| serde_json::to_string_pretty(&value));
    Response::from_parts(parts, full(read.map_or(bytes, Bytes::from)))
}

pub fn set_header(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// How a resource's objects look to this client.
#[derive(Clone, Copy)]
pub struct Viewer<'a> {
    pub catalog: &'a Catalog,
    pub resource: &'a Resource,
    pub wanted: Wanted,
    pub include: IncludeObject,
}

impl<'a> Viewer<'a> {
    pub fn new(
        catalog: &'a Catalog,
        resource: &'a Resource,
        wanted: Wanted,
        query: &str,
    ) -> Result<Self, ApiError> {
        let include = match query_values(query, "includeObject").next().as_deref() {
            None | Some("" | "Metadata") => IncludeObject::Metadata,
            Some("None") => IncludeObject::None,
            Some("Object") => IncludeObject::Object,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "unrecognized includeObject value: {other}"
                )));
            }
        };
        Ok(Self {
            catalog,
            resource,
            wanted,
            include,
        })
    }

    pub fn table(&self, objects: &[Value], metadata: Value, headers: bool) -> Value {
        let options = self.table_options(headers);
        self.versioned(schema::table::render(self.resource, objects, metadata, options))
    }

    /// The Scale of an object of this resource.
    pub fn scale(&self, scale: &Value) -> Response<Body> {
        if self.wanted.view != View::Table || self.resource.kind.custom.is_some() {
            return value(self.catalog, StatusCode::OK, scale, self.wanted);
        }
        let metadata = json!({"resourceVersion": crate::object::resource_version(scale)});
        let table = schema::table::of_scale(scale, metadata, self.table_options(true));
        value(self.catalog, StatusCode::OK, &self.versioned(table), self.wanted)
    }

    fn table_options(&self, headers: bool) -> TableOptions {
        TableOptions {
            include_object: self.include,
            headers,
            now: jiff::Timestamp::now(),
        }
    }

    fn versioned(&self, mut table: Value) -> Value {
        if self.wanted.beta {
            table["apiVersion"] = "meta.k8s.io/v1beta1".into();
        }
        table
    }

    pub fn object(&self, status: StatusCode, object: &Value) -> Response<Body> {
        match self.wanted.view {
            View::Object => value(self.catalog, status, object, self.wanted),
            View::Table => {
                let metadata = json!({"resourceVersion": crate::object::resource_version(object)});
                let table = self.table(std::slice::from_ref(object), metadata, true);
                value(self.catalog, status, &table, self.wanted)
            }
            View::PartialMetadata => value(self.catalog, status, &partial(object), self.wanted),
        }
    }

    /// An object whose canonical bytes are known.
    pub fn bytes(&self, bytes: Bytes) -> Result<Response<Body>, ApiError> {
        if self.is_spliceable() {
            return Ok(json_bytes(StatusCode::OK, bytes, self.wanted));
        }
        let object = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
        Ok(self.object(StatusCode::OK, &object))
    }

    pub fn list(&self, items: &[Bytes], metadata: &Value) -> Result<Response<Body>, ApiError> {
        if self.is_spliceable() {
            return Ok(json_bytes(
                StatusCode::OK,
                self.splice(items, metadata),
                self.wanted,
            ));
        }
        let objects: Vec<Value> = items
            .iter()
            .map(|bytes| serde_json::from_slice(bytes))
            .collect::<Result<_, _>>()
            .map_err(ApiError::internal)?;
        let list = match self.wanted.view {
            View::Table => self.table(&objects, metadata.clone(), true),
            View::PartialMetadata => json!({
                "kind": METADATA_LIST,
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "items": objects.iter().map(partial).collect::<Vec<_>>(),
            }),
            View::Object => json!({
                "kind": self.resource.list_kind,
                "apiVersion": self.resource.api_version(),
                "metadata": metadata,
                "items": objects,
            }),
        };
        Ok(value(self.catalog, StatusCode::OK, &list, self.wanted))
    }

    fn is_spliceable(&self) -> bool {
        self.wanted.view == View::Object && self.wanted.media == MediaType::Json
    }

    fn splice(&self, items: &[Bytes], metadata: &Value) -> Bytes {
        let size: usize = items.iter().map(|item| item.len() + 1).sum();
        let mut out = Vec::with_capacity(size + 256);
        let head = format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            self.resource.list_kind,
            self.resource.api_version()
        );
        out.extend_from_slice(head.as_bytes());
        for (place, item) in items.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            out.extend_from_slice(item);
        }
        out.extend_from_slice(b"]}");
        Bytes::from(out)
    }
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}
