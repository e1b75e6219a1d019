//! Sets of fields, and their `FieldsV1` form (structured-merge-diff's `fieldpath`).

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

/// One step of a path, in its `FieldsV1` spelling: `f:name`, `k:{"name":"x"}`, `v:"x"`, `i:0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathElement(String);

impl PathElement {
    pub fn field(name: &str) -> Self {
        Self(format!("f:{name}"))
    }

    /// An item of a list map, by its keys.
    pub fn key(keys: Map<String, Value>) -> Self {
        Self(format!("k:{}", Value::Object(keys)))
    }

    /// An item of a set.
    pub fn value(value: &Value) -> Self {
        Self(format!("v:{value}"))
    }

    /// From the key of a `FieldsV1` object, brought into canonical spelling.
    fn parse(text: &str) -> Result<Self, String> {
        let invalid = |why: &str| format!("invalid path element {text:?}: {why}");
        let canonical = |rest: &str| serde_json::from_str::<Value>(rest).map_err(|e| invalid(&e.to_string()));
        match text.split_once(':') {
            Some(("f", _)) => Ok(Self(text.to_owned())),
            Some(("v", rest)) => Ok(Self::value(&canonical(rest)?)),
            Some(("k", rest)) => match canonical(rest)? {
                Value::Object(keys) => Ok(Self::key(keys)),
                _ => Err(invalid("keys are no object")),
            },
            Some(("i", rest)) => rest
                .parse::<u64>()
                .map(|index| Self(format!("i:{index}")))
                .map_err(|e| invalid(&e.to_string())),
            _ => Err(invalid("unknown kind")),
        }
    }

    pub fn field_name(&self) -> Option<&str> {
        self.0.strip_prefix("f:")
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

/// `.spec`, `[name="x"]`, `[="x"]`, `[0]`
impl fmt::Display for PathElement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_at(2) {
            ("f:", name) => write!(out, ".{name}"),
            ("v:", value) => write!(out, "[={value}]"),
            ("k:", keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(out, "[{}]", keys.join(","))
            }
            (_, index) => write!(out, "[{index}]"),
        }
    }
}

/// `.spec.containers[name="c"].image`
pub fn display(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}

/// A set of paths; a path may be a member, have members below it, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(pub(super) BTreeMap<PathElement, Node>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub member: bool,
    pub below: FieldSet,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The empty path is no member of any set.
    pub fn insert(&mut self, path: &[PathElement]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let node = self.0.entry(first.clone()).or_default();
        if rest.is_empty() {
            node.member = true;
        } else {
            node.below.insert(rest);
        }
    }

    /// Without the element itself; what is below it stays a member.
    pub fn keep(&mut self, element: &PathElement) {
        if let Some(node) = self.0.get_mut(element) {
            node.member = false;
        }
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        for (element, theirs) in &other.0 {
            let node = union.0.entry(element.clone()).or_default();
            node.member |= theirs.member;
            node.below = node.below.union(&theirs.below);
        }
        union
    }

    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |ours, theirs| Node {
            member: ours.member && theirs.is_some_and(|node| node.member),
            below: theirs.map_or_else(Self::default, |node| ours.below.intersection(&node.below)),
        })
    }

    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |ours, theirs| match theirs {
            None => ours.clone(),
            Some(theirs) => Node {
                member: ours.member && !theirs.member,
                below: ours.below.difference(&theirs.below),
            },
        })
    }

    fn combine(&self, other: &Self, choose: impl Fn(&Node, Option<&Node>) -> Node) -> Self {
        let nodes = self.0.iter().map(|(element, ours)| {
            let chosen = choose(ours, other.0.get(element));
            (element.clone(), chosen)
        });
        Self(nodes.filter(|(_, node)| !node.is_empty()).collect())
    }

    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut paths = Vec::new();
        self.collect(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect(&self, prefix: &mut Vec<PathElement>, paths: &mut Vec<Vec<PathElement>>) {
        for (element, node) in &self.0 {
            prefix.push(element.clone());
            if node.member {
                paths.push(prefix.clone());
            }
            node.below.collect(prefix, paths);
            prefix.pop();
        }
    }

    pub fn to_fields_v1(&self) -> Value {
        let entry = |(element, node): (&PathElement, &Node)| {
            let mut below = node.below.to_fields_v1();
            if let (true, Value::Object(fields)) = (node.member && !node.below.is_empty(), &mut below) {
                fields.insert(".".into(), Value::Object(Map::new()));
            }
            (element.0.clone(), below)
        };
        Value::Object(self.0.iter().map(entry).collect())
    }

    pub fn from_fields_v1(fields: &Value) -> Result<Self, String> {
        let mut set = Self::default();
        let fields = fields.as_object().ok_or("fieldsV1 is no object")?;
        for (text, value) in fields.iter().filter(|(text, _)| *text != ".") {
            let below = Self::from_fields_v1(value)?;
            let member = below.is_empty() || value.get(".").is_some();
            set.0.insert(PathElement::parse(text)?, Node { member, below });
        }
        Ok(set)
    }
}

