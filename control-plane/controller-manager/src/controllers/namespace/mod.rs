//! Empties namespaces that are being deleted, pods first, then lets them go.

mod reconcile;

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::discovery::{self, Kind};
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, ListParams};
use reconcile::{Found, reconcile};
use std::sync::Arc;

/// Lists in flight together.
const CONCURRENT_LISTS: usize = 8;

struct Namespaces {
    caches: Arc<Caches>,
    client: kube::Client,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context.caches.namespaces.on(move |change| {
        if change
            .new
            .is_some_and(|n| n.metadata.deletion_timestamp.is_some())
        {
            to.add(change.key.clone());
        }
    });
    let controller = Namespaces {
        caches: context.caches.clone(),
        client: context.client.clone(),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(namespace) = self.caches.namespaces.get(key) else {
            return Ok(Vec::new());
        };
        if !reconcile::is_to_be_emptied(&namespace) {
            return Ok(Vec::new());
        }
        let kinds = discovery::deletable(&self.client).await?;
        let found: Vec<Found> = futures::stream::iter(kinds.into_iter().filter(|k| k.namespaced))
            .map(|kind| self.look(kind, &key.name))
            .buffered(CONCURRENT_LISTS)
            .try_filter(|found| std::future::ready(!found.objects.is_empty()))
            .try_collect()
            .await?;
        Ok(reconcile(&namespace, &found, now))
    }
}

impl Namespaces {
    async fn look(&self, kind: Kind, namespace: &str) -> Result<Found, Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind.resource);
        match api.list_metadata(&ListParams::default()).await {
            Ok(list) => Ok(Found {
                objects: list.items.into_iter().map(|o| o.metadata).collect(),
                kind,
            }),
            // The kind went away between discovery and now.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Found {
                objects: Vec::new(),
                kind,
            }),
            Err(error) => Err(Error::Observation(format!("listing {}: {error}", kind.title()))),
        }
    }
}
