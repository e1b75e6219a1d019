//! Which requests a webhook or policy is about: rules, scope, equivalent resources, namespace and object selectors.

use std::sync::Arc;

use schema::Resource;
use serde_json::Value;

use super::dynamic::Request;
use super::{items, text};
use crate::pipeline::Operation;
use crate::registry;
use crate::selectors::LabelSelector;
use crate::status::ApiError;

#[derive(Debug, Default)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
    /// Of policies only; empty: any.
    names: Vec<String>,
}

#[derive(Debug)]
pub struct Matching {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Other versions of the same resource count, too.
    is_equivalent: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
    /// A policy's binding without rules takes what the policy takes.
    takes_all: bool,
}

fn texts(value: &Value) -> Vec<String> {
    items(value).iter().map(|item| text(item).to_owned()).collect()
}

fn rules(list: &Value) -> Vec<Rule> {
    items(list)
        .iter()
        .map(|rule| Rule {
            operations: texts(&rule["operations"]),
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: texts(&rule["resources"]),
            scope: text(&rule["scope"]).to_owned(),
            names: texts(&rule["resourceNames"]),
        })
        .collect()
}

impl Matching {
    pub fn of_webhook(webhook: &Value) -> Self {
        Self {
            rules: rules(&webhook["rules"]),
            ..Self::selectors(webhook)
        }
    }

    /// From a policy's `matchConstraints` or a binding's `matchResources`.
    pub fn of_policy(resources: &Value) -> Self {
        Self {
            rules: rules(&resources["resourceRules"]),
            excluded: rules(&resources["excludeResourceRules"]),
            ..Self::selectors(resources)
        }
    }

    /// A binding without rules leaves them to its policy.
    pub fn of_binding(resources: &Value) -> Self {
        let mut matching = Self::of_policy(resources);
        matching.takes_all = matching.rules.is_empty();
        matching
    }

    fn selectors(from: &Value) -> Self {
        Self {
            rules: Vec::new(),
            excluded: Vec::new(),
            is_equivalent: from["matchPolicy"] != "Exact",
            namespaces: LabelSelector::from_object(&from["namespaceSelector"]),
            objects: LabelSelector::from_object(&from["objectSelector"]),
            takes_all: false,
        }
    }

    /// The resource as the rules name it; None when the request is not meant. `object` is as it is stored.
    pub async fn find(
        &self,
        request: &Request<'_>,
        object: Option<&Value>,
    ) -> Result<Option<Arc<Resource>>, ApiError> {
        let Some(found) = self.by_rules(request) else {
            return Ok(None);
        };
        let selected = self.selects_object(object, request.context.old)
            && self.selects_namespace(request, object).await?;
        Ok(selected.then_some(found))
    }

    fn by_rules(&self, request: &Request<'_>) -> Option<Arc<Resource>> {
        let excluded = |resource: &Resource| self.excluded.iter().any(|rule| rule.matches(request, resource));
        let own = &request.resource;
        if excluded(own) || (self.is_equivalent && request.equivalents().iter().any(|other| excluded(other)))
        {
            return None;
        }
        if self.takes_all || self.rules.iter().any(|rule| rule.matches(request, own)) {
            return Some(own.clone());
        }
        if !self.is_equivalent {
            return None;
        }
        let others = request.equivalents();
        others
            .iter()
            .find(|other| self.rules.iter().any(|rule| rule.matches(request, other)))
            .cloned()
    }

    fn selects_object(&self, object: Option<&Value>, old: Option<&Value>) -> bool {
        self.objects.is_empty()
            || [object, old].into_iter().flatten().any(|object| {
                self.objects
                    .matches(|label| object["metadata"]["labels"][label].as_str())
            })
    }

    async fn selects_namespace(
        &self,
        request: &Request<'_>,
        object: Option<&Value>,
    ) -> Result<bool, ApiError> {
        if self.namespaces.is_empty() {
            return Ok(true);
        }
        let matches = |namespace: &Value| {
            self.namespaces
                .matches(|label| namespace["metadata"]["labels"][label].as_str())
        };
        if request.is_namespace() {
            return Ok(object.or(request.context.old).is_some_and(matches));
        }
        match request.namespace_object().await? {
            Some(namespace) => Ok(matches(&namespace)),
            // What is in no namespace is in all of them.
            None => Ok(true),
        }
    }
}

impl Rule {
    fn matches(&self, request: &Request<'_>, resource: &Resource) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|given| given == "*" || given == wanted);
        let info = request.context.info;
        let in_namespace = !info.namespace.is_empty() && !request.is_namespace();
        let scope = match self.scope.as_str() {
            "Namespaced" => in_namespace,
            "Cluster" => !in_namespace,
            _ => true,
        };
        scope
            && has(&self.operations, operation(request.context.operation))
            && has(&self.groups, &resource.group)
            && has(&self.versions, &resource.version)
            && self.resources.iter().any(|given| {
                let (name, sub) = given.split_once('/').unwrap_or((given, ""));
                (name == "*" || name == resource.plural) && (sub == "*" || sub == info.subresource)
            })
            && (self.names.is_empty() || self.names.contains(&request.name))
    }
}