/// Whether encoded fields hold the path, without decoding the rest of them.
pub(super) fn holds(fields_v1: &Value, path: &[PathElement]) -> bool {
    let node = path
        .iter()
        .try_fold(fields_v1, |node, element| node.get(element.text()));
    node.and_then(Value::as_object)
        .is_some_and(|node| node.is_empty() || node.contains_key("."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(fields: Value) -> FieldSet {
        FieldSet::from_fields_v1(&fields).expect("valid")
    }

    #[test]
    fn fields_v1_round_trips_in_canonical_spelling() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:a:b": {}}}, "f:spec": {
            "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}, "f:list": {"v:\"x\"": {}, "i:3": {}}}});
        assert_eq!(set(fields.clone()).to_fields_v1(), fields);
        let loose = json!({"k:{ \"b\": 1, \"a\": \"x\" }": {}});
        assert_eq!(set(loose).to_fields_v1(), json!({"k:{\"a\":\"x\",\"b\":1}": {}}));
        for wrong in [
            json!({"x:a": {}}),
            json!({"k:[]": {}}),
            json!({"f:a": 1}),
            json!([]),
        ] {
            assert!(FieldSet::from_fields_v1(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_read_as_upstream_prints_them() {
        let fields = set(
            json!({"f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {"f:name": {}}},
            "f:set": {"v:\"x\"": {}, "v:1": {}, "i:0": {}}}}),
        );
        let paths: Vec<String> = fields.paths().iter().map(|path| display(path)).collect();
        assert_eq!(
            paths,
            [
                ".spec.ports[port=80,protocol=\"TCP\"].name",
                ".spec.set[0]",
                ".spec.set[=\"x\"]",
                ".spec.set[=1]"
            ]
        );
    }

    #[test]
    fn sets_are_sets_of_members() {
        let left = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let right = set(json!({"f:a": {"f:b": {}}, "f:d": {}}));
        for (result, expected) in [
            (
                left.union(&right),
                json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}, "f:d": {}}),
            ),
            (left.intersection(&right), json!({"f:a": {"f:b": {}}})),
            (left.difference(&right), json!({"f:a": {}, "f:c": {}})),
            (right.difference(&left), json!({"f:d": {}})),
            (left.difference(&left), json!({})),
        ] {
            assert_eq!(result.to_fields_v1(), expected);
        }
    }

    #[test]
    fn encoded_fields_are_searched_as_they_are() {
        let fields = json!({"f:a": {".": {}, "f:b": {}}, "f:c": {"f:d": {}}});
        let path = |names: &[&str]| {
            names
                .iter()
                .map(|name| PathElement::field(name))
                .collect::<Vec<_>>()
        };
        for (names, held) in [
            (&["a"][..], true),
            (&["a", "b"], true),
            (&["c"], false),
            (&["c", "d"], true),
            (&["c", "d", "e"], false),
        ] {
            assert_eq!(holds(&fields, &path(names)), held, "{names:?}");
        }
    }
}
