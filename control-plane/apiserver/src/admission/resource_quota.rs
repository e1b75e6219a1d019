//! ResourceQuota: writes that cost something are charged to the quotas of their namespace before they happen. All
//! quotas pay in one transaction, or none does.

use std::sync::Arc;

use async_trait::async_trait;
use quota::{Charge, charge, resources};
use serde_json::Value;
use store::{Compare, Store, Txn, TxnResult, Write};

use super::forbidden;
use crate::cache::store_error;
use crate::object;
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::registry;
use crate::status::ApiError;

/// Lost races are run again this often.
const ATTEMPTS: usize = 16;
const QUOTAS: &str = "resourcequotas";

pub struct ResourceQuota {
    pub store: Arc<dyn Store>,
}

#[async_trait]
impl Admission for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    async fn validate(&self, context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
        let Some(object) = object.filter(|_| is_charged(context)) else {
            return Ok(());
        };
        let namespace = &context.info.namespace;
        let known = context.reader.list("", QUOTAS, namespace).await?;
        if known.is_empty() {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            if self.charge(context, object, &known).await? {
                return Ok(());
            }
        }
        let name = object::name(object);
        let why = "the quotas of the namespace changed too often; please try again";
        Err(ApiError::conflict(QUOTAS, name, why))
    }
}

impl ResourceQuota {
    /// False when somebody else charged a quota meanwhile.
    async fn charge(
        &self,
        context: &AdmissionContext<'_>,
        object: &Value,
        known: &[Value],
    ) -> Result<bool, ApiError> {
        let (mut quotas, mut entries) = (Vec::new(), Vec::new());
        for quota in known {
            let key = registry::key("", QUOTAS, &context.info.namespace, object::name(quota));
            let (entry, _) = self.store.get(key.clone()).await.map_err(store_error)?;
            if let Some(entry) = entry {
                quotas.push(object::decode(&entry.value, entry.mod_revision).map_err(ApiError::internal)?);
                entries.push((key, entry));
            }
        }
        let write = Charge {
            group: &context.info.group,
            resource: &context.info.resource,
            object,
            old: context.old,
            now: jiff::Timestamp::now(),
        };
        let paid = charge(&quotas, &write).map_err(|why| forbidden(context, Some(object), why))?;
        if paid.is_empty() || context.dry_run {
            return Ok(true);
        }
        let (mut compares, mut writes) = (Vec::new(), Vec::new());
        for (place, used) in paid {
            let (key, entry) = &entries[place];
            quotas[place]["status"]["used"] = resources::to_value(&used);
            compares.push(Compare {
                key: key.clone(),
                mod_revision: entry.mod_revision,
            });
            writes.push(Write::Put {
                key: key.clone(),
                value: object::encode(&quotas[place]),
                lease: entry.lease,
            });
        }
        let result = self.store.txn(Txn { compares, writes }).await;
        Ok(matches!(
            result.map_err(store_error)?,
            TxnResult::Committed { .. }
        ))
    }
}

/// Creations cost; of updates, only those of kinds whose price can change.
fn is_charged(context: &AdmissionContext<'_>) -> bool {
    let info = context.info;
    let changes =
        || info.group.is_empty() && matches!(info.resource.as_str(), "services" | "persistentvolumeclaims");
    let priced = match context.operation {
        Operation::Create => true,
        Operation::Update => changes(),
        Operation::Delete | Operation::Connect => false,
    };
    priced
        && info.subresource.is_empty()
        && !info.namespace.is_empty()
        && !matches!(info.resource.as_str(), "events" | "bindings" | "namespaces")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Objects, Request};
    use super::*;

    fn quota(name: &str, hard: Value, used: Value) -> Value {
        let metadata = json!({"name": name, "namespace": "ns"});
        json!({"metadata": metadata, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    /// A store in a directory of its own, with these quotas in it.
    fn world(quotas: &[Value]) -> (tempfile::TempDir, Arc<dyn Store>, Objects) {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = store::EmbeddedStore::open(directory.path()).unwrap();
        for quota in quotas {
            let key = registry::key("", QUOTAS, "ns", object::name(quota));
            let put = Write::Put {
                key,
                value: object::encode(quota),
                lease: 0,
            };
            let txn = Txn {
                compares: vec![],
                writes: vec![put],
            };
            futures::executor::block_on(store.txn(txn)).unwrap();
        }
        let keyed: Vec<_> = quotas.iter().map(|quota| (QUOTAS, quota.clone())).collect();
        (directory, store, Objects::new(&keyed))
    }

    fn used(store: &Arc<dyn Store>, name: &str) -> Value {
        let key = registry::key("", QUOTAS, "ns", name);
        let (entry, _) = futures::executor::block_on(store.get(key)).unwrap();
        object::decode(&entry.unwrap().value, 1).unwrap()["status"]["used"].take()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_quotas_pay_or_none() {
        let quotas = [
            quota("a", json!({"secrets": "2"}), json!({"secrets": "0"})),
            quota("b", json!({"count/secrets": "1"}), json!({"count/secrets": "0"})),
        ];
        tokio::task::block_in_place(|| {
            let (_directory, store, objects) = world(&quotas);
            let plugin = ResourceQuota { store: store.clone() };
            let create = Request::create("/api/v1/namespaces/ns/secrets", "Secret");
            let secret = || Some(json!({"metadata": {"name": "s"}}));
            create.run(&plugin, &objects, secret()).unwrap();
            assert_eq!(used(&store, "a"), json!({"secrets": "1"}));
            assert_eq!(used(&store, "b"), json!({"count/secrets": "1"}));
            assert_eq!(
                create.run(&plugin, &objects, secret()).unwrap_err(),
                r#"secrets "s" is forbidden: exceeded quota: b, requested: count/secrets=1, used: count/secrets=1, limited: count/secrets=1"#
            );
            assert_eq!(used(&store, "a"), json!({"secrets": "1"}), "nothing was charged");
        });
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_costs_nothing_is_not_charged() {
        tokio::task::block_in_place(|| {
            let (_directory, store, objects) =
                world(&[quota("a", json!({"pods": "1"}), json!({"pods": "1"}))]);
            let plugin = ResourceQuota { store };
            let pod = json!({"metadata": {"name": "p"}});
            let update = Request::update("/api/v1/namespaces/ns/pods/p", "Pod", pod.clone());
            assert!(update.run(&plugin, &objects, Some(pod.clone())).is_ok());
            let create = Request::create("/api/v1/namespaces/ns/pods", "Pod");
            assert!(create.run(&plugin, &objects, Some(pod)).is_err());
        });
    }
}
