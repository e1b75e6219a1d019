//! Strategic merge patch: upstream's `strategicpatch` semantics, with merge keys from the table of facts.

use std::mem;

use serde_json::{Map, Value};

use super::PatchError;
use crate::catalog::Kind;
use crate::types::{Field, FieldType, Types};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;
type Result<T> = std::result::Result<T, PatchError>;

pub(super) fn apply(kind: &Kind, current: &Value, patch: &Value) -> Result<Value> {
    let (Value::Object(original), Value::Object(patch)) = (current, patch) else {
        return Err(PatchError::bad_request("invalid JSON document"));
    };
    let place = Place {
        types: &kind.types,
        ty: Some(&FieldType::Object(kind.root)),
    };
    merge_map(original.clone(), patch.clone(), place).map(Value::Object)
}

/// Where the merge stands: the type there, or none below free-form values.
#[derive(Clone, Copy)]
struct Place<'a> {
    types: &'a Types,
    ty: Option<&'a FieldType>,
}

impl<'a> Place<'a> {
    fn field(self, name: &str) -> Option<&'a Field> {
        match self.ty? {
            FieldType::Object(id) => self.types.field(*id, name),
            _ => None,
        }
    }

    /// The place of a field's value, or of the items when it is a list.
    fn below(self, name: &str) -> Self {
        let ty = match self.ty {
            Some(FieldType::Map(value)) => Some(&**value),
            _ => self.field(name).map(|field| &field.ty),
        };
        let ty = match ty {
            Some(FieldType::List(item) | FieldType::WrappedList(item)) => Some(&**item),
            other => other,
        };
        Self { ty, ..self }
    }
}

fn merge_map(mut original: Object, mut patch: Object, place: Place<'_>) -> Result<Object> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(&directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, place)?;
    for (key, change) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_PRIMITIVES) {
            Some(list) => (list.to_owned(), true),
            None => (key, false),
        };
        if change.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), change) {
            (None, _) if deletes => continue,
            (Some(Value::Object(old)), Value::Object(new)) => {
                let replace = place
                    .field(&key)
                    .is_some_and(|field| field.patch_strategy == "replace");
                Some(Value::Object(if replace {
                    new
                } else {
                    merge_map(old, new, place.below(&key))?
                }))
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                Some(merge_list_field(old, new, &key, deletes, place)?)
            }
            (Some(old), _) if deletes => Some(old),
            (None | Some(_), new @ (Value::Object(_) | Value::Array(_))) => without_directives(new),
            (_, new) => Some(new),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(kept) = directive else {
        return Err(PatchError::bad_request("invalid patch format of retainKeys"));
    };
    let keeps = |key: &str| kept.iter().any(|kept| kept == key);
    let named = |key: &str| {
        key.split_once('/')
            .filter(|_| key.starts_with('$'))
            .map_or(key, |(_, name)| name)
            .to_owned()
    };
    if patch
        .iter()
        .any(|(key, change)| !change.is_null() && !keeps(&named(key)))
    {
        return Err(PatchError::unprocessable(
            "patch content doesn't match the patch format of retainKeys",
        ));
    }
    original.retain(|key, _| keeps(key));
    Ok(())
}

/// Lists that come with a `$setElementOrder` directive.
fn merge_ordered_lists(original: &mut Object, patch: &mut Object, place: Place<'_>) -> Result<()> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|key| key.starts_with(SET_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let key = directive[SET_ORDER.len()..].to_owned();
        let bad_format = || PatchError::bad_request("invalid patch format of setElementOrder list");
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(bad_format());
        };
        let merge_key = place
            .field(&key)
            .and_then(|field| field.patch_merge_key.as_deref());
        let list = |value: Option<Value>| match value {
            Some(Value::Array(items)) => Ok(Some(items)),
            None | Some(Value::Null) => Ok(None),
            Some(_) => Err(bad_format()),
        };
        let patch_list = match patch.get(&key) {
            Some(Value::Null) => continue,
            _ => list(patch.remove(&key))?,
        };
        check_order(patch_list.as_deref().unwrap_or_default(), &order, merge_key)?;
        let server_list = list(original.remove(&key))?;
        let server_order = server_list.clone().unwrap_or_default();
        let merged = match (server_list, patch_list) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => match without_directives(Value::Array(new)) {
                Some(Value::Array(new)) => new,
                _ => continue,
            },
            (Some(old), Some(new)) => match merge_list_field(old, new, &key, false, place)? {
                Value::Array(merged) => merged,
                _ => continue,
            },
        };
        original.insert(
            key,
            Value::Array(in_order(merged, &order, &server_order, merge_key)),
        );
    }
    Ok(())
}

