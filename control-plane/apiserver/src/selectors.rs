//! Label and field selectors: upstream's grammar, and matching against an index.

use serde_json::{Value, json};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
    Greater(String, i64),
    Less(String, i64),
}

/// A parsed `labelSelector`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text);
        let mut rest = tokens.as_slice();
        let mut requirements = Vec::new();
        while !rest.is_empty() {
            let (requirement, tail) = requirement(rest)?;
            requirements.push(requirement);
            rest = match tail {
                [] => tail,
                [comma, after @ ..] if *comma == "," && !after.is_empty() => after,
                [other, ..] => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            };
        }
        Ok(Self(requirements))
    }

    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|x| x == v)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|x| x != v)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Missing(key) => label(key).is_none(),
            Requirement::Greater(key, than) => number(label(key)).is_some_and(|n| n > *than),
            Requirement::Less(key, than) => number(label(key)).is_some_and(|n| n < *than),
        })
    }

    /// As `metav1.LabelSelectorRequirement`s.
    pub fn requirements(&self) -> Vec<Value> {
        let of_set = |key: &str, operator: &str, values: &[String]| json!({"key": key, "operator": operator, "values": values});
        let told = self.0.iter().filter_map(|requirement| match requirement {
            Requirement::In(key, values) => Some(of_set(key, "In", values)),
            Requirement::NotIn(key, values) => Some(of_set(key, "NotIn", values)),
            Requirement::Exists(key) => Some(json!({"key": key, "operator": "Exists"})),
            Requirement::Missing(key) => Some(json!({"key": key, "operator": "DoesNotExist"})),
            // There is no operator for these.
            Requirement::Greater(..) | Requirement::Less(..) => None,
        });
        told.collect()
    }

    /// From a `metav1.LabelSelector` object.
    pub fn from_object(selector: &serde_json::Value) -> Self {
        let mut requirements = Vec::new();
        for (key, value) in selector
            .get("matchLabels")
            .and_then(|m| m.as_object())
            .into_iter()
            .flatten()
        {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::In(key.clone(), vec![value]));
        }
        for expression in selector
            .get("matchExpressions")
            .and_then(|e| e.as_array())
            .into_iter()
            .flatten()
        {
            let key = crate::object::text(expression, "/key").to_owned();
            let values = expression
                .get("values")
                .and_then(|v| v.as_array())
                .into_iter()
                .flatten();
            let values = values.filter_map(|v| v.as_str()).map(str::to_owned).collect();
            requirements.push(match crate::object::text(expression, "/operator") {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "DoesNotExist" => Requirement::Missing(key),
                _ => Requirement::Exists(key),
            });
        }
        Self(requirements)
    }
}

fn number(text: Option<&str>) -> Option<i64> {
    text?.parse().ok()
}

fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if let Some(pair) = ["!=", "=="].iter().find(|pair| rest.starts_with(**pair)) {
            pair.len()
        } else if "=!,()<>".contains(first) {
            1
        } else {
            rest.find(|c: char| c.is_whitespace() || "=!,()<>".contains(c))
                .unwrap_or(rest.len())
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

type Parsed<'a, 'b, T> = Result<(T, &'b [&'a str]), String>;

fn requirement<'a, 'b>(tokens: &'b [&'a str]) -> Parsed<'a, 'b, Requirement> {
    match tokens {
        ["!", key, rest @ ..] => Ok((Requirement::Missing(label_key(key)?), rest)),
        [key, operator @ ("=" | "==" | "!="), rest @ ..] => {
            let (value, rest) = match rest {
                [value, rest @ ..] if *value != "," => (label_value(value)?, rest),
                rest => (String::new(), rest),
            };
            let key = label_key(key)?;
            let wanted = vec![value];
            Ok((
                if *operator == "!=" {
                    Requirement::NotIn(key, wanted)
                } else {
                    Requirement::In(key, wanted)
                },
                rest,
            ))
        }
        [key, operator @ (">" | "<"), value, rest @ ..] => {
            let bound = value.parse().map_err(|_| {
                format!("for 'Gt', 'Lt' operators, the value must be an integer: \"{value}\"")
            })?;
            let key = label_key(key)?;
            Ok((
                if *operator == ">" {
                    Requirement::Greater(key, bound)
                } else {
                    Requirement::Less(key, bound)
                },
                rest,
            ))
        }
        [key, operator @ ("in" | "notin"), "(", rest @ ..] => {
            let (values, rest) = values(rest)?;
            let key = label_key(key)?;
            Ok((
                if *operator == "in" {
                    Requirement::In(key, values)
                } else {
                    Requirement::NotIn(key, values)
                },
                rest,
            ))
        }
        [key] => Ok((Requirement::Exists(label_key(key)?), &[])),
        [key, rest @ ..] if rest[0] == "," => Ok((Requirement::Exists(label_key(key)?), rest)),
        [_, other, ..] => Err(format!(
            "unable to parse requirement: found '{other}', expected: in, notin, =, ==, !=, gt, lt"
        )),
        [] => Err("unable to parse requirement: found '', expected: identifier".into()),
    }
}

fn values<'a, 'b>(mut tokens: &'b [&'a str]) -> Parsed<'a, 'b, Vec<String>> {
    let mut values = Vec::new();
    loop {
        match tokens {
            [")", rest @ ..] => {
                return Ok((
                    if values.is_empty() {
                        vec![String::new()]
                    } else {
                        values
                    },
                    rest,
                ));
            }
            [",", rest @ ..] => {
                if values.is_empty() {
                    values.push(String::new());
                }
                if matches!(rest, [")" | ",", ..]) {
                    values.push(String::new());
                }
                tokens = rest;
            }
            [value, rest @ ..] => {
                values.push(label_value(value)?);
                tokens = rest;
            }
            [] => return Err("unable to parse requirement: found '', expected: ',' or ')'".into()),
        }
    }
}

