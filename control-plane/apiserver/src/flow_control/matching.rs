//! Which FlowSchema a request belongs to, and to which of its flows.

use auth::UserInfo;
use serde_json::Value;

use crate::object;
use crate::request_info::RequestInfo;

/// A FlowSchema, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    pub name: String,
    pub uid: String,
    pub level: String,
    precedence: i64,
    distinguisher: String,
    rules: Vec<Value>,
}

impl Schema {
    pub fn of(schema: &Value) -> Self {
        let spec = &schema["spec"];
        Self {
            name: object::name(schema).to_owned(),
            uid: object::uid(schema).to_owned(),
            level: object::text(spec, "/priorityLevelConfiguration/name").to_owned(),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            distinguisher: object::text(spec, "/distinguisherMethod/type").to_owned(),
            rules: spec["rules"].as_array().cloned().unwrap_or_default(),
        }
    }

    /// The lower the earlier; names decide between equals.
    pub fn order(&self) -> (i64, &str) {
        (self.precedence, &self.name)
    }

    pub fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| {
            let any = |field: &str, fits: &dyn Fn(&Value) -> bool| items(&rule[field]).iter().any(fits);
            any("subjects", &|subject| is_subject(subject, user))
                && if info.is_resource {
                    any("resourceRules", &|rule| is_resource(rule, info))
                } else {
                    any("nonResourceRules", &|rule| is_path(rule, info))
                }
        })
    }

    /// What tells this schema's flows apart.
    pub fn distinguisher<'a>(&self, user: &'a UserInfo, info: &'a RequestInfo) -> &'a str {
        match self.distinguisher.as_str() {
            "ByUser" => &user.name,
            "ByNamespace" => &info.namespace,
            _ => "",
        }
    }
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn is_subject(subject: &Value, user: &UserInfo) -> bool {
    let name = |field: &str| subject[field]["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => name("user") == "*" || name("user") == user.name,
        Some("Group") => name("group") == "*" || user.in_group(name("group")),
        Some("ServiceAccount") => user.as_service_account().is_some_and(|(namespace, account)| {
            let wanted = name("serviceAccount");
            subject["serviceAccount"]["namespace"] == namespace && (wanted == "*" || wanted == account)
        }),
        _ => false,
    }
}

fn has(list: &Value, wanted: &str) -> bool {
    items(list).iter().any(|item| item == "*" || item == wanted)
}

fn is_resource(rule: &Value, info: &RequestInfo) -> bool {
    let resource = match info.subresource.as_str() {
        "" => info.resource.clone(),
        subresource => format!("{}/{subresource}", info.resource),
    };
    let place = if info.namespace.is_empty() {
        rule["clusterScope"] == true
    } else {
        has(&rule["namespaces"], &info.namespace)
    };
    place
        && has(&rule["verbs"], &info.verb)
        && has(&rule["apiGroups"], &info.group)
        && has(&rule["resources"], &resource)
}

fn is_path(rule: &Value, info: &RequestInfo) -> bool {
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(prefix) => info.path.starts_with(prefix),
        None => info.path == pattern,
    };
    has(&rule["verbs"], &info.verb)
        && items(&rule["nonResourceURLs"])
            .iter()
            .filter_map(Value::as_str)
            .any(fits)
}

#[cfg(test)]
mod tests {
    use super::super::objects;
    use super::*;

    #[test]
    fn requests_find_upstreams_schema() {
        let wanted = objects::wanted();
        let mut schemas: Vec<Schema> = wanted
            .iter()
            .filter(|(plural, _)| *plural == objects::SCHEMAS)
            .map(|(_, schema)| Schema::of(schema))
            .collect();
        schemas.sort_by(|left, right| left.order().cmp(&right.order()));
        let account = |namespace: &str| format!("system:serviceaccount:{namespace}:x");
        let accounts = ["system:serviceaccounts", "system:authenticated"];
        let node = ["system:nodes", "system:authenticated"];
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/a";
        for (user, groups, method, path, expected) in [
            ("admin", &["system:masters"][..], "GET", "/api/v1/pods", "exempt"),
            (
                "system:anonymous",
                &["system:unauthenticated"],
                "GET",
                "/readyz",
                "probes",
            ),
            (
                "system:node:a",
                &node,
                "PUT",
                "/api/v1/nodes/a/status",
                "system-node-high",
            ),
            ("system:node:a", &node, "GET", "/api/v1/pods", "system-nodes"),
            (
                "system:kube-scheduler",
                &["system:authenticated"],
                "PUT",
                lease,
                "system-leader-election",
            ),
            (
                "system:kube-scheduler",
                &["system:authenticated"],
                "GET",
                "/api/v1/pods",
                "kube-scheduler",
            ),
            (
                &account("kube-system"),
                &accounts,
                "GET",
                "/api/v1/pods",
                "kube-system-service-accounts",
            ),
            (
                &account("default"),
                &accounts,
                "GET",
                "/api/v1/pods",
                "service-accounts",
            ),
            (
                "jane",
                &["system:authenticated"],
                "GET",
                "/version",
                "global-default",
            ),
            ("nobody", &[], "GET", "/version", ""),
        ] {
            let user = UserInfo::new(user, groups);
            let info = RequestInfo::parse(&method.parse().unwrap(), path, "");
            let found = schemas.iter().find(|schema| schema.matches(&user, &info));
            assert_eq!(
                found.map_or("", |schema| schema.name.as_str()),
                expected,
                "{path}"
            );
        }
    }
}
