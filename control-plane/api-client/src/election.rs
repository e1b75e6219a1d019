//! Holds a component's Lease, so that of several instances one acts.

use api::election::{RENEW_DEADLINE, RETRY_PERIOD, Step, decide};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use std::time::Instant;

/// Another instance holds the Lease now; decisions of this one could collide with it.
#[derive(Debug, thiserror::Error)]
#[error("leader election lost: lease kube-system/{lease} is held by {holder:?}")]
pub struct LeadershipLost {
    pub lease: &'static str,
    /// Empty when the API server has been silent for too long.
    pub holder: String,
}

pub struct Election {
    api: Api<Lease>,
    name: &'static str,
    identity: String,
    /// The resourceVersion we saw last, and since when.
    seen: (Option<String>, Timestamp),
}

impl Election {
    pub fn new(client: Client, name: &'static str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, "kube-system"),
            name,
            identity: identity.into(),
            seen: (None, Timestamp::now()),
        }
    }

    /// Returns when the Lease is ours.
    pub async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(None) => {
                    return tracing::info!(lease = self.name, identity = %self.identity, "became leader");
                }
                Ok(Some(holder)) => tracing::debug!(lease = self.name, %holder, "waiting to lead"),
                Err(error) => tracing::warn!(lease = self.name, %error, "leader election attempt failed"),
            }
            tokio::time::sleep(RETRY_PERIOD).await;
        }
    }

    /// Keeps the Lease; returns when it is lost.
    pub async fn keep(&mut self) -> LeadershipLost {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY_PERIOD).await;
            match self.attempt().await {
                Ok(None) => renewed = Instant::now(),
                Ok(Some(holder)) => return self.lost(holder),
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "lease not renewed");
                    if renewed.elapsed() >= RENEW_DEADLINE {
                        return self.lost(String::new());
                    }
                }
            }
        }
    }

    fn lost(&self, holder: String) -> LeadershipLost {
        let lease = self.name;
        LeadershipLost { lease, holder }
    }

    /// One round: `None` when the Lease is ours, else its holder.
    async fn attempt(&mut self) -> Result<Option<String>, kube::Error> {
        let lease = self.api.get_opt(self.name).await?;
        let now = Timestamp::now();
        let version = lease.as_ref().and_then(|l| l.metadata.resource_version.clone());
        if self.seen.0 != version {
            self.seen = (version, now);
        }
        let written = match decide(lease.as_ref(), &self.identity, self.seen.1, now) {
            Step::Wait { holder } => return Ok(Some(holder)),
            Step::Create(spec) => {
                let metadata = ObjectMeta {
                    name: Some(self.name.into()),
                    ..ObjectMeta::default()
                };
                let lease = Lease {
                    metadata,
                    spec: Some(spec),
                };
                self.api.create(&PostParams::default(), &lease).await?
            }
            Step::Update(spec) => {
                let lease = Lease {
                    spec: Some(spec),
                    ..lease.unwrap_or_default()
                };
                self.api
                    .replace(self.name, &PostParams::default(), &lease)
                    .await?
            }
        };
        self.seen = (written.metadata.resource_version, now);
        Ok(None)
    }
}
