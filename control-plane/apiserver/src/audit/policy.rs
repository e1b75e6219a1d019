//! audit.k8s.io/v1 Policy: which requests are told of, how much, at which stages
//! (upstream: `k8s.io/apiserver/pkg/audit/policy`).

use auth::UserInfo;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::configuration::Format;
use crate::request_info::RequestInfo;

pub const FILE: Format = Format {
    group: "audit.k8s.io",
    versions: &["v1"],
    kind: "Policy",
    fields: &[
        (
            "",
            &[
                "apiVersion",
                "kind",
                "metadata",
                "rules",
                "omitStages",
                "omitManagedFields",
            ],
        ),
        (
            "rules",
            &[
                "level",
                "users",
                "userGroups",
                "verbs",
                "resources",
                "namespaces",
                "nonResourceURLs",
                "omitStages",
                "omitManagedFields",
            ],
        ),
        ("rules.resources", &["group", "resources", "resourceNames"]),
    ],
};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

/// What the policy makes of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Resources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

impl Policy {
    /// The error names the field.
    pub fn parse(policy: &Value) -> Result<Self, String> {
        for (index, rule) in policy["rules"].as_array().into_iter().flatten().enumerate() {
            Rule::check(rule, &format!("rules[{index}]"))?;
        }
        check_stages(&policy["omitStages"], "omitStages")?;
        let policy: Self = serde_json::from_value(policy.clone()).map_err(|error| error.to_string())?;
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".into());
        }
        Ok(policy)
    }

    /// The first rule that matches decides; none: nothing is told. `user` is None when nobody was recognized.
    pub fn judge(&self, user: Option<&UserInfo>, info: &RequestInfo) -> Verdict {
        let rule = self.rules.iter().find(|rule| rule.matches(user, info));
        let mut omit_stages = self.omit_stages.clone();
        omit_stages.extend(rule.into_iter().flat_map(|rule| rule.omit_stages.iter().copied()));
        Verdict {
            level: rule.map_or(Level::None, |rule| rule.level),
            omit_stages,
            omit_managed_fields: rule
                .and_then(|rule| rule.omit_managed_fields)
                .unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn check(rule: &Value, path: &str) -> Result<(), String> {
        const LEVELS: [&str; 4] = ["Metadata", "None", "Request", "RequestResponse"];
        match rule["level"].as_str() {
            None | Some("") => return Err(format!("{path}.level: Required value")),
            Some(level) if !LEVELS.contains(&level) => {
                return Err(unsupported(&format!("{path}.level"), level, &LEVELS));
            }
            Some(_) => {}
        }
        check_stages(&rule["omitStages"], &format!("{path}.omitStages"))?;
        let given = |field: &str| rule[field].as_array().is_some_and(|list| !list.is_empty());
        if given("nonResourceURLs") {
            if given("resources") || given("namespaces") {
                return Err(format!(
                    "{path}.nonResourceURLs: Invalid value: {}: rules cannot apply to both regular resources and non-resource URLs",
                    rule["nonResourceURLs"]
                ));
            }
            let urls = rule["nonResourceURLs"].as_array().into_iter().flatten();
            for (index, url) in urls.enumerate() {
                let url = url.as_str().unwrap_or_default();
                let field = format!("{path}.nonResourceURLs[{index}]: Invalid value: {url:?}");
                if url == "*" {
                    continue;
                }
                if !url.starts_with('/') {
                    return Err(format!(
                        "{field}: non-resource URL rules must begin with a '/' character"
                    ));
                }
                if url.trim_end_matches('*').contains('*') || url.ends_with("**") {
                    return Err(format!(
                        "{field}: non-resource URL wildcards '*' must be the final character of the rule"
                    ));
                }
            }
        }
        Ok(())
    }

    fn matches(&self, user: Option<&UserInfo>, info: &RequestInfo) -> bool {
        let has = |list: &[String], value: &str| list.iter().any(|item| item == value);
        let by_user = self.users.is_empty() || user.is_some_and(|user| has(&self.users, &user.name));
        let by_group = self.user_groups.is_empty()
            || user.is_some_and(|user| user.groups.iter().any(|group| has(&self.user_groups, group)));
        if !by_user || !by_group || !(self.verbs.is_empty() || has(&self.verbs, &info.verb)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            let in_namespace = self.namespaces.is_empty() || has(&self.namespaces, &info.namespace);
            return info.is_resource
                && in_namespace
                && (self.resources.is_empty()
                    || self.resources.iter().any(|resources| resources.matches(info)));
        }
        self.non_resource_urls.is_empty()
            || (!info.is_resource && self.non_resource_urls.iter().any(|url| fits(url, &info.path)))
    }
}

impl Resources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != info.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.resource_names.is_empty() || self.resource_names.contains(&info.name);
        let subresource = info.subresource.as_str();
        named
            && self.resources.iter().any(|wanted| match wanted.split_once('/') {
                None => wanted == "*" || (subresource.is_empty() && *wanted == info.resource),
                Some(("*", sub)) => !subresource.is_empty() && sub == subresource,
                Some((resource, "*")) => resource == info.resource,
                Some((resource, sub)) => (resource, sub) == (&info.resource, subresource),
            })
    }
}

