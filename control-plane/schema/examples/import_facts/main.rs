//! Refreshes `facts/` when the Kubernetes version moves.
//!
//! `cargo run -p schema --example import_facts -- API_FACTS_DIR GO_SRC_DIR`
//! API_FACTS_DIR has `resources.tsv`, `table-columns.tsv` and `openapi-v3/*.json` of an API server;
//! GO_SRC_DIR is the directory `k8s.io` with the packages api, apimachinery, apiextensions-apiserver, kube-aggregator.

mod go_types;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use go_types::{GoField, GoType, GoTypes};
use serde_json::{Map, Value};

const PREFIXES: &[(&str, &str)] = &[
    ("io.k8s.api.", ""),
    ("io.k8s.apimachinery.pkg.apis.", ""),
    ("io.k8s.apimachinery.pkg.api.", ""),
    ("io.k8s.apimachinery.pkg.", ""),
    ("io.k8s.apimachinery.pkg.util.", ""),
    ("io.k8s.apiextensions-apiserver.pkg.apis.", ""),
    ("io.k8s.kube-aggregator.pkg.apis.", ""),
];

/// Types that no schema mentions but clients send or ask for.
const EXTRA: &[&str] = &[
    "meta.v1.List",
    "meta.v1.ListOptions",
    "meta.v1.GetOptions",
    "meta.v1.CreateOptions",
    "meta.v1.UpdateOptions",
    "meta.v1.PatchOptions",
    "meta.v1.PartialObjectMetadata",
    "meta.v1.PartialObjectMetadataList",
    "core.v1.PodExecOptions",
    "core.v1.PodAttachOptions",
    "core.v1.PodLogOptions",
    "core.v1.PodPortForwardOptions",
    "core.v1.PodProxyOptions",
    "core.v1.NodeProxyOptions",
    "core.v1.ServiceProxyOptions",
    "core.v1.RangeAllocation",
];

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [api, go] = arguments.as_slice() else {
        bail!("usage: import_facts API_FACTS_DIR GO_SRC_DIR")
    };
    let facts = Path::new(env!("CARGO_MANIFEST_DIR")).join("facts");
    fs::create_dir_all(&facts)?;
    fs::write(facts.join("resources.facts"), resources(api)?)?;
    fs::write(facts.join("types.facts"), types(api, go)?)?;
    Ok(())
}

fn resources(api: &Path) -> Result<String> {
    let mut columns: BTreeMap<(String, String), Vec<Vec<String>>> = BTreeMap::new();
    for row in rows(&api.join("table-columns.tsv"))? {
        columns
            .entry((row[0].clone(), row[1].clone()))
            .or_default()
            .push(row);
    }
    let mut out = String::from(
        "# R group/version, plural, kind, scope, verbs, short names, categories, singular; its S (name, kind, verbs) and C (name, type, format, priority)\n",
    );
    for row in rows(&api.join("resources.tsv"))? {
        let get = |index: usize| row.get(index).map_or("", String::as_str);
        if let Some((_, subresource)) = row[1].split_once('/') {
            writeln!(out, "S\t{subresource}\t{}\t{}", get(2).trim(), get(4))?;
            continue;
        }
        writeln!(
            out,
            "R\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            get(0),
            get(1),
            get(2),
            get(3),
            get(4),
            get(5),
            get(6),
            get(7)
        )?;
        for column in columns
            .remove(&(row[0].clone(), row[1].clone()))
            .unwrap_or_default()
        {
            writeln!(out, "C\t{}", column[2..].join("\t"))?;
        }
    }
    Ok(out)
}

fn rows(path: &Path) -> Result<Vec<Vec<String>>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect())
}

