//! The simple JSONPath of printer columns, scale sub-resources and selectable fields.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// Negative counts from the end.
    Index(i64),
    All,
    /// `[?(@.type=="Ready")]`
    Filter(JsonPath, Comparison, Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    LessOrEqual,
    GreaterOrEqual,
    Less,
    Greater,
}

const COMPARISONS: &[(&str, Comparison)] = &[
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<=", Comparison::LessOrEqual),
    (">=", Comparison::GreaterOrEqual),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
];

impl JsonPath {
    /// `.spec.replicas`, `.items[0].name`, `.status.conditions[?(@.type=="Ready")].status`
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        let mut rest = text.trim();
        if !rest.starts_with(['.', '[']) {
            return Err("must be a simple json path starting with .".into());
        }
        while !rest.is_empty() {
            if let Some(tail) = rest.strip_prefix('.') {
                let (name, tail) = field_name(tail);
                match name.as_str() {
                    "" if tail.is_empty() && steps.is_empty() => {}
                    "" if tail.starts_with('[') => {}
                    "" => return Err("must be a json path in the dot notation".into()),
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Field(name)),
                }
                rest = tail;
            } else if let Some(tail) = rest.strip_prefix('[') {
                let end = bracket_end(tail).ok_or("unterminated array")?;
                steps.push(bracket(tail[..end].trim())?);
                rest = &tail[end + 1..];
            } else {
                return Err(format!("unexpected text in the json path: {rest}"));
            }
        }
        Ok(Self(steps))
    }

    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.of(value)).collect();
        }
        found
    }

    /// The field names of a path without brackets.
    pub fn fields(&self) -> Option<Vec<&str>> {
        let name = |step: &'_ Step| matches!(step, Step::Field(_));
        self.0.iter().all(name).then(|| {
            let names = self.0.iter().filter_map(|step| match step {
                Step::Field(name) => Some(name.as_str()),
                _ => None,
            });
            names.collect()
        })
    }
}

impl Step {
    fn of<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Self::Field(name), Value::Object(fields)) => fields.get(name).into_iter().collect(),
            (Self::Index(index), Value::Array(items)) => {
                let at = if *index < 0 {
                    index + items.len() as i64
                } else {
                    *index
                };
                usize::try_from(at)
                    .ok()
                    .and_then(|at| items.get(at))
                    .into_iter()
                    .collect()
            }
            (Self::All, Value::Array(items)) => items.iter().collect(),
            (Self::All, Value::Object(fields)) => fields.values().collect(),
            (Self::Filter(path, comparison, wanted), Value::Array(items)) => items
                .iter()
                .filter(|item| {
                    path.find(item)
                        .first()
                        .is_some_and(|found| comparison.holds(found, wanted))
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

impl Comparison {
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = match (left, right) {
            (Value::Number(left), Value::Number(right)) => left.as_f64().partial_cmp(&right.as_f64()),
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            _ => (left == right).then_some(std::cmp::Ordering::Equal),
        };
        match self {
            Self::Equal => order.is_some_and(|order| order.is_eq()),
            Self::NotEqual => !order.is_some_and(|order| order.is_eq()),
            Self::LessOrEqual => order.is_some_and(|order| order.is_le()),
            Self::GreaterOrEqual => order.is_some_and(|order| order.is_ge()),
            Self::Less => order.is_some_and(|order| order.is_lt()),
            Self::Greater => order.is_some_and(|order| order.is_gt()),
        }
    }
}

/// Up to the next dot or bracket; a backslash takes the next character as it is.
fn field_name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '.' | '[' => return (name, &text[at..]),
            '\\' => name.extend(letters.next().map(|(_, escaped)| escaped)),
            _ => name.push(letter),
        }
    }
    (name, "")
}

/// Where the bracket closes, past quoted text and inner brackets.
fn bracket_end(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(letter),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Result<Step, String> {
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = quoted(text) {
        return Ok(Step::Field(name.replace("\\.", ".")));
    }
    if let Ok(index) = text.parse() {
        return Ok(Step::Index(index));
    }
    let unknown = || format!("invalid array index {text}");
    let filter = text
        .strip_prefix("?(")
        .and_then(|text| text.strip_suffix(')'))
        .ok_or_else(unknown)?;
    let (sign, comparison) = COMPARISONS
        .iter()
        .find(|(sign, _)| filter.contains(sign))
        .ok_or_else(unknown)?;
    let (left, right) = filter.split_once(sign).ok_or_else(unknown)?;
    let path = JsonPath::parse(left.trim().strip_prefix('@').ok_or_else(unknown)?)?;
    let right = right.trim();
    let wanted = match quoted(right) {
        Some(text) => Value::from(text),
        None => serde_json::from_str(right).map_err(|_| unknown())?,
    };
    Ok(Step::Filter(path, *comparison, wanted))
}

fn quoted(text: &str) -> Option<&str> {
    ['"', '\''].iter().find_map(|quote| {
        let inner = text.strip_prefix(*quote)?;
        inner.strip_suffix(*quote)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds_what_kubectl_would() {
        let object = json!({"metadata": {"labels": {"a.b/c": "x"}}, "spec": {"replicas": 3, "list": [{"n": 1}, {"n": 2}]},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        for (path, expected) in [
            (".spec.replicas", vec![json!(3)]),
            (".spec.list[1].n", vec![json!(2)]),
            (".spec.list[-1].n", vec![json!(2)]),
            (".spec.list[*].n", vec![json!(1), json!(2)]),
            (".spec.list[?(@.n>1)].n", vec![json!(2)]),
            (
                r#".status.conditions[?(@.type=="Ready")].status"#,
                vec![json!("True")],
            ),
            (r".metadata.labels.a\.b/c", vec![json!("x")]),
            (r".metadata.labels['a\.b/c']", vec![json!("x")]),
            (".spec.nothing.here", vec![]),
        ] {
            let found = JsonPath::parse(path).expect(path).find(&object);
            assert_eq!(found, expected.iter().collect::<Vec<_>>(), "{path}");
        }
        for bad in ["spec", ".a[", ".a[?(x)]", ".a..b", ".a[b]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }
}
