//! What must hold for any input: decoders, patches, selectors of fields and expressions answer, whatever they are given,
//! and applying what is there already changes nothing. The inputs are the same in every run.

use schema::apply::Writer;
use schema::cel::Expression;
use schema::cel::types::Type;
use schema::patch::{self, PatchType};
use schema::{Catalog, GroupVersionKind, Kind, MediaType, codec};
use serde_json::{Value, json};

/// xorshift64*: enough to wander about.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).unwrap_or(0) % sides
    }

    /// Some bytes other, more or fewer.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.roll(4) {
            let at = self.roll(bytes.len().max(1)).min(bytes.len());
            match self.roll(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, b"{}[]\":,\\\xff\0 -9e"[self.roll(14)]),
                2 if at < bytes.len() => bytes[at] ^= 1 << self.roll(8),
                _ => {
                    let piece = bytes[at..].to_vec();
                    bytes.extend(piece);
                }
            }
            bytes.truncate(4096);
        }
        bytes
    }
}

fn objects() -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "labels": {"a": "b"}}, "data": {"x": "1", "y": "2"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": {"a": "b"}}, "spec": {
            "containers": [{"name": "one", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}], "env": [{"name": "A", "value": "1"}]},
                {"name": "two", "image": "j"}],
            "tolerations": [{"key": "k", "operator": "Exists"}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 3,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"selector": {"a": "b"},
            "ports": [{"port": 80, "protocol": "TCP", "name": "http"}, {"port": 443, "protocol": "TCP", "name": "https"}]}}),
    ]
}

fn kind<'a>(catalog: &'a Catalog, object: &Value) -> &'a Kind {
    let text = |field: &str| object[field].as_str().unwrap();
    let gvk = GroupVersionKind::from_api_version(text("apiVersion"), text("kind"));
    catalog.kind(&gvk).unwrap()
}

const WRITER: Writer<'static> = Writer {
    manager: "me",
    subresource: "",
    now: "2026-01-01T00:00:00Z",
    reset: &[],
};

#[test]
fn damaged_bodies_are_decoded_or_refused() {
    let catalog = Catalog::builtin();
    let mut dice = Dice(1);
    let mut refused = 0;
    for object in objects() {
        let kind = kind(&catalog, &object);
        let protobuf = codec::encode_protobuf(&catalog, &object).unwrap();
        let yaml = codec::to_yaml(&object).into_bytes();
        for (media, whole) in [
            (MediaType::Json, object.to_string().into_bytes()),
            (MediaType::Yaml, yaml),
            (MediaType::Protobuf, protobuf),
        ] {
            let decoded = codec::decode(&catalog, media, &whole, Some(&kind.gvk)).unwrap();
            assert_eq!(decoded.object["metadata"]["name"], object["metadata"]["name"]);
            for _ in 0..300 {
                let damaged = dice.damage(&whole);
                refused += usize::from(codec::decode(&catalog, media, &damaged, Some(&kind.gvk)).is_err());
            }
        }
    }
    assert!(refused > 500, "the damage was seen: {refused}");
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    let catalog = Catalog::builtin();
    let gvk = GroupVersionKind::new("", "v1", "ConfigMap");
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"data\":{}1{}}}",
            open.repeat(100_000),
            close.repeat(100_000)
        );
        for media in [MediaType::Json, MediaType::Yaml] {
            assert!(codec::decode(&catalog, media, deep.as_bytes(), Some(&gvk)).is_err());
        }
    }
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let catalog = Catalog::builtin();
    for object in objects() {
        let kind = kind(&catalog, &object);
        let first = schema::apply::apply(kind, None, &object, WRITER, false).unwrap();
        let second = schema::apply::apply(kind, Some(&first), &object, WRITER, false).unwrap();
        assert_eq!(first, second, "{}", kind.gvk.kind);
        // Another who applies the same owns it, too, and takes nothing away when it leaves again.
        let other = Writer {
            manager: "other",
            ..WRITER
        };
        let shared = schema::apply::apply(kind, Some(&second), &object, other, false).unwrap();
        let mut left = json!({"apiVersion": object["apiVersion"], "kind": object["kind"]});
        left["metadata"] = json!({"name": object["metadata"]["name"]});
        let after = schema::apply::apply(kind, Some(&shared), &left, other, false).unwrap();
        for part in ["spec", "data"] {
            assert_eq!(after[part], first[part], "{}", kind.gvk.kind);
        }
    }
}

