//! What the types alone can tell: enumerations, and the checks of `facts/checks.facts`.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::cause::Cause;
use super::{metadata, names, net, rules};
use crate::catalog::Kind;
use crate::facts;
use crate::types::{Field, FieldType, TypeId, Types};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Required,
    /// At least one verb, said in RBAC's words.
    Verbs,
    NonEmpty,
    Trimmed,
    NonNegative,
    Positive,
    Port,
    PortName,
    PortOrName,
    Id,
    Weight,
    ActiveDeadline,
    IntOrPercent,
    DnsLabel,
    DnsSubdomain,
    Dns1035,
    Qualified,
    LabelValue,
    Labels,
    ConfigKey,
    ConfigKeys,
    EnvName,
    Ip,
    /// Permission bits.
    Mode,
    /// A path below something else.
    Relative,
    TenMinutes,
    Schedule,
    Unique(&'static str),
}

/// Status is written by controllers, metadata has a module of its own.
pub(super) fn check(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut walk = Walk {
        types: &kind.types,
        causes: Vec::new(),
    };
    walk.object(kind.root, object, "", &["status", "metadata"]);
    walk.causes
}

struct Walk<'a> {
    types: &'a Types,
    causes: Vec<Cause>,
}

impl Walk<'_> {
    fn object(&mut self, id: TypeId, object: &Value, path: &str, skipped: &[&str]) {
        let types = self.types;
        let ty = types.get(id);
        for (owner, inline) in std::iter::once((ty, None)).chain(
            ty.inlines
                .iter()
                .map(|inline| (types.get(inline.ty), Some(inline.ty))),
        ) {
            for field in owner
                .fields
                .iter()
                .filter(|field| !skipped.contains(&field.name.as_str()))
            {
                let field_path = if path.is_empty() {
                    field.name.clone()
                } else {
                    format!("{path}.{}", field.name)
                };
                let value = object.get(&field.name);
                let refused = self.causes.len();
                for check in checks()
                    .get(&(owner.name.clone(), field.name.clone()))
                    .into_iter()
                    .flatten()
                {
                    self.causes.extend(check.of(value, &field_path));
                    if self.causes.len() > refused {
                        break;
                    }
                }
                if let Some(value) = value {
                    self.field(field, value, &field_path);
                }
            }
            if let Some(rule) = rules::of_type(&owner.name) {
                self.causes.extend(rule(object, path));
            }
            if let Some(inner) = inline.filter(|inner| !types.get(*inner).inlines.is_empty()) {
                for deeper in &types.get(inner).inlines {
                    self.object(deeper.ty, object, path, skipped);
                }
            }
        }
    }

    fn field(&mut self, field: &Field, value: &Value, path: &str) {
        self.enumeration(&field.enumeration, value, path);
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            self.enumeration(&field.item_enumeration, item, &format!("{path}[{index}]"));
        }
        self.value(&field.ty, value, path);
    }

    fn enumeration(&mut self, known: &[String], value: &Value, path: &str) {
        let Some(text) = value.as_str().filter(|text| !text.is_empty()) else {
            return;
        };
        if !known.is_empty() && !known.iter().any(|name| name == text) {
            self.causes.push(Cause::not_supported(path, value, known));
        }
    }

    fn value(&mut self, ty: &FieldType, value: &Value, path: &str) {
        match (ty, value) {
            (FieldType::Object(id), Value::Object(_)) => {
                // A template's metadata is an object's metadata, without a name.
                if self.types.get(*id).name.ends_with("meta.v1.ObjectMeta") {
                    self.causes.extend(metadata::shared(value, path));
                } else {
                    self.object(*id, value, path, &[]);
                }
            }
            (FieldType::List(item), Value::Array(items)) => {
                for (index, value) in items.iter().enumerate() {
                    self.value(item, value, &format!("{path}[{index}]"));
                }
            }
            (FieldType::Map(item), Value::Object(entries)) => {
                for (key, value) in entries {
                    self.value(item, value, &format!("{path}[{key}]"));
                }
            }
            _ => {}
        }
    }
}

