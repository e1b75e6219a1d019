//! One object in the cache: its bytes as clients get them, and what selectors ask about.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use store::{KeyValue, Revision};

use crate::object;

#[derive(Debug)]
pub struct Entry {
    /// `namespace/name`, or `name` for cluster-scoped kinds: the store key behind the prefix.
    pub key: Box<str>,
    pub revision: Revision,
    /// Canonical JSON with its resourceVersion.
    pub bytes: Bytes,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields, in the table's order.
    fields: Box<[Box<str>]>,
}

/// Name of a selectable field (`status.phase`) and where it is (`/status/phase`).
pub type SelectableField = (Box<str>, Box<str>);

/// The labels, without parsing the rest into memory.
#[derive(Deserialize)]
struct Labelled<'a> {
    #[serde(borrow, default)]
    metadata: LabelledMetadata<'a>,
}

#[derive(Deserialize, Default)]
struct LabelledMetadata<'a> {
    #[serde(borrow, default)]
    labels: std::collections::BTreeMap<std::borrow::Cow<'a, str>, std::borrow::Cow<'a, str>>,
}

impl Entry {
    pub fn new(prefix_length: usize, kv: &KeyValue, selectable: &[SelectableField]) -> Self {
        let key = String::from_utf8_lossy(kv.key.get(prefix_length..).unwrap_or_default());
        let labels = match serde_json::from_slice::<Labelled<'_>>(&kv.value) {
            Ok(object) => object.metadata.labels,
            Err(error) => {
                tracing::error!(%key, %error, "a stored object cannot be read");
                Default::default()
            }
        };
        let fields = if selectable.is_empty() {
            Box::default()
        } else {
            let object: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
            selectable
                .iter()
                .map(|(_, pointer)| field_text(&object, pointer).into())
                .collect()
        };
        Self {
            key: key.into(),
            revision: kv.mod_revision,
            bytes: object::with_revision(&kv.value, kv.mod_revision),
            labels: labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
            fields,
        }
    }

    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, name)| name)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }

    pub fn field(&self, selectable: &[SelectableField], name: &str) -> &str {
        match name {
            "metadata.name" => self.name(),
            "metadata.namespace" => self.namespace(),
            _ => selectable
                .iter()
                .position(|(n, _)| **n == *name)
                .map_or("", |at| &self.fields[at]),
        }
    }
}

/// How a field looks to a selector; of several places the first that holds something.
fn field_text(object: &Value, pointer: &str) -> String {
    if let Some((first, rest)) = pointer.split_once('|') {
        let text = field_text(object, first);
        return if text.is_empty() {
            field_text(object, rest)
        } else {
            text
        };
    }
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ if matches!(pointer, "/spec/unschedulable" | "/spec/hostNetwork") => "false".to_owned(),
        _ => String::new(),
    }
}

/// Which objects a list or watch shows.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Empty: all.
    pub namespace: String,
    pub labels: crate::selectors::LabelSelector,
    pub fields: crate::selectors::FieldSelector,
}

impl Selection {
    pub fn matches(&self, entry: &Entry, selectable: &[SelectableField]) -> bool {
        (self.namespace.is_empty() || self.namespace == entry.namespace())
            && self.labels.matches(|key| entry.label(key))
            && self.fields.matches(|name| entry.field(selectable, name))
    }

    pub fn is_filtering(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }
}
