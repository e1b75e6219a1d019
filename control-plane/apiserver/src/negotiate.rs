//! What a client wants back: JSON, YAML or protobuf; the object, a Table, or its metadata only.

use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING};
use schema::MediaType;

use crate::status::ApiError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Object,
    Table,
    PartialMetadata,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub media: MediaType,
    pub view: View,
    /// A Table as `meta.k8s.io/v1beta1`, which says the same.
    pub beta: bool,
    pub gzip: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            media: MediaType::Json,
            view: View::Object,
            beta: false,
            gzip: false,
        }
    }
}

pub const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// Picks the first clause we can serve. JSON beats protobuf where both are accepted.
pub fn negotiate(headers: &HeaderMap) -> Result<Wanted, ApiError> {
    let gzip = header(headers, &ACCEPT_ENCODING)
        .split(',')
        .any(|e| e.trim().split(';').next() == Some("gzip"));
    let accept = header(headers, &ACCEPT);
    if accept.is_empty() {
        return Ok(Wanted {
            gzip,
            ..Wanted::default()
        });
    }
    let mut fallback = None;
    for clause in accept.split(',') {
        let Some((media, view, beta)) = parse(clause) else {
            continue;
        };
        let wanted = Wanted {
            media,
            view,
            beta,
            gzip,
        };
        if media != MediaType::Protobuf {
            // A protobuf clause with a wanted view, before this one, decides the view.
            return Ok(match fallback {
                Some(Wanted { view: earlier, .. }) if earlier != view => Wanted {
                    media: MediaType::Protobuf,
                    view: earlier,
                    beta: false,
                    gzip,
                },
                _ => wanted,
            });
        }
        fallback.get_or_insert(wanted);
    }
    fallback.ok_or_else(|| ApiError::not_acceptable(ACCEPTED))
}

fn parse(clause: &str) -> Option<(MediaType, View, bool)> {
    let mut parts = clause.split(';').map(str::trim);
    let media = match parts.next()? {
        "application/json" | "*/*" | "application/*" => MediaType::Json,
        "application/yaml" => MediaType::Yaml,
        "application/vnd.kubernetes.protobuf" => MediaType::Protobuf,
        _ => return None,
    };
    let (mut view, mut group, mut version) = ("", "", "");
    for part in parts {
        match part.split_once('=') {
            Some(("as", value)) => view = value,
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            _ => {}
        }
    }
    let view = match (view, group, version) {
        ("", ..) => View::Object,
        // Upstream's AllowsMediaTypeTransform: tables have no protobuf form.
        ("Table", "meta.k8s.io", "v1" | "v1beta1") if media != MediaType::Protobuf => View::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => View::PartialMetadata,
        _ => return None,
    };
    Some((media, view, view == View::Table && version == "v1beta1"))
}

/// Whether the client asks for the aggregated discovery document.
pub fn wants_aggregated_discovery(headers: &HeaderMap) -> bool {
    header(headers, &ACCEPT).split(',').any(|clause| {
        clause.contains("as=APIGroupDiscoveryList")
            && clause.contains("v=v2")
            && !clause.contains("v=v2beta1")
    })
}

pub fn header<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(accept: &'static str) -> Result<(MediaType, View), u16> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        negotiate(&headers)
            .map(|w| (w.media, w.view))
            .map_err(|e| e.code.as_u16())
    }

    #[test]
    fn accept_headers_decide() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        for (accept, expected) in [
            ("*/*", Ok((MediaType::Json, View::Object))),
            (table, Ok((MediaType::Json, View::Table))),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Ok((MediaType::Json, View::Object)),
            ),
            (
                "application/vnd.kubernetes.protobuf",
                Ok((MediaType::Protobuf, View::Object)),
            ),
            ("application/yaml", Ok((MediaType::Yaml, View::Object))),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Ok((MediaType::Json, View::PartialMetadata)),
            ),
            ("application/json;as=Table;g=meta.k8s.io;v=v9", Err(406)),
            (
                "application/json;as=Table;g=meta.k8s.io;v=v1beta1",
                Ok((MediaType::Json, View::Table)),
            ),
            ("text/html", Err(406)),
            (
                "text/html, application/json;q=0.5",
                Ok((MediaType::Json, View::Object)),
            ),
        ] {
            assert_eq!(wanted(accept), expected, "{accept}");
        }
    }
}
