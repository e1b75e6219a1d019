//! Deletes jobs some time after they finished, if they say so.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

struct TtlAfterFinished {
    caches: Arc<Caches>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context.caches.jobs.on(move |change| to.add(change.key.clone()));
    let controller = TtlAfterFinished {
        caches: context.caches.clone(),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for TtlAfterFinished {
    const NAME: &'static str = "ttl-after-finished-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        Ok(self
            .caches
            .jobs
            .get(key)
            .map(|job| reconcile(&job, now))
            .unwrap_or_default())
    }
}

fn reconcile(job: &Job, now: Timestamp) -> Vec<Action> {
    let Some(due) = due(job).filter(|_| job.metadata.deletion_timestamp.is_none()) else {
        return Vec::new();
    };
    let left = due - now.as_second();
    if left > 0 {
        return vec![Action::Requeue(Duration::from_secs(left.unsigned_abs()))];
    }
    let mut action = Action::delete(job);
    if let Action::Delete { options, .. } = &mut action {
        options["propagationPolicy"] = json!("Foreground");
        // A job whose TTL was changed meanwhile is looked at again.
        options["preconditions"]["resourceVersion"] = json!(job.metadata.resource_version);
    }
    vec![action]
}

/// The second at which the job may go.
fn due(job: &Job) -> Option<i64> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions
        .iter()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    Some(end.last_transition_time.as_ref()?.0.as_second() + i64::from(ttl))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    #[test]
    fn finished_jobs_go_when_their_time_has_come() {
        let job = |ttl: Option<i32>, kind: &str| -> Job {
            from_value(json!({"metadata": {"name": "j", "namespace": "n", "uid": "u", "resourceVersion": "7"},
                "spec": {"template": {}, "ttlSecondsAfterFinished": ttl},
                "status": {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
            .unwrap()
        };
        let run = |job: Job, now: &str| reconcile(&job, now.parse().unwrap());
        assert_eq!(run(job(None, "Complete"), "2026-02-01T00:00:00Z"), []);
        assert_eq!(run(job(Some(10), "Suspended"), "2026-02-01T00:00:00Z"), []);
        assert_eq!(
            run(job(Some(10), "Failed"), "2026-01-01T00:00:04Z"),
            [Action::Requeue(Duration::from_secs(6))]
        );
        let plan = run(job(Some(10), "Complete"), "2026-01-01T00:00:10Z");
        assert!(matches!(&plan[..], [Action::Delete { .. }]), "{plan:?}");
    }
}
