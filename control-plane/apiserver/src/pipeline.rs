//! The seam between the engine and admission: what a plug-in sees, and how the chain is called.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use auth::UserInfo;
use schema::Catalog;
use serde_json::Value;
use store::Revision;

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

    /// Changes with every change of an object of the kind.
    fn revision(&self, group: &str, resource: &str) -> Revision;

    fn catalog(&self) -> Arc<Catalog>;
}

/// Who changed the object of one request, and who must see it again (upstream: `ReinvocationContext`).
#[derive(Debug, Default)]
pub struct Reinvocation {
    pub is_second_round: bool,
    pub is_wanted: bool,
    /// Called, and called again should the object change.
    pub reinvocable: BTreeSet<String>,
    pub again: BTreeSet<String>,
}

impl Reinvocation {
    /// Whoever was called before and cares must be called again.
    pub fn object_changed(&mut self) {
        self.is_wanted = true;
        self.again.append(&mut self.reinvocable);
    }
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
    /// The query of the request: its options.
    pub query: &'a str,
    pub reader: &'a dyn ObjectReader,
    pub reinvocation: Mutex<Reinvocation>,
}

impl AdmissionContext<'_> {
    pub fn reinvocation(&self) -> std::sync::MutexGuard<'_, Reinvocation> {
        self.reinvocation
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
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

    /// The second round, after a webhook or policy changed the object.
    async fn mutate_again(&self, context: &AdmissionContext<'_>, object: &mut Value) -> Result<(), ApiError> {
        self.mutate(context, object).await
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
        if !std::mem::take(&mut context.reinvocation().is_wanted) {
            return Ok(());
        }
        context.reinvocation().is_second_round = true;
        for plugin in &self.0 {
            plugin.mutate_again(context, object).await?;
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