fn is_name(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn label_key(text: &str) -> Result<String, String> {
    let (prefix, name) = text.split_once('/').unwrap_or(("x", text));
    let prefix_ok = prefix.len() <= 253
        && prefix
            .split('.')
            .all(|part| is_name(part) && part == part.to_lowercase());
    if prefix_ok && is_name(name) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "unable to parse requirement: <nil>: Invalid value: \"{text}\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        ))
    }
}

fn label_value(text: &str) -> Result<String, String> {
    if text.is_empty() || is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "unable to parse requirement: values[0][]: Invalid value: \"{text}\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
        ))
    }
}

/// A parsed `fieldSelector`: field, value, and whether they must be equal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(String, String, bool)>);

impl FieldSelector {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let (field, value, equal) = if let Some((field, value)) = term.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = term.split_once("==") {
                (field, value, true)
            } else if let Some((field, value)) = term.split_once('=') {
                (field, value, true)
            } else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            terms.push((field.to_owned(), unescape(value), equal));
        }
        Ok(Self(terms))
    }

    /// As `metav1.FieldSelectorRequirement`s.
    pub fn requirements(&self) -> Vec<Value> {
        let told = self.0.iter().map(|(field, value, equal)| {
            let operator = if *equal { "In" } else { "NotIn" };
            json!({"key": field, "operator": operator, "values": [value]})
        });
        told.collect()
    }

    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(field, ..)| field.as_str())
    }

    /// `field` answers what an object has; absent fields are empty.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> &'a str) -> bool {
        self.0
            .iter()
            .all(|(name, value, equal)| (field(name) == value) == *equal)
    }

    /// The value a field must equal, if the selector says so.
    pub fn exactly(&self, field: &str) -> Option<&str> {
        self.0
            .iter()
            .find_map(|(name, value, equal)| (name == field && *equal).then_some(value.as_str()))
    }
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
        } else if let Some(last) = terms.last_mut() {
            last.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    terms
}

fn unescape(value: &str) -> String {
    let mut out = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' {
            chars.next().unwrap_or('\\')
        } else {
            c
        });
    }
    out
}

/// The text of a `LabelSelector`, or of a plain map of labels, as Scale tells it.
pub fn render(selector: &Value) -> String {
    let plain = selector.get("matchLabels").is_none() && selector.get("matchExpressions").is_none();
    let labels = if plain { selector } else { &selector["matchLabels"] };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut parts: Vec<(String, String)> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), format!("{key}={}", text(value))))
        .collect();
    for requirement in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = text(&requirement["key"]);
        let mut values: Vec<String> = requirement["values"]
            .as_array()
            .into_iter()
            .flatten()
            .map(text)
            .collect();
        values.sort();
        let values = values.join(",");
        let part = match requirement["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.clone(),
            _ => format!("!{key}"),
        };
        parts.push((key, part));
    }
    parts.sort();
    parts
        .into_iter()
        .map(|(_, part)| part)
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(selector: &str, labels: &[(&str, &str)]) -> bool {
        let selector = LabelSelector::parse(selector).unwrap();
        selector.matches(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
    }

    #[test]
    fn label_selectors_match() {
        let object = [("app", "web"), ("tier", "front"), ("n", "5"), ("empty", "")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app = web , tier != back", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (web, db)", true),
            ("app notin (web,db)", false),
            ("missing notin (a)", true),
            ("app", true),
            ("!app", false),
            ("!missing,app", true),
            ("missing", false),
            ("n>4", true),
            ("n<5", false),
            ("empty=", true),
            ("empty=,app=web", true),
            ("empty in ()", true),
            ("kubernetes.io/x!=y,in in (a)", false),
        ] {
            assert_eq!(labels(selector, &object), expected, "{selector}");
        }
    }

    #[test]
    fn broken_label_selectors_are_refused() {
        for selector in [
            "a in b", "a=b c", "a in (b", "=b", "a=-b", "a,,b", "n>x", "a b", "/x=y", "a=b,",
        ] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }

    #[test]
    fn selector_objects_match() {
        let selector = serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}, {"key": "x", "operator": "DoesNotExist"}],
        });
        let selector = LabelSelector::from_object(&selector);
        assert!(selector.matches(|key| (key == "app").then_some("web")));
        assert!(!selector.matches(|_| Some("web")));
    }

    #[test]
    fn field_selectors_match() {
        let field = |name: &str| match name {
            "metadata.name" => "a,b",
            "status.phase" => "Running",
            _ => "",
        };
        for (selector, expected) in [
            ("", true),
            ("metadata.name=a\\,b", true),
            ("metadata.name==a\\,b,status.phase!=Failed", true),
            ("status.phase=Pending", false),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
        ] {
            assert_eq!(
                FieldSelector::parse(selector).unwrap().matches(field),
                expected,
                "{selector}"
            );
        }
        assert!(FieldSelector::parse("nonsense").is_err());
        let selector = FieldSelector::parse("metadata.name=x,spec.a!=b").unwrap();
        assert_eq!(selector.exactly("metadata.name"), Some("x"));
        assert_eq!(selector.exactly("spec.a"), None);
    }
}
