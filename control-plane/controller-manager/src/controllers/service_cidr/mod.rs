//! ServiceCIDRs: each is ready, and none goes while addresses of it are in use.

mod reconcile;

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

struct ServiceCidrs(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    // The deletion of one may wait for another, or for an address to go.
    let (to, cidrs) = (queue.clone(), caches.service_cidrs.clone());
    let all = move || {
        for cidr in cidrs.list() {
            to.add(Key::of(&cidr.metadata));
        }
    };
    let (to, others) = (queue.clone(), all.clone());
    caches.service_cidrs.on(move |change| {
        to.add(change.key.clone());
        others();
    });
    caches.ip_addresses.on(move |change| {
        if change.new.is_none() {
            all();
        }
    });
    Ok(super::spawn(context, ServiceCidrs(caches.clone()), queue))
}

impl Controller for ServiceCidrs {
    const NAME: &'static str = "service-cidr-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(cidr) = self.0.service_cidrs.get(key) else {
            return Ok(Vec::new());
        };
        let addresses = self.0.ip_addresses.list();
        let observed = Observed {
            cidr,
            others: self.0.service_cidrs.list(),
            addresses: addresses
                .iter()
                .filter_map(|a| a.metadata.name.as_deref()?.parse().ok())
                .collect(),
        };
        Ok(reconcile(&observed, now))
    }
}