fn types(api: &Path, go: &Path) -> Result<String> {
    let mut schemas = schemas(&api.join("openapi-v3"))?;
    let mut go_types = GoTypes::default();
    for package in schemas
        .keys()
        .map(|name| name.rsplit_once('.').map_or("", |(package, _)| package))
        .collect::<BTreeSet<_>>()
    {
        let path = match package {
            "resource" | "intstr" | "util.intstr" | "runtime" => continue,
            "version" | "pkg.version" => "apimachinery/pkg/version".to_owned(),
            "meta.v1" => "apimachinery/pkg/apis/meta/v1".to_owned(),
            "apiextensions.v1" => "apiextensions-apiserver/pkg/apis/apiextensions/v1".to_owned(),
            "apiregistration.v1" => "kube-aggregator/pkg/apis/apiregistration/v1".to_owned(),
            _ => format!("api/{}", package.replace('.', "/")),
        };
        go_types.read_package(&go.join(path), package)?;
    }
    add_inlined(&mut schemas, &go_types);
    let mut pending: Vec<String> = schemas
        .keys()
        .cloned()
        .chain(EXTRA.iter().map(ToString::to_string))
        .collect();
    let mut done: BTreeMap<String, String> = BTreeMap::new();
    while let Some(name) = pending.pop() {
        if done.contains_key(&name) || scalar(&name).is_some() {
            continue;
        }
        let Some(GoType::Struct(fields)) = go_types.0.get(&name) else {
            bail!("{name}: no Go struct")
        };
        let schema = schemas.get(&name);
        let text = type_text(&name, fields, schema, &go_types, &mut pending)?;
        done.insert(name, text);
    }
    let mut out = String::from(
        "# @type, then a field a line: name, protobuf number, flags (* pointer, ? omitempty, 0 omitzero, ~ inline, ! required), type, details\n",
    );
    out.extend(done.into_values());
    Ok(out)
}

/// Structs that are only ever embedded have no schema of their own: their fields are described where they appear.
fn add_inlined(schemas: &mut BTreeMap<String, Value>, go: &GoTypes) {
    let mut outer: Vec<(String, Value)> = schemas
        .iter()
        .map(|(name, schema)| (name.clone(), schema.clone()))
        .collect();
    while let Some((name, schema)) = outer.pop() {
        let Some(GoType::Struct(fields)) = go.0.get(&name) else {
            continue;
        };
        for field in fields
            .iter()
            .filter(|field| field.inline && !field.ty.ends_with(".TypeMeta"))
        {
            if !schemas.contains_key(&field.ty) {
                let inner = serde_json::json!({"properties": schema.get("properties"), "required": schema.get("required")});
                schemas.insert(field.ty.clone(), inner.clone());
                outer.push((field.ty.clone(), inner));
            }
        }
    }
}

fn schemas(directory: &Path) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let document: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let Some(schemas) = document.pointer("/components/schemas").and_then(Value::as_object) else {
            continue;
        };
        for (name, schema) in schemas {
            found.insert(short(name), schema.clone());
        }
    }
    Ok(found)
}

fn short(name: &str) -> String {
    let best = PREFIXES
        .iter()
        .filter(|(prefix, _)| name.starts_with(prefix))
        .max_by_key(|(prefix, _)| prefix.len());
    best.map_or_else(
        || name.to_owned(),
        |(prefix, replacement)| format!("{replacement}{}", &name[prefix.len()..]),
    )
}

