//! JSON and YAML text into values, noting keys that occur twice (the last one wins).

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

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

pub(crate) fn from_yaml(text: &[u8]) -> Result<(Value, Vec<String>), String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let value: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    Ok((value, Vec::new()))
}

#[derive(Default)]
struct Notes {
    path: RefCell<String>,
    duplicates: RefCell<Vec<String>>,
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
        while let Some(key) = access.next_key::<String>()? {
            {
                let mut path = self.0.path.borrow_mut();
                if length > 0 {
                    path.push('.');
                }
                path.push_str(&key);
            }
            let value = access.next_value_seed(Node(self.0))?;
            if object.insert(key, value).is_some() {
                let path = self.0.path.borrow();
                self.0
                    .duplicates
                    .borrow_mut()
                    .push(format!("duplicate field \"{path}\""));
            }
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
    fn yaml_is_json_with_other_clothes() {
        let (value, _) = from_yaml(b"a: 1\nb:\n- c: \"1\"\n- true\n").expect("parses");
        assert_eq!(value, json!({"a": 1, "b": [{"c": "1"}, true]}));
    }
}
