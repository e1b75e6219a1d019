//! Who is asking, and may they: authentication, the Node and RBAC authorizers, the review APIs and the bootstrap
//! policy. Pure: the API server feeds objects in ([`Authorizer::set`]) and lends its reads ([`ObjectLookup`]).

mod attributes;
mod authenticate;
mod authorize;
mod bootstrap;
mod bootstrap_token;
mod escalation;
mod front_proxy;
mod impersonate;
mod legacy_token;
mod lookup;
mod node;
mod rbac;
mod review;
mod service_account;
mod token_request;
mod user;

pub use attributes::{Attributes, Decision, Verdict, forbidden_message};
pub use authenticate::{
    Authenticator, Credentials, Known, TokenAuthenticator, Unauthenticated, certificate_user,
};
pub use authorize::{Authorizer, Member, RemoteAuthorizer};
pub use bootstrap::{BootstrapObject, bootstrap_policy};
pub use front_proxy::{FrontProxyHeaders, front_proxy_headers};
pub use impersonate::{Impersonation, ImpersonationError, impersonate};
pub use lookup::{LookupError, ObjectLookup, SecretTokenFate, SecretTokenUse};
pub use node::node_name;
pub use rbac::{ResourceRules, Rule};
pub use review::{
    ReviewProblem, local_subject_access_review, self_subject_access_review, self_subject_review,
    self_subject_rules_review, subject_access_review, token_review,
};
pub use token_request::{TokenIssuer, TokenRequestError};
pub use user::UserInfo;