fn type_text(
    name: &str,
    fields: &[GoField],
    schema: Option<&Value>,
    go: &GoTypes,
    pending: &mut Vec<String>,
) -> Result<String> {
    let empty = Map::new();
    let properties = schema
        .and_then(|schema| schema.get("properties"))
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let required: Vec<&str> = schema
        .and_then(|schema| schema.get("required"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut out = format!("@{name}");
    if let Some(schema) = schema {
        if schema.get("x-kubernetes-map-type").is_some() {
            out.push_str(" a");
        }
        if let Some(kinds) = schema
            .get("x-kubernetes-group-version-kind")
            .and_then(Value::as_array)
        {
            let [only] = kinds.as_slice() else {
                out.push_str(" g=*\n");
                return append_fields(out, fields, properties, &required, go, pending);
            };
            let text = |key: &str| only.get(key).and_then(Value::as_str).unwrap_or_default();
            write!(out, " g={}/{}/{}", text("group"), text("version"), text("kind"))?;
        }
        if let Some(unions) = schema.get("x-kubernetes-unions") {
            write!(out, " u={unions}")?;
        }
    }
    out.push('\n');
    append_fields(out, fields, properties, &required, go, pending)
}

fn append_fields(
    mut out: String,
    fields: &[GoField],
    properties: &Map<String, Value>,
    required: &[&str],
    go: &GoTypes,
    pending: &mut Vec<String>,
) -> Result<String> {
    for field in fields {
        if field.json == "-" {
            continue;
        }
        if field.inline && field.ty.ends_with(".TypeMeta") {
            out.push_str(" kind 0 ? string\n apiVersion 0 ? string\n");
            continue;
        }
        let mut flags = String::new();
        let mut ty = field.ty.as_str();
        if let Some(target) = ty.strip_prefix('*') {
            flags.push('*');
            ty = target;
        }
        for (set, flag) in [
            (field.omit_empty, '?'),
            (field.omit_zero, '0'),
            (field.inline, '~'),
            (required.contains(&field.json.as_str()), '!'),
        ] {
            if set {
                flags.push(flag);
            }
        }
        if flags.is_empty() {
            flags.push('-');
        }
        let name = if field.inline { "~" } else { &field.json };
        write!(
            out,
            " {name} {} {flags} {}",
            field.number,
            resolve(ty, go, pending)?
        )?;
        if let Some(property) = properties.get(&field.json) {
            details(&mut out, property)?;
        }
        out.push('\n');
    }
    Ok(out)
}

fn details(out: &mut String, property: &Value) -> Result<()> {
    let text = |key: &str| property.get(key).and_then(Value::as_str);
    let words = |value: Option<&Value>| -> Option<String> {
        // A space ends a detail, so one inside a value is written as an underscore; no enum value has underscores.
        let words: Vec<String> = value?
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .map(|word| word.replace(' ', "_"))
            .collect();
        Some(words.join(","))
    };
    if let Some(kind) = text("x-kubernetes-list-type") {
        write!(out, " l={kind}")?;
    }
    if let Some(keys) = words(property.get("x-kubernetes-list-map-keys")) {
        write!(out, " k={keys}")?;
    }
    if let Some(strategy) = text("x-kubernetes-patch-strategy") {
        write!(out, " s={strategy}")?;
    }
    if let Some(key) = text("x-kubernetes-patch-merge-key") {
        write!(out, " m={key}")?;
    }
    if let Some(map) = text("x-kubernetes-map-type") {
        write!(out, " a={map}")?;
    }
    if let Some(values) = words(property.get("enum")) {
        write!(out, " e={values}")?;
    }
    if let Some(values) = words(
        property
            .pointer("/items/enum")
            .or_else(|| property.pointer("/additionalProperties/enum")),
    ) {
        write!(out, " ei={values}")?;
    }
    if let Some(default) = property.get("default") {
        write!(out, " d={default}")?;
    }
    Ok(())
}

fn scalar(name: &str) -> Option<&'static str> {
    Some(match name {
        "meta.v1.Time" => "time",
        "meta.v1.MicroTime" => "microtime",
        "meta.v1.Duration" => "duration",
        "meta.v1.FieldsV1" => "fieldsv1",
        "resource.Quantity" => "quantity",
        "intstr.IntOrString" | "util.intstr.IntOrString" => "intorstring",
        "runtime.RawExtension" | "pkg.runtime.RawExtension" => "raw",
        "apiextensions.v1.JSON" => "json",
        "apiextensions.v1.JSONSchemaPropsOrArray" => "schema-or-array",
        "apiextensions.v1.JSONSchemaPropsOrBool" => "schema-or-bool",
        "apiextensions.v1.JSONSchemaPropsOrStringArray" => "schema-or-strings",
        "meta.v1.Patch" | "meta.v1.InternalEvent" => "raw",
        _ => return None,
    })
}

/// The type as the table writes it; follows named types, queues the structs it meets.
fn resolve(ty: &str, go: &GoTypes, pending: &mut Vec<String>) -> Result<String> {
    if let Some(word) = scalar(ty) {
        return Ok(word.to_owned());
    }
    if ty == "[]byte" {
        return Ok("bytes".to_owned());
    }
    if let Some(item) = ty.strip_prefix("[]") {
        return Ok(format!(
            "[]{}",
            resolve(item.trim_start_matches('*'), go, pending)?
        ));
    }
    if let Some(value) = ty.strip_prefix("map[]") {
        return Ok(format!("{{}}{}", resolve(value, go, pending)?));
    }
    Ok(match ty {
        "string" | "bool" | "int32" | "int64" => ty.to_owned(),
        "int" => "int64".to_owned(),
        "float64" => "double".to_owned(),
        "types.UID" | "types.NodeName" | "types.NamespacedName" => "string".to_owned(),
        "runtime.Object" => "raw".to_owned(),
        _ => match go.0.get(ty) {
            Some(GoType::Struct(_)) => {
                pending.push(ty.to_owned());
                format!("@{ty}")
            }
            // Named slices travel as a message with one repeated field.
            Some(GoType::Named(definition)) if ty.ends_with(".ExtraValue") || ty.ends_with(".Verbs") => {
                format!("<{}", resolve(definition, go, pending)?)
            }
            Some(GoType::Named(definition)) => resolve(definition, go, pending)?,
            None => bail!("{ty}: unknown Go type"),
        },
    })
}
