//! Label selectors and node selectors, matched without building intermediate structures.

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use std::collections::BTreeMap;

/// Labels as every object's metadata has them.
pub type Labels = BTreeMap<String, String>;

/// An empty selector matches everything. An operator upstream doesn't know matches nothing.
pub fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(|wanted| matches_map(wanted, labels))
        && selector.match_expressions.iter().flatten().all(|r| {
            requirement_matches(
                &r.key,
                &r.operator,
                r.values.as_deref().unwrap_or_default(),
                labels,
            )
        })
}

/// Reads upstream's selector strings: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
pub fn parse(text: &str) -> Result<LabelSelector, ParseError> {
    let mut rest = text.trim();
    let mut requirements = Vec::new();
    while !rest.is_empty() {
        // Commas inside parentheses separate values.
        let mut depth = 0;
        let end = rest.find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ',' && depth == 0
        });
        let (one, others) = end.map_or((rest, ""), |at| (&rest[..at], &rest[at + 1..]));
        requirements.push(parse_requirement(one.trim()).ok_or_else(|| ParseError(one.trim().to_owned()))?);
        rest = others.trim_start();
    }
    Ok(LabelSelector {
        match_labels: None,
        match_expressions: Some(requirements),
    })
}

/// What is no requirement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement: {0:?}")]
pub struct ParseError(String);

fn parse_requirement(text: &str) -> Option<LabelSelectorRequirement> {
    let make = |key: &str, operator: &str, values: Vec<String>| {
        let key = key.trim();
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        (!key.is_empty() && key.chars().all(legal)).then(|| LabelSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: (!values.is_empty()).then_some(values),
        })
    };
    for (sign, operator) in [("!=", "NotIn"), ("==", "In"), ("=", "In")] {
        if let Some((key, value)) = text.split_once(sign) {
            return make(key, operator, vec![value.trim().to_owned()]);
        }
    }
    if let Some((head, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let (key, operator) = head.trim_end().rsplit_once(char::is_whitespace)?;
        let operator = match operator {
            "in" => "In",
            "notin" => "NotIn",
            _ => return None,
        };
        return make(key, operator, values);
    }
    match text.strip_prefix('!') {
        Some(key) => make(key, "DoesNotExist", Vec::new()),
        None => make(text, "Exists", Vec::new()),
    }
}

/// As [`matches`], for places where an absent selector selects nothing.
pub fn matches_some(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    selector.is_some_and(|s| matches(s, labels))
}

/// True when the selector says nothing, and so matches everything.
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Plain equality selectors (`Service.spec.selector`, `nodeSelector`).
pub fn matches_map(wanted: &Labels, labels: Option<&Labels>) -> bool {
    wanted
        .iter()
        .all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
}

/// Required node affinity: terms are alternatives, and an empty term matches no node.
pub fn matches_node(selector: &NodeSelector, node: &Node) -> bool {
    selector
        .node_selector_terms
        .iter()
        .any(|term| matches_node_term(term, node))
}

/// One term: all its expressions and field requirements hold, and there is at least one.
pub fn matches_node_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let name = Labels::from_iter(
        node.metadata
            .name
            .iter()
            .map(|n| ("metadata.name".to_owned(), n.clone())),
    );
    let holds = |r: &NodeSelectorRequirement, labels| {
        requirement_matches(
            &r.key,
            &r.operator,
            r.values.as_deref().unwrap_or_default(),
            labels,
        )
    };
    expressions
        .iter()
        .all(|r| holds(r, node.metadata.labels.as_ref()))
        && fields.iter().all(|r| holds(r, Some(&name)))
}

fn requirement_matches(key: &str, operator: &str, values: &[String], labels: Option<&Labels>) -> bool {
    let present = labels.and_then(|l| l.get(key));
    match operator {
        "In" => present.is_some_and(|v| values.contains(v)),
        "NotIn" => present.is_none_or(|v| !values.contains(v)),
        "Exists" => present.is_some(),
        "DoesNotExist" => present.is_none(),
        "Gt" | "Lt" => {
            let number = |text: Option<&String>| text.and_then(|t| t.parse::<i64>().ok());
            let bound = if values.len() == 1 { values.first() } else { None };
            let (Some(have), Some(bound)) = (number(present), number(bound)) else {
                return false;
            };
            if operator == "Gt" {
                have > bound
            } else {
                have < bound
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    #[test]
    fn selector_strings() {
        let have = labels(&[("app", "web"), ("tier", "front"), ("a.b/c", "")]);
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app == web , tier!=back", true),
            ("app=web,tier=back", false),
            ("app in (api, web),tier notin (back)", true),
            ("app in (api),tier", false),
            ("tier,!other", true),
            ("!app", false),
            ("a.b/c=", true),
            ("missing!=x", true),
        ] {
            let selector = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(matches(&selector, Some(&have)), expected, "{text}");
        }
        for text in ["a b", "in (x)", "a within (x)", "=x", "a=b,,c", "a in (x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn label_selectors() {
        let have = labels(&[("app", "web"), ("tier", "front")]);
        for (selector, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "web", "x": "y"}}), false),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["api", "web"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["web"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}),
                false,
            ),
            (
                json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["w"]}]}),
                false,
            ),
        ] {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(matches(&parsed, Some(&have)), expected, "{selector}");
        }
        assert!(!matches_some(None, Some(&have)));
    }

    #[test]
    fn node_selectors() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"disk": "ssd", "cores": "8"}}
        }))
        .unwrap();
        for (terms, expected) in [
            (json!([]), false),
            (json!([{}]), false),
            (
                json!([{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}]),
                true,
            ),
            (
                json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["7"]}]}]),
                true,
            ),
            (
                json!([{"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["8"]}]}]),
                false,
            ),
            (
                json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["x"]}]}]),
                false,
            ),
            (
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]),
                true,
            ),
            (
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]},
                    {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]),
                true,
            ),
        ] {
            let selector: NodeSelector = serde_json::from_value(json!({"nodeSelectorTerms": terms})).unwrap();
            assert_eq!(matches_node(&selector, &node), expected, "{terms}");
        }
    }
}
