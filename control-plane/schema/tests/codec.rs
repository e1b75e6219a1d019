//! The codec's promises, for every kind: JSON and protobuf carry the same objects.

use schema::codec::{CodecError, decode, encode_protobuf, encode_watch_event_protobuf};
use schema::types::{FieldType, JsonShape, TypeId, Types};
use schema::{Catalog, GroupVersionKind, MediaType};
use serde_json::{Map, Value, json};

/// An object with every field set, so that a wrong number or wire kind shows.
fn filled(types: &Types, id: TypeId, depth: usize) -> Value {
    let mut object = Map::new();
    // `kind` and `apiVersion` have no number: they travel in the envelope.
    for field in types.fields(id).into_iter().filter(|field| field.number > 0) {
        if depth < 6 || !matches!(field.ty.element(), FieldType::Object(_)) {
            let seed = field.number as usize + depth;
            object.insert(field.name.clone(), value(types, &field.ty, depth, seed));
        }
    }
    Value::Object(object)
}

fn value(types: &Types, ty: &FieldType, depth: usize, seed: usize) -> Value {
    match ty {
        FieldType::String => format!("text-{seed}").into(),
        FieldType::Bytes => "AAEC/w==".into(),
        FieldType::Bool => true.into(),
        FieldType::Int32 => (-3 - seed as i32).into(),
        FieldType::Int64 => (i64::from(i32::MAX) + seed as i64).into(),
        FieldType::Double => 1.5.into(),
        FieldType::IntOrString if seed.is_multiple_of(2) => 8080.into(),
        FieldType::IntOrString => "25%".into(),
        FieldType::Quantity => "1500m".into(),
        FieldType::Time => "2026-01-02T03:04:05Z".into(),
        FieldType::MicroTime => "2026-01-02T03:04:05.678901Z".into(),
        FieldType::Duration => "1m30s".into(),
        FieldType::RawExtension | FieldType::FieldsV1 | FieldType::Json(JsonShape::Raw) => {
            json!({"any": ["thing", 1]})
        }
        FieldType::Json(JsonShape::SchemaOrBool) => false.into(),
        FieldType::Json(JsonShape::SchemaOrArray) => json!([{"type": "string"}]),
        FieldType::Json(JsonShape::SchemaOrStringArray) => json!(["a", "b"]),
        FieldType::Object(id) => filled(types, *id, depth + 1),
        FieldType::List(item) | FieldType::WrappedList(item) => {
            json!([value(types, item, depth, seed), value(types, item, depth, seed)])
        }
        FieldType::Map(item) => {
            json!({"a": value(types, item, depth, seed), "b.c/d": value(types, item, depth, seed)})
        }
    }
}

#[test]
fn every_kind_survives_json_and_protobuf() {
    let catalog = Catalog::builtin();
    let mut kinds = 0;
    for resource in catalog.resources() {
        for kind in std::iter::once(&resource.kind)
            .chain(resource.subresources.iter().map(|subresource| &subresource.kind))
        {
            let mut object = filled(&kind.types, kind.root, 0);
            object["apiVersion"] = kind.gvk.api_version().into();
            object["kind"] = kind.gvk.kind.clone().into();
            let from_json =
                decode(&catalog, MediaType::Json, object.to_string().as_bytes(), None).expect("JSON");
            assert_eq!(from_json.strict, [] as [&str; 0], "{}", kind.gvk);
            let wire = encode_protobuf(&catalog, &from_json.object).expect("encodes");
            let from_wire = decode(&catalog, MediaType::Protobuf, &wire, None).expect("protobuf");
            assert_eq!(from_wire.object, from_json.object, "{}", kind.gvk);
            assert_eq!(
                encode_protobuf(&catalog, &from_wire.object).expect("encodes"),
                wire,
                "{}",
                kind.gvk
            );
            kinds += 1;
        }
    }
    assert!(kinds > 100, "only {kinds}");
}