impl Check {
    fn parse(word: &'static str) -> Option<Self> {
        Some(match word {
            "required" => Self::Required,
            "verbs" => Self::Verbs,
            "nonempty" => Self::NonEmpty,
            "trimmed" => Self::Trimmed,
            "nonneg" => Self::NonNegative,
            "pos" => Self::Positive,
            "port" => Self::Port,
            "port-name" => Self::PortName,
            "port-or-name" => Self::PortOrName,
            "id" => Self::Id,
            "weight" => Self::Weight,
            "activedeadline" => Self::ActiveDeadline,
            "int-or-percent" => Self::IntOrPercent,
            "dns-label" => Self::DnsLabel,
            "dns-subdomain" => Self::DnsSubdomain,
            "dns-1035" => Self::Dns1035,
            "qualified" => Self::Qualified,
            "label-value" => Self::LabelValue,
            "labels" => Self::Labels,
            "config-key" => Self::ConfigKey,
            "config-keys" => Self::ConfigKeys,
            "env-name" => Self::EnvName,
            "ip" => Self::Ip,
            "mode" => Self::Mode,
            "relative" => Self::Relative,
            "ten-minutes" => Self::TenMinutes,
            "schedule" => Self::Schedule,
            _ => Self::Unique(word.strip_prefix("unique=")?),
        })
    }

    fn of(self, value: Option<&Value>, path: &str) -> Vec<Cause> {
        let Some(value) = value.filter(|value| !is_empty(value)) else {
            return match self {
                Self::Required | Self::NonEmpty if value.is_none() && self == Self::NonEmpty => Vec::new(),
                Self::Required | Self::NonEmpty => vec![Cause::required(path, "")],
                Self::Verbs => vec![Cause::required(path, "verbs must contain at least one value")],
                _ => Vec::new(),
            };
        };
        match self {
            Self::Labels => metadata::labels(value, path),
            Self::ConfigKeys => {
                let keys = value.as_object().into_iter().flatten().map(|(key, _)| key);
                keys.filter_map(|key| {
                    names::config_key_problem(key)
                        .map(|problem| Cause::invalid(&format!("{path}[{key}]"), &json!(key), &problem))
                })
                .collect()
            }
            Self::Unique(key) => duplicates(value, key, path),
            _ => self
                .problem(value)
                .map(|problem| Cause::invalid(path, value, &problem))
                .into_iter()
                .collect(),
        }
    }

    fn problem(self, value: &Value) -> Option<String> {
        let within = |low: i64, high: i64| {
            let good = value.as_i64().is_none_or(|number| (low..=high).contains(&number));
            (!good).then(|| format!("must be between {low} and {high}, inclusive"))
        };
        let text = |check: fn(&str) -> Option<String>| value.as_str().and_then(check);
        match self {
            Self::NonNegative => value
                .as_i64()
                .filter(|number| *number < 0)
                .map(|_| "must be greater than or equal to 0".to_owned()),
            Self::Positive => value
                .as_i64()
                .filter(|number| *number <= 0)
                .map(|_| "must be greater than 0".to_owned()),
            Self::Port => within(1, 65_535),
            Self::PortOrName => within(1, 65_535).or_else(|| text(names::port_name_problem)),
            Self::Id | Self::ActiveDeadline => {
                within(i64::from(self == Self::ActiveDeadline), i64::from(i32::MAX))
            }
            Self::Weight => within(1, 100).map(|_| "must be in the range 1-100".to_owned()),
            Self::IntOrPercent => int_or_percent(value),
            Self::Trimmed => value
                .as_str()
                .filter(|text| text.trim() != *text)
                .map(|_| "must not have leading or trailing whitespace".to_owned()),
            Self::PortName => text(names::port_name_problem),
            Self::DnsLabel => text(names::dns_label_problem),
            Self::DnsSubdomain => text(names::dns_subdomain_problem),
            Self::Dns1035 => text(names::dns_1035_problem),
            Self::Qualified => text(names::qualified_name_problem),
            Self::LabelValue => text(names::label_value_problem),
            Self::ConfigKey => text(names::config_key_problem),
            Self::EnvName => text(names::env_name_problem),
            Self::Ip => text(net::address_problem),
            Self::Mode => {
                let good = value.as_i64().is_none_or(|mode| (0..=0o777).contains(&mode));
                (!good).then(|| "must be a number between 0 and 0777 (octal), both inclusive".to_owned())
            }
            Self::Relative => text(names::relative_path_problem),
            Self::TenMinutes => value
                .as_i64()
                .filter(|seconds| *seconds < 600)
                .map(|_| "may not specify a duration less than 10 minutes".to_owned()),
            Self::Schedule => text(names::schedule_problem),
            Self::Required
            | Self::Verbs
            | Self::NonEmpty
            | Self::Labels
            | Self::ConfigKeys
            | Self::Unique(_) => None,
        }
    }
}

