//! The authorizers in their order: `system:masters`, then as configured; Node and RBAC unless told otherwise.

use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use serde_json::Value;

use crate::attributes::{Attributes, Decision, Verdict};
use crate::escalation;
use crate::node::{NodeGraph, node_name};
use crate::rbac::{Rbac, ResourceRules, Rule};
use crate::user::{MASTERS, UserInfo};

/// An authorizer somewhere else.
#[async_trait]
pub trait RemoteAuthorizer: Debug + Send + Sync {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Verdict;

    /// For those who ask in the midst of other work.
    fn authorize_blocking(&self, attributes: &Attributes<'_>) -> Verdict;
}

/// One authorizer of the chain; the first with an opinion decides.
#[derive(Debug, Clone)]
pub enum Member {
    Node,
    Rbac,
    AlwaysAllow,
    AlwaysDeny,
    Remote(Arc<dyn RemoteAuthorizer>),
}

/// Decides every request from objects it has been fed; shared by all request handlers.
#[derive(Debug)]
pub struct Authorizer {
    rbac: RwLock<Rbac>,
    nodes: RwLock<NodeGraph>,
    chain: RwLock<Arc<[Member]>>,
}

impl Default for Authorizer {
    fn default() -> Self {
        Self {
            rbac: RwLock::default(),
            nodes: RwLock::default(),
            chain: RwLock::new(Arc::new([Member::Node, Member::Rbac])),
        }
    }
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

    pub fn set_chain(&self, members: Vec<Member>) {
        *self.chain.write().unwrap_or_else(PoisonError::into_inner) = members.into();
    }

    fn chain(&self) -> Arc<[Member]> {
        self.chain.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn authorize(&self, attributes: &Attributes<'_>) -> Verdict {
        let mut opinions = Opinions::default();
        if attributes.user.in_group(MASTERS) {
            return Verdict::allow("");
        }
        for member in self.chain().iter() {
            let verdict = match member {
                Member::Remote(remote) => remote.authorize_blocking(attributes),
                member => self.ask(member, attributes),
            };
            if let Some(verdict) = opinions.hear(verdict) {
                return verdict;
            }
        }
        opinions.none()
    }

    /// The same for those who can wait.
    pub async fn authorize_request(&self, attributes: &Attributes<'_>) -> Verdict {
        let mut opinions = Opinions::default();
        if attributes.user.in_group(MASTERS) {
            return Verdict::allow("");
        }
        for member in self.chain().iter() {
            let verdict = match member {
                Member::Remote(remote) => remote.authorize(attributes).await,
                member => self.ask(member, attributes),
            };
            if let Some(verdict) = opinions.hear(verdict) {
                return verdict;
            }
        }
        opinions.none()
    }

    fn ask(&self, member: &Member, attributes: &Attributes<'_>) -> Verdict {
        match member {
            Member::Node => {
                let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
                let verdict = nodes.authorize(attributes);
                verdict.unwrap_or_else(|| Verdict::no_opinion(""))
            }
            Member::Rbac => {
                let rbac = self.rbac.read().unwrap_or_else(PoisonError::into_inner);
                rbac.authorize(attributes)
            }
            Member::AlwaysAllow => Verdict::allow(""),
            Member::AlwaysDeny => Verdict::no_opinion("Everything is forbidden."),
            Member::Remote(_) => Verdict::no_opinion(""),
        }
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
        let chain = self.chain();
        if node_name(user).is_some() && chain.iter().any(|member| matches!(member, Member::Node)) {
            rules
                .errors
                .push("node authorizer does not support user rule resolution".into());
        }
        if chain.iter().any(|member| matches!(member, Member::Remote(_))) {
            rules
                .errors
                .push("webhook authorizer does not support user rule resolution".into());
        }
        rules
    }
}

/// The reasons of those without an opinion, for when nobody has one.
#[derive(Default)]
struct Opinions(Vec<String>);

impl Opinions {
    fn hear(&mut self, verdict: Verdict) -> Option<Verdict> {
        if verdict.decision != Decision::NoOpinion {
            return Some(verdict);
        }
        if !verdict.reason.is_empty() {
            self.0.push(verdict.reason);
        }
        None
    }

    fn none(self) -> Verdict {
        Verdict::no_opinion(self.0.join("\n"))
    }
}
