//! Who may call what: every call is a verb on `nodes/ironlet` of this node, and the API server's RBAC answers. Members of
//! `system:masters` are let in without asking, as everywhere in Kubernetes, so that a master can be repaired whose API
//! server is away.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use tonic::Status;

use crate::status;

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

/// How long answers are believed (the kubelet's defaults).
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// More remembered answers than this are forgotten all at once.
const REMEMBERED: usize = 1000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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

/// An answer and when it was given.
type Answer = (Result<(), String>, Instant);

fn is_fresh((answer, at): &Answer) -> bool {
    at.elapsed() < if answer.is_ok() { ALLOWED_TTL } else { DENIED_TTL }
}

pub struct Access {
    client: Client,
    node_name: String,
    answers: Mutex<HashMap<(User, &'static str), Answer>>,
}

impl Access {
    pub fn new(client: Client, node_name: &str) -> Self {
        Self {
            client,
            node_name: node_name.to_owned(),
            answers: Mutex::default(),
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
        let question = (user.clone(), verb);
        let remembered = {
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.get(&question).cloned()
        };
        let answer = match remembered {
            Some(remembered) if is_fresh(&remembered) => remembered.0,
            remembered => match (self.ask(user, verb).await, remembered) {
                (Ok(answer), _) => {
                    let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
                    if answers.len() >= REMEMBERED {
                        answers.clear();
                    }
                    answers.insert(question, (answer.clone(), Instant::now()));
                    answer
                }
                // Who was let in stays so while nobody can say otherwise.
                (Err(_), Some((Ok(()), _))) => Ok(()),
                (Err(unknown), _) => return Err(unknown),
            },
        };
        answer.map_err(|reason| Status::permission_denied(self.refusal(user, verb, &reason)))
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

    async fn ask(&self, user: &User, verb: &str) -> Result<Result<(), String>, Status> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
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
            },
            ..Default::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let unknown = |reason: String| {
            Status::unavailable(format!(
                "whether {:?} may {verb} nodes/{SUBRESOURCE} is the API server's to say, and it cannot be asked: {reason} \
                 (members of {PRIVILEGED} need no answer)",
                user.name
            ))
        };
        let params = PostParams::default();
        let asked = tokio::time::timeout(ANSWER_WITHIN, reviews.create(&params, &review)).await;
        match asked {
            Err(_) => Err(unknown(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
            Ok(Err(error)) => Err(unknown(status::innermost(&error))),
            Ok(Ok(review)) => {
                let status = review.status.unwrap_or_default();
                let reason = status.reason.filter(|_| !status.allowed).unwrap_or_default();
                Ok(if status.allowed { Ok(()) } else { Err(reason) })
            }
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
