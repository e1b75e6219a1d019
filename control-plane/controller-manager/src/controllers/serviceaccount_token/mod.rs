//! Secrets of type `kubernetes.io/service-account-token` get the token they ask for, and go with their account
//! (upstream: `pkg/controller/serviceaccount/tokens_controller.go`).

mod reconcile;

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::{Error as StartError, KeyPem};
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use pki::ServiceAccountKey;
use reconcile::{Observed, reconcile};
pub use reconcile::{belongs, refers_to};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

pub const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
pub const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

struct Tokens {
    caches: Arc<Caches>,
    client: kube::Client,
    signer: ServiceAccountKey,
    root_ca_pem: Option<String>,
    /// Names of deleted Secrets by account, until the account no longer refers to them.
    gone: Arc<Mutex<HashMap<Key, BTreeSet<String>>>>,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let Some(KeyPem(key)) = &context.config.service_account_private_key_pem else {
        return Ok(Box::pin(std::future::pending()));
    };
    let signer = ServiceAccountKey::from_pem(key).map_err(|error| StartError::InvalidServiceAccountKey {
        reason: error.to_string(),
    })?;
    let queue = Arc::new(Queue::default());
    let gone = Arc::default();
    let to = queue.clone();
    context
        .caches
        .service_accounts
        .on(move |change| to.add(change.key.clone()));
    let (to, names): (_, Arc<Mutex<HashMap<Key, BTreeSet<String>>>>) = (queue.clone(), Arc::clone(&gone));
    context.caches.account_tokens.on(move |change| {
        for account in change.sides().filter_map(account_key) {
            if change.new.is_none() {
                let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
                let names = names.entry(account.clone()).or_default();
                names.insert(change.key.name.clone());
            }
            to.add(account);
        }
    });
    let controller = Tokens {
        caches: context.caches.clone(),
        client: context.client.clone(),
        signer,
        root_ca_pem: context.config.root_ca_pem.clone(),
        gone,
    };
    Ok(super::spawn(context, controller, queue))
}

/// The account a Secret is for.
fn account_key(secret: &Secret) -> Option<Key> {
    let name = secret.metadata.annotations.as_ref()?.get(ACCOUNT_NAME)?;
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    (!name.is_empty()).then(|| Key::new(namespace, name))
}

impl Controller for Tokens {
    const NAME: &'static str = "serviceaccount-token-controller";

    /// `key` is an account's.
    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let secrets: Vec<Arc<Secret>> = self
            .caches
            .account_tokens
            .list_in(&key.namespace)
            .into_iter()
            .filter(|secret| account_key(secret).as_ref() == Some(key))
            .collect();
        let mut account = self.caches.service_accounts.get(key);
        if secrets.iter().any(|secret| !belongs(secret, account.as_deref())) {
            account = self.newest(key).await?;
        }
        let account = account.as_deref();
        let unused = self.forget(key, account);
        reconcile(
            &Observed {
                account,
                secrets: &secrets,
                gone: &unused,
                root_ca_pem: self.root_ca_pem.as_deref(),
            },
            |claims| self.signer.sign_legacy(claims),
        )
        .map_err(|error| Error::Observation(format!("token of service account {key}: {error}")))
    }
}

impl Tokens {
    /// The account by the server's word: Secrets are not deleted because a cache is late.
    async fn newest(&self, key: &Key) -> Result<Option<Arc<ServiceAccount>>, Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &key.namespace);
        let found = accounts.get_opt(&key.name).await;
        let found = found.map_err(|error| Error::Observation(format!("service account {key}: {error}")))?;
        Ok(found.map(Arc::new))
    }

    /// The deleted Secrets the account still refers to; the others need no more attention.
    fn forget(&self, key: &Key, account: Option<&ServiceAccount>) -> BTreeSet<String> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(names) = gone.get_mut(key) else {
            return BTreeSet::new();
        };
        names.retain(|name| {
            let secret = Key::new(&key.namespace, name);
            refers_to(account, name) && self.caches.account_tokens.get(&secret).is_none()
        });
        let names = names.clone();
        if names.is_empty() {
            gone.remove(key);
        }
        names
    }
}