/// Items of the patch must come in the order that the directive states.
fn check_order(patch_list: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<()> {
    let mut wanted = patch_list
        .iter()
        .filter(|item| item.get(DIRECTIVE).is_none())
        .peekable();
    for placed in order {
        if wanted.peek().is_some_and(|item| same(item, placed, merge_key)) {
            wanted.next();
        }
    }
    if wanted.peek().is_none() {
        return Ok(());
    }
    let (patch_list, order) = (Value::from(patch_list), Value::from(order));
    Err(PatchError::bad_request(format!(
        "The order in patch list:\n{patch_list}\n doesn't match {SET_ORDER} list:\n{order}\n"
    )))
}

fn merge_list_field(
    old: Vec<Value>,
    new: Vec<Value>,
    key: &str,
    deletes: bool,
    place: Place<'_>,
) -> Result<Value> {
    let field = place.field(key);
    if deletes {
        return Ok(old.into_iter().filter(|item| !new.contains(item)).collect());
    }
    if !field.is_some_and(Field::patch_merges) {
        return Ok(without_directives(Value::Array(new)).unwrap_or_default());
    }
    let merge_key = field.and_then(|field| field.patch_merge_key.as_deref());
    merge_list(old, new, merge_key, key, place.below(key)).map(Value::Array)
}

fn merge_list(
    old: Vec<Value>,
    patch: Vec<Value>,
    merge_key: Option<&str>,
    name: &str,
    item_place: Place<'_>,
) -> Result<Vec<Value>> {
    if old.iter().chain(&patch).any(Value::is_array) {
        return Err(PatchError::unprocessable("lists of lists are not supported"));
    }
    if !old.iter().chain(&patch).any(Value::is_object) {
        let mut merged: Vec<Value> = Vec::new();
        for item in old.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(in_order(merged, &patch, &old, None));
    }
    let key = merge_key
        .ok_or_else(|| PatchError::internal(format!("cannot merge lists without merge key for {name}")))?;
    let server_order = old.clone();
    let (mut merged, patch) = special_elements(old, patch, key)?;
    for item in &patch {
        let change = item.as_object().cloned().unwrap_or_default();
        if !change.contains_key(key) {
            return Err(no_merge_key(item, key));
        }
        match merged.iter_mut().find(|existing| same(existing, item, Some(key))) {
            Some(Value::Object(existing)) => *existing = merge_map(mem::take(existing), change, item_place)?,
            _ => merged.extend(without_directives(item.clone())),
        }
    }
    Ok(in_order(merged, &patch, &server_order, Some(key)))
}

/// Carries out `$patch` directives of list items; what remains is to be merged item by item.
fn special_elements(mut old: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut ordinary = Vec::new();
    let mut replace = false;
    for item in patch {
        match item
            .get(DIRECTIVE)
            .map(|directive| directive.as_str().unwrap_or_default())
        {
            None => ordinary.push(item),
            Some("delete") => {
                if item.get(key).is_none() {
                    return Err(no_merge_key(&item, key));
                }
                old.retain(|existing| !same(existing, &item, Some(key)));
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(PatchError::internal(
                    "merging lists cannot yet be specified in the patch",
                ));
            }
            Some(_) => {
                return Err(unknown_directive(
                    &item[DIRECTIVE],
                    item.as_object().unwrap_or(&Object::new()),
                ));
            }
        }
    }
    Ok(if replace {
        (ordinary, Vec::new())
    } else {
        (old, ordinary)
    })
}

/// Items named by `order` in that order, merged with the server's own items, which keep the server's order.
fn in_order(
    merged: Vec<Value>,
    order: &[Value],
    server_order: &[Value],
    merge_key: Option<&str>,
) -> Vec<Value> {
    let position = |list: &[Value], item: &Value| list.iter().position(|entry| same(entry, item, merge_key));
    let (mut named, mut server): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|item| position(order, item).is_some());
    named.sort_by_key(|item| position(order, item));
    server.sort_by_key(|item| position(server_order, item).unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(named.len() + server.len());
    let (mut named, mut server) = (named.into_iter().peekable(), server.into_iter().peekable());
    while let (Some(mine), Some(theirs)) = (named.peek(), server.peek()) {
        let server_first = matches!((position(server_order, theirs), position(server_order, mine)), (Some(left), Some(right)) if left < right);
        result.extend(if server_first { server.next() } else { named.next() });
    }
    result.extend(named);
    result.extend(server);
    result
}

fn same(left: &Value, right: &Value, merge_key: Option<&str>) -> bool {
    match merge_key {
        Some(key) if left.is_object() && right.is_object() => {
            left.get(key).is_some() && left.get(key) == right.get(key)
        }
        _ => left == right,
    }
}

/// A value that meets nothing in the original: its directives and nulls mean nothing and go.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(fields) => {
            if fields.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                return None;
            }
            let kept = fields.into_iter().filter(|(key, value)| {
                let directive = key == DIRECTIVE
                    || key == RETAIN_KEYS
                    || key.starts_with(SET_ORDER)
                    || key.starts_with(DELETE_PRIMITIVES);
                !directive && !value.is_null()
            });
            Some(Value::Object(
                kept.filter_map(|(key, value)| Some((key, without_directives(value)?)))
                    .collect(),
            ))
        }
        Value::Array(items) => {
            let only_replace = |item: &Value| {
                item.as_object()
                    .is_some_and(|item| item.len() == 1 && item.get(DIRECTIVE).is_some())
            };
            Some(Value::Array(
                items
                    .into_iter()
                    .filter(|item| !only_replace(item))
                    .filter_map(without_directives)
                    .collect(),
            ))
        }
        scalar => Some(scalar),
    }
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    PatchError::internal(format!("map: {item} does not contain declared merge key: {key}"))
}

