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
}
