//! Bootstrap tokens disappear when they expire.

use super::bootstrap_signer::expiration;
use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

struct TokenCleaner(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .token_secrets
        .on(move |change| to.add(change.key.clone()));
    Ok(super::spawn(context, TokenCleaner(context.caches.clone()), queue))
}

impl Controller for TokenCleaner {
    const NAME: &'static str = "token-cleaner-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        Ok(self
            .0
            .token_secrets
            .get(key)
            .map(|secret| reconcile(&secret, now))
            .unwrap_or_default())
    }
}

fn reconcile(secret: &Secret, now: Timestamp) -> Vec<Action> {
    match expiration(secret) {
        None => Vec::new(),
        Some(end) if end <= now => vec![Action::delete(secret)],
        Some(end) => vec![Action::Requeue(
            Duration::try_from(end.duration_since(now)).unwrap_or_default(),
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn expired_tokens_go() {
        let secret = |expiration: &str| Secret {
            data: Some(
                [(
                    "expiration".to_owned(),
                    ByteString(expiration.as_bytes().to_vec()),
                )]
                .into(),
            ),
            ..Secret::default()
        };
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(reconcile(&secret(""), now), []);
        assert_eq!(
            reconcile(&secret("2026-01-01T00:01:00Z"), now),
            [Action::Requeue(Duration::from_secs(60))]
        );
        assert!(matches!(
            reconcile(&secret("2026-01-01T00:00:00Z"), now)[..],
            [Action::Delete { .. }]
        ));
    }
}
