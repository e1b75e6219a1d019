//! The seam between the engine and admission: what a plug-in sees, and how the chain is called.

use async_trait::async_trait;
use auth::UserInfo;
use serde_json::Value;

use crate::request_info::RequestInfo;
use crate::status::ApiError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// Reads of current objects, for admission and authorization. Served from memory where possible.
#[async_trait]
pub trait ObjectReader: Send + Sync {
    /// `namespace` is empty for cluster-scoped kinds.
    async fn get(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, ApiError>;

    /// An empty `namespace` lists all of them.
    async fn list(&self, group: &str, resource: &str, namespace: &str) -> Result<Vec<Value>, ApiError>;
}

/// What a plug-in may look at.
pub struct AdmissionContext<'a> {
    pub operation: Operation,
    pub info: &'a RequestInfo,
    /// Kind of the object in the request (`Pod`; `Binding` for pods/binding).
    pub kind: &'a str,
    pub user: &'a UserInfo,
    /// The stored object on update and delete.
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    pub reader: &'a dyn ObjectReader,
}

/// One admission plug-in. Plug-ins run in the chain's order, all `mutate`s before all `validate`s.
#[async_trait]
pub trait Admission: Send + Sync {
    /// Upstream's plug-in name (`ServiceAccount`, `LimitRanger`, …).
    fn name(&self) -> &'static str;

    /// May change the object about to be written.
    async fn mutate(&self, _context: &AdmissionContext<'_>, _object: &mut Value) -> Result<(), ApiError> {
        Ok(())
    }

    /// May refuse. `object` is `None` on delete and on connect without a body.
    async fn validate(
        &self,
        _context: &AdmissionContext<'_>,
        _object: Option<&Value>,
    ) -> Result<(), ApiError> {
        Ok(())
    }
}

/// The plug-ins in order.
#[derive(Default)]
pub struct Chain(pub Vec<Box<dyn Admission>>);

impl Chain {
    pub async fn mutate(&self, context: &AdmissionContext<'_>, object: &mut Value) -> Result<(), ApiError> {
        for plugin in &self.0 {
            plugin.mutate(context, object).await?;
        }
        Ok(())
    }

    pub async fn validate(
        &self,
        context: &AdmissionContext<'_>,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        for plugin in &self.0 {
            plugin.validate(context, object).await?;
        }
        Ok(())
    }
}
