//! Every namespace has the cluster's CA in a ConfigMap, for pods to trust the API server.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

struct RootCaPublisher {
    caches: Arc<Caches>,
    root_ca_pem: String,
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let Some(root_ca_pem) = context.config.root_ca_pem.clone() else {
        return Ok(Box::pin(std::future::pending()));
    };
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .namespaces
        .on(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    context
        .caches
        .root_ca_maps
        .on(move |change| to.add(Key::new("", &change.key.namespace)));
    Ok(super::spawn(
        context,
        RootCaPublisher {
            caches: context.caches.clone(),
            root_ca_pem,
        },
        queue,
    ))
}

impl Controller for RootCaPublisher {
    const NAME: &'static str = "root-ca-certificate-publisher-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let map = self.caches.root_ca_maps.get(&Key::new(&key.name, NAME));
        Ok(reconcile(
            self.caches.namespaces.get(key).as_deref(),
            map.as_deref(),
            &self.root_ca_pem,
        ))
    }
}

fn reconcile(namespace: Option<&Namespace>, map: Option<&ConfigMap>, pem: &str) -> Vec<Action> {
    let Some(namespace) = namespace.filter(|n| super::is_live(n)) else {
        return Vec::new();
    };
    let data = BTreeMap::from([(FILE.to_owned(), pem.to_owned())]);
    match map {
        Some(map) if map.data.as_ref() == Some(&data) => Vec::new(),
        Some(map) => vec![Action::patch(map, json!({"data": data}))],
        None => vec![Action::create(&ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: namespace.metadata.name.clone(),
                annotations: Some([("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned())].into()),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..ConfigMap::default()
        })],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    #[test]
    fn the_map_says_what_the_ca_is() {
        let namespace: Namespace = from_value(json!({"metadata": {"name": "n"}})).unwrap();
        let map = |pem: &str| -> ConfigMap {
            from_value(json!({"metadata": {"name": NAME, "namespace": "n"}, "data": {FILE: pem}})).unwrap()
        };
        assert_eq!(reconcile(Some(&namespace), Some(&map("pem")), "pem"), []);
        assert!(matches!(
            &reconcile(Some(&namespace), Some(&map("old")), "pem")[..],
            [Action::Patch { .. }]
        ));
        assert!(matches!(
            &reconcile(Some(&namespace), None, "pem")[..],
            [Action::Create { .. }]
        ));
    }
}
