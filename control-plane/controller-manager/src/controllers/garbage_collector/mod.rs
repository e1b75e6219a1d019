//! Garbage collection: objects go when all their owners are gone; owners wait for dependents, or leave them behind,
//! as their deletion asks.

mod graph;
mod monitor;
mod reconcile;

use super::{Context, Running};
use crate::action::Action;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::{self, Controller};
use graph::{Graph, Item};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject};
use monitor::Monitor;
use reconcile::{Observed, Owner, reconcile};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

/// An owner of a kind that the server doesn't know (now) is looked for again after this.
const UNKNOWN_KIND_WAIT: Duration = Duration::from_secs(30);
const SYNC_WAIT: Duration = Duration::from_millis(500);

struct GarbageCollector {
    client: kube::Client,
    monitor: Arc<Monitor>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let monitor = Monitor::new(&context.caches, queue.clone());
    let collector = GarbageCollector {
        client: context.client.clone(),
        monitor: monitor.clone(),
    };
    let (client, executor) = (context.client.clone(), context.executor.clone());
    Ok(Box::pin(async move {
        tokio::join!(
            monitor.run(client),
            runner::run(Arc::new(collector), queue, executor)
        );
    }))
}

impl Controller for GarbageCollector {
    const NAME: &'static str = "garbage-collector-controller";
    const WORKERS: usize = 20;

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        if !self.monitor.is_synced() {
            return Ok(vec![Action::Requeue(SYNC_WAIT)]);
        }
        let uid = key.name.as_str();
        let Some(item) = self.graph().get(uid).cloned() else {
            return Ok(Vec::new());
        };
        let mut owners = Vec::with_capacity(item.owners.len());
        for reference in &item.owners {
            match self.owner(&item, reference).await? {
                Some(owner) => owners.push(owner),
                None => return Ok(vec![Action::Requeue(UNKNOWN_KIND_WAIT)]),
            }
        }
        let graph = self.graph();
        let observed = Observed {
            item: &item,
            owners,
            dependents: graph.dependents(uid).collect(),
        };
        let verdict = reconcile(&observed);
        drop(graph);
        self.monitor.enqueue(verdict.look);
        Ok(verdict.actions)
    }
}

impl GarbageCollector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.monitor.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of an owner; `None` when its kind is unknown to the server. An owner the graph lacks may be younger
    /// than what the watches have shown, so the server is asked before it counts as absent.
    async fn owner(&self, item: &Item, reference: &OwnerReference) -> Result<Option<Owner>, Error> {
        let state = |owner: &Item| {
            let foreign = !owner.namespace.is_empty() && owner.namespace != item.namespace;
            match () {
                () if foreign => Owner::Absent,
                () if owner.waits_for_dependents() => Owner::Waiting,
                () => Owner::Solid,
            }
        };
        let known = {
            let graph = self.graph();
            let absent = graph.is_absent(&reference.uid).then_some(Owner::Absent);
            graph.get(&reference.uid).map(state).or(absent)
        };
        if known.is_some() {
            return Ok(known);
        }
        let Some(kind) = self.monitor.kind(&reference.api_version, &reference.kind) else {
            return Ok(None);
        };
        if kind.namespaced && item.namespace.is_empty() {
            // A cluster-scoped object cannot be owned from within a namespace.
            return Ok(Some(Owner::Absent));
        }
        let namespace = if kind.namespaced {
            item.namespace.as_str()
        } else {
            ""
        };
        let api: Api<DynamicObject> = if kind.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &kind.resource)
        } else {
            Api::all_with(self.client.clone(), &kind.resource)
        };
        let found = api.get_metadata_opt(&reference.name).await.map_err(|error| {
            Error::Observation(format!("owner {} {}: {error}", kind.title(), reference.name))
        })?;
        match found.filter(|o| o.metadata.uid.as_deref() == Some(&reference.uid)) {
            Some(owner) => Ok(Some(state(&Item::new(&kind, &owner.metadata)))),
            None => {
                self.graph().set_absent(&reference.uid);
                Ok(Some(Owner::Absent))
            }
        }
    }
}
