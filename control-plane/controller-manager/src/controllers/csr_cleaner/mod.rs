//! Certificate requests are thrown away when they have served, or will not.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

const DECIDED: Duration = Duration::from_secs(3600);
const PENDING: Duration = Duration::from_secs(24 * 3600);

struct Cleaner(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .signing_requests
        .on(move |change| to.add(change.key.clone()));
    Ok(super::spawn(context, Cleaner(context.caches.clone()), queue))
}

impl Controller for Cleaner {
    const NAME: &'static str = "certificatesigningrequest-cleaner-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        Ok(self
            .0
            .signing_requests
            .get(key)
            .map(|csr| reconcile(&csr, now))
            .unwrap_or_default())
    }
}

fn reconcile(csr: &CertificateSigningRequest, now: Timestamp) -> Vec<Action> {
    let decided = csr
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .and_then(|c| c.first());
    let created = csr.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let (since, life) = match decided {
        Some(condition) => (
            condition.last_update_time.as_ref().map_or(created, |t| t.0),
            DECIDED,
        ),
        None => (created, PENDING),
    };
    let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    if age >= life {
        vec![Action::delete(csr)]
    } else {
        vec![Action::Requeue(life - age)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    #[test]
    fn ages() {
        let run = |now: &str, conditions: Value| {
            let csr: CertificateSigningRequest = from_value(json!({
                "metadata": {"name": "c", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"request": "", "signerName": "s"}, "status": {"conditions": conditions}}))
            .unwrap();
            matches!(reconcile(&csr, now.parse().unwrap())[..], [Action::Delete { .. }])
        };
        let approved =
            json!([{"type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T10:00:00Z"}]);
        assert!(!run("2026-01-01T23:00:00Z", json!([])));
        assert!(run("2026-01-02T00:00:00Z", json!([])));
        assert!(!run("2026-01-01T10:59:00Z", approved.clone()));
        assert!(run("2026-01-01T11:00:00Z", approved));
    }
}
