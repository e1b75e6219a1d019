//! Mirrors Endpoints that somebody writes for a Service without a selector into EndpointSlices, which everybody reads.

mod reconcile;

use super::endpointslice::SERVICE_NAME;
use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Observed, reconcile};
use std::sync::Arc;

struct Mirroring(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    let to = queue.clone();
    caches.endpoints.on(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches.services.on(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches.endpoint_slices.on(move |change| {
        for slice in change.sides() {
            if let Some(service) = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME)) {
                to.add(Key::new(&change.key.namespace, service));
            }
        }
    });
    Ok(super::spawn(context, Mirroring(caches.clone()), queue))
}

impl Controller for Mirroring {
    const NAME: &'static str = "endpointslice-mirroring-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let of_service = |labels: &api::selector::Labels| labels.get(SERVICE_NAME) == Some(&key.name);
        let slices = self.0.endpoint_slices.list_in(&key.namespace);
        let observed = Observed {
            endpoints: self.0.endpoints.get(key),
            service: self.0.services.get(key),
            slices: slices
                .into_iter()
                .filter(|s| s.metadata.labels.as_ref().is_some_and(of_service))
                .collect(),
        };
        Ok(reconcile(&observed))
    }
}
