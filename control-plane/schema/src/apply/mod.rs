//! Server-side apply: who owns which field of an object, and what an applied configuration makes of it
//! (structured-merge-diff's `merge.Updater` and apimachinery's `managedfields`).

mod managers;
mod set;
mod shape;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use thiserror::Error;

use crate::catalog::Kind;
use crate::fields;
use managers::{Identity, Managers, Operation, Owned};
use set::{FieldSet, PathElement, display};
use walk::{Comparison, Scope, compare};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Whose configuration takes over what `kubectl apply` set from the client's side.
const KUBECTL: &str = "kubectl";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Upstream's limit of all annotations together.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Who writes, through which sub-resource, when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    pub subresource: &'a str,
    /// RFC 3339.
    pub now: &'a str,
    /// Top-level fields that this way of writing cannot change: `status`, or `spec` and `metadata`.
    pub reset: &'a [&'a str],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `"name" using apps/v1`
    pub manager: String,
    /// `.spec.replicas`
    pub field: String,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ApplyError {
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration does not fit the kind: `.spec.foo: field not declared in schema`.
    #[error("{0}")]
    Untyped(String),
    #[error("{0}")]
    BadRequest(String),
}

/// Upstream's `getConflictMessage`.
fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            only.manager, only.field
        );
    }
    let managers: BTreeSet<&str> = conflicts
        .iter()
        .map(|conflict| conflict.manager.as_str())
        .collect();
    let mut lines = Vec::new();
    for manager in managers {
        lines.push(format!("conflicts with {manager}:"));
        let theirs = conflicts.iter().filter(|conflict| conflict.manager == manager);
        lines.extend(theirs.map(|conflict| format!("- {}", conflict.field)));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        lines.join("\n")
    )
}

/// Gives `new` the `managedFields` that follow from an update of `old` (`None` for a create) by `writer`.
/// What `new` brings as `managedFields` counts only on the main resource.
pub fn track_update(kind: &Kind, old: Option<&Value>, new: &mut Value, writer: Writer<'_>) {
    let given = take_managed_fields(new);
    let stored = old.map_or(&Value::Null, |old| &old["metadata"]["managedFields"]);
    let given = if writer.subresource.is_empty() {
        given
    } else {
        Value::Null
    };
    if given == json!([{}]) {
        return;
    }
    let given = Some(given).filter(|given| given.as_array().is_some_and(|entries| !entries.is_empty()));
    let current = given.as_ref().unwrap_or(stored);
    let scope = Scope {
        kind,
        reset: writer.reset,
    };
    let base;
    let before = match old {
        Some(_) if is_untracked(current) => return,
        Some(old) => old,
        None => {
            base = empty(kind);
            &base
        }
    };
    let changes = compare(scope, before, new);
    let entries = touched(current, &changes, kind, writer).unwrap_or_else(|| {
        let mut managers = managers::decode(current)
            .or_else(|_| managers::decode(stored))
            .unwrap_or_default();
        update(&mut managers, &changes, kind, writer);
        managers::cap(&mut managers);
        managers::encode(&managers)
    });
    let same = same_but_times(&entries, stored);
    put_managed_fields(
        new,
        if same && changes.is_same() {
            stored.clone()
        } else {
            entries
        },
    );
}

/// The frequent case, decided without decoding: the writer changes values of fields that are its alone.
fn touched(entries: &Value, changes: &Comparison, kind: &Kind, writer: Writer<'_>) -> Option<Value> {
    if !changes.added.is_empty() || !changes.removed.is_empty() {
        return None;
    }
    let own = updater(kind, writer);
    let paths = changes.modified.paths();
    let mut entries = entries.as_array()?.clone();
    let mut found = false;
    for entry in &mut entries {
        let is_own = managers::identity(entry).ok()? == own;
        let mut held = paths.iter().map(|path| set::holds(&entry["fieldsV1"], path));
        if is_own && held.all(|held| held) {
            found = true;
            if !paths.is_empty() {
                entry["time"] = json!(writer.now);
            }
        } else if is_own || held.any(|held| held) {
            return None;
        }
    }
    // Times are part of the order.
    entries.sort_by_key(|entry| {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        (
            text("operation"),
            text("time"),
            text("manager"),
            text("apiVersion"),
            text("subresource"),
        )
    });
    found.then_some(Value::Array(entries))
}

