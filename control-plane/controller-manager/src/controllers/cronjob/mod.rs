//! CronJobs: make jobs at their times.

mod reconcile;
mod schedule;

use super::{Context, Running, enqueue_owner};
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

struct CronJobs {
    caches: Arc<Caches>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let caches = &context.caches;
    let to = queue.clone();
    caches.cron_jobs.on(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    caches.jobs.on(move |change| {
        for job in change.sides() {
            enqueue_owner(&to, &job.metadata, "CronJob");
        }
    });
    let controller = CronJobs {
        caches: caches.clone(),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for CronJobs {
    const NAME: &'static str = "cronjob-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(cron_job) = self.caches.cron_jobs.get(key) else {
            return Ok(Vec::new());
        };
        let uid = cron_job.metadata.uid.as_deref().unwrap_or_default();
        let observed = Observed {
            jobs: self.caches.jobs.controlled_by(uid),
            cron_job,
        };
        Ok(reconcile(&observed, now))
    }
}
