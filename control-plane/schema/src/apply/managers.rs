//! `metadata.managedFields`: who owns which fields, decoded and encoded.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::set::FieldSet;

/// More managers that update than this are merged into one.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// What tells managers apart; an applier is the same one in every API version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    pub operation: Operation,
    pub name: String,
    /// Empty for appliers.
    pub api_version: String,
    pub subresource: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Owned {
    pub fields: FieldSet,
    pub api_version: String,
    pub time: String,
}

pub(super) type Managers = BTreeMap<Identity, Owned>;

pub(super) fn identity(entry: &Value) -> Result<Identity, String> {
    let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let operation = match entry["operation"].as_str() {
        Some("Apply") => Operation::Apply,
        Some("Update") => Operation::Update,
        other => return Err(format!("invalid operation {other:?}")),
    };
    Ok(Identity {
        operation,
        name: text("manager"),
        api_version: match operation {
            Operation::Apply => String::new(),
            Operation::Update => text("apiVersion"),
        },
        subresource: text("subresource"),
    })
}

pub(super) fn decode(entries: &Value) -> Result<Managers, String> {
    let entry = |entry: &Value| {
        if entry["fieldsType"] != "FieldsV1" {
            return Err(format!("invalid fieldsType {}", entry["fieldsType"]));
        }
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let fields = match &entry["fieldsV1"] {
            Value::Null => FieldSet::default(),
            fields => FieldSet::from_fields_v1(fields)?,
        };
        let owned = Owned {
            fields,
            api_version: text("apiVersion"),
            time: text("time"),
        };
        Ok((identity(entry)?, owned))
    };
    let entries = entries.as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().map(entry).collect()
}

/// Upstream's order: appliers first, then by time, name, version and sub-resource.
pub(super) fn encode(managers: &Managers) -> Value {
    let mut sorted: Vec<(&Identity, &Owned)> = managers.iter().collect();
    sorted.sort_by_key(|(identity, owned)| {
        (
            identity.operation,
            &owned.time,
            &identity.name,
            &owned.api_version,
            &identity.subresource,
        )
    });
    let entry = |(identity, owned): (&Identity, &Owned)| {
        let operation = match identity.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        let mut entry = json!({
            "apiVersion": owned.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": owned.fields.to_fields_v1(),
            "operation": operation,
        });
        let optional = [
            ("manager", &identity.name),
            ("subresource", &identity.subresource),
            ("time", &owned.time),
        ];
        for (name, text) in optional.into_iter().filter(|(_, text)| !text.is_empty()) {
            entry[name] = json!(text);
        }
        entry
    };
    Value::Array(sorted.into_iter().map(entry).collect())
}

/// Merges the oldest updaters of a version until there are few enough of them.
pub(super) fn cap(managers: &mut Managers) {
    let mut updaters: Vec<Identity> = managers
        .keys()
        .filter(|identity| identity.operation == Operation::Update)
        .cloned()
        .collect();
    let mut count = updaters.len();
    updaters.sort_by_key(|identity| {
        (
            managers.get(identity).map(|owned| owned.time.clone()),
            identity.clone(),
        )
    });
    let mut first_of: BTreeMap<String, Identity> = BTreeMap::new();
    for updater in updaters {
        if count <= MAX_UPDATERS {
            return;
        }
        let bucket = Identity {
            operation: Operation::Update,
            name: ANCIENT.into(),
            api_version: updater.api_version.clone(),
            subresource: String::new(),
        };
        let Some(first) = first_of.get(&updater.api_version) else {
            first_of.insert(updater.api_version.clone(), updater);
            continue;
        };
        if !managers.contains_key(&bucket)
            && let Some(owned) = managers.remove(first)
        {
            managers.insert(bucket.clone(), owned);
        }
        if updater == bucket {
            continue;
        }
        if let (Some(merged), Some(into)) = (managers.remove(&updater), managers.get_mut(&bucket)) {
            into.fields = into.fields.union(&merged.fields);
            into.time = merged.time;
            count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, operation: &str, time: &str) -> Value {
        json!({"manager": name, "operation": operation, "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {format!("f:{name}"): {}}}})
    }

    #[test]
    fn managers_are_listed_in_upstreams_order() {
        let time = |minute: u8| format!("2026-01-01T00:0{minute}:00Z");
        let given = json!([
            entry("b", "Update", &time(1)),
            entry("a", "Update", &time(2)),
            entry("z", "Apply", &time(3)),
            entry("c", "Update", &time(1)),
        ]);
        let encoded = encode(&decode(&given).expect("valid"));
        let names: Vec<&str> = encoded
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry["manager"].as_str())
            .collect();
        assert_eq!(names, ["z", "b", "c", "a"]);
        for wrong in [
            json!([{"operation": "Guess", "fieldsType": "FieldsV1"}]),
            json!([{"operation": "Apply"}]),
        ] {
            assert!(decode(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_oldest_updaters_are_merged() {
        let entries: Vec<Value> = (0..13)
            .map(|n| {
                entry(
                    &format!("m{n:02}"),
                    "Update",
                    &format!("2026-01-01T00:00:{n:02}Z"),
                )
            })
            .collect();
        let mut managers = decode(&Value::Array(entries)).expect("valid");
        cap(&mut managers);
        assert_eq!(managers.len(), MAX_UPDATERS);
        let encoded = encode(&managers);
        assert_eq!(encoded[0]["manager"], ANCIENT);
        assert_eq!(encoded[0]["time"], "2026-01-01T00:00:03Z");
        assert_eq!(
            encoded[0]["fieldsV1"],
            json!({"f:data": {"f:m00": {}, "f:m01": {}, "f:m02": {}, "f:m03": {}}})
        );
        let before = managers.clone();
        cap(&mut managers);
        assert_eq!(managers, before, "few enough");
    }
}
