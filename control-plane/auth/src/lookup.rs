//! The reads authentication needs, lent by whoever holds the objects.

use async_trait::async_trait;
use serde_json::Value;
use thiserror::Error;

/// The objects could not be read; the request is answered with an internal error, never with a guess.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct LookupError(pub String);

#[async_trait]
pub trait ObjectLookup: Send + Sync {
    /// `namespace` is empty for cluster-scoped kinds; `group` is empty for the core group.
    async fn get(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, LookupError>;

    /// A token kept in a Secret was shown. Whoever keeps no books on that does nothing.
    async fn secret_token_used(&self, _usage: SecretTokenUse<'_>) {}
}

/// What becomes of a token that is kept in a Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretTokenFate {
    /// Believed; its account refers to the Secret, as it does to those that were made without being asked for.
    Generated,
    /// Believed; somebody made the Secret on purpose.
    Manual,
    /// Refused: the Secret is marked as long unused.
    Invalidated,
}

/// One use of such a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretTokenUse<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
    pub fate: SecretTokenFate,
    /// The label the Secret needs now, unless it has it.
    pub label: Option<(&'static str, String)>,
}
