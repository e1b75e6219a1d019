//! Counts anew what each ResourceQuota has used, when its limits change or something is given back. Admission does
//! the charging.

mod reconcile;

use super::{Context, Running};
use crate::action::Action;
use crate::cache::{Cache, Change, Object};
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::discovery::{self, Kind};
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use http::Request;
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::jiff::Timestamp;
use quota::{Counted, counted};
use reconcile::reconcile;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Nothing watches every kind a quota may count, so all are looked at again this often.
const RESYNC: Duration = Duration::from_secs(30);

struct ResourceQuotas {
    caches: Arc<Caches>,
    client: kube::Client,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context.caches.resource_quotas.on(move |change| {
        // What admission charges is no reason to count.
        if change.old.map(|quota| &quota.spec) != change.new.map(|quota| &quota.spec) {
            to.add(change.key.clone());
        }
    });
    let caches = &context.caches;
    replenish(context, &queue, &caches.pods, |change| {
        let active = |pod| !api::pod::is_terminal(pod);
        change.old.is_some_and(active) && !change.new.is_some_and(active)
    });
    replenish(context, &queue, &caches.services, |change| change.old.is_some());
    replenish(context, &queue, &caches.deployments, is_deletion);
    replenish(context, &queue, &caches.replica_sets, is_deletion);
    let controller = ResourceQuotas {
        caches: caches.clone(),
        client: context.client.clone(),
    };
    Ok(super::spawn(context, controller, queue))
}

fn is_deletion<K>(change: &Change<K>) -> bool {
    change.new.is_none()
}

/// Counts a namespace's quotas again when a change gives something back.
fn replenish<K: Object>(
    context: &Context,
    queue: &Arc<Queue>,
    cache: &Cache<K>,
    gives_back: fn(&Change<K>) -> bool,
) {
    let (to, quotas) = (queue.clone(), context.caches.resource_quotas.clone());
    cache.on(move |change| {
        if gives_back(change) {
            for quota in quotas.list_in(&change.key.namespace) {
                to.add(Key::of(&quota.metadata));
            }
        }
    });
}

impl Controller for ResourceQuotas {
    const NAME: &'static str = "resourcequota-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(quota) = self.caches.resource_quotas.get(key) else {
            return Ok(Vec::new());
        };
        let wanted = as_value(&quota);
        let mut found = Vec::new();
        for kind in discovery::deletable(&self.client).await? {
            let resource = &kind.resource;
            if kind.namespaced && counted(&wanted, &resource.group, &resource.plural) {
                found.push(self.look(kind, &key.namespace).await?);
            }
        }
        let mut plan = reconcile(&quota, &found, now);
        plan.push(Action::Requeue(RESYNC));
        Ok(plan)
    }
}

impl ResourceQuotas {
    async fn look(&self, kind: Kind, namespace: &str) -> Result<Counted, Error> {
        let failed =
            |error: &dyn std::fmt::Display| Error::Observation(format!("listing {}: {error}", kind.title()));
        let request = Request::get(kind.url(namespace))
            .body(Vec::new())
            .map_err(|error| failed(&error))?;
        let list: Value = match self.client.request(request).await {
            Ok(list) => list,
            // The kind went away between discovery and now.
            Err(kube::Error::Api(status)) if status.code == 404 => Value::Null,
            Err(error) => return Err(failed(&error)),
        };
        Ok(Counted {
            objects: list["items"].as_array().cloned().unwrap_or_default(),
            group: kind.resource.group,
            resource: kind.resource.plural,
        })
    }
}

fn as_value(quota: &ResourceQuota) -> Value {
    json!({"spec": quota.spec})
}
