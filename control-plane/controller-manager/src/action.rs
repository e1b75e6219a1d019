//! What reconcilers decide: the only vocabulary between deciding and doing.

use crate::key::Key;
use api::event::Notice;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Serialize;
use serde_json::{Value, json};
use std::any::TypeId;
use std::borrow::Cow;
use std::time::Duration;

/// One write to the API server, or a word to the user, or a wish to look again.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// POST `body` to the collection. Neighbouring creates run together, in growing batches (upstream's slow start).
    Create {
        at: Path,
        body: Value,
        announce: Option<Box<Announce>>,
    },
    /// Merge patch; a `metadata.resourceVersion` or `uid` inside is a precondition.
    Patch { at: Path, patch: Value },
    /// Strategic merge patch, for lists other writers have entries in.
    StrategicPatch { at: Path, patch: Value },
    /// Replace (sub-resources that upstream has no patch for).
    Replace { at: Path, body: Value },
    Delete {
        at: Path,
        options: Value,
        announce: Option<Box<Announce>>,
    },
    /// The executor fills in the source.
    Event(Notice),
    /// Reconcile this key again after a while, even if nothing changes.
    Requeue(Duration),
}

/// Where to write, and which cache holds objects of that type.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    pub url: String,
    pub key: Key,
    pub kind: Option<TypeId>,
}

/// Events to emit when a create or delete has succeeded or failed; only then its name and fate are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Announce {
    pub about: ObjectReference,
    /// Reason, and the text with `{}` for the object's name.
    pub success: (&'static str, Cow<'static, str>),
    /// Reason, and the text with `{}` for the error.
    pub failure: (&'static str, Cow<'static, str>),
    /// Who says it; the executor fills it in.
    pub source: &'static str,
}

impl Path {
    fn collection<K: Resource<DynamicType = ()> + 'static>(namespace: Option<&str>) -> Self {
        Self {
            url: K::url_path(&(), namespace),
            key: Key::new(namespace.unwrap_or_default(), ""),
            kind: Some(TypeId::of::<K>()),
        }
    }

    fn object<K: Resource<DynamicType = ()> + 'static>(object: &K) -> Self {
        let meta = object.meta();
        let mut path = Self::collection::<K>(meta.namespace.as_deref());
        path.key = Key::of(meta);
        path.url = format!("{}/{}", path.url, path.key.name);
        path
    }

    fn sub<K: Resource<DynamicType = ()> + 'static>(object: &K, subresource: &str) -> Self {
        let mut path = Self::object(object);
        path.url = format!("{}/{subresource}", path.url);
        path
    }
}

/// The JSON body of an object, with its type.
fn body<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Value {
    let mut body = serde_json::to_value(object).unwrap_or_default();
    body["apiVersion"] = json!(K::api_version(&()));
    body["kind"] = json!(K::kind(&()));
    body
}

