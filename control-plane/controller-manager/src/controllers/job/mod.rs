//! Jobs: run pods until enough of them have succeeded, or too many failed.

mod accounting;
mod failure;
mod indexes;
mod per_index;
mod pods;
mod reconcile;

use super::{Context, Running, owned};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use api::owner::controller_of;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use reconcile::{Observed, reconcile};
use std::sync::Arc;

/// Keeps a pod until the job has counted it.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";

struct Jobs {
    caches: Arc<Caches>,
}

/// Pods of jobs that are gone, which nobody will count any more.
struct Orphans {
    caches: Arc<Caches>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    owned::watch(caches, &queue, &caches.jobs, |job, labels| {
        let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
        api::selector::matches_some(selector, labels)
    });
    let orphans = Arc::new(Queue::default());
    let to = orphans.clone();
    caches.pods.on(move |change| {
        if change.new.is_some_and(is_tracked) {
            to.add(change.key.clone());
        }
    });
    let (to, pods) = (orphans.clone(), caches.pods.clone());
    caches.jobs.on(move |change| {
        let job = change.new.or(change.old);
        let over = change.new.is_none_or(|job| is_finished(job).is_some());
        if let Some(uid) = job.and_then(|j| j.metadata.uid.as_deref()).filter(|_| over) {
            for pod in pods.controlled_by(uid) {
                to.add(Key::of(&pod.metadata));
            }
        }
    });
    let jobs = super::spawn(
        context,
        Jobs {
            caches: caches.clone(),
        },
        queue,
    );
    let orphans = super::spawn(
        context,
        Orphans {
            caches: caches.clone(),
        },
        orphans,
    );
    Ok(Box::pin(async move {
        futures::join!(jobs, orphans);
    }))
}

/// The condition that ended the job.
pub fn is_finished(job: &Job) -> Option<&str> {
    finished(job.status.as_ref()?)
}

fn finished(status: &JobStatus) -> Option<&'static str> {
    ["Complete", "Failed"]
        .into_iter()
        .find(|kind| api::condition::is_true(status.conditions.as_ref(), kind))
}

fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING)
}

/// Lets go of a pod that has been counted, or that nobody will count.
fn untrack(pod: &Pod) -> Action {
    let rest: Vec<&String> = pod
        .metadata
        .finalizers
        .iter()
        .flatten()
        .filter(|f| *f != TRACKING)
        .collect();
    Action::patch_as_seen(pod, serde_json::json!({"metadata": {"finalizers": rest}}))
}

impl Controller for Jobs {
    const NAME: &'static str = "job-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(job) = self.caches.jobs.get(key) else {
            return Ok(Vec::new());
        };
        let pods = owned::candidates(&self.caches, &job.metadata);
        Ok(reconcile(&Observed { job, pods }, now))
    }
}

impl Controller for Orphans {
    const NAME: &'static str = "job-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(pod) = self.caches.pods.get(key).filter(|pod| is_tracked(pod)) else {
            return Ok(Vec::new());
        };
        let job = controller_of(&pod.metadata)
            .filter(|owner| owner.kind == "Job")
            .and_then(|owner| {
                let job = self.caches.jobs.get(&Key::new(&key.namespace, &owner.name))?;
                (job.metadata.uid.as_ref() == Some(&owner.uid)).then_some(job)
            });
        let counted_later = job.is_some_and(|job| is_finished(&job).is_none());
        Ok(if counted_later {
            Vec::new()
        } else {
            vec![untrack(&pod)]
        })
    }
}
