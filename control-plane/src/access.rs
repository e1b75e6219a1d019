//! Upstream's flags about who may vouch for senders and decide about requests.

use std::path::PathBuf;
use std::time::Duration;

use apiserver::AccessOptions;
use apiserver::access::{AuthorizationWebhook, Mode, OidcOptions, TokenWebhook};
use clap::{ArgAction, Args, ValueEnum};

use crate::flags::duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuthorizationMode {
    #[value(name = "AlwaysAllow")]
    AlwaysAllow,
    #[value(name = "AlwaysDeny")]
    AlwaysDeny,
    #[value(name = "Node")]
    Node,
    #[value(name = "RBAC")]
    Rbac,
    #[value(name = "Webhook")]
    Webhook,
}

#[derive(Debug, Clone, Args)]
pub struct Access {
    /// An AuthenticationConfiguration (apiserver.config.k8s.io/v1)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["oidc_issuer_url", "anonymous_auth"])]
    pub authentication_config: Option<PathBuf>,
    /// Let requests without credentials in as system:anonymous [default: true]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set)]
    pub anonymous_auth: Option<bool>,
    /// The OpenID issuer whose tokens are accepted
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    pub oidc_issuer_url: Option<String>,
    /// The audience its tokens must have
    #[arg(long, value_name = "ID", requires = "oidc_issuer_url")]
    pub oidc_client_id: Option<String>,
    /// CA of the issuer's certificate [default: the machine's]
    #[arg(long, value_name = "FILE", requires = "oidc_issuer_url")]
    pub oidc_ca_file: Option<PathBuf>,
    /// The claim that names the user
    #[arg(long, value_name = "CLAIM", default_value = "sub")]
    pub oidc_username_claim: String,
    /// Put before user names; - for nothing [default: ISSUER-URL#, nothing for email]
    #[arg(long, value_name = "PREFIX", default_value = "", allow_hyphen_values = true)]
    pub oidc_username_prefix: String,
    /// The claim that names the user's groups
    #[arg(long, value_name = "CLAIM", default_value = "")]
    pub oidc_groups_claim: String,
    /// Put before groups
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub oidc_groups_prefix: String,
    /// A claim that tokens must have
    #[arg(long, value_name = "CLAIM=VALUE,…", value_delimiter = ',', value_parser = claim)]
    pub oidc_required_claim: Vec<(String, String)>,
    /// How tokens may be signed
    #[arg(long, value_name = "ALG,…", value_delimiter = ',', default_value = "RS256")]
    pub oidc_signing_algs: Vec<String>,
    /// Lines of TOKEN,USER,UID,"GROUP,…": bearer tokens that are accepted
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// A kubeconfig that says where bearer tokens are asked about
    #[arg(long, value_name = "FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// How long its answers are believed
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// Version of TokenReview it is asked with
    #[arg(long, value_name = "VERSION", default_value = "v1", value_parser = ["v1"])]
    pub authentication_token_webhook_version: String,
    /// An AuthorizationConfiguration (apiserver.config.k8s.io/v1)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["authorization_mode", "authorization_webhook_config_file"])]
    pub authorization_config: Option<PathBuf>,
    /// Who decides about requests, in order
    #[arg(
        long,
        value_enum,
        value_name = "MODE,…",
        value_delimiter = ',',
        default_value = "Node,RBAC"
    )]
    pub authorization_mode: Vec<AuthorizationMode>,
    /// A kubeconfig that says where requests are decided, for mode Webhook
    #[arg(long, value_name = "FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// How long its yes is believed
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    /// How long its no is believed
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
    /// Version of SubjectAccessReview it is asked with
    #[arg(long, value_name = "VERSION", default_value = "v1", value_parser = ["v1"])]
    pub authorization_webhook_version: String,
}

fn claim(text: &str) -> Result<(String, String), String> {
    let (claim, value) = text.split_once('=').ok_or("expected CLAIM=VALUE")?;
    Ok((claim.to_owned(), value.to_owned()))
}

impl Access {
    pub fn options(&self) -> AccessOptions {
        let oidc = self.oidc_issuer_url.as_ref().map(|issuer_url| OidcOptions {
            issuer_url: issuer_url.clone(),
            client_id: self.oidc_client_id.clone().unwrap_or_default(),
            ca_file: self.oidc_ca_file.clone(),
            username_claim: self.oidc_username_claim.clone(),
            username_prefix: self.oidc_username_prefix.clone(),
            groups_claim: self.oidc_groups_claim.clone(),
            groups_prefix: self.oidc_groups_prefix.clone(),
            required_claims: self.oidc_required_claim.clone(),
            signing_algs: self.oidc_signing_algs.clone(),
        });
        let modes = self.authorization_mode.iter().map(|mode| match mode {
            AuthorizationMode::AlwaysAllow => Mode::AlwaysAllow,
            AuthorizationMode::AlwaysDeny => Mode::AlwaysDeny,
            AuthorizationMode::Node => Mode::Node,
            AuthorizationMode::Rbac => Mode::Rbac,
            AuthorizationMode::Webhook => Mode::Webhook,
        });
        let token_webhook = self.authentication_token_webhook_config_file.clone();
        let authorization_webhook = self.authorization_webhook_config_file.clone();
        AccessOptions {
            authentication_config: self.authentication_config.clone(),
            oidc,
            anonymous: self.anonymous_auth.unwrap_or(true),
            token_auth_file: self.token_auth_file.clone(),
            token_webhook: token_webhook.map(|config_file| TokenWebhook {
                config_file,
                cache_ttl: self.authentication_token_webhook_cache_ttl,
            }),
            authorization_config: self.authorization_config.clone(),
            modes: modes.collect(),
            authorization_webhook: authorization_webhook.map(|config_file| AuthorizationWebhook {
                config_file,
                authorized_ttl: self.authorization_webhook_cache_authorized_ttl,
                unauthorized_ttl: self.authorization_webhook_cache_unauthorized_ttl,
            }),
        }
    }
}
