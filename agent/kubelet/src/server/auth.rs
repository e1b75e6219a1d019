//! Who asks, and may they: client certificates or tokens, and SubjectAccessReviews about the node's sub-resources.

use std::time::Duration;

use api_client::{Patience, Reviews};
use http::{HeaderMap, Method, header};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReviewSpec};
use tracing::warn;

use crate::context::Context;

/// Upstream's defaults.
const PATIENCE: Patience = Patience {
    token: Duration::from_secs(120),
    allowed: Duration::from_secs(300),
    denied: Duration::from_secs(30),
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

pub struct Authorizer(Reviews);

impl Authorizer {
    pub fn new(client: kube::Client) -> Self {
        Self(Reviews::new(client, PATIENCE))
    }

    /// The user of a bearer token; none for requests without a valid one.
    pub async fn token_user(&self, headers: &HeaderMap) -> Option<User> {
        let token = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        match self.0.user(token.strip_prefix("Bearer ")?).await {
            Ok(user) => user.map(|user| User {
                name: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
            }),
            Err(error) => {
                warn!(%error, "token not reviewed");
                None
            }
        }
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
        verb: &str,
        subresource: &str,
    ) -> Result<bool, kube::Error> {
        let question = SubjectAccessReviewSpec {
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
        };
        Ok(self.0.verdict(question).await?.allowed)
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
