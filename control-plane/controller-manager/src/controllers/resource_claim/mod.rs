//! Claims on devices: pods get those they carry as templates, and claims lose the pods that are done
//! (upstream: `pkg/controller/resourceclaim/controller.go`).

mod claim;
mod pod;

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::event::WARNING;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Until a template that is missing is looked for again.
const TEMPLATE_RETRY: Duration = Duration::from_secs(10);

struct Pods {
    caches: Arc<Caches>,
    client: kube::Client,
}

struct Claims {
    caches: Arc<Caches>,
    client: kube::Client,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let (pods, claims) = (Arc::new(Queue::default()), Arc::new(Queue::default()));
    let (to_pods, to_claims) = (pods.clone(), claims.clone());
    context.caches.pods.on(move |change| {
        if change.new.is_some_and(|pod| pod::claims(pod).next().is_some()) {
            to_pods.add(change.key.clone());
        }
        for pod in change.sides() {
            for claim in pod::claims(pod) {
                if let Some(name) = pod::claim_name(pod, claim).flatten() {
                    to_claims.add(Key::new(&change.key.namespace, name));
                }
            }
        }
    });
    let (to_pods, to_claims) = (pods.clone(), claims.clone());
    context.caches.resource_claims.on(move |change| {
        to_claims.add(change.key.clone());
        for claim in change.sides() {
            super::enqueue_owner(&to_pods, &claim.metadata, "Pod");
        }
    });
    let (caches, client) = (context.caches.clone(), context.client.clone());
    let pods = super::spawn(
        context,
        Pods {
            caches: caches.clone(),
            client: client.clone(),
        },
        pods,
    );
    let claims = super::spawn(context, Claims { caches, client }, claims);
    Ok(Box::pin(async move {
        tokio::join!(pods, claims);
    }))
}

impl Controller for Pods {
    const NAME: &'static str = "resourceclaim-controller";
    const SOURCE: &'static str = "resource_claim";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let pod = self.caches.pods.get(key);
        // One that is done needs no claims any more: those made for it are being deleted.
        let Some(pod) = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none() && !is_done(pod)) else {
            return Ok(Vec::new());
        };
        let owned = self
            .caches
            .resource_claims
            .controlled_by(pod.metadata.uid.as_deref().unwrap_or_default());
        let claim = |name: &str| self.caches.resource_claims.get(&Key::new(&key.namespace, name));
        let mut templates = BTreeMap::new();
        let api: Api<ResourceClaimTemplate> = Api::namespaced(self.client.clone(), &key.namespace);
        for (claim, name) in pod::missing(&pod, &owned, &claim) {
            let failed =
                |error: kube::Error| Error::Observation(format!("resource claim template {name:?}: {error}"));
            let Some(template) = api.get_opt(name).await.map_err(failed)? else {
                let message = format!(
                    "PodResourceClaim {claim}: resource claim template {name:?}: resourceclaimtemplate.resource.k8s.io {name:?} not found"
                );
                let event = Action::event(&*pod, WARNING, "FailedResourceClaimCreation", message);
                return Ok(vec![event, Action::Requeue(TEMPLATE_RETRY)]);
            };
            templates.insert(name.to_owned(), template);
        }
        Ok(pod::reconcile(&pod, &owned, &claim, &templates))
    }
}

impl Controller for Claims {
    const NAME: &'static str = Pods::NAME;
    const SOURCE: &'static str = Pods::SOURCE;

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(claim) = self.caches.resource_claims.get(key) else {
            return Ok(Vec::new());
        };
        let mut pods = BTreeMap::new();
        for name in claim::consumers(&claim) {
            let known = self.caches.pods.get(&Key::new(&key.namespace, name));
            let pod = match known {
                Some(pod) => Some(pod),
                None => self.newest(&key.namespace, name).await?,
            };
            pods.extend(pod.map(|pod| (name.to_owned(), pod)));
        }
        let owner = api::owner::controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod");
        let owner = owner.and_then(|owner| self.caches.pods.get(&Key::new(&key.namespace, &owner.name)));
        Ok(claim::reconcile(&claim, &pods, owner.as_deref()))
    }
}

impl Claims {
    /// A pod that is being scheduled may be unknown to the cache: the server is asked before it loses its claim.
    async fn newest(&self, namespace: &str, name: &str) -> Result<Option<Arc<Pod>>, Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await;
        let found = found.map_err(|error| Error::Observation(format!("pod {namespace}/{name}: {error}")))?;
        Ok(found.map(Arc::new))
    }
}

/// None of its containers runs, or ever will.
fn is_done(pod: &Pod) -> bool {
    let is_unplaced = api::pod::node_name(pod).is_none();
    api::pod::is_terminal(pod) || (pod.metadata.deletion_timestamp.is_some() && is_unplaced)
}

fn reservations(claim: &ResourceClaim) -> &[k8s_openapi::api::resource::v1::ResourceClaimConsumerReference] {
    let status = claim.status.as_ref();
    status.and_then(|s| s.reserved_for.as_deref()).unwrap_or_default()
}
