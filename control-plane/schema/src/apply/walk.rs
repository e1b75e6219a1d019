//! Walks over one or two objects by shape: which fields are there, which differ, and objects without some of them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::set::{FieldSet, PathElement, display};
use super::shape::Shape;
use crate::catalog::Kind;
use crate::types::Types;

static NULL: Value = Value::Null;

/// Metadata that nobody owns.
const SYSTEM_METADATA: &[&str] = &[
    "creationTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Which fields of a kind are tracked: all but the system's, and those a sub-resource resets
/// (`status`, or `spec` and `metadata`; upstream's `GetResetFields`).
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub kind: &'a Kind,
    pub reset: &'a [&'a str],
}

impl<'a> Scope<'a> {
    fn types(&self) -> &'a Types {
        &self.kind.types
    }

    pub fn root(&self) -> Shape<'a> {
        Shape::Struct(self.kind.root)
    }

    fn skips(&self, path: &[PathElement], name: &str) -> bool {
        match path {
            [] => matches!(name, "apiVersion" | "kind") || self.reset.contains(&name),
            [parent] if parent.field_name() == Some("metadata") => SYSTEM_METADATA.contains(&name),
            _ => false,
        }
    }
}

/// What differs between two objects.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Comparison {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Comparison {
    pub fn is_same(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

pub(super) fn compare(scope: Scope<'_>, old: &Value, new: &Value) -> Comparison {
    let mut walk = Compare {
        scope,
        path: Vec::new(),
        found: Comparison::default(),
    };
    walk.values(scope.root(), Some(old), Some(new));
    walk.found
}

struct Compare<'a> {
    scope: Scope<'a>,
    path: Vec<PathElement>,
    found: Comparison,
}

impl<'a> Compare<'a> {
    fn values(&mut self, shape: Shape<'a>, old: Option<&Value>, new: Option<&Value>) {
        if old == new {
            return;
        }
        let shape = match (old, new) {
            (Some(old), Some(new)) if !old.is_null() && !new.is_null() => shape.resolve(old).resolve(new),
            (Some(one), _) if !one.is_null() => shape.resolve(one),
            (_, Some(one)) => shape.resolve(one),
            _ => shape,
        };
        let is_leaf = matches!(shape, Shape::Leaf) || (is_empty(old) && is_empty(new));
        if !is_leaf {
            match shape {
                Shape::Set | Shape::ListMap(..) => self.items(shape, old, new),
                _ => self.fields(shape, old, new),
            }
        }
        match (old, new) {
            (None, _) => self.found.added.insert(&self.path),
            (_, None) => self.found.removed.insert(&self.path),
            _ if is_leaf => self.found.modified.insert(&self.path),
            _ => {}
        }
    }

    fn fields<'v>(&mut self, shape: Shape<'a>, old: Option<&'v Value>, new: Option<&'v Value>) {
        let keys = |value: Option<&Value>| -> Vec<String> {
            let fields = value.and_then(Value::as_object);
            fields
                .map(|map| map.keys().cloned().collect())
                .unwrap_or_default()
        };
        let names: BTreeSet<String> = keys(old).into_iter().chain(keys(new)).collect();
        for name in names {
            if self.scope.skips(&self.path, &name) {
                continue;
            }
            let unset = old.is_some() && new.is_some() && shape.is_null_when_unset(self.scope.types(), &name);
            let null = if unset { Some(&NULL) } else { None };
            let get = |value: Option<&'v Value>| value.and_then(|value| value.get(&name)).or(null);
            let (old_child, new_child) = (get(old), get(new));
            let child = shape.child(self.scope.types(), &name).unwrap_or(Shape::Deduced);
            self.path.push(PathElement::field(&name));
            self.values(child, old_child, new_child);
            self.path.pop();
        }
    }

    fn items(&mut self, shape: Shape<'a>, old: Option<&Value>, new: Option<&Value>) {
        let (old, new) = (self.index(shape, old), self.index(shape, new));
        let item = shape.item(self.scope.types());
        let elements: BTreeSet<&PathElement> = old.keys().chain(new.keys()).collect();
        for element in elements {
            let none = Vec::new();
            let (was, is) = (
                old.get(element).unwrap_or(&none),
                new.get(element).unwrap_or(&none),
            );
            self.path.push(element.clone());
            match (was.as_slice(), is.as_slice()) {
                (_, _) if was.len() <= 1 && is.len() <= 1 => {
                    self.values(item, was.first().copied(), is.first().copied());
                }
                ([], _) => self.found.added.insert(&self.path),
                (_, []) => self.found.removed.insert(&self.path),
                _ if was != is => self.found.modified.insert(&self.path),
                _ => {}
            }
            self.path.pop();
        }
    }

    fn index<'v>(&self, shape: Shape<'a>, list: Option<&'v Value>) -> BTreeMap<PathElement, Vec<&'v Value>> {
        let mut index: BTreeMap<PathElement, Vec<&Value>> = BTreeMap::new();
        for item in list.and_then(Value::as_array).into_iter().flatten() {
            if let Ok(element) = shape.element(self.scope.types(), item) {
                index.entry(element).or_default().push(item);
            }
        }
        index
    }
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        _ => true,
    }
}

