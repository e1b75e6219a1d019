//! OpenAPI v2 in protobuf, as gnostic's `OpenAPIv2.proto` has it: a table of messages and one encoder.

use serde_json::{Map, Value};

use crate::wire::{put_bytes, put_double, put_varint};

struct Message {
    fields: &'static [(&'static str, u32, Kind)],
    /// Where `x-…` goes.
    extensions: u32,
}

/// How a JSON value stands in its field. Paths are the messages around it, outermost first.
enum Kind {
    Text,
    Texts,
    Bool,
    Int,
    Double,
    Any,
    Anys,
    /// `TypeItem`
    Types,
    One(&'static [u32], &'static Message),
    Each(&'static Message),
    /// A wrapper whose field holds (name, value) pairs; the value lies in a path of its own.
    Named(u32, &'static [u32], &'static Message),
    /// A schema, or whether there may be more.
    More,
    Parameters,
    Requirements,
}

use Kind::{
    Any, Anys, Bool, Double, Each, Int, More, Named, One, Parameters, Requirements, Text, Texts, Types,
};

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Text),
        ("info", 2, One(&[], &INFO)),
        ("host", 3, Text),
        ("basePath", 4, Text),
        ("schemes", 5, Texts),
        ("consumes", 6, Texts),
        ("produces", 7, Texts),
        ("paths", 8, Named(2, &[], &PATH)),
        ("definitions", 9, Named(1, &[], &SCHEMA)),
        ("security", 12, Requirements),
        ("securityDefinitions", 13, Named(1, &[2], &API_KEY)),
    ],
    extensions: 16,
};
static INFO: Message = Message {
    fields: &[("title", 1, Text), ("version", 2, Text), ("description", 3, Text)],
    extensions: 7,
};
static API_KEY: Message = Message {
    fields: &[
        ("type", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("description", 4, Text),
    ],
    extensions: 5,
};
static PATH: Message = Message {
    fields: &[
        ("get", 2, One(&[], &OPERATION)),
        ("put", 3, One(&[], &OPERATION)),
        ("post", 4, One(&[], &OPERATION)),
        ("delete", 5, One(&[], &OPERATION)),
        ("options", 6, One(&[], &OPERATION)),
        ("head", 7, One(&[], &OPERATION)),
        ("patch", 8, One(&[], &OPERATION)),
        ("parameters", 9, Parameters),
    ],
    extensions: 10,
};
static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Texts),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, Texts),
        ("consumes", 7, Texts),
        ("parameters", 8, Parameters),
        ("responses", 9, Named(1, &[1], &RESPONSE)),
        ("schemes", 10, Texts),
        ("deprecated", 11, Bool),
    ],
    extensions: 13,
};
static RESPONSE: Message = Message {
    fields: &[("description", 1, Text), ("schema", 2, One(&[1], &SCHEMA))],
    extensions: 5,
};
static BODY: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Bool),
        ("schema", 5, One(&[], &SCHEMA)),
    ],
    extensions: 6,
};
static QUERY: Message = Message {
    fields: &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("allowEmptyValue", 5, Bool),
        ("type", 6, Text),
        ("format", 7, Text),
        ("default", 10, Any),
        ("uniqueItems", 20, Bool),
    ],
    extensions: 23,
};
/// Path and header parameters.
static PLACED: Message = Message {
    fields: &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
        ("default", 9, Any),
        ("uniqueItems", 19, Bool),
    ],
    extensions: 22,
};
static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("multipleOf", 6, Double),
        ("maximum", 7, Double),
        ("exclusiveMaximum", 8, Bool),
        ("minimum", 9, Double),
        ("exclusiveMinimum", 10, Bool),
        ("maxLength", 11, Int),
        ("minLength", 12, Int),
        ("pattern", 13, Text),
        ("maxItems", 14, Int),
        ("minItems", 15, Int),
        ("uniqueItems", 16, Bool),
        ("maxProperties", 17, Int),
        ("minProperties", 18, Int),
        ("required", 19, Texts),
        ("enum", 20, Anys),
        ("additionalProperties", 21, More),
        ("type", 22, Types),
        ("items", 23, One(&[1], &SCHEMA)),
        ("allOf", 24, Each(&SCHEMA)),
        ("properties", 25, Named(1, &[], &SCHEMA)),
        ("discriminator", 26, Text),
        ("readOnly", 27, Bool),
        ("example", 30, Any),
    ],
    extensions: 31,
};

pub(super) fn encode(document: &Value) -> Vec<u8> {
    message(&DOCUMENT, document)
}

fn message(of: &Message, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        if name.starts_with("x-") {
            put_bytes(&mut out, of.extensions, &named(name, &any(value)));
        } else if let Some((_, number, kind)) = of.fields.iter().find(|(known, ..)| known == name) {
            field(&mut out, *number, kind, value);
        }
    }
    out
}

