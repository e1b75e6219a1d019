//! Nobody grants by RBAC what they do not hold themselves. Rules are broken into their smallest parts, and each part
//! must be covered by one held rule. Semantics and texts: upstream's `rbac/validation`.

use std::collections::{BTreeMap, BTreeSet};

use crate::rbac::{ResourceRules, Rule};
use crate::user::UserInfo;

/// Upstream's words when `wanted` asks for more than `held` has.
pub(crate) fn confirm(user: &UserInfo, held: &ResourceRules, wanted: &[Rule]) -> Result<(), String> {
    let missing = missing(&held.rules, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let lines: BTreeSet<String> = compact(missing).iter().map(describe).collect();
    let lines: Vec<String> = lines.into_iter().collect();
    let mut message = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lines.join("\n")
    );
    match held.errors.as_slice() {
        [] => {}
        [one] => message.push_str(&format!("; resolution errors: [{one}]")),
        many => message.push_str(&format!("; resolution errors: [[{}]]", many.join(", "))),
    }
    Err(message)
}

/// The parts of `wanted` that no rule of `held` covers.
fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(break_down)
        .filter(|part| !held.iter().any(|rule| covers(rule, part)))
        .collect()
}

/// One verb on one resource (of one name) or one path each.
fn break_down(rule: &Rule) -> Vec<Rule> {
    let one = |value: &String| vec![value.clone()];
    let names: Vec<Vec<String>> = if rule.resource_names.is_empty() {
        vec![Vec::new()]
    } else {
        rule.resource_names.iter().map(one).collect()
    };
    let mut parts = Vec::new();
    for group in &rule.api_groups {
        for resource in &rule.resources {
            for verb in &rule.verbs {
                parts.extend(names.iter().map(|name| Rule {
                    verbs: one(verb),
                    api_groups: one(group),
                    resources: one(resource),
                    resource_names: name.clone(),
                    non_resource_urls: Vec::new(),
                }));
            }
        }
    }
    for url in &rule.non_resource_urls {
        parts.extend(rule.verbs.iter().map(|verb| Rule {
            verbs: one(verb),
            non_resource_urls: one(url),
            ..Rule::default()
        }));
    }
    parts
}

/// `part` has at most one value a field.
fn covers(held: &Rule, part: &Rule) -> bool {
    let all = |held: &[String], wanted: &[String]| {
        held.iter().any(|value| value == "*") || wanted.iter().all(|value| held.contains(value))
    };
    all(&held.verbs, &part.verbs)
        && all(&held.api_groups, &part.api_groups)
        && part
            .resources
            .iter()
            .all(|resource| covers_resource(&held.resources, resource))
        && part
            .non_resource_urls
            .iter()
            .all(|url| held.non_resource_urls.iter().any(|held| covers_url(held, url)))
        && (held.resource_names.is_empty()
            || (!part.resource_names.is_empty()
                && part
                    .resource_names
                    .iter()
                    .all(|name| held.resource_names.contains(name))))
}

fn covers_resource(held: &[String], wanted: &str) -> bool {
    let has = |name: &str| held.iter().any(|held| held == name);
    has("*")
        || has(wanted)
        || wanted
            .split_once('/')
            .is_some_and(|(_, subresource)| has(&format!("*/{subresource}")))
}

fn covers_url(held: &str, wanted: &str) -> bool {
    held == wanted || (held.ends_with('*') && wanted.starts_with(held.trim_end_matches('*')))
}

/// Verbs on the same thing are told in one line.
fn compact(parts: Vec<Rule>) -> Vec<Rule> {
    let (simple, mut rest): (Vec<Rule>, Vec<Rule>) = parts
        .into_iter()
        .partition(|rule| rule.non_resource_urls.is_empty());
    let mut merged: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for rule in simple {
        let verbs = merged
            .entry((rule.api_groups, rule.resources, rule.resource_names))
            .or_default();
        for verb in rule.verbs {
            if !verbs.contains(&verb) {
                verbs.push(verb);
            }
        }
    }
    rest.extend(
        merged
            .into_iter()
            .map(|((api_groups, resources, resource_names), verbs)| Rule {
                verbs,
                api_groups,
                resources,
                resource_names,
                non_resource_urls: Vec::new(),
            }),
    );
    rest
}

fn describe(rule: &Rule) -> String {
    let fields = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ];
    let fields: Vec<String> = fields
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(name, values)| format!("{name}:{}", quoted(values)))
        .collect();
    format!("{{{}}}", fields.join(", "))
}

