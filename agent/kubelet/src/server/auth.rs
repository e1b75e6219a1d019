//! Who asks, and may they: client certificates or tokens, and SubjectAccessReviews about the node's sub-resources.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use tracing::warn;

use crate::context::Context;

/// How long answers of the API server are believed (upstream's defaults).
const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
/// More remembered answers than this are forgotten all at once.
const REMEMBERED: usize = 1000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
}

/// The subject of a verified client certificate.
pub fn certificate_user(der: &[u8]) -> Option<User> {
    let info = pki::CertificateInfo::from_der(der).ok()?;
    let user = User {
        name: info.subject.common_name,
        uid: String::new(),
        groups: info.subject.organizations,
    };
    (!user.name.is_empty()).then_some(user)
}

/// The node sub-resources of which one must be granted (upstream's fine-grained kubelet authorization).
fn subresources(path: &str) -> &'static [&'static str] {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "pods" => &["pods", "proxy"],
        "healthz" | "livez" | "readyz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

type Question = (User, &'static str, &'static str);

#[derive(Default)]
pub struct Authorizer {
    tokens: Mutex<HashMap<String, (Option<User>, Instant)>>,
    answers: Mutex<HashMap<Question, (bool, Instant)>>,
}

impl Authorizer {
    /// The user of a bearer token; none for requests without a valid one.
    pub async fn token_user(&self, context: &Context, headers: &HeaderMap) -> Option<User> {
        let token = headers
            .get(header::AUTHORIZATION)?
            .to_str()
            .ok()?
            .strip_prefix("Bearer ")?
            .to_owned();
        if let Some((user, at)) = self.tokens.lock().unwrap_or_else(|e| e.into_inner()).get(&token)
            && at.elapsed() < TOKEN_TTL
        {
            return user.clone();
        }
        let spec = TokenReviewSpec {
            token: token.clone(),
            audiences: None,
        };
        let review = TokenReview {
            spec,
            ..Default::default()
        };
        let reviews: Api<TokenReview> = Api::all(context.client.clone());
        let status = match reviews.create(&PostParams::default(), &review).await {
            Ok(review) => review.status.unwrap_or_default(),
            Err(error) => {
                warn!(%error, "token not reviewed");
                return None;
            }
        };
        let user = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|user| User {
                name: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
            });
        let mut tokens = self.tokens.lock().unwrap_or_else(|e| e.into_inner());
        if tokens.len() >= REMEMBERED {
            tokens.clear();
        }
        tokens.insert(token, (user.clone(), Instant::now()));
        user
    }

    pub async fn authorize(
        &self,
        context: &Context,
        user: &User,
        method: &Method,
        path: &str,
    ) -> Result<(), String> {
        let node = &context.config.node_name;
        let wanted = subresources(path);
        for subresource in wanted {
            match self.is_allowed(context, user, verb(method), subresource).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(format!("Authorization error ({error})")),
            }
        }
        Err(format!(
            "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{}], node={node})\n",
            user.name,
            verb(method),
            wanted.join(" ")
        ))
    }

    async fn is_allowed(
        &self,
        context: &Context,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, kube::Error> {
        let question = (user.clone(), verb, subresource);
        if let Some((allowed, at)) = self
            .answers
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .get(&question)
            && at.elapsed() < if *allowed { ALLOWED_TTL } else { DENIED_TTL }
        {
            return Ok(*allowed);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: (!user.uid.is_empty()).then(|| user.uid.clone()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(context.config.node_name.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(context.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        let mut answers = self.answers.lock().unwrap_or_else(|e| e.into_inner());
        if answers.len() >= REMEMBERED {
            answers.clear();
        }
        answers.insert(question, (allowed, Instant::now()));
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_map_to_subresources() {
        for (path, expected) in [
            ("/metrics", &["metrics"][..]),
            ("/metrics/resource", &["metrics"]),
            ("/stats/summary", &["stats"]),
            ("/pods", &["pods", "proxy"]),
            ("/healthz", &["healthz", "proxy"]),
            ("/exec/ns/p/c", &["proxy"]),
            ("/containerLogs/ns/p/c", &["proxy"]),
        ] {
            assert_eq!(subresources(path), expected, "{path}");
        }
        assert_eq!(
            [Method::GET, Method::POST].map(|method| verb(&method)),
            ["get", "create"]
        );
    }
}
