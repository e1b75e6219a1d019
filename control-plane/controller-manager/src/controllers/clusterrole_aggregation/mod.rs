//! Fills aggregated ClusterRoles with the rules of the roles they select.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;

struct ClusterRoleAggregation(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let (to, roles) = (queue.clone(), context.caches.cluster_roles.clone());
    context.caches.cluster_roles.on(move |change| {
        to.add(change.key.clone());
        // Any role may be part of any aggregated one, or have been.
        for role in roles.list() {
            if role.aggregation_rule.is_some() {
                to.add(Key::of(&role.metadata));
            }
        }
    });
    Ok(super::spawn(
        context,
        ClusterRoleAggregation(context.caches.clone()),
        queue,
    ))
}

impl Controller for ClusterRoleAggregation {
    const NAME: &'static str = "clusterrole-aggregation-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let role = self.0.cluster_roles.get(key);
        Ok(role.map_or_else(Vec::new, |role| reconcile(&role, &self.0.cluster_roles.list())))
    }
}

/// Rules in the order of the selectors, then of the roles' names; each once (upstream's `syncClusterRole`).
fn reconcile(role: &ClusterRole, roles: &[Arc<ClusterRole>]) -> Vec<Action> {
    let Some(aggregation) = &role.aggregation_rule else {
        return Vec::new();
    };
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in aggregation.cluster_role_selectors.iter().flatten() {
        let selected = roles.iter().filter(|other| {
            other.metadata.name != role.metadata.name
                && api::selector::matches(selector, other.metadata.labels.as_ref())
        });
        for rule in selected.flat_map(|other| other.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Vec::new();
    }
    let next = ClusterRole {
        rules: Some(rules),
        ..role.clone()
    };
    vec![Action::update(role, &next)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn selected_rules_are_gathered_once() {
        let rule = |verb: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        let part = |name: &str, label: &str, verbs: &[&str]| -> Arc<ClusterRole> {
            let rules: Vec<_> = verbs.iter().map(|verb| rule(verb)).collect();
            let metadata = json!({"name": name, "labels": {"to": label}});
            Arc::new(from_value(json!({"metadata": metadata, "rules": rules})).unwrap())
        };
        let whole = |verbs: &[&str]| -> ClusterRole {
            let rules: Vec<_> = verbs.iter().map(|verb| rule(verb)).collect();
            let selectors = json!([{"matchLabels": {"to": "x"}}]);
            from_value(json!({
                "metadata": {"name": "whole", "resourceVersion": "3", "labels": {"to": "x"}},
                "aggregationRule": {"clusterRoleSelectors": selectors},
                "rules": rules,
            }))
            .unwrap()
        };
        let old = whole(&["delete"]);
        let roles = [
            part("a", "x", &["get", "list"]),
            part("b", "x", &["list", "watch"]),
            part("c", "y", &["patch"]),
            Arc::new(old.clone()),
        ];
        let plan = reconcile(&old, &roles);
        let [Action::Patch { at, patch }] = &plan[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(at.url, "/apis/rbac.authorization.k8s.io/v1/clusterroles/whole");
        assert_eq!(patch["rules"], json!([rule("get"), rule("list"), rule("watch")]));
        assert_eq!(patch["metadata"]["resourceVersion"], "3");
        assert_eq!(reconcile(&whole(&["get", "list", "watch"]), &roles), []);
        assert_eq!(reconcile(&roles[0], &roles), []);
    }
}