/// Written out by hand from the field numbers of meta/v1 and core/v1.
#[test]
fn a_namespace_on_the_wire() {
    let catalog = Catalog::builtin();
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}, "spec": {}, "status": {"phase": "Active"}});
    let metadata = [
        b"\x0a\x01a\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00".as_slice(),
        b"\x42\x00",
    ]
    .concat();
    let raw = [
        &[0x0a, metadata.len() as u8][..],
        &metadata,
        b"\x12\x00",
        b"\x1a\x08\x0a\x06Active",
    ]
    .concat();
    let expected = [
        b"k8s\x00\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12".as_slice(),
        &[raw.len() as u8],
        &raw,
        b"\x1a\x00\x22\x00",
    ]
    .concat();
    assert_eq!(encode_protobuf(&catalog, &object).expect("encodes"), expected);
    assert_eq!(
        decode(&catalog, MediaType::Protobuf, &expected, None)
            .expect("decodes")
            .object,
        object
    );
}

#[test]
fn lists_statuses_and_options_have_wire_forms_too() {
    let catalog = Catalog::builtin();
    for object in [
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "a"}, "spec": {}, "status": {}}]}),
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "reason": "NotFound", "code": 404, "details": {"name": "x", "kind": "pods"}}),
        json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Background"}),
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 3}, "status": {"replicas": 1}}),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": {"audiences": ["a"], "expirationSeconds": 600}, "status": {"token": "t"}}),
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "a", "labels": {"x": "y"}}}),
    ] {
        let wire = encode_protobuf(&catalog, &object).expect("encodes");
        let decoded = decode(&catalog, MediaType::Protobuf, &wire, None)
            .expect("decodes")
            .object;
        for (key, value) in object.as_object().expect("object") {
            if key != "items" && key != "status" {
                assert_eq!(decoded[key], *value, "{object}");
            }
        }
    }
    let event = encode_watch_event_protobuf("ADDED", b"k8s\0...");
    assert_eq!(event, b"\x0a\x05ADDED\x12\x09\x0a\x07k8s\0...");
}

#[test]
fn bodies_that_cannot_be_read_get_upstreams_message() {
    let catalog = Catalog::builtin();
    let pod = GroupVersionKind::new("", "v1", "Pod");
    let refusal = |media, body: &[u8]| match decode(&catalog, media, body, Some(&pod)) {
        Err(CodecError::BadRequest(message)) => message,
        other => panic!("{other:?}"),
    };
    for (media, body, expected) in [
        (
            MediaType::Json,
            &b"{\"spec\": {\"nodeName\": 5}}"[..],
            r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field PodSpec.spec.nodeName of type string"#,
        ),
        (
            MediaType::Json,
            b"{\"kind\": \"Pond\"}",
            r#"Pond in version "v1" cannot be handled as a Pod: no kind "Pond" is registered for version "v1""#,
        ),
        (
            MediaType::Json,
            b"",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: ",
        ),
        (
            MediaType::Protobuf,
            b"nothing",
            "the object provided is unrecognized (must be of type Pod): provided data does not appear to be a protobuf message",
        ),
        (
            MediaType::Protobuf,
            b"k8s\0\x0a\xff",
            "the object provided is unrecognized (must be of type Pod): unexpected EOF",
        ),
    ] {
        let message = refusal(media, body);
        assert!(message.starts_with(expected), "{message}");
    }
}

/// Every prefix of a good body, and every body with a byte turned over, is an object or an error, never a panic.
#[test]
fn damaged_protobuf_does_no_harm() {
    let catalog = Catalog::builtin();
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"x": "y"}},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}}]}});
    let good = encode_protobuf(&catalog, &object).expect("encodes");
    let mut read = 0;
    for index in 0..good.len() {
        let mut damaged = good.clone();
        damaged[index] ^= 0xff;
        for body in [&good[..index], &damaged] {
            read += usize::from(decode(&catalog, MediaType::Protobuf, body, None).is_ok());
        }
    }
    assert!(read < good.len() * 2, "everything was accepted");
}
