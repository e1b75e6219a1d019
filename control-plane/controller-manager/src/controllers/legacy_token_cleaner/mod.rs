//! Service accounts' tokens that were once generated unasked and nobody uses: marked invalid, and a period later
//! deleted (upstream: `pkg/controller/serviceaccount/legacy_serviceaccount_token_cleaner.go`).

mod reconcile;

use super::serviceaccount_token::{ACCOUNT_NAME, belongs, refers_to};
use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::{Config, Error as StartError};
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use reconcile::{Observed, limit, parse_date, reconcile, secret_names};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// The API server's note of when it began to record uses.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const SINCE: &str = "since";

struct Cleaner {
    caches: Arc<Caches>,
    config: Arc<Config>,
    client: kube::Client,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    queue.add(Key::default());
    let controller = Cleaner {
        caches: context.caches.clone(),
        config: context.config.clone(),
        client: context.client.clone(),
    };
    Ok(super::spawn(context, controller, queue))
}

impl Controller for Cleaner {
    const NAME: &'static str = "legacy-serviceaccount-token-cleaner-controller";

    /// There is one key: all tokens.
    async fn plan(&self, _: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let mut plan = vec![Action::Requeue(INTERVAL)];
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), "kube-system");
        let failed = |why: String| Error::Observation(format!("kube-system/{TRACKING}: {why}"));
        let map = maps
            .get(TRACKING)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let since = map.data.as_ref().and_then(|data| data.get(SINCE));
        let since = since.and_then(|text| parse_date(text));
        let since = since.ok_or_else(|| failed("data.since is not a date".into()))?;
        let period = self.config.legacy_service_account_token_clean_up_period;
        let period = SignedDuration::try_from(period).unwrap_or(SignedDuration::MAX);
        let Some(limit) = limit(since, period, now) else {
            return Ok(plan);
        };
        for secret in self.caches.account_tokens.list() {
            plan.extend(reconcile(&Observed {
                is_generated: self.is_generated(&secret),
                mounted: &|| self.mounted(secret.metadata.namespace.as_deref().unwrap_or_default()),
                secret: &secret,
                limit,
                now,
            }));
        }
        Ok(plan)
    }
}

impl Cleaner {
    /// Its account refers to it. Those made by hand are left alone.
    fn is_generated(&self, secret: &Secret) -> bool {
        let annotations = secret.metadata.annotations.as_ref();
        let Some(name) = annotations.and_then(|a| a.get(ACCOUNT_NAME)) else {
            return false;
        };
        let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
        let account = self.caches.service_accounts.get(&Key::new(namespace, name));
        let account = account.as_deref();
        belongs(secret, account) && refers_to(account, secret.metadata.name.as_deref().unwrap_or_default())
    }

    fn mounted(&self, namespace: &str) -> BTreeSet<String> {
        let pods = self.caches.pods.list_in(namespace);
        pods.iter().flat_map(|pod| secret_names(pod)).collect()
    }
}
