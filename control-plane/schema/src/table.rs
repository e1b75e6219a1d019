//! Server-side tables: upstream's columns from the table of facts, cells from small functions.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::catalog::Resource;

/// What each row carries besides its cells (`?includeObject=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

#[derive(Clone, Copy, Debug)]
pub struct TableOptions {
    pub include_object: IncludeObject,
    /// False for the second and later events of a watch.
    pub headers: bool,
    pub now: Timestamp,
}

/// A `meta.k8s.io/v1` Table of one object, a page of a list, or a watch event's object.
pub fn render<'a>(resource: &Resource, objects: impl IntoIterator<Item = &'a Value>, list_metadata: Value, options: TableOptions) -> Value {
    let _ = (resource, options);
    let rows: Vec<Value> = objects.into_iter().map(|object| json!({"cells": [], "object": object})).collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "rows": rows})
}
