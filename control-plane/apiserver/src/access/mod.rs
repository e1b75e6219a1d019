//! Who else may vouch for senders and decide about requests: OIDC providers and webhooks, from flags or from
//! configuration files (upstream: `apiserver.config.k8s.io`).

mod authentication;
mod authorization;
mod fetch;
mod jwt;
mod keys;
mod token_file;
mod token_webhook;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use auth::{Authorizer, TokenAuthenticator};
use serde_json::Value;

use crate::configuration::Format;
use crate::object;

pub use authentication::{Anonymous, OidcOptions};
pub use authorization::{AuthorizationWebhook, Mode};

const GROUP: &str = "apiserver.config.k8s.io";
const VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha1"];

const AUTHENTICATION: Format = Format {
    group: GROUP,
    versions: VERSIONS,
    kind: "AuthenticationConfiguration",
    fields: &[
        ("", &["apiVersion", "kind", "jwt", "anonymous"]),
        (
            "jwt",
            &[
                "issuer",
                "claimValidationRules",
                "claimMappings",
                "userValidationRules",
            ],
        ),
        (
            "jwt.issuer",
            &[
                "url",
                "discoveryURL",
                "certificateAuthority",
                "audiences",
                "audienceMatchPolicy",
            ],
        ),
        (
            "jwt.claimValidationRules",
            &["claim", "requiredValue", "expression", "message"],
        ),
        ("jwt.claimMappings", &["username", "groups", "uid", "extra"]),
        ("jwt.claimMappings.username", &["claim", "prefix", "expression"]),
        ("jwt.claimMappings.groups", &["claim", "prefix", "expression"]),
        ("jwt.claimMappings.uid", &["claim", "expression"]),
        ("jwt.claimMappings.extra", &["key", "valueExpression"]),
        ("jwt.userValidationRules", &["expression", "message"]),
        ("anonymous", &["enabled", "conditions"]),
        ("anonymous.conditions", &["path"]),
    ],
};

const AUTHORIZATION: Format = Format {
    group: GROUP,
    versions: VERSIONS,
    kind: "AuthorizationConfiguration",
    fields: &[
        ("", &["apiVersion", "kind", "authorizers"]),
        ("authorizers", &["type", "name", "webhook"]),
        (
            "authorizers.webhook",
            &[
                "authorizedTTL",
                "cacheAuthorizedRequests",
                "unauthorizedTTL",
                "cacheUnauthorizedRequests",
                "timeout",
                "subjectAccessReviewVersion",
                "matchConditionSubjectAccessReviewVersion",
                "failurePolicy",
                "connectionInfo",
                "matchConditions",
            ],
        ),
        ("authorizers.webhook.connectionInfo", &["type", "kubeConfigFile"]),
        ("authorizers.webhook.matchConditions", &["expression"]),
    ],
};

#[derive(Debug, Clone)]
pub struct AccessOptions {
    /// `--authentication-config`; it goes instead of `oidc` and `anonymous`.
    pub authentication_config: Option<PathBuf>,
    pub oidc: Option<OidcOptions>,
    pub anonymous: bool,
    pub token_auth_file: Option<PathBuf>,
    pub token_webhook: Option<TokenWebhook>,
    /// `--authorization-config`; it goes instead of `modes`.
    pub authorization_config: Option<PathBuf>,
    pub modes: Vec<Mode>,
    pub authorization_webhook: Option<AuthorizationWebhook>,
}

/// `--authentication-token-webhook-*`.
#[derive(Debug, Clone)]
pub struct TokenWebhook {
    /// A kubeconfig.
    pub config_file: PathBuf,
    pub cache_ttl: Duration,
}

impl Default for AccessOptions {
    fn default() -> Self {
        Self {
            authentication_config: None,
            oidc: None,
            anonymous: true,
            token_auth_file: None,
            token_webhook: None,
            authorization_config: None,
            modes: vec![Mode::Node, Mode::Rbac],
            authorization_webhook: None,
        }
    }
}

/// What the options make of authentication.
pub struct Authentication {
    pub tokens: Vec<Arc<dyn TokenAuthenticator>>,
    pub anonymous: Anonymous,
}

impl AccessOptions {
    /// `issuer` is ours; the error names the flag.
    pub fn authentication(&self, issuer: &str) -> Result<Authentication, String> {
        let mut made = match (&self.authentication_config, &self.oidc) {
            (Some(path), _) => {
                let named = |why: String| format!("--authentication-config {}: {why}", path.display());
                let config = AUTHENTICATION.read(path).map_err(named)?;
                authentication::configured(&config, issuer).map_err(named)?
            }
            (None, Some(oidc)) => {
                let config = oidc.configuration()?;
                authentication::configured(&config, issuer).map_err(|why| format!("--oidc-*: {why}"))?
            }
            (None, None) => Authentication {
                tokens: Vec::new(),
                anonymous: Anonymous::default(),
            },
        };
        if self.authentication_config.is_none() && !self.anonymous {
            made.anonymous = Anonymous::Nobody;
        }
        if let Some(path) = &self.token_auth_file {
            let named = |why: String| format!("--token-auth-file {}: {why}", path.display());
            let file = std::fs::File::open(path).map_err(|error| named(error.to_string()))?;
            let tokens = token_file::TokenFile::new(file, issuer).map_err(named)?;
            made.tokens.insert(0, Arc::new(tokens));
        }
        if let Some(webhook) = &self.token_webhook {
            let path = webhook.config_file.display();
            let named = |why| format!("--authentication-token-webhook-config-file {path}: {why}");
            let webhook = token_webhook::TokenReviewer::new(webhook).map_err(named)?;
            made.tokens.push(Arc::new(webhook));
        }
        Ok(made)
    }

    /// Fills the authorizer's chain; the error names the flag.
    pub fn authorization(&self, authorizer: &Authorizer) -> Result<(), String> {
        let members = match &self.authorization_config {
            Some(path) => {
                let named = |why: String| format!("--authorization-config {}: {why}", path.display());
                let config = AUTHORIZATION.read(path).map_err(named)?;
                authorization::configured(&config, path.parent().unwrap_or(Path::new("."))).map_err(named)?
            }
            None => authorization::of_modes(&self.modes, self.authorization_webhook.as_ref())?,
        };
        authorizer.set_chain(members);
        Ok(())
    }
}

/// `30s`, or the default where nothing is written.
fn duration(of: &Value, field: &str, path: &str, default: Duration) -> Result<Duration, String> {
    match object::string(of, field) {
        "" => Ok(default),
        given => given
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|given| Duration::try_from(given).ok())
            .ok_or_else(|| format!("{path}.{field}: Invalid value: {given:?}: must be a duration")),
    }
}