/// The fields an object sets. An error names the field that the schema does not know, or an item without its key.
pub(super) fn fields_of(scope: Scope<'_>, object: &Value) -> Result<FieldSet, String> {
    let mut walk = Collect::new(scope, true);
    walk.value(scope.root(), object)?;
    Ok(walk.found)
}

/// The fields of an object that is there already; what does not fit the schema is passed over.
pub(super) fn present(scope: Scope<'_>, object: &Value) -> FieldSet {
    let mut walk = Collect::new(scope, false);
    // Only a strict walk refuses.
    let _ = walk.value(scope.root(), object);
    walk.found
}

struct Collect<'a> {
    scope: Scope<'a>,
    path: Vec<PathElement>,
    found: FieldSet,
    strict: bool,
}

impl<'a> Collect<'a> {
    fn new(scope: Scope<'a>, strict: bool) -> Self {
        Self {
            scope,
            path: Vec::new(),
            found: FieldSet::default(),
            strict,
        }
    }

    fn refuse(&self, why: &str) -> Result<(), String> {
        if self.strict {
            return Err(format!("{}: {why}", display(&self.path)));
        }
        Ok(())
    }

    fn value(&mut self, shape: Shape<'a>, value: &Value) -> Result<(), String> {
        let types = self.scope.types();
        let shape = shape.resolve(value);
        match (shape, value) {
            (Shape::Leaf, _) => self.found.insert(&self.path),
            (_, Value::Null) => {}
            (Shape::Set | Shape::ListMap(..), Value::Array(items)) => {
                let mut seen = BTreeSet::new();
                for (index, item) in items.iter().enumerate() {
                    let element = match shape.element(types, item) {
                        Ok(element) => element,
                        Err(why) => {
                            self.refuse(&format!("element {index}: {why}"))?;
                            continue;
                        }
                    };
                    if !seen.insert(element.clone()) {
                        self.refuse(&format!("duplicate entries for key {element}"))?;
                    }
                    self.path.push(element);
                    self.value(shape.item(types), item)?;
                    self.found.insert(&self.path);
                    self.path.pop();
                }
            }
            (Shape::Struct(_) | Shape::Map(_) | Shape::Deduced, Value::Object(fields)) => {
                for (name, value) in fields {
                    if self.scope.skips(&self.path, name) {
                        continue;
                    }
                    self.path.push(PathElement::field(name));
                    let child = shape.child(types, name);
                    if child.is_none() {
                        self.refuse("field not declared in schema")?;
                    }
                    self.value(child.unwrap_or(Shape::Deduced), value)?;
                    let named = matches!(shape, Shape::Struct(_));
                    if !named || value.is_null() || value.as_object().is_some_and(Map::is_empty) {
                        self.found.insert(&self.path);
                    }
                    self.path.pop();
                }
            }
            (Shape::Set | Shape::ListMap(..), _) => {
                self.refuse(&format!("expected list, got {value}"))?;
            }
            _ => self.refuse(&format!("expected map, got {value}"))?,
        }
        Ok(())
    }
}