fn updater(kind: &Kind, writer: Writer<'_>) -> Identity {
    Identity {
        operation: Operation::Update,
        name: writer.manager.to_owned(),
        api_version: kind.gvk.api_version(),
        subresource: writer.subresource.to_owned(),
    }
}

/// What a writer sets is its own and nobody else's; what is gone is nobody's.
fn update(managers: &mut Managers, changes: &Comparison, kind: &Kind, writer: Writer<'_>) {
    let set = changes.modified.union(&changes.added);
    disown(managers, &set.union(&changes.removed), None);
    if set.is_empty() {
        return;
    }
    let owned = managers.entry(updater(kind, writer)).or_insert_with(|| Owned {
        fields: FieldSet::default(),
        api_version: kind.gvk.api_version(),
        time: String::new(),
    });
    owned.fields = owned.fields.union(&set);
    owned.time = writer.now.to_owned();
}

fn disown(managers: &mut Managers, fields: &FieldSet, but: Option<&Identity>) {
    for (identity, owned) in managers.iter_mut() {
        if Some(identity) != but {
            owned.fields = owned.fields.difference(fields);
        }
    }
    managers.retain(|_, owned| !owned.fields.is_empty());
}

/// The live object (`None`: there is none yet) with `config` applied, its `managedFields` included, in canonical form.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    config: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    if !config["metadata"]["managedFields"].is_null() {
        return Err(ApplyError::BadRequest(
            "metadata.managedFields must be nil".into(),
        ));
    }
    let base = empty(kind);
    let mut old = live.cloned().unwrap_or_else(|| base.clone());
    let stored = take_managed_fields(&mut old);
    let mut managers = managers::decode(&stored).unwrap_or_default();
    let scope = Scope {
        kind,
        reset: writer.reset,
    };
    if managers.is_empty() && live.is_some() {
        let before = Writer {
            manager: BEFORE_FIRST_APPLY,
            ..writer
        };
        update(&mut managers, &compare(scope, &base, &old), kind, before);
    }
    let migrates = writer.manager == KUBECTL && writer.subresource.is_empty();
    let applied = apply_once(scope, &old, config, managers.clone(), writer, force);
    let applied = match applied {
        Err(Refusal::Conflicts(conflicts)) if migrates => {
            // What the client's last apply set and nobody changed since is taken over.
            let allowed = last_applied(scope, &old);
            let left: Vec<_> = conflicts
                .into_iter()
                .map(|(identity, fields)| (identity, fields.difference(&allowed)))
                .filter(|(_, fields)| !fields.is_empty())
                .collect();
            if left.is_empty() {
                apply_once(scope, &old, config, managers, writer, true)
            } else {
                Err(Refusal::Conflicts(left))
            }
        }
        other => other,
    };
    let (mut object, managers) = applied.map_err(ApplyError::from)?;
    if migrates {
        renew_last_applied(&mut object, config);
    }
    let entries = managers::encode(&managers);
    let same = same_but_times(&entries, &stored) && compare(scope, &old, &object).is_same();
    put_managed_fields(&mut object, if same { stored } else { entries });
    Ok(object)
}

enum Refusal {
    Conflicts(Vec<(Identity, FieldSet)>),
    Untyped(String),
    BadRequest(String),
}

impl From<Refusal> for ApplyError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Untyped(why) => Self::Untyped(why),
            Refusal::BadRequest(why) => Self::BadRequest(why),
            Refusal::Conflicts(conflicts) => Self::Conflicts(
                conflicts
                    .iter()
                    .flat_map(|(identity, fields)| {
                        fields.paths().into_iter().map(|path| Conflict {
                            manager: name_of(identity),
                            field: display(&path),
                        })
                    })
                    .collect(),
            ),
        }
    }
}

fn name_of(identity: &Identity) -> String {
    let mut name = format!("{:?}", identity.name);
    if !identity.subresource.is_empty() {
        name = format!("{name} with subresource {:?}", identity.subresource);
    }
    match identity.operation {
        Operation::Apply => name,
        Operation::Update => format!("{name} using {}", identity.api_version),
    }
}

