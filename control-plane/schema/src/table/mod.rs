//! Server-side tables: upstream's columns from the table of facts, cells from small functions.

mod age;
mod cells;
mod network;
mod pods;
mod storage;
mod text;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::catalog::Resource;

pub use age::human_duration;

/// What each row carries besides its cells (`?includeObject=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// From the query parameter's value.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "None" => Some(Self::None),
            "" | "Metadata" => Some(Self::Metadata),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct TableOptions {
    pub include_object: IncludeObject,
    /// False for the second and later events of a watch.
    pub headers: bool,
    pub now: Timestamp,
}

/// A `meta.k8s.io/v1` Table of one object, a page of a list, or a watch event's object.
pub fn render<'a>(
    resource: &Resource,
    objects: impl IntoIterator<Item = &'a Value>,
    list_metadata: Value,
    options: TableOptions,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| row(resource, object, options))
        .collect();
    let mut table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "columnDefinitions": null, "rows": rows});
    if options.headers {
        table["columnDefinitions"] = columns(resource);
    }
    table
}

/// The Table of a built-in kind's Scale.
pub fn of_scale(scale: &Value, list_metadata: Value, options: TableOptions) -> Value {
    let columns = json!([
        column("Name", "string", "name", 0),
        column("Desired", "integer", "", 0),
        column("Available", "integer", "", 0),
        column("Age", "string", "", 0),
    ]);
    let row = with_object(
        json!({"cells": cells::of_scale(scale, options.now)}),
        scale,
        options,
    );
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "columnDefinitions": columns, "rows": [row]})
}

fn column(name: &str, ty: &str, format: &str, priority: u8) -> Value {
    json!({"name": name, "type": ty, "format": format, "description": "", "priority": priority})
}

fn columns(resource: &Resource) -> Value {
    if resource.columns.is_empty() {
        return json!([column("Name", "string", "name", 0), column("Age", "date", "", 0)]);
    }
    resource
        .columns
        .iter()
        .map(|it| column(&it.name, &it.ty, &it.format, it.priority))
        .collect()
}

fn row(resource: &Resource, object: &Value, options: TableOptions) -> Value {
    let mut row = json!({"cells": cells::of(resource, object, options.now)});
    if (resource.group.as_str(), resource.plural.as_str()) == ("", "pods")
        && let Some(condition) = pods::row_condition(object)
    {
        row["conditions"] = json!([condition]);
    }
    with_object(row, object, options)
}

fn with_object(mut row: Value, object: &Value, options: TableOptions) -> Value {
    match options.include_object {
        IncludeObject::None => {}
        IncludeObject::Object => row["object"] = object.clone(),
        IncludeObject::Metadata => {
            row["object"] = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.get("metadata")});
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    pub(super) fn cells_of(group: &str, version: &str, plural: &str, object: &Value) -> Vec<Value> {
        let catalog = Catalog::builtin();
        let resource = catalog.resource(group, version, plural).expect(plural);
        let now = "2026-01-01T12:00:00Z".parse().expect("time");
        let table = render(
            resource,
            [object],
            json!({}),
            TableOptions {
                include_object: IncludeObject::None,
                headers: true,
                now,
            },
        );
        table["rows"][0]["cells"].as_array().expect("cells").clone()
    }

    #[test]
    fn a_scale_has_its_own_columns() {
        let scale = json!({
            "metadata": {"name": "d", "creationTimestamp": "2026-01-01T11:59:00Z"},
            "spec": {"replicas": 3}, "status": {"replicas": 2},
        });
        let options = TableOptions {
            include_object: IncludeObject::None,
            headers: true,
            now: "2026-01-01T12:00:00Z".parse().expect("time"),
        };
        let table = of_scale(&scale, json!({}), options);
        let names: Vec<&Value> = table["columnDefinitions"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|column| &column["name"])
            .collect();
        assert_eq!(names, ["Name", "Desired", "Available", "Age"]);
        assert_eq!(table["rows"][0]["cells"], json!(["d", 3, 2, "60s"]));
    }

    /// kubectl pairs cells with columns by position: one too few shifts every later column.
    #[test]
    fn every_kind_has_a_cell_for_each_column() {
        for resource in Catalog::builtin().resources() {
            let options = TableOptions {
                include_object: IncludeObject::Metadata,
                headers: true,
                now: Timestamp::UNIX_EPOCH,
            };
            let table = render(
                resource,
                [&json!({"metadata": {"name": "x"}})],
                json!({}),
                options,
            );
            let columns = table["columnDefinitions"].as_array().map(Vec::len);
            assert_eq!(
                table["rows"][0]["cells"].as_array().map(Vec::len),
                columns,
                "{}",
                resource.qualified_name()
            );
        }
    }

    #[test]
    fn rows_carry_what_was_asked_for() {
        let catalog = Catalog::builtin();
        let resource = catalog.resource("", "v1", "configmaps").expect("configmaps");
        let object = json!({"metadata": {"name": "x", "creationTimestamp": "2026-01-01T11:00:00Z"}, "data": {"a": "1"}, "binaryData": {"b": ""}});
        let now = "2026-01-01T12:00:00Z".parse().expect("time");
        let with = |include_object, headers| {
            render(
                resource,
                [&object],
                json!({"resourceVersion": "7"}),
                TableOptions {
                    include_object,
                    headers,
                    now,
                },
            )
        };
        let table = with(IncludeObject::Metadata, true);
        assert_eq!(table["rows"][0]["cells"], json!(["x", 2, "60m"]));
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(table["metadata"]["resourceVersion"], "7");
        assert_eq!(with(IncludeObject::Object, false)["rows"][0]["object"], object);
        assert!(
            with(IncludeObject::None, false)["rows"][0]
                .get("object")
                .is_none()
        );
        assert!(with(IncludeObject::None, false)["columnDefinitions"].is_null());
    }
}