#[test]
fn a_patch_of_an_object_with_itself_is_the_object() {
    let catalog = Catalog::builtin();
    for object in objects() {
        let kind = kind(&catalog, &object);
        for patch_type in [PatchType::Merge, PatchType::Strategic] {
            assert_eq!(patch::apply(kind, patch_type, &object, &object).unwrap(), object);
            assert_eq!(
                patch::apply(kind, patch_type, &object, &json!({})).unwrap(),
                object
            );
        }
        assert_eq!(
            patch::apply(kind, PatchType::Json, &object, &json!([])).unwrap(),
            object
        );
    }
}

#[test]
fn damaged_patches_are_taken_or_refused() {
    let catalog = Catalog::builtin();
    let mut dice = Dice(2);
    let operations = json!([{"op": "test", "path": "/metadata/name", "value": "p"}, {"op": "move", "from": "/spec/containers/0", "path": "/spec/containers/1"},
        {"op": "copy", "from": "/metadata", "path": "/x"}, {"op": "remove", "path": "/spec/containers/-1"}, {"op": "add", "path": "/a~1b/~0", "value": null}]);
    let strategic = json!({"spec": {"containers": [{"name": "one", "$patch": "delete"}, {"name": "new"}],
        "$setElementOrder/containers": [{"name": "new"}, {"name": "two"}], "$retainKeys": ["containers"]},
        "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "annotations": {"$patch": "replace"}}});
    let mut applied = 0;
    for object in objects() {
        let kind = kind(&catalog, &object);
        for (patch_type, patch) in [
            (PatchType::Json, &operations),
            (PatchType::Merge, &strategic),
            (PatchType::Strategic, &strategic),
        ] {
            for _ in 0..200 {
                let damaged = dice.damage(patch.to_string().as_bytes());
                if let Ok((patch, _)) = codec::parse_patch(MediaType::Json, &damaged) {
                    applied += 1;
                    let _ = patch::apply(kind, patch_type, &object, &patch);
                    let _ = schema::apply::apply(kind, Some(&object), &patch, WRITER, true);
                }
            }
        }
    }
    assert!(applied > 100, "some were still patches: {applied}");
}

#[test]
fn damaged_expressions_are_compiled_checked_and_asked_or_refused() {
    let mut dice = Dice(3);
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}, "list": {"type": "array", "items": {"type": "string"}}}});
    let variables = [("self", Type::of_schema(&schema, true).unwrap())];
    let object = json!({"n": 3, "list": ["a", "b"]});
    let bindings = vec![("self", schema::cel::from_json(&object))];
    let mut compiled = 0;
    for whole in [
        "self.n > 1 && self.list.all(i, i.startsWith('a') || i in ['b'])",
        "has(self.n) ? self.list.map(i, i + 'x').size() == 2 : self.?list[?0].orValue('') == 'a'",
        "quantity('1Gi').isGreaterThan(quantity('1Mi')) && '%s'.format([self.n]) != \"\"",
    ] {
        for _ in 0..400 {
            let damaged = String::from_utf8_lossy(&dice.damage(whole.as_bytes())).into_owned();
            if let Ok(expression) = Expression::compile(&damaged, &["self"]) {
                compiled += 1;
                let _ = schema::cel::check(&expression, &variables);
                let _ = expression.evaluate(&bindings);
            }
        }
    }
    assert!(compiled > 20, "some were still expressions: {compiled}");
}
