//! What every request handler shares.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use auth::{Authenticator, Authorizer, LookupError, ObjectLookup, SecretTokenUse, TokenIssuer};
use schema::Catalog;
use schema::openapi::OpenApi;
use serde_json::Value;
use store::{LeaseId, Revision, Store};
use tokio::sync::{Mutex, watch};
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use crate::access::Anonymous;
use crate::aggregation::Aggregator;
use crate::audit::Auditor;
use crate::cache::{Selection, WatchCache, store_error};
use crate::config::Config;
use crate::endpoints::secret_token;
use crate::flow_control::FlowControl;
use crate::metrics::Metrics;
use crate::object;
use crate::pipeline::{Chain, ObjectReader};
use crate::registry::service::Allocator;
use crate::registry::{self, Registry};
use crate::server::trust::Trust;
use crate::status::ApiError;

/// Events share a lease this long, so that there are few leases.
const LEASE_SHARING: Duration = Duration::from_secs(60);

pub struct ApiServer {
    pub config: Arc<Config>,
    pub store: Arc<dyn Store>,
    pub registry: Registry,
    pub admission: Chain,
    pub authenticator: Authenticator,
    pub anonymous: Anonymous,
    pub authorizer: Arc<Authorizer>,
    pub auditor: Option<Arc<Auditor>>,
    pub tokens: TokenIssuer,
    pub services: Allocator,
    pub aggregator: Aggregator,
    pub flow_control: FlowControl,
    pub trust: Arc<Trust>,
    /// Documents and the catalog they are about.
    pub openapi: std::sync::Mutex<Option<(Arc<Catalog>, Arc<OpenApi>)>>,
    pub metrics: Metrics,
    pub ready: watch::Sender<bool>,
    /// Told to stop; `shutdown` follows.
    pub leaving: CancellationToken,
    pub shutdown: CancellationToken,
    pub event_lease: Mutex<Option<(LeaseId, Instant)>>,
}

impl ApiServer {
    pub fn cache(&self, group: &str, resource: &str) -> Arc<WatchCache> {
        self.registry.cache(group, resource)
    }

    /// The newest state of an object.
    pub async fn read(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, ApiError> {
        let key = registry::key(group, resource, namespace, name);
        let (kv, _) = self.store.get(key).await.map_err(store_error)?;
        kv.map(|kv| object::decode(&kv.value, kv.mod_revision))
            .transpose()
            .map_err(ApiError::internal)
    }

    /// A lease that ends an event after its time; shared by events created close together.
    pub async fn lease_for_events(&self) -> Result<LeaseId, ApiError> {
        let mut shared = self.event_lease.lock().await;
        if let Some((lease, until)) = *shared
            && Instant::now() < until
        {
            return Ok(lease);
        }
        let ttl = self.config.event_ttl_seconds + LEASE_SHARING.as_secs() as i64;
        let lease = self.store.grant_lease(ttl).await.map_err(store_error)?;
        *shared = Some((lease, Instant::now() + LEASE_SHARING));
        Ok(lease)
    }

    /// Built when first asked for, and anew when the catalog has changed.
    pub fn openapi(&self) -> Arc<OpenApi> {
        let catalog = self.registry.catalog();
        let mut known = self.openapi.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match known.as_ref() {
            Some((of, documents)) if Arc::ptr_eq(of, &catalog) => return documents.clone(),
            Some((_, documents)) => documents.with_catalog(catalog.as_ref().clone()),
            None => crate::endpoints::openapi::load(&catalog, self.config.openapi_descriptions.as_deref()),
        };
        let next = Arc::new(next);
        *known = Some((catalog, next.clone()));
        next
    }
}

#[async_trait]
impl ObjectReader for ApiServer {
    /// From the cache; what it does not have is looked for in the store.
    async fn get(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, ApiError> {
        let cached = self
            .cache(group, resource)
            .get(&registry::relative_key(namespace, name));
        match cached {
            Some(entry) => serde_json::from_slice(&entry.bytes)
                .map(Some)
                .map_err(ApiError::internal),
            None => self.read(group, resource, namespace, name).await,
        }
    }

    async fn list(&self, group: &str, resource: &str, namespace: &str) -> Result<Vec<Value>, ApiError> {
        let cache = self.cache(group, resource);
        cache.wait_for(0).await?;
        let selection = Selection {
            namespace: namespace.to_owned(),
            ..Selection::default()
        };
        let listed = cache.list(&selection, 0);
        listed
            .entries
            .iter()
            .map(|e| serde_json::from_slice(&e.bytes).map_err(ApiError::internal))
            .collect()
    }

    fn revision(&self, group: &str, resource: &str) -> Revision {
        self.cache(group, resource).current_revision()
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.registry.catalog()
    }
}

#[async_trait]
impl ObjectLookup for ApiServer {
    async fn get(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, LookupError> {
        ObjectReader::get(self, group, resource, namespace, name)
            .await
            .map_err(|error| LookupError(error.message))
    }

    async fn secret_token_used(&self, usage: SecretTokenUse<'_>) {
        secret_token::record(self, usage).await;
    }
}