fn apply_once(
    scope: Scope<'_>,
    live: &Value,
    config: &Value,
    mut managers: Managers,
    writer: Writer<'_>,
    force: bool,
) -> Result<(Value, Managers), Refusal> {
    let kind = scope.kind;
    let fields = walk::fields_of(scope, config).map_err(Refusal::Untyped)?;
    let own = Identity {
        operation: Operation::Apply,
        name: writer.manager.to_owned(),
        api_version: String::new(),
        subresource: writer.subresource.to_owned(),
    };
    let owned = Owned {
        fields,
        api_version: kind.gvk.api_version(),
        time: writer.now.to_owned(),
    };
    let last = managers.insert(own.clone(), owned);
    let mut object = walk::merge(kind, scope.root(), Some(live), Some(config));
    if let Some(last) = last {
        object = prune(scope, object, &managers, &last.fields);
    }
    fields::check(kind, &mut object).map_err(Refusal::BadRequest)?;
    let changes = compare(scope, live, &object);
    let set = changes.modified.union(&changes.added);
    let conflicts: Vec<(Identity, FieldSet)> = managers
        .iter()
        .filter(|(identity, _)| **identity != own)
        .map(|(identity, owned)| (identity.clone(), owned.fields.intersection(&set)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(Refusal::Conflicts(conflicts));
    }
    disown(&mut managers, &set.union(&changes.removed), Some(&own));
    Ok((object, managers))
}

/// Without what the applier set last time and nobody sets now (`Updater.prune`).
fn prune(scope: Scope<'_>, merged: Value, managers: &Managers, last: &FieldSet) -> Value {
    let (kind, root) = (scope.kind, scope.root());
    let full = |set: &FieldSet| set.with_structs(&kind.types, root);
    let present = |object: &Value| full(&walk::present(scope, object));
    let without = |gone: &FieldSet| walk::without(kind, root, &merged, gone).unwrap_or_else(|| json!({}));
    let mut last = full(last);
    // The system's metadata, which nobody owns, stays.
    last.keep(&PathElement::field("metadata"));
    let mut pruned = without(&last);
    let managed = managers
        .values()
        .fold(FieldSet::default(), |all, owned| all.union(&owned.fields));
    let all = present(&merged);
    // What others own comes back, and so does what only vanished together with what it lies in.
    pruned = without(&all.difference(&present(&pruned).union(&full(&managed))));
    without(&all.difference(&present(&pruned)).intersection(&last))
}

/// What the annotation of `kubectl apply` says and the object still holds.
fn last_applied(scope: Scope<'_>, live: &Value) -> FieldSet {
    let annotation = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    let Some(config) = annotation.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return FieldSet::default();
    };
    let fields = walk::present(scope, &config);
    let mut config = config;
    if fields::check(scope.kind, &mut config).is_err() {
        return FieldSet::default();
    }
    let changes = compare(scope, &config, live);
    fields
        .difference(&changes.modified)
        .difference(&changes.added)
        .difference(&changes.removed)
}

/// Objects that carry the annotation keep it true, so that clients may apply from their side again.
fn renew_last_applied(object: &mut Value, config: &Value) {
    let held = object["metadata"]["annotations"][LAST_APPLIED].as_str();
    if held.is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED);
    }
    let text = config.to_string();
    let fits = text.len() <= MAX_ANNOTATIONS;
    object["metadata"]["annotations"][LAST_APPLIED] = json!(if fits { text } else { String::new() });
}

/// What Go's empty object of this kind looks like.
fn empty(kind: &Kind) -> Value {
    let mut object = json!({});
    // An empty object has no value of a wrong type.
    let _ = fields::check(kind, &mut object);
    object
}

fn is_untracked(entries: &Value) -> bool {
    entries.as_array().is_none_or(Vec::is_empty)
}

fn take_managed_fields(object: &mut Value) -> Value {
    object
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .and_then(|metadata| metadata.remove("managedFields"))
        .unwrap_or_default()
}

fn put_managed_fields(object: &mut Value, entries: Value) {
    if !is_untracked(&entries) {
        object["metadata"]["managedFields"] = entries;
    }
}

fn same_but_times(left: &Value, right: &Value) -> bool {
    let timeless = |entries: &Value| {
        let mut entries = entries.as_array().cloned().unwrap_or_default();
        for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
            entry.remove("time");
        }
        entries
    };
    let (left, right) = (timeless(left), timeless(right));
    left.len() == right.len() && left.iter().all(|entry| right.contains(entry))
}
