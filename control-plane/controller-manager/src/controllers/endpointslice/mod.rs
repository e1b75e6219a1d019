//! EndpointSlices: which pods, on which addresses and ports, answer for a Service.

mod desired;
mod reconcile;

pub use desired::{Groups, Ports, address_type, has_selector, pod_ports};
pub use reconcile::{HEADLESS, MANAGED_BY, Owner, SERVICE_NAME, managed_by, place};

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

struct EndpointSlices(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .services
        .on(move |change| to.add(change.key.clone()));
    super::enqueue_services_of_pods(context, &queue);
    let to = queue.clone();
    context.caches.endpoint_slices.on(move |change| {
        for slice in change.sides() {
            if let Some(service) = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME)) {
                to.add(Key::new(&change.key.namespace, service));
            }
        }
    });
    Ok(super::spawn(
        context,
        EndpointSlices(context.caches.clone()),
        queue,
    ))
}

impl Controller for EndpointSlices {
    const NAME: &'static str = "endpointslice-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let caches = &self.0;
        let service = caches.services.get(key);
        let label = |l: &std::collections::BTreeMap<String, String>| l.get(SERVICE_NAME) == Some(&key.name);
        let slices = caches
            .endpoint_slices
            .list_in(&key.namespace)
            .into_iter()
            .filter(|s| s.metadata.labels.as_ref().is_some_and(label))
            .collect();
        let pods = if service.is_some() {
            caches.pods.list_in(&key.namespace)
        } else {
            Vec::new()
        };
        let zone_of = |node: &str| {
            let node = caches.nodes.get(&Key::new("", node))?;
            api::node::label(&node, api::well_known::ZONE).map(str::to_owned)
        };
        Ok(reconcile(&Observed {
            service,
            pods,
            slices,
            zone_of: &zone_of,
        }))
    }
}
