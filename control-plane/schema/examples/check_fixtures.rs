//! Compares the codec with upstream's golden fixtures: `cargo run -p schema --example check_fixtures -- DIR`,
//! DIR holding `group.version.Kind.{json,pb}` (k8s.io/api's testdata/HEAD).

use std::{env, fs};

use anyhow::{Context, Result, bail};
use schema::codec::{decode, encode_protobuf};
use schema::{Catalog, MediaType};
use serde_json::Value;

fn main() -> Result<()> {
    let directory = env::args().nth(1).context("usage: check_fixtures DIR")?;
    let catalog = Catalog::builtin();
    let (mut good, mut bad, mut unknown) = (0, 0, 0);
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "pb") {
            continue;
        }
        let wire = fs::read(&path)?;
        let text = fs::read(path.with_extension("json"))?;
        let golden: Value = serde_json::from_slice(&text)?;
        let from_wire = match decode(&catalog, MediaType::Protobuf, &wire, None) {
            Ok(decoded) => decoded.object,
            Err(error) if error.to_string().contains("no kind") => {
                unknown += 1;
                continue;
            }
            Err(error) => {
                bad += 1;
                println!("{}: {error}", path.display());
                continue;
            }
        };
        let from_json = decode(&catalog, MediaType::Json, &text, None)?;
        let mut problems = from_json.strict;
        if from_wire != from_json.object {
            problems.push("protobuf and JSON decode to different objects".into());
            report(&from_wire, &from_json.object, String::new(), &mut problems);
        }
        if without_nulls(from_json.object.clone()) != without_nulls(golden) {
            problems.push("the canonical form differs from the fixture".into());
        }
        if encode_protobuf(&catalog, &from_json.object)? != wire {
            problems.push("encodes to other bytes".into());
        }
        if problems.is_empty() {
            good += 1;
        } else {
            bad += 1;
            println!("{}: {problems:?}", path.display());
        }
    }
    println!("{good} agree, {bad} differ, {unknown} are of kinds that are not served");
    if bad > 0 || good == 0 {
        bail!("the codec and the fixtures disagree");
    }
    Ok(())
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

fn report(left: &Value, right: &Value, path: String, problems: &mut Vec<String>) {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                report(
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                    format!("{path}.{key}"),
                    problems,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                report(a, b, format!("{path}[{index}]"), problems);
            }
        }
        (a, b) if a != b => problems.push(format!("{path}: {a} vs {b}")),
        _ => {}
    }
}
