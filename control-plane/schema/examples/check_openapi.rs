//! Compares our OpenAPI v3 documents with those of an upstream API server:
//! `cargo run -p schema --example check_openapi -- DIR`, DIR holding `api__v1.json`, `apis__apps__v1.json`, …

use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use schema::Catalog;
use schema::openapi::OpenApi;
use serde_json::Value;

fn main() -> Result<()> {
    let directory = env::args().nth(1).context("usage: check_openapi DIR")?;
    let openapi = OpenApi::new(Catalog::builtin(), None);
    let index = openapi.index();
    let mut differences = 0;
    for path in index["paths"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(path, _)| path)
    {
        let file = Path::new(&directory).join(format!("{}.json", path.replace('/', "__")));
        let upstream: Value =
            serde_json::from_slice(&fs::read(&file).with_context(|| file.display().to_string())?)?;
        let ours: Value = serde_json::from_slice(&openapi.document(path).context("no document")?)?;
        differences += compare_schemas(
            path,
            &upstream["components"]["schemas"],
            &ours["components"]["schemas"],
        );
        differences += compare_paths(path, &upstream["paths"], &ours["paths"]);
    }
    if differences > 0 {
        bail!("{differences} differences");
    }
    println!("no differences");
    Ok(())
}

fn compare_schemas(document: &str, upstream: &Value, ours: &Value) -> usize {
    let mut differences = 0;
    for (name, schema) in upstream.as_object().into_iter().flatten() {
        let (wanted, got) = (normal(schema.clone()), normal(ours[name].clone()));
        if wanted != got {
            differences += 1;
            println!("{document}: {name}");
            for (key, value) in wanted["properties"].as_object().into_iter().flatten() {
                if got["properties"][key] != *value {
                    println!(
                        "  {key}: upstream {value}\n  {key}: ours     {}",
                        got["properties"][key]
                    );
                }
            }
            let rest = |mut value: Value| {
                value.as_object_mut().map(|fields| fields.remove("properties"));
                value
            };
            if rest(wanted.clone()) != rest(got.clone()) {
                println!("  upstream {}\n  ours     {}", rest(wanted), rest(got));
            }
        }
    }
    for name in ours
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name)
        .filter(|name| upstream.get(*name).is_none())
    {
        println!("{document}: {name} is ours alone");
    }
    differences
}

/// Lists that are sets, sorted; prose away; a reference that is only wrapped to make room for prose, unwrapped.
fn normal(value: Value) -> Value {
    match value {
        Value::Object(fields)
            if fields.len() == 1
                && fields
                    .get("allOf")
                    .is_some_and(|list| list.as_array().is_some_and(|list| list.len() == 1)) =>
        {
            normal(fields["allOf"][0].clone())
        }
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(key, value)| key != "description" || !value.is_string())
            .map(|(key, value)| {
                let mut value = normal(value);
                if let (true, Value::Array(items)) = (
                    matches!(key.as_str(), "required" | "x-kubernetes-group-version-kind"),
                    &mut value,
                ) {
                    items.sort_by_key(ToString::to_string);
                }
                (key, value)
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(normal).collect(),
        other => other,
    }
}

fn compare_paths(document: &str, upstream: &Value, ours: &Value) -> usize {
    let mut differences = 0;
    for (path, methods) in upstream.as_object().into_iter().flatten() {
        if path.ends_with('/') || path.contains("/watch/") || path.contains("{path}") {
            continue;
        }
        for (method, operation) in methods.as_object().into_iter().flatten() {
            if matches!(method.as_str(), "head" | "options") {
                continue;
            }
            for key in [
                "operationId",
                "x-kubernetes-action",
                "x-kubernetes-group-version-kind",
            ] {
                let got = &ours[path][method][key];
                if *got != operation[key] {
                    differences += 1;
                    println!(
                        "{document}: {method} {path} {key}: upstream {}, ours {got}",
                        operation[key]
                    );
                }
            }
        }
    }
    differences
}
