//! `kubectl get` of custom resources: the name, then the definition's columns.

use jiff::Timestamp;
use serde_json::Value;

use super::path::JsonPath;
use super::text;
use crate::catalog::{Column, Resource};
use crate::table::human_duration;

/// The columns of a version, and where their cells come from (the first, the name, aside).
pub(super) fn columns(version: &Value) -> (Vec<Column>, Vec<(JsonPath, String)>) {
    let column = |name: &str, ty: &str, format: &str, priority: u8| Column {
        name: name.to_owned(),
        ty: ty.to_owned(),
        format: format.to_owned(),
        priority,
    };
    let mut columns = vec![column("Name", "string", "name", 0)];
    let mut paths = Vec::new();
    let given = version["additionalPrinterColumns"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    for it in given {
        let Ok(path) = JsonPath::parse(text(it, "jsonPath")) else {
            continue;
        };
        let priority = it["priority"].as_u64().and_then(|level| u8::try_from(level).ok());
        let ty = text(it, "type");
        columns.push(column(
            text(it, "name"),
            ty,
            text(it, "format"),
            priority.unwrap_or(0),
        ));
        paths.push((path, ty.to_owned()));
    }
    if given.is_empty()
        && let Ok(path) = JsonPath::parse(".metadata.creationTimestamp")
    {
        columns.push(column("Age", "date", "", 0));
        paths.push((path, "date".to_owned()));
    }
    (columns, paths)
}

pub(crate) fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![object["metadata"]["name"].clone()];
    let columns = resource.kind.custom.iter().flat_map(|custom| &custom.columns);
    cells.extend(columns.map(|(path, ty)| cell(&path.find(object), ty, now)));
    cells
}

fn cell(found: &[&Value], ty: &str, now: Timestamp) -> Value {
    let Some(first) = found.first() else {
        return Value::Null;
    };
    match (ty, first) {
        ("string", _) => {
            let texts = found
                .iter()
                .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            texts.collect::<Vec<_>>().join(" ").into()
        }
        ("integer", Value::Number(number)) => match number.as_i64() {
            Some(_) => (*first).clone(),
            None => number.as_f64().map(|number| number as i64).into(),
        },
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*first).clone(),
        ("date", Value::String(time)) => match time.parse::<Timestamp>() {
            Ok(time) => human_duration(now.as_second() - time.as_second()).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::with_widgets;
    use crate::table::{IncludeObject, TableOptions, render};

    #[test]
    fn columns_come_from_the_definition() {
        let catalog = with_widgets();
        let widgets = catalog.resource("example.com", "v1", "widgets").expect("served");
        let options = TableOptions {
            include_object: IncludeObject::None,
            headers: true,
            now: "2026-01-01T12:00:00Z".parse().expect("time"),
        };
        let object = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T11:00:00Z"}, "spec": {"color": "red"}});
        let table = render(widgets, [&object], json!({}), options);
        let names: Vec<&str> = table["columnDefinitions"]
            .as_array()
            .expect("columns")
            .iter()
            .filter_map(|column| column["name"].as_str())
            .collect();
        assert_eq!(names, ["Name", "Color", "Size", "Age"]);
        assert_eq!(table["rows"][0]["cells"], json!(["a", "red", null, "60m"]));
    }
}
