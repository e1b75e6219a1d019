//! Who may call what: every call is a verb on `nodes/ironlet` of this node, and the API server's RBAC answers. Members of
//! `system:masters` are let in without asking, as everywhere in Kubernetes, so that a master can be repaired whose API
//! server is away.

use std::time::Duration;

use api_client::{Patience, Reviews, innermost};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReviewSpec};
use kube::Client;
use tonic::Status;

/// The service's path prefix in HTTP.
const PREFIX: &str = "/ironlet.node.v1.Node/";

/// Each call and its verb: `get` looks, `update` restarts or replaces the system, `create` hands out the cluster's
/// whole state, secrets included, and `delete` destroys.
const CALLS: &[(&str, &str)] = &[
    ("Version", "get"),
    ("Status", "get"),
    ("Services", "get"),
    ("Logs", "get"),
    ("Dmesg", "get"),
    ("Top", "get"),
    ("Disks", "get"),
    ("Links", "get"),
    ("Reboot", "update"),
    ("Shutdown", "update"),
    ("Upgrade", "update"),
    ("Rollback", "update"),
    ("Reset", "delete"),
    ("EtcdMembers", "get"),
    ("EtcdSnapshot", "create"),
];

const SUBRESOURCE: &str = "ironlet";
/// Upstream's `user.SystemPrivilegedGroup`.
const PRIVILEGED: &str = "system:masters";

/// The kubelet's.
const PATIENCE: Patience = Patience {
    token: Duration::ZERO,
    allowed: Duration::from_secs(300),
    denied: Duration::from_secs(30),
};
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

impl User {
    /// The subject of a verified client certificate.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let subject = pki::CertificateInfo::from_der(der).ok()?.subject;
        let user = Self {
            name: subject.common_name,
            groups: subject.organizations,
        };
        (!user.name.is_empty()).then_some(user)
    }

    fn is_privileged(&self) -> bool {
        self.groups.iter().any(|group| group == PRIVILEGED)
    }
}

/// The verb that a request's path needs.
fn verb(path: &str) -> Option<&'static str> {
    let call = path.strip_prefix(PREFIX)?;
    CALLS
        .iter()
        .find(|(name, _)| *name == call)
        .map(|(_, verb)| *verb)
}

pub struct Access {
    reviews: Reviews,
    node_name: String,
}

impl Access {
    pub fn new(client: Client, node_name: &str) -> Self {
        Self {
            reviews: Reviews::new(client, PATIENCE),
            node_name: node_name.to_owned(),
        }
    }

    /// Whether the user may make the call of this path.
    pub async fn permit(&self, user: &User, path: &str) -> Result<(), Status> {
        let Some(verb) = verb(path) else {
            return Err(Status::unimplemented(format!("this node's API has no {path}")));
        };
        if user.is_privileged() {
            return Ok(());
        }
        let question = self.question(user, verb);
        let asked = tokio::time::timeout(ANSWER_WITHIN, self.reviews.verdict(question.clone())).await;
        let unknown = match asked {
            Ok(Ok(verdict)) if verdict.allowed => return Ok(()),
            Ok(Ok(verdict)) => {
                return Err(Status::permission_denied(self.refusal(
                    user,
                    verb,
                    &verdict.reason,
                )));
            }
            Ok(Err(error)) => innermost(&error),
            Err(_) => format!("no answer within {} s", ANSWER_WITHIN.as_secs()),
        };
        // Who was let in stays so while nobody can say otherwise.
        if self
            .reviews
            .last_verdict(&question)
            .is_some_and(|last| last.allowed)
        {
            return Ok(());
        }
        Err(Status::unavailable(format!(
            "whether {:?} may {verb} nodes/{SUBRESOURCE} is the API server's to say, and it cannot be asked: {unknown} \
             (members of {PRIVILEGED} need no answer)",
            user.name
        )))
    }

    /// Upstream's words for a forbidden request.
    fn refusal(&self, user: &User, verb: &str, reason: &str) -> String {
        let reason = match reason {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        format!(
            "nodes \"{}\" is forbidden: User \"{}\" cannot {verb} resource \"nodes/{SUBRESOURCE}\" in API group \"\" at \
             the cluster scope{reason}",
            self.node_name, user.name
        )
    }

    fn question(&self, user: &User, verb: &str) -> SubjectAccessReviewSpec {
        SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            groups: Some(user.groups.clone()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                version: Some("v1".into()),
                resource: Some("nodes".into()),
                subresource: Some(SUBRESOURCE.into()),
                name: Some(self.node_name.clone()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_verb() {
        let described: Vec<&str> = include_str!("../proto/node.proto")
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
            .collect();
        let listed: Vec<&str> = CALLS.iter().map(|(name, _)| *name).collect();
        assert_eq!(described, listed);
        assert_eq!(verb("/ironlet.node.v1.Node/Reboot"), Some("update"));
        for other in [
            "/ironlet.node.v1.Node/Version/",
            "/ironlet.node.v1.Other/Version",
            "Version",
            "/",
        ] {
            assert_eq!(verb(other), None, "{other}");
        }
    }

    #[test]
    fn only_the_privileged_group_is_privileged() {
        let user = |groups: &[&str]| User {
            name: "u".into(),
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
        };
        assert!(user(&["system:authenticated", "system:masters"]).is_privileged());
        assert!(!user(&["system:nodes", "system:mastersx"]).is_privileged());
        assert!(!user(&[]).is_privileged());
    }
}
