//! Every namespace has a ServiceAccount called `default`.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;

const DEFAULT: &str = "default";

struct DefaultServiceAccounts(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .namespaces
        .on(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    context.caches.service_accounts.on(move |change| {
        if change.new.is_none() && change.key.name == DEFAULT {
            to.add(Key::new("", &change.key.namespace));
        }
    });
    Ok(super::spawn(
        context,
        DefaultServiceAccounts(context.caches.clone()),
        queue,
    ))
}

impl Controller for DefaultServiceAccounts {
    const NAME: &'static str = "serviceaccount-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let account = self.0.service_accounts.get(&Key::new(&key.name, DEFAULT));
        Ok(reconcile(
            self.0.namespaces.get(key).as_deref(),
            account.as_deref(),
        ))
    }
}

fn reconcile(namespace: Option<&Namespace>, account: Option<&ServiceAccount>) -> Vec<Action> {
    match namespace {
        Some(namespace) if account.is_none() && super::is_live(namespace) => {
            vec![Action::create(&ServiceAccount {
                metadata: ObjectMeta {
                    name: Some(DEFAULT.into()),
                    namespace: namespace.metadata.name.clone(),
                    ..ObjectMeta::default()
                },
                ..ServiceAccount::default()
            })]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn live_namespaces_get_their_account() {
        let live: Namespace = from_value(json!({"metadata": {"name": "n"}})).unwrap();
        let dying: Namespace =
            from_value(json!({"metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"}}))
                .unwrap();
        assert_eq!(reconcile(Some(&live), Some(&ServiceAccount::default())), []);
        assert_eq!(reconcile(Some(&dying), None), []);
        assert_eq!(reconcile(None, None), []);
        let plan = reconcile(Some(&live), None);
        assert!(
            matches!(&plan[..], [Action::Create { at, .. }] if at.url == "/api/v1/namespaces/n/serviceaccounts")
        );
    }
}
