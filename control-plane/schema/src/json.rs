//! JSON and YAML text into values, noting keys that occur twice (the last one wins).

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

/// The value, and `duplicate field "spec.foo"` for each key given twice.
pub(crate) fn from_json(text: &[u8]) -> Result<(Value, Vec<String>), String> {
    let notes = Notes::default();
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Node(&notes)
        .deserialize(&mut reader)
        .map_err(|error| error.to_string())?;
    reader.end().map_err(|error| error.to_string())?;
    Ok((value, notes.duplicates.into_inner()))
}

/// As `from_json`; all keys given twice are one problem, with their lines, as upstream's YAML reader tells it.
pub(crate) fn from_yaml(text: &[u8]) -> Result<(Value, Vec<String>), String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let options =
        serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::PassThrough, with_snippet: false };
    let notes = Notes {
        has_lines: true,
        ..Notes::default()
    };
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        Node(&notes).deserialize(reader)
    })
    .map_err(|error| error.to_string())?;
    let lines = notes.duplicates.into_inner();
    let told = (!lines.is_empty()).then(|| format!("yaml: unmarshal errors:\n{}", lines.join("\n")));
    Ok((value, told.into_iter().collect()))
}

/// Strict problems of a JSON text in the order in which its keys come, as Go's decoder finds them.
/// A key that is unknown is not a duplicate, too.
pub(crate) fn in_document_order(text: &[u8], problems: &[String]) -> Vec<String> {
    let notes = Notes {
        keys: Some(RefCell::default()),
        ..Notes::default()
    };
    let read = Node(&notes).deserialize(&mut serde_json::Deserializer::from_slice(text));
    let (Ok(_), Some(keys)) = (read, notes.keys) else {
        return problems.to_vec();
    };
    let known: HashSet<&str> = problems.iter().map(String::as_str).collect();
    let mut told = Vec::new();
    let mut seen = HashSet::new();
    for path in keys.into_inner() {
        let (unknown, duplicate) = (
            format!("unknown field \"{path}\""),
            format!("duplicate field \"{path}\""),
        );
        let is_new = seen.insert(path);
        if is_new && known.contains(unknown.as_str()) {
            told.push(unknown);
        } else if !is_new && known.contains(duplicate.as_str()) && !known.contains(unknown.as_str()) {
            told.push(duplicate);
        }
    }
    told
}

#[derive(Default)]
struct Notes {
    path: RefCell<String>,
    duplicates: RefCell<Vec<String>>,
    /// The text tells lines: YAML.
    has_lines: bool,
    /// The path of every key, where asked for.
    keys: Option<RefCell<Vec<String>>>,
}

impl Notes {
    fn key<'de, A: MapAccess<'de>>(&self, access: &mut A) -> Result<Option<(String, u64)>, A::Error> {
        if self.has_lines {
            let key = access.next_key::<Spanned<String>>()?;
            return Ok(key.map(|key| (key.value, key.referenced.line())));
        }
        Ok(access.next_key::<String>()?.map(|key| (key, 0)))
    }

    fn duplicate(&self, key: &str, line: u64) {
        let path = self.path.borrow();
        self.duplicates.borrow_mut().push(if self.has_lines {
            format!("  line {line}: key {key:?} already set in map")
        } else {
            format!("duplicate field \"{path}\"")
        });
    }
}

struct Node<'a>(&'a Notes);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        let length = self.0.path.borrow().len();
        loop {
            self.0.path.borrow_mut().push_str(&format!("[{}]", items.len()));
            let next = access.next_element_seed(Node(self.0))?;
            self.0.path.borrow_mut().truncate(length);
            match next {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let length = self.0.path.borrow().len();
        while let Some((key, line)) = self.0.key(&mut access)? {
            {
                let mut path = self.0.path.borrow_mut();
                if length > 0 {
                    path.push('.');
                }
                path.push_str(&key);
                if let Some(keys) = &self.0.keys {
                    keys.borrow_mut().push(path.clone());
                }
            }
            if object.contains_key(&key) {
                self.0.duplicate(&key, line);
            }
            let value = access.next_value_seed(Node(self.0))?;
            object.insert(key, value);
            self.0.path.borrow_mut().truncate(length);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn notes_duplicates_with_their_path() {
        let (value, duplicates) = from_json(br#"{"a":1,"b":[{"c":1},{"c":2,"c":3}],"a":2}"#).expect("parses");
        assert_eq!(value, json!({"a": 2, "b": [{"c": 1}, {"c": 3}]}));
        assert_eq!(
            duplicates,
            [r#"duplicate field "b[1].c""#, r#"duplicate field "a""#]
        );
    }

    #[test]
    fn refuses_trailing_text_and_half_documents() {
        assert!(from_json(b"{} x").is_err());
        assert!(from_json(b"{\"a\":").is_err());
        assert!(from_json(b"").is_err());
    }

    #[test]
    fn problems_come_in_the_order_of_the_text() {
        let text = br#"{"b":1,"u":{"x":1},"b":2,"u":3,"a":4}"#;
        let problems = [
            r#"duplicate field "b""#,
            r#"duplicate field "u""#,
            r#"unknown field "a""#,
            r#"unknown field "u""#,
        ];
        assert_eq!(
            in_document_order(text, &problems.map(str::to_owned)),
            [
                r#"unknown field "u""#,
                r#"duplicate field "b""#,
                r#"unknown field "a""#
            ]
        );
    }

    #[test]
    fn yaml_tells_the_lines_of_keys_given_twice() {
        let (value, problems) = from_yaml(b"\na: 1\nb:\n  c: x\n  c: z\na: 2\n1: z\n").expect("parses");
        assert_eq!(value, json!({"a": 2, "b": {"c": "z"}, "1": "z"}));
        assert_eq!(
            problems,
            [
                "yaml: unmarshal errors:\n  line 5: key \"c\" already set in map\n  line 6: key \"a\" already set in map"
            ]
        );
    }

    #[test]
    fn yaml_is_json_with_other_clothes() {
        let (value, _) = from_yaml(b"a: 1\nb:\n- c: \"1\"\n- true\n").expect("parses");
        assert_eq!(value, json!({"a": 1, "b": [{"c": "1"}, true]}));
    }
}