fn unknown_directive(directive: &Value, map: &Object) -> PatchError {
    PatchError::internal(format!(
        "unknown patch type found: {directive} in map: {}",
        Value::Object(map.clone())
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::{Catalog, GroupVersionKind};

    fn patched(api_version: &str, kind: &str, current: &Value, patch: &Value) -> Result<Value> {
        let kind = Catalog::builtin()
            .kind(&GroupVersionKind::from_api_version(api_version, kind))
            .expect(kind)
            .clone();
        apply(&kind, current, patch)
    }

    #[test]
    fn containers_merge_by_name() {
        let current = json!({"spec": {"containers": [{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "b:1"}]}});
        for (patch, expected) in [
            (
                json!([{"name": "b", "image": "b:2"}]),
                json!([{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "b:2"}]),
            ),
            (
                json!([{"name": "a", "env": [{"name": "Y", "value": "2"}]}]),
                json!([{"name": "a", "image": "a:1", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]}, {"name": "b", "image": "b:1"}]),
            ),
            (
                json!([{"name": "a", "$patch": "delete"}]),
                json!([{"name": "b", "image": "b:1"}]),
            ),
            (
                json!([{"name": "c", "image": "c"}, {"$patch": "replace"}]),
                json!([{"name": "c", "image": "c"}]),
            ),
            (
                json!([{"name": "a", "image": null}]),
                json!([{"name": "a", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "b:1"}]),
            ),
        ] {
            let result =
                patched("v1", "Pod", &current, &json!({"spec": {"containers": patch}})).expect("applies");
            assert_eq!(result["spec"]["containers"], expected);
        }
    }

    #[test]
    fn element_order_is_obeyed() {
        let current = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}});
        let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "d"}, {"name": "a"}], "containers": [{"name": "d"}]}});
        let result = patched("v1", "Pod", &current, &patch).expect("applies");
        assert_eq!(
            result["spec"]["containers"],
            json!([{"name": "b"}, {"name": "c"}, {"name": "d"}, {"name": "a"}])
        );
        let wrong =
            json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "d"}]}});
        assert_eq!(
            patched("v1", "Pod", &current, &wrong).map_err(|error| error.code),
            Err(400)
        );
    }

    #[test]
    fn retained_keys_push_out_the_others() {
        let current =
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            patched("apps/v1", "Deployment", &current, &patch),
            Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
        );
        let wrong = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
        assert_eq!(
            patched("apps/v1", "Deployment", &current, &wrong).map_err(|error| error.code),
            Err(422)
        );
    }

    #[test]
    fn primitive_lists_maps_and_atomic_lists() {
        let current = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}, "spec": {"containers": [{"name": "a", "args": ["1", "2"]}]}});
        for (patch, pointer, expected) in [
            (
                json!({"metadata": {"finalizers": ["b", "c"]}}),
                "/metadata/finalizers",
                json!(["a", "b", "c"]),
            ),
            (
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
                "/metadata/finalizers",
                json!(["b"]),
            ),
            (
                json!({"metadata": {"labels": {"x": null, "z": "3"}}}),
                "/metadata/labels",
                json!({"y": "2", "z": "3"}),
            ),
            (
                json!({"metadata": {"labels": {"$patch": "replace", "z": "3"}}}),
                "/metadata/labels",
                json!({"z": "3"}),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "args": ["3"]}]}}),
                "/spec/containers/0/args",
                json!(["3"]),
            ),
        ] {
            let result = patched("v1", "Pod", &current, &patch).expect("applies");
            assert_eq!(result.pointer(pointer), Some(&expected), "{patch}");
        }
    }

    #[test]
    fn refuses_items_without_their_key() {
        let error = patched(
            "v1",
            "Pod",
            &json!({"spec": {"containers": [{"name": "a"}]}}),
            &json!({"spec": {"containers": [{"image": "x"}]}}),
        )
        .expect_err("no key");
        assert_eq!(
            (
                error.code,
                error
                    .message
                    .contains("does not contain declared merge key: name")
            ),
            (500, true)
        );
    }
}
