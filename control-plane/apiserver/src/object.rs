//! Objects as JSON values and as bytes: metadata access, and resourceVersion spliced into stored bytes.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use store::Revision;

use crate::wire;

/// Text at a JSON pointer, empty when absent.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// A field's text, empty when absent.
pub fn string<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

/// A field's entries, none when it is no list.
pub fn items<'a>(of: &'a Value, field: &str) -> &'a [Value] {
    of[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

pub fn resource_version(object: &Value) -> &str {
    text(object, "/metadata/resourceVersion")
}

pub fn is_terminating(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

pub fn finalizers(object: &Value) -> Vec<String> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

pub fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    if finalizers.is_empty() {
        metadata(object).remove("finalizers");
    } else {
        metadata(object).insert("finalizers".into(), json!(finalizers));
    }
}

/// The object's metadata, created when absent. `object` is a JSON object.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    field(object, "metadata")
}

/// A field that holds a JSON object, created when it does not.
pub fn field<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let slot = &mut object[name];
    if !slot.is_object() {
        *slot = json!({});
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// Copies a top-level field of `from`, or its absence.
pub fn copy_field(object: &mut Value, from: &Value, name: &str) {
    copy_key(object.as_object_mut(), from.as_object(), name);
}

pub fn copy_metadata(object: &mut Value, from: &Value, name: &str) {
    let source = from.get("metadata").and_then(Value::as_object);
    copy_key(Some(metadata(object)), source, name);
}

fn copy_key(object: Option<&mut Map<String, Value>>, from: Option<&Map<String, Value>>, name: &str) {
    let Some(object) = object else { return };
    match from.and_then(|from| from.get(name)) {
        Some(value) => object.insert(name.to_owned(), value.clone()),
        None => object.remove(name),
    };
}

/// RFC 3339 with seconds, as `metav1.Time`.
pub fn time(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The bytes that are stored: canonical JSON without a resourceVersion.
pub fn encode(object: &Value) -> Bytes {
    let mut copy;
    let object = if resource_version(object).is_empty() {
        object
    } else {
        copy = object.clone();
        metadata(&mut copy).remove("resourceVersion");
        &copy
    };
    Bytes::from(wire::text(object))
}

/// Parses stored bytes and sets the resourceVersion.
pub fn decode(bytes: &[u8], revision: Revision) -> serde_json::Result<Value> {
    let mut object: Value = serde_json::from_slice(bytes)?;
    metadata(&mut object).insert("resourceVersion".into(), json!(revision.to_string()));
    Ok(object)
}

/// Stored bytes with `metadata.resourceVersion` put in its sorted place, without parsing the rest.
pub fn with_revision(stored: &[u8], revision: Revision) -> Bytes {
    let Some(place) = Scanner::new(stored).revision_place() else {
        return Bytes::copy_from_slice(stored);
    };
    let mut out = Vec::with_capacity(stored.len() + 40);
    out.extend_from_slice(&stored[..place.at]);
    if place.comma_before {
        out.push(b',');
    }
    out.extend_from_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
    if place.comma_after {
        out.push(b',');
    }
    out.extend_from_slice(&stored[place.at..]);
    Bytes::from(out)
}

struct Place {
    at: usize,
    comma_before: bool,
    comma_after: bool,
}

/// Walks canonical JSON (no white space) just far enough.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn revision_place(&mut self) -> Option<Place> {
        self.expect(b'{')?;
        loop {
            let key = self.string()?;
            self.expect(b':')?;
            if key == b"metadata" {
                break;
            }
            self.skip_value()?;
            self.expect(b',')?;
        }
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            return Some(Place {
                at: self.at,
                comma_before: false,
                comma_after: false,
            });
        }
        loop {
            let start = self.at;
            if self.string()? > b"resourceVersion".as_slice() {
                return Some(Place {
                    at: start,
                    comma_before: false,
                    comma_after: true,
                });
            }
            self.expect(b':')?;
            self.skip_value()?;
            if self.peek()? == b'}' {
                return Some(Place {
                    at: self.at,
                    comma_before: true,
                    comma_after: false,
                });
            }
            self.expect(b',')?;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// The raw text between quotes.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(&self.bytes[start..self.at - 1]);
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }

    fn skip_value(&mut self) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                    if depth == 0 {
                        return Some(());
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 0 => return Some(()),
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Some(());
                    }
                }
                b',' if depth == 0 => return Some(()),
                _ => {}
            }
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revision_is_spliced_where_sorting_puts_it() {
        let cases = [
            json!({"apiVersion": "v1", "kind": "A", "metadata": {"name": "a", "uid": "u"}, "spec": {"metadata": {}}}),
            json!({"data": {"metadata": "{\"x\":[", "k": "}\\"}, "metadata": {"annotations": {"uid": "no"}, "name": "a"}}),
            json!({"a": [1, {"b": "]"}], "b": true, "c": 1.5, "metadata": {}, "z": null}),
            json!({"metadata": {"uid": "u"}}),
        ];
        for object in cases {
            let mut expected = object.clone();
            expected["metadata"]["resourceVersion"] = json!("42");
            let spliced = with_revision(&encode(&object), 42);
            assert_eq!(String::from_utf8_lossy(&spliced), wire::text(&expected));
            assert_eq!(encode(&expected), encode(&object), "and back");
            assert_eq!(decode(&encode(&object), 42).unwrap(), expected);
        }
    }
}