impl Action {
    pub fn create<K: Resource<DynamicType = ()> + Serialize + 'static>(object: &K) -> Self {
        Self::Create {
            at: Path::collection::<K>(object.meta().namespace.as_deref()),
            body: body(object),
            announce: None,
        }
    }

    pub fn announced(mut self, announcement: Announce) -> Self {
        if let Self::Create { announce, .. } | Self::Delete { announce, .. } = &mut self {
            *announce = Some(Box::new(announcement));
        }
        self
    }

    /// The same, with its events signed.
    pub fn said_by(mut self, source: &'static str) -> Self {
        match &mut self {
            Self::Create {
                announce: Some(announce),
                ..
            }
            | Self::Delete {
                announce: Some(announce),
                ..
            } => {
                announce.source = source;
            }
            Self::Event(notice) => notice.source = source,
            _ => {}
        }
        self
    }

    pub fn patch<K: Resource<DynamicType = ()> + 'static>(object: &K, patch: Value) -> Self {
        Self::Patch {
            at: Path::object(object),
            patch,
        }
    }

    /// A patch that holds only while the object is as we saw it.
    pub fn patch_as_seen<K: Resource<DynamicType = ()> + 'static>(object: &K, mut patch: Value) -> Self {
        patch["metadata"]["resourceVersion"] = json!(object.meta().resource_version);
        patch["metadata"]["uid"] = json!(object.meta().uid);
        Self::Patch {
            at: Path::object(object),
            patch,
        }
    }

    /// Changes the status from `old` to `new`; fields that became empty are removed.
    pub fn patch_status<K: Resource<DynamicType = ()> + 'static, S: Serialize>(
        object: &K,
        old: &S,
        new: &S,
    ) -> Self {
        let patch = json!({"status": difference(&json!(old), &json!(new))});
        Self::Patch {
            at: Path::sub(object, "status"),
            patch,
        }
    }

    /// The same, provided nobody else changed the object.
    pub fn patch_status_as_seen<K: Resource<DynamicType = ()> + 'static, S: Serialize>(
        object: &K,
        old: &S,
        new: &S,
    ) -> Self {
        let mut action = Self::patch_status(object, old, new);
        if let Self::Patch { patch, .. } = &mut action {
            let meta = object.meta();
            patch["metadata"] = json!({"resourceVersion": meta.resource_version, "uid": meta.uid});
        }
        action
    }

    /// Changes `old` into `new`, provided nobody else changed it.
    pub fn update<K: Resource<DynamicType = ()> + Serialize + 'static>(old: &K, new: &K) -> Self {
        Self::patch_as_seen(old, difference(&json!(old), &json!(new)))
    }

    pub fn strategic_status<K: Resource<DynamicType = ()> + 'static>(object: &K, status: Value) -> Self {
        Self::StrategicPatch {
            at: Path::sub(object, "status"),
            patch: json!({"status": status}),
        }
    }

    /// Writes the whole object, provided nobody else changed it.
    pub fn replace<K: Resource<DynamicType = ()> + Serialize + 'static>(object: &K) -> Self {
        Self::Replace {
            at: Path::object(object),
            body: body(object),
        }
    }

    /// Several caches hold a part of the kind each: they wait for their watches, as this write would enter them all.
    pub fn unobserved(mut self) -> Self {
        if let Self::Replace { at, .. } | Self::Patch { at, .. } = &mut self {
            at.kind = None;
        }
        self
    }

    /// Deletes the object only while it is as we saw it.
    pub fn delete_as_seen<K: Resource<DynamicType = ()> + 'static>(object: &K) -> Self {
        let mut action = Self::delete(object);
        if let Self::Delete { options, .. } = &mut action {
            options["preconditions"]["resourceVersion"] = json!(object.meta().resource_version);
        }
        action
    }

    pub fn replace_sub<K: Resource<DynamicType = ()> + Serialize + 'static>(
        object: &K,
        subresource: &str,
    ) -> Self {
        Self::Replace {
            at: Path::sub(object, subresource),
            body: body(object),
        }
    }

    /// Deletes this very object, not a namesake that came after it.
    pub fn delete<K: Resource<DynamicType = ()> + 'static>(object: &K) -> Self {
        Self::Delete {
            at: Path::object(object),
            options: json!({
                "apiVersion": "v1", "kind": "DeleteOptions",
                "preconditions": {"uid": object.meta().uid},
                "propagationPolicy": "Background",
            }),
            announce: None,
        }
    }

    /// Deletes what is at this URL: an object, or all of a collection.
    pub fn delete_at(url: String) -> Self {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        Self::Delete {
            at: Path {
                url,
                key: Key::default(),
                kind: None,
            },
            options,
            announce: None,
        }
    }

    /// As [`Self::delete`], without grace: nobody is left who would stop the pod.
    pub fn force_delete<K: Resource<DynamicType = ()> + 'static>(object: &K) -> Self {
        let mut action = Self::delete(object);
        if let Self::Delete { options, .. } = &mut action {
            options["gracePeriodSeconds"] = json!(0);
        }
        action
    }

    pub fn event<K: Resource<DynamicType = ()>>(
        about: &K,
        kind: &'static str,
        reason: &str,
        message: impl Into<String>,
    ) -> Self {
        Self::Event(Notice {
            about: reference(about),
            kind,
            reason: reason.into(),
            message: message.into(),
            source: "",
        })
    }
}

/// An ObjectReference as events carry it.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// The patch that makes `owner_references` the object's whole list.
pub fn owner_references_patch(meta: &ObjectMeta, change: impl FnOnce(&mut Vec<Value>)) -> Value {
    let mut list: Vec<Value> = meta
        .owner_references
        .iter()
        .flatten()
        .filter_map(|r| serde_json::to_value(r).ok())
        .collect();
    change(&mut list);
    json!({"metadata": {"ownerReferences": list}})
}

/// The merge patch (RFC 7386) that turns one value into the other.
fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return new.clone();
    };
    let removed = before
        .keys()
        .filter(|k| !after.contains_key(*k))
        .map(|k| (k.clone(), Value::Null));
    let changed = after
        .iter()
        .filter(|(k, v)| before.get(*k) != Some(v))
        .map(|(k, v)| (k.clone(), difference(before.get(k).unwrap_or(&Value::Null), v)));
    removed.chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_patches_remove_what_is_gone() {
        let old = json!({"a": 1, "b": {"c": 1, "d": 2}, "e": [1], "same": {"x": 1}});
        let new = json!({"b": {"c": 1, "d": 3}, "e": [2], "f": {"g": 1}, "same": {"x": 1}});
        let expected = json!({"a": null, "b": {"d": 3}, "e": [2], "f": {"g": 1}});
        assert_eq!(difference(&old, &new), expected);
        assert_eq!(difference(&new, &new), json!({}));
    }
}
