//! The authorizers in their order: `system:masters`, Node, RBAC.

use std::sync::{PoisonError, RwLock};

use serde_json::Value;

use crate::attributes::{Attributes, Verdict};
use crate::escalation;
use crate::node::{NodeGraph, node_name};
use crate::rbac::{Rbac, ResourceRules, Rule};
use crate::user::{MASTERS, UserInfo};

/// Decides every request from objects it has been fed; shared by all request handlers.
#[derive(Debug, Default)]
pub struct Authorizer {
    rbac: RwLock<Rbac>,
    nodes: RwLock<NodeGraph>,
}

impl Authorizer {
    /// The (group, resource) pairs whose objects must be fed in, first as a list and then as they change.
    pub const WATCHED: &'static [(&'static str, &'static str)] = &[
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("rbac.authorization.k8s.io", "roles"),
        ("rbac.authorization.k8s.io", "clusterrolebindings"),
        ("rbac.authorization.k8s.io", "rolebindings"),
        ("", "pods"),
        ("", "persistentvolumes"),
        ("storage.k8s.io", "volumeattachments"),
        ("resource.k8s.io", "resourceslices"),
    ];

    /// An object was added or changed; `object` is its JSON.
    pub fn set(&self, resource: &str, object: &[u8]) -> Result<(), serde_json::Error> {
        match resource {
            "clusterroles" | "roles" => self
                .rbac
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .set_role(object),
            "clusterrolebindings" | "rolebindings" => self
                .rbac
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .set_binding(object),
            _ => {
                let object: Value = serde_json::from_slice(object)?;
                self.nodes
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .set(resource, &object);
                Ok(())
            }
        }
    }

    /// An object is gone; `namespace` is empty for cluster-scoped kinds.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        let mut rbac = self.rbac.write().unwrap_or_else(PoisonError::into_inner);
        match resource {
            "clusterroles" | "roles" => rbac.remove_role(namespace, name),
            "clusterrolebindings" | "rolebindings" => rbac.remove_binding(namespace, name),
            _ => {
                drop(rbac);
                let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
                nodes.remove(resource, namespace, name);
            }
        }
    }

    pub fn authorize(&self, attributes: &Attributes<'_>) -> Verdict {
        if attributes.user.in_group(MASTERS) {
            return Verdict::allow("");
        }
        let node = self
            .nodes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .authorize(attributes);
        let node_reason = match node {
            Some(verdict) if verdict.is_allowed() => return verdict,
            Some(verdict) => verdict.reason,
            None => String::new(),
        };
        let mut verdict = self
            .rbac
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .authorize(attributes);
        if !verdict.is_allowed() && !node_reason.is_empty() {
            let separator = if verdict.reason.is_empty() { "" } else { "\n" };
            verdict.reason = format!("{node_reason}{separator}{}", verdict.reason);
        }
        verdict
    }

    /// Refuses, in upstream's words, rules that `user` does not hold in `namespace`.
    pub fn confirm_no_escalation(
        &self,
        user: &UserInfo,
        namespace: &str,
        wanted: &[Rule],
    ) -> Result<(), String> {
        let rbac = self.rbac.read().unwrap_or_else(PoisonError::into_inner);
        escalation::confirm(user, &rbac.rules_for(user, namespace), wanted)
    }

    /// Everything RBAC lets `user` do in `namespace`.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> ResourceRules {
        let mut rules = if user.in_group(MASTERS) {
            let all = || vec!["*".to_owned()];
            let resources = Rule {
                verbs: all(),
                api_groups: all(),
                resources: all(),
                ..Rule::default()
            };
            let urls = Rule {
                verbs: all(),
                non_resource_urls: all(),
                ..Rule::default()
            };
            ResourceRules {
                rules: vec![resources, urls],
                errors: Vec::new(),
            }
        } else {
            self.rbac
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .rules_for(user, namespace)
        };
        if node_name(user).is_some() {
            rules
                .errors
                .push("node authorizer does not support user rule resolution".into());
        }
        rules
    }
}
