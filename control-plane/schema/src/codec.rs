//! Bytes ⇄ values: JSON, YAML, and the `k8s\0` protobuf envelope.

use serde_json::Value;
use thiserror::Error;

use crate::catalog::{Catalog, GroupVersionKind};
use crate::protobuf::{self, ProtobufError};
use crate::wire::{Reader, put_bytes};
use crate::{fields, json};

/// What every protobuf body starts with.
const MAGIC: &[u8; 4] = b"k8s\0";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    Json,
    Yaml,
    Protobuf,
}

impl MediaType {
    /// From a `Content-Type` value; parameters are ignored.
    pub fn parse(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json" => Some(Self::Json),
            "application/yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// A request body in canonical form: types checked, unknown fields gone, `apiVersion` and `kind` set.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub gvk: GroupVersionKind,
    pub object: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.bar"`: an error under fieldValidation=Strict, warnings under Warn.
    pub strict: Vec<String>,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum CodecError {
    /// 400 BadRequest with this message.
    #[error("{0}")]
    BadRequest(String),
    #[error("no kind \"{}\" is registered for version \"{}\"", .0.kind, .0.api_version())]
    UnknownKind(GroupVersionKind),
    #[error("protobuf: {0}")]
    Protobuf(ProtobufError),
}

/// Decodes a request body. `default` names the kind when the body does not, and the kind that messages expect.
pub fn decode(
    catalog: &Catalog,
    media: MediaType,
    body: &[u8],
    default: Option<&GroupVersionKind>,
) -> Result<Decoded, CodecError> {
    let expected = default.map_or("", |gvk| gvk.kind.as_str());
    let unrecognized = |problem: &str| {
        let summary = summarize(body);
        CodecError::BadRequest(format!(
            "the object provided is unrecognized (must be of type {expected}): {problem} ({summary})"
        ))
    };
    let (mut object, mut strict, named) = match media {
        MediaType::Json => {
            let (object, strict) = json::from_json(body).map_err(|error| {
                unrecognized(&format!("couldn't get version/kind; json parse error: {error}"))
            })?;
            let named = type_meta(&object);
            (object, strict, named)
        }
        MediaType::Yaml => {
            let (object, strict) = json::from_yaml(body).map_err(|error| {
                unrecognized(&format!("couldn't get version/kind; yaml parse error: {error}"))
            })?;
            let named = type_meta(&object);
            (object, strict, named)
        }
        MediaType::Protobuf => {
            let (named, raw) = open_envelope(body).map_err(|problem| unrecognized(&problem))?;
            let gvk = complete(named, default);
            let kind = catalog
                .kind(&gvk)
                .filter(|kind| kind.custom.is_none())
                .ok_or_else(|| unknown_kind(&gvk, expected))?;
            let object = protobuf::decode(&kind.types, kind.root, raw)
                .map_err(|error| handled_as(&gvk, expected, &error.to_string()))?;
            (object, Vec::new(), (gvk.api_version(), gvk.kind))
        }
    };
    let gvk = complete(named, default);
    if gvk.kind.is_empty() {
        return Err(unrecognized("Object 'Kind' is missing"));
    }
    let kind = catalog.kind(&gvk).ok_or_else(|| unknown_kind(&gvk, expected))?;
    let unknown = fields::check(kind, &mut object).map_err(|problem| handled_as(&gvk, expected, &problem))?;
    strict.extend(unknown);
    if media == MediaType::Json && strict.len() > 1 && kind.custom.is_none() {
        strict = json::in_document_order(body, &strict);
    }
    object["apiVersion"] = gvk.api_version().into();
    object["kind"] = gvk.kind.clone().into();
    Ok(Decoded { gvk, object, strict })
}

/// The 400 message for strict problems.
pub fn strict_message(gvk: &GroupVersionKind, expected_kind: &str, problems: &[String]) -> String {
    format!(
        "{} in version \"{}\" cannot be handled as a {expected_kind}: strict decoding error: {}",
        gvk.kind,
        gvk.version,
        problems.join(", ")
    )
}

/// Encodes any registered kind (objects, lists, Status, …) in the `k8s\0` envelope.
pub fn encode_protobuf(catalog: &Catalog, object: &Value) -> Result<Vec<u8>, CodecError> {
    let (api_version, kind_name) = type_meta(object);
    let gvk = GroupVersionKind::from_api_version(&api_version, &kind_name);
    let kind = catalog
        .kind(&gvk)
        .filter(|kind| kind.custom.is_none())
        .ok_or(CodecError::UnknownKind(gvk))?;
    let raw = protobuf::encode(&kind.types, kind.root, object).map_err(CodecError::Protobuf)?;
    Ok(seal_envelope(&api_version, &kind_name, &raw))
}

/// `metav1.WatchEvent` around an object that is already in its envelope; the caller adds the length prefix.
pub fn encode_watch_event_protobuf(event_type: &str, envelope: &[u8]) -> Vec<u8> {
    let mut raw_extension = Vec::with_capacity(envelope.len() + 8);
    put_bytes(&mut raw_extension, 1, envelope);
    let mut out = Vec::with_capacity(raw_extension.len() + 24);
    put_bytes(&mut out, 1, event_type.as_bytes());
    put_bytes(&mut out, 2, &raw_extension);
    out
}

/// A patch body: JSON or YAML, no kind needed. Keys given twice come beside it.
pub fn parse_patch(media: MediaType, body: &[u8]) -> Result<(Value, Vec<String>), CodecError> {
    let (parsed, what) = match media {
        MediaType::Yaml => (json::from_yaml(body), "YAML"),
        MediaType::Json | MediaType::Protobuf => (json::from_json(body), "patch"),
    };
    parsed.map_err(|error| CodecError::BadRequest(format!("error decoding {what}: {error}")))
}

/// JSON is YAML too: what the YAML writer cannot express comes out as JSON.
pub fn to_yaml(object: &Value) -> String {
    serde_saphyr::to_string(object).unwrap_or_else(|_| object.to_string())
}

fn type_meta(object: &Value) -> (String, String) {
    let text = |key: &str| {
        object
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    (text("apiVersion"), text("kind"))
}

fn complete((api_version, kind): (String, String), default: Option<&GroupVersionKind>) -> GroupVersionKind {
    let fallback = default.cloned().unwrap_or_default();
    let mut gvk = if api_version.is_empty() {
        GroupVersionKind {
            kind: String::new(),
            ..fallback.clone()
        }
    } else {
        GroupVersionKind::from_api_version(&api_version, "")
    };
    gvk.kind = if kind.is_empty() { fallback.kind } else { kind };
    gvk
}

fn handled_as(gvk: &GroupVersionKind, expected: &str, problem: &str) -> CodecError {
    let expected = if expected.is_empty() { &gvk.kind } else { expected };
    CodecError::BadRequest(format!(
        "{} in version \"{}\" cannot be handled as a {expected}: {problem}",
        gvk.kind, gvk.version
    ))
}

fn unknown_kind(gvk: &GroupVersionKind, expected: &str) -> CodecError {
    handled_as(gvk, expected, &CodecError::UnknownKind(gvk.clone()).to_string())
}

fn open_envelope(body: &[u8]) -> Result<((String, String), &[u8]), String> {
    let message = body
        .strip_prefix(MAGIC)
        .ok_or("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")?;
    let (mut type_meta, mut raw): (&[u8], &[u8]) = (&[], &[]);
    let mut reader = Reader(message);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => type_meta = wire.bytes()?,
            2 => raw = wire.bytes()?,
            _ => {}
        }
    }
    let (mut api_version, mut kind) = (String::new(), String::new());
    let mut reader = Reader(type_meta);
    while let Some((number, wire)) = reader.next()? {
        let text = || Ok::<_, &str>(String::from_utf8_lossy(wire.bytes()?).into_owned());
        match number {
            1 => api_version = text()?,
            2 => kind = text()?,
            _ => {}
        }
    }
    Ok(((api_version, kind), raw))
}

fn seal_envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut type_meta = Vec::new();
    put_bytes(&mut type_meta, 1, api_version.as_bytes());
    put_bytes(&mut type_meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + type_meta.len() + 16);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &type_meta);
    put_bytes(&mut out, 2, raw);
    put_bytes(&mut out, 3, &[]);
    put_bytes(&mut out, 4, &[]);
    out
}

/// The start of a body that nobody understood, as upstream shows it.
fn summarize(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let head = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => format!(
            "{}{more}",
            head.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        ),
    }
}