pub fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// Other versions and groups under which the same objects are served.
pub fn equivalents(catalog: &schema::Catalog, own: &Resource) -> Vec<Arc<Resource>> {
    let stored = registry::prefix(&own.group, &own.plural);
    let same = |other: &&Arc<Resource>| {
        registry::prefix(&other.group, &other.plural) == stored
            && (other.group != own.group || other.version != own.version)
    };
    catalog.resources().filter(same).cloned().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Objects, context};
    use super::*;
    use crate::request_info::RequestInfo;

    fn found(webhook: Value, method: &str, path: &str, object: Value) -> Option<String> {
        let namespaces = Objects::new(&[(
            "namespaces",
            json!({"metadata": {"name": "ns", "labels": {"team": "a"}}}),
        )]);
        let info = RequestInfo::parse(&method.parse().expect("a method"), path, "");
        let user = auth::UserInfo::new("bob", &[]);
        let operation = match method {
            "POST" => Operation::Create,
            "PUT" => Operation::Update,
            _ => Operation::Delete,
        };
        let context = context(operation, &info, "", &user, None, &namespaces);
        let request = Request::new(&context, Some(&object)).expect("a resource");
        let found = futures::executor::block_on(Matching::of_webhook(&webhook).find(&request, Some(&object)));
        found.expect("no error").map(|resource| resource.api_version())
    }

    #[test]
    fn rules_and_selectors_decide() {
        let rule = |groups: &str, versions: &str, resources: &str| json!([{"operations": ["CREATE"], "apiGroups": [groups], "apiVersions": [versions], "resources": [resources], "scope": "*"}]);
        let autoscaler = "/apis/autoscaling/v1/namespaces/ns/horizontalpodautoscalers";
        for (webhook, method, path, expected) in [
            (
                json!({"rules": rule("apps", "v1", "deployments")}),
                "POST",
                "/apis/apps/v1/namespaces/ns/deployments",
                Some("apps/v1"),
            ),
            (
                json!({"rules": rule("apps", "v1", "deployments")}),
                "PUT",
                "/apis/apps/v1/namespaces/ns/deployments/d",
                None,
            ),
            (
                json!({"rules": rule("apps", "v1", "deployments")}),
                "POST",
                "/apis/apps/v1/namespaces/ns/replicasets",
                None,
            ),
            (
                json!({"rules": rule("*", "*", "*")}),
                "POST",
                "/api/v1/namespaces/ns/pods",
                Some("v1"),
            ),
            (
                json!({"rules": rule("*", "*", "*")}),
                "POST",
                "/api/v1/namespaces/ns/pods/p/binding",
                None,
            ),
            (
                json!({"rules": rule("*", "*", "*/*")}),
                "POST",
                "/api/v1/namespaces/ns/pods/p/binding",
                Some("v1"),
            ),
            (
                json!({"rules": rule("*", "*", "pods/*")}),
                "POST",
                "/api/v1/namespaces/ns/pods/p/binding",
                Some("v1"),
            ),
            (
                json!({"rules": rule("autoscaling", "v2", "*")}),
                "POST",
                autoscaler,
                Some("autoscaling/v2"),
            ),
            (
                json!({"rules": rule("autoscaling", "v2", "*"), "matchPolicy": "Exact"}),
                "POST",
                autoscaler,
                None,
            ),
            (
                json!({"rules": rule("", "v1", "pods"), "namespaceSelector": {"matchLabels": {"team": "a"}}}),
                "POST",
                "/api/v1/namespaces/ns/pods",
                Some("v1"),
            ),
            (
                json!({"rules": rule("", "v1", "pods"), "namespaceSelector": {"matchLabels": {"team": "b"}}}),
                "POST",
                "/api/v1/namespaces/ns/pods",
                None,
            ),
            (
                json!({"rules": rule("", "v1", "nodes"), "namespaceSelector": {"matchLabels": {"team": "b"}}}),
                "POST",
                "/api/v1/nodes",
                Some("v1"),
            ),
            (
                json!({"rules": rule("", "v1", "pods"), "objectSelector": {"matchLabels": {"app": "x"}}}),
                "POST",
                "/api/v1/namespaces/ns/pods",
                Some("v1"),
            ),
            (
                json!({"rules": rule("", "v1", "pods"), "objectSelector": {"matchLabels": {"app": "y"}}}),
                "POST",
                "/api/v1/namespaces/ns/pods",
                None,
            ),
        ] {
            let object = json!({"metadata": {"name": "p", "labels": {"app": "x"}}});
            assert_eq!(
                found(webhook.clone(), method, path, object).as_deref(),
                expected,
                "{webhook} {path}"
            );
        }
    }
}