/// Zero is "not given" for required ports and numbers that Go holds by value.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn int_or_percent(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => {
            let digits = text
                .strip_suffix('%')
                .filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
            digits.is_none().then(|| "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')".to_owned())
        }
        number => number
            .as_i64()
            .filter(|number| *number < 0)
            .map(|_| "must be greater than or equal to 0".to_owned()),
    }
}

fn duplicates(list: &Value, key: &str, path: &str) -> Vec<Cause> {
    let mut seen = HashSet::new();
    let mut causes = Vec::new();
    for (index, item) in list.as_array().into_iter().flatten().enumerate() {
        let Some(name) = item[key].as_str().filter(|name| !name.is_empty()) else {
            continue;
        };
        if !seen.insert(name) {
            let field = format!("{path}[{index}].{key}");
            // Mount paths have a text of their own.
            causes.push(if key == "mountPath" {
                Cause::invalid(&field, &item[key], "must be unique")
            } else {
                Cause::duplicate(&field, &item[key])
            });
        }
    }
    causes
}

type Checks = HashMap<(String, String), Vec<Check>>;

fn checks() -> &'static Checks {
    static CHECKS: OnceLock<Checks> = OnceLock::new();
    CHECKS.get_or_init(|| {
        let mut checks = Checks::new();
        for line in facts::CHECKS.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            if let (Some(ty), Some(field)) = (words.next(), words.next()) {
                checks.insert(
                    (facts::full_name(ty), field.to_owned()),
                    words.filter_map(Check::parse).collect(),
                );
            }
        }
        checks
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusals;
    use super::*;

    #[test]
    fn every_line_names_a_field_and_checks_that_exist() {
        let types = Types::builtin();
        for line in facts::CHECKS.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            let id = types
                .by_name(&facts::full_name(words[0]))
                .unwrap_or_else(|| panic!("{line}"));
            assert!(types.field(id, words[1]).is_some(), "{line}");
            let parsed = &checks()[&(facts::full_name(words[0]), words[1].to_owned())];
            assert!(parsed.len() == words.len() - 2 && !parsed.is_empty(), "{line}");
        }
    }

    #[test]
    fn enumerations_and_checks_reach_nested_and_embedded_fields() {
        let text = refusals(
            "",
            "v1",
            "pods",
            json!({"spec": {"restartPolicy": "Sometimes", "volumes": [{"name": "V", "hostPath": {}}], "containers": [
            {"name": "c", "image": "i", "imagePullPolicy": "Never2", "ports": [{"containerPort": 70000}], "livenessProbe": {"httpGet": {"port": "1"}, "periodSeconds": -1}}]}}),
        );
        for expected in [
            r#"spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure""#,
            r#"spec.containers[0].imagePullPolicy: Unsupported value: "Never2": supported values: "Always", "IfNotPresent", "Never""#,
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            "spec.containers[0].livenessProbe.httpGet.port: Invalid value: \"1\": must contain at least one letter (a-z)",
            "spec.volumes[0].hostPath.path: Required value",
        ] {
            assert!(text.iter().any(|line| line == expected), "{expected}\n{text:#?}");
        }
        assert!(text.iter().any(|line| {
            line.starts_with("spec.volumes[0].name: Invalid value: \"V\": a lowercase RFC 1123 label")
        }));
    }
}