fn fits(url: &str, path: &str) -> bool {
    match url.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == url,
    }
}

fn check_stages(stages: &Value, path: &str) -> Result<(), String> {
    const STAGES: [&str; 4] = ["Panic", "RequestReceived", "ResponseComplete", "ResponseStarted"];
    for (index, stage) in stages.as_array().into_iter().flatten().enumerate() {
        let stage = stage.as_str().unwrap_or_default();
        if !STAGES.contains(&stage) {
            return Err(unsupported(&format!("{path}[{index}]"), stage, &STAGES));
        }
    }
    Ok(())
}

fn unsupported(path: &str, value: &str, supported: &[&str]) -> String {
    let supported: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
    format!(
        "{path}: Unsupported value: {value:?}: supported values: {}",
        supported.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;

    fn policy(rules: Value) -> Result<Policy, String> {
        Policy::parse(&json!({"rules": rules}))
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let policy = policy(json!([
            {"level": "None", "users": ["system:kube-proxy"], "verbs": ["watch"]},
            {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets", "pods/status"]}], "omitStages": ["RequestReceived"]},
            {"level": "Request", "resources": [{"group": "", "resources": ["pods/*"]}]},
            {"level": "RequestResponse", "resources": [{"group": "apps", "resources": ["*/scale"]}, {"group": "batch"}]},
            {"level": "Metadata", "resources": [{"group": "", "resources": ["configmaps"], "resourceNames": ["one"]}]},
            {"level": "Request", "namespaces": ["kube-system"]},
            {"level": "Metadata", "nonResourceURLs": ["/healthz*", "/version"]},
            {"level": "Request", "userGroups": ["writers"], "omitManagedFields": true},
        ]))
        .unwrap();
        let proxy = UserInfo::new("system:kube-proxy", &[]);
        let writer = UserInfo::new("w", &["writers"]);
        let other = UserInfo::new("o", &[]);
        for (user, method, path, level) in [
            (&proxy, "GET", "/api/v1/services?watch=1", Level::None),
            (&other, "GET", "/api/v1/namespaces/a/secrets/s", Level::Metadata),
            (
                &other,
                "PUT",
                "/api/v1/namespaces/a/pods/p/status",
                Level::Metadata,
            ),
            (&other, "POST", "/api/v1/namespaces/a/pods/p/exec", Level::Request),
            (&other, "GET", "/api/v1/namespaces/a/pods/p", Level::Request),
            (
                &other,
                "PUT",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                Level::RequestResponse,
            ),
            (
                &other,
                "GET",
                "/apis/apps/v1/namespaces/a/deployments/d",
                Level::None,
            ),
            (&other, "GET", "/apis/batch/v1/jobs", Level::RequestResponse),
            (
                &other,
                "GET",
                "/api/v1/namespaces/a/configmaps/one",
                Level::Metadata,
            ),
            (&other, "GET", "/api/v1/namespaces/a/configmaps/two", Level::None),
            (
                &other,
                "GET",
                "/api/v1/namespaces/kube-system/configmaps/two",
                Level::Request,
            ),
            (&other, "GET", "/healthz/ping", Level::Metadata),
            (&other, "GET", "/version/", Level::None),
            (&writer, "GET", "/metrics", Level::Request),
        ] {
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            let info = RequestInfo::parse(&method.parse::<Method>().unwrap(), path, query);
            assert_eq!(policy.judge(Some(user), &info).level, level, "{method} {path}");
        }
        let info = RequestInfo::parse(&Method::GET, "/metrics", "");
        assert!(policy.judge(Some(&writer), &info).omit_managed_fields);
        assert_eq!(policy.judge(None, &info).level, Level::None);
        let info = RequestInfo::parse(&Method::GET, "/api/v1/secrets", "");
        assert_eq!(policy.judge(None, &info).omit_stages, [Stage::RequestReceived]);
    }

    #[test]
    fn bad_policies_name_their_field() {
        for (rules, expected) in [
            (json!([]), "loaded illegal policy with 0 rules"),
            (json!([{}]), "rules[0].level: Required value"),
            (
                json!([{"level": "Some"}]),
                "rules[0].level: Unsupported value: \"Some\": supported values: ",
            ),
            (
                json!([{"level": "None", "omitStages": ["x"]}]),
                "rules[0].omitStages[0]: Unsupported value: \"x\"",
            ),
            (
                json!([{"level": "None", "nonResourceURLs": ["x"]}]),
                "rules[0].nonResourceURLs[0]: Invalid value: \"x\": non-resource URL rules must begin",
            ),
            (
                json!([{"level": "None", "nonResourceURLs": ["/a*b"]}]),
                "rules[0].nonResourceURLs[0]: Invalid value: \"/a*b\": non-resource URL wildcards",
            ),
            (
                json!([{"level": "None", "nonResourceURLs": ["/a"], "namespaces": ["a"]}]),
                "rules[0].nonResourceURLs: Invalid value: ",
            ),
        ] {
            let told = policy(rules).unwrap_err();
            assert!(told.starts_with(expected), "{told}");
        }
    }
}