/// `object` without the fields of `gone`; `None` when nothing is left.
pub(super) fn without(kind: &Kind, shape: Shape<'_>, object: &Value, gone: &FieldSet) -> Option<Value> {
    let types = &kind.types;
    let shape = shape.resolve(object);
    // What is left of a child: kept as it is, gone, or reduced.
    let reduce = |element: &PathElement, shape: Shape<'_>, value: &Value| match gone.0.get(element) {
        None => Some(value.clone()),
        Some(node) if node.member => None,
        Some(node) => Some(without(kind, shape, value, &node.below).unwrap_or_default()),
    };
    match (shape, object) {
        (Shape::Set | Shape::ListMap(..), Value::Array(items)) => {
            let left: Vec<Value> = items
                .iter()
                .filter_map(|item| match shape.element(types, item) {
                    Ok(element) => reduce(&element, shape.item(types), item),
                    Err(_) => Some(item.clone()),
                })
                .collect();
            (!left.is_empty()).then_some(Value::Array(left))
        }
        (Shape::Struct(_) | Shape::Map(_) | Shape::Deduced, Value::Object(fields)) => {
            let left: Map<String, Value> = fields
                .iter()
                .filter_map(|(name, value)| {
                    let child = shape.child(types, name).unwrap_or(Shape::Deduced);
                    reduce(&PathElement::field(name), child, value).map(|value| (name.clone(), value))
                })
                .collect();
            (!left.is_empty()).then_some(Value::Object(left))
        }
        (Shape::Leaf, Value::Object(_) | Value::Array(_)) => None,
        (_, scalar) => Some(scalar.clone()),
    }
}

/// The live object with what the configuration says. Lists keep the live order where the configuration does not tell another.
pub(super) fn merge(kind: &Kind, shape: Shape<'_>, live: Option<&Value>, config: Option<&Value>) -> Value {
    let types = &kind.types;
    let (live, config) = match (live, config) {
        (Some(live), Some(config)) => (live, config),
        (one, other) => return other.or(one).cloned().unwrap_or_default(),
    };
    let shape = shape.resolve(config);
    match (shape, live, config) {
        (Shape::Leaf, _, _) => config.clone(),
        (Shape::Set | Shape::ListMap(..), Value::Array(old), Value::Array(new)) => {
            let known = |items: &[Value]| -> Vec<Option<PathElement>> {
                items.iter().map(|item| shape.element(types, item).ok()).collect()
            };
            let order = interleave(&known(old), &known(new));
            let item = |(was, is): (Option<usize>, Option<usize>)| {
                merge(
                    kind,
                    shape.item(types),
                    was.map(|at| &old[at]),
                    is.map(|at| &new[at]),
                )
            };
            Value::Array(order.into_iter().map(item).collect())
        }
        (Shape::Struct(_) | Shape::Map(_) | Shape::Deduced, Value::Object(old), Value::Object(new)) => {
            let mut merged = old.clone();
            for (name, value) in new {
                let child = shape.child(types, name).unwrap_or(Shape::Deduced);
                let value = merge(kind, child, old.get(name), Some(value));
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (_, live, Value::Null) if !is_empty(Some(live)) => live.clone(),
        _ => config.clone(),
    }
}

/// Pairs of indices into the live and the configured list, in the merged order: the configuration's items in its order,
/// live-only items where they stood before the next shared one.
fn interleave(
    old: &[Option<PathElement>],
    new: &[Option<PathElement>],
) -> Vec<(Option<usize>, Option<usize>)> {
    let place = |list: &[Option<PathElement>], element: &Option<PathElement>| {
        element
            .as_ref()
            .and_then(|wanted| list.iter().position(|other| other.as_ref() == Some(wanted)))
    };
    let mut order = Vec::new();
    let mut live = (0..old.len()).peekable();
    for (index, element) in new.iter().enumerate() {
        let next_shared = new[index..].iter().find_map(|element| place(old, element));
        while let Some(at) = live.next_if(|at| Some(*at) != next_shared) {
            if place(new, &old[at]).is_none() {
                order.push((Some(at), None));
            }
        }
        let shared = place(old, element);
        live.next_if(|at| Some(*at) == shared);
        order.push((shared, Some(index)));
    }
    let rest = live.filter(|at| place(new, &old[*at]).is_none());
    order.extend(rest.map(|at| (Some(at), None)));
    order
}