fn field(out: &mut Vec<u8>, number: u32, kind: &Kind, value: &Value) {
    let list = || value.as_array().into_iter().flatten();
    let pairs = || value.as_object().into_iter().flatten();
    let put_text = |out: &mut Vec<u8>, number, text: &Value| {
        put_bytes(out, number, text.as_str().unwrap_or_default().as_bytes());
    };
    match kind {
        Text => put_text(out, number, value),
        Texts => list().for_each(|text| put_text(out, number, text)),
        Bool => put_varint(out, number, u64::from(value == &Value::Bool(true))),
        // Lengths and counts are never negative.
        Int => put_varint(out, number, value.as_u64().unwrap_or(0)),
        Double => put_double(out, number, value.as_f64().unwrap_or(0.0)),
        Any => put_bytes(out, number, &any(value)),
        Anys => list().for_each(|one| put_bytes(out, number, &any(one))),
        Types => {
            let mut types = Vec::new();
            match value {
                Value::Array(several) => several.iter().for_each(|one| put_text(&mut types, 1, one)),
                one => put_text(&mut types, 1, one),
            }
            put_bytes(out, number, &types);
        }
        One(path, of) => put_bytes(out, number, &wrapped(path, message(of, value))),
        Each(of) => list().for_each(|one| put_bytes(out, number, &message(of, one))),
        Named(pair, path, of) => {
            let mut wrapper = Vec::new();
            for (name, value) in pairs() {
                put_bytes(
                    &mut wrapper,
                    *pair,
                    &named(name, &wrapped(path, message(of, value))),
                );
            }
            put_bytes(out, number, &wrapper);
        }
        More => {
            let mut more = Vec::new();
            match value {
                Value::Bool(may) => put_varint(&mut more, 2, u64::from(*may)),
                schema => put_bytes(&mut more, 1, &message(&SCHEMA, schema)),
            }
            put_bytes(out, number, &more);
        }
        Parameters => list().for_each(|one| put_bytes(out, number, &parameter(one))),
        Requirements => {
            for requirement in list().filter_map(Value::as_object) {
                put_bytes(out, number, &self::requirement(requirement));
            }
        }
    }
}

fn requirement(requirement: &Map<String, Value>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, scopes) in requirement {
        let mut texts = Vec::new();
        field(&mut texts, 1, &Texts, scopes);
        put_bytes(&mut out, 1, &named(name, &texts));
    }
    out
}

/// `ParametersItem`: of the body, or of one of the other places.
fn parameter(parameter: &Value) -> Vec<u8> {
    match parameter["in"].as_str().unwrap_or_default() {
        "body" => wrapped(&[1, 1], message(&BODY, parameter)),
        "header" => wrapped(&[1, 2, 1], message(&PLACED, parameter)),
        "path" => wrapped(&[1, 2, 4], message(&PLACED, parameter)),
        _ => wrapped(&[1, 2, 3], message(&QUERY, parameter)),
    }
}

fn wrapped(path: &[u32], bytes: Vec<u8>) -> Vec<u8> {
    path.iter().rev().fold(bytes, |bytes, number| {
        let mut out = Vec::with_capacity(bytes.len() + 6);
        put_bytes(&mut out, *number, &bytes);
        out
    })
}

fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 1, name.as_bytes());
    put_bytes(&mut out, 2, value);
    out
}

/// Free-form values travel as YAML, which JSON is.
fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, 2, format!("{value}\n").as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::Catalog;
    use crate::openapi::OpenApi;
    use crate::wire::{Reader, Wire};

    fn get<'a>(bytes: &'a [u8], path: &[u32]) -> Vec<&'a [u8]> {
        let Some((number, rest)) = path.split_first() else {
            return vec![bytes];
        };
        let (mut reader, mut found) = (Reader(bytes), Vec::new());
        while let Some((at, wire)) = reader.next().expect("well-formed") {
            if let (true, Wire::Bytes(inner)) = (at == *number, wire) {
                found.extend(get(inner, rest));
            }
        }
        found
    }

    #[test]
    fn the_document_keeps_its_definitions() {
        let json: Value = serde_json::from_slice(&OpenApi::new(Catalog::builtin(), None).v2()).expect("JSON");
        let bytes = encode(&json);
        let names = get(&bytes, &[9, 1, 1]);
        assert_eq!(names.len(), json["definitions"].as_object().expect("map").len());
        assert!(names.contains(&b"io.k8s.api.core.v1.Pod".as_slice()));
        assert_eq!(
            get(&bytes, &[8, 2, 1]).len(),
            json["paths"].as_object().expect("map").len()
        );
        assert_eq!(get(&bytes, &[13, 1, 2, 2, 2]), [b"authorization"]);
    }

    #[test]
    fn schemas_and_parameters_find_their_messages() {
        let schema = json!({"type": "object", "additionalProperties": {"$ref": "#/definitions/a"}, "x-k": {"a": 1},
            "properties": {"p": {"type": "array", "items": {"type": "string"}, "minItems": 2}}});
        let bytes = message(&SCHEMA, &schema);
        assert_eq!(get(&bytes, &[22, 1]), [b"object"]);
        assert_eq!(get(&bytes, &[21, 1, 1]), [b"#/definitions/a"]);
        assert_eq!(get(&bytes, &[25, 1, 1]), [b"p"]);
        assert_eq!(get(&bytes, &[25, 1, 2, 23, 1, 22, 1]), [b"string"]);
        assert_eq!(get(&bytes, &[31, 2, 2]), [b"{\"a\":1}\n"]);
        let query = parameter(&json!({"in": "query", "name": "limit", "type": "integer"}));
        assert_eq!(get(&query, &[1, 2, 3, 6]), [b"integer"]);
    }
}