/// Go's `%q` of strings.
fn quoted(values: &[String]) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    format!("[{}]", values.join(" "))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rules(value: Value) -> Vec<Rule> {
        serde_json::from_value(value).unwrap()
    }

    fn on(verbs: &[&str], group: &str, resources: &[&str], names: &[&str]) -> Value {
        json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "resourceNames": names})
    }

    fn paths(verbs: &[&str], urls: &[&str]) -> Value {
        json!({"verbs": verbs, "nonResourceURLs": urls})
    }

    #[test]
    fn held_rules_cover_what_upstream_says() {
        let all = on(&["*"], "*", &["*"], &[]);
        let cases = [
            (
                json!([all]),
                on(&["get"], "apps", &["deployments/scale"], &["d"]),
                true,
            ),
            (json!([all]), paths(&["get"], &["/metrics"]), false),
            (
                json!([on(&["*"], "", &["pods"], &[])]),
                on(&["*"], "", &["pods"], &[]),
                true,
            ),
            (
                json!([on(&["get"], "", &["pods"], &[])]),
                on(&["*"], "", &["pods"], &[]),
                false,
            ),
            (
                json!([on(&["get"], "", &["pods"], &[])]),
                on(&["get"], "apps", &["pods"], &[]),
                false,
            ),
            (
                json!([on(&["get"], "", &["pods"], &[])]),
                on(&["get"], "", &["pods/log"], &[]),
                false,
            ),
            (
                json!([on(&["get"], "", &["*/log"], &[])]),
                on(&["get"], "", &["pods/log"], &[]),
                true,
            ),
            (
                json!([on(&["get"], "", &["*/log"], &[])]),
                on(&["get"], "", &["log"], &[]),
                false,
            ),
            (
                json!([
                    on(&["get"], "", &["pods"], &[]),
                    on(&["list"], "", &["pods", "nodes"], &[])
                ]),
                on(&["get", "list"], "", &["pods"], &[]),
                true,
            ),
            (
                json!([
                    on(&["get"], "", &["pods"], &["a"]),
                    on(&["get"], "", &["pods"], &["b"])
                ]),
                on(&["get"], "", &["pods"], &["a", "b"]),
                true,
            ),
            (
                json!([on(&["get"], "", &["pods"], &["a"])]),
                on(&["get"], "", &["pods"], &[]),
                false,
            ),
            (
                json!([on(&["get"], "", &["pods"], &[])]),
                on(&["get"], "", &["pods"], &["a"]),
                true,
            ),
            (
                json!([paths(&["get"], &["/apis/*"])]),
                paths(&["get"], &["/apis/apps", "/apis/*"]),
                true,
            ),
            (
                json!([paths(&["get"], &["/apis/*"])]),
                paths(&["get"], &["/apis"]),
                false,
            ),
            (json!([paths(&["get"], &["*"])]), paths(&["get"], &["/x"]), true),
            (
                json!([paths(&["get"], &["/x"])]),
                paths(&["get", "post"], &["/x"]),
                false,
            ),
            (json!([]), json!({"verbs": ["get"]}), true),
        ];
        for (held, wanted, covered) in cases {
            let missing = missing(&rules(held.clone()), &rules(json!([wanted])));
            assert_eq!(missing.is_empty(), covered, "{held} covers {wanted}: {missing:?}");
        }
    }

    #[test]
    fn what_is_missing_is_told_as_upstream_does() {
        let user = UserInfo::new("bob", &["dev", "system:authenticated"]);
        let held = ResourceRules {
            rules: rules(json!([on(&["get"], "", &["pods"], &[])])),
            errors: vec!["e".into()],
        };
        let wanted = rules(json!([
            paths(&["get"], &["/metrics"]),
            on(&["get", "list", "watch"], "", &["secrets", "pods"], &[]),
            on(&["delete"], "apps", &["deployments"], &["d"]),
        ]));
        assert_eq!(
            confirm(&user, &held, &wanted).unwrap_err(),
            concat!(
                r#"user "bob" (groups=["dev" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:"#,
                "\n",
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["list" "watch"]}"#,
                "\n",
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list" "watch"]}"#,
                "\n",
                r#"{APIGroups:["apps"], Resources:["deployments"], ResourceNames:["d"], Verbs:["delete"]}"#,
                "\n",
                r#"{NonResourceURLs:["/metrics"], Verbs:["get"]}; resolution errors: [e]"#
            )
        );
        assert_eq!(confirm(&user, &held, &held.rules), Ok(()));
    }
}
