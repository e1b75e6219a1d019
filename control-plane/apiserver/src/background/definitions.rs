//! Keeps the catalog in step with the CustomResourceDefinitions: grants names, serves what is
//! established, and removes the objects of definitions that are being deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use schema::custom::Converter;
use schema::custom::naming::{self, Naming};
use schema::{Catalog, Resource};
use serde_json::Value;
use store::Range;

use super::{conversion, own_request};
use crate::cache::{Selection, WatchCache, store_error};
use crate::endpoints::{Intent, ResourceRequest, delete_object, update_object};
use crate::object::{self, text};
use crate::registry;
use crate::registry::custom::{CLEANUP, DEFINITIONS, GROUP};
use crate::registry::deletion::DeleteOptions;
use crate::state::ApiServer;
use crate::status::ApiError;

/// How long objects with finalizers, and failed writes, wait for another look.
const AGAIN: Duration = Duration::from_secs(1);

/// Returns when what is established is served; follows changes from then on.
pub async fn start(server: &Arc<ApiServer>) {
    let mut keeper = Keeper {
        server: server.clone(),
        builtin: server.registry.catalog(),
        cache: server.cache(GROUP, DEFINITIONS),
        fingerprint: String::new(),
    };
    let mut revisions = keeper.cache.revisions();
    // The sender lives in the cache, which we hold.
    let _ = revisions.wait_for(|revision| *revision > 0).await;
    keeper.serve(&keeper.plan());
    tokio::spawn(async move {
        let shutdown = keeper.server.shutdown.clone();
        tokio::select! {
            () = keeper.follow() => {}
            () = shutdown.cancelled() => {}
        }
    });
}

/// A definition, the names it gets, and what is served for it.
struct Planned {
    definition: Value,
    naming: Naming,
    resources: Vec<Resource>,
}

/// Makes the converter of a definition, if it has a webhook for that.
type ConverterOf<'a> = &'a dyn Fn(&Value) -> Option<Arc<dyn Converter>>;

fn plan(builtin: &Catalog, mut definitions: Vec<Value>, converter_of: ConverterOf<'_>) -> Vec<Planned> {
    definitions.sort_by_key(|definition| {
        let created = text(definition, "/metadata/creationTimestamp").to_owned();
        (created, object::name(definition).to_owned())
    });
    let mut names: Vec<(String, Value)> = definitions
        .iter()
        .map(|definition| {
            let group = text(definition, "/spec/group").to_owned();
            (group, definition["status"]["acceptedNames"].clone())
        })
        .collect();
    let mut planned = Vec::with_capacity(definitions.len());
    for (place, definition) in definitions.into_iter().enumerate() {
        let group = names[place].0.clone();
        let others: Vec<&Value> = names
            .iter()
            .enumerate()
            .filter(|(other, (of, _))| *other != place && *of == group)
            .map(|(_, (_, accepted))| accepted)
            .collect();
        let naming = naming::decide(&definition, &others);
        names[place].1 = naming.accepted.clone();
        let resources = if naming.established {
            let converter = converter_of(&definition);
            schema::custom::resources(builtin, &definition, &naming.accepted, converter.as_ref())
        } else {
            Vec::new()
        };
        planned.push(Planned {
            definition,
            naming,
            resources,
        });
    }
    planned
}

/// Group, plural and selectable fields of every custom resource: what its cache depends on.
fn caches(catalog: &Catalog) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut caches: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for resource in catalog.resources() {
        if let Some(custom) = &resource.kind.custom {
            let key = (resource.group.clone(), resource.plural.clone());
            caches
                .entry(key)
                .or_default()
                .extend(custom.selectable.iter().cloned());
        }
    }
    caches
}

struct Keeper {
    server: Arc<ApiServer>,
    builtin: Arc<Catalog>,
    cache: Arc<WatchCache>,
    /// Of what is served now.
    fingerprint: String,
}

impl Keeper {
    async fn follow(&mut self) {
        let mut revisions = self.cache.revisions();
        loop {
            revisions.mark_unchanged();
            let plan = self.plan();
            // Served before it is called established: who waits for that may use it at once.
            self.serve(&plan);
            let mut settled = true;
            for planned in &plan {
                match self.settle(planned).await {
                    Ok(done) => settled &= done,
                    Err(error) => {
                        let name = object::name(&planned.definition);
                        tracing::warn!(
                            name,
                            error = error.message,
                            "a CustomResourceDefinition is not settled yet"
                        );
                        settled = false;
                    }
                }
            }
            let changed = if settled {
                revisions.changed().await.is_ok()
            } else {
                !matches!(tokio::time::timeout(AGAIN, revisions.changed()).await, Ok(Err(_)))
            };
            if !changed {
                return;
            }
        }
    }

    fn plan(&self) -> Vec<Planned> {
        let listed = self.cache.list(&Selection::default(), 0);
        let parse = |bytes: &Bytes| serde_json::from_slice(bytes).ok();
        plan(
            &self.builtin,
            listed
                .entries
                .iter()
                .filter_map(|entry| parse(&entry.bytes))
                .collect(),
            &|definition| conversion::of_definition(&self.server, definition),
        )
    }

    fn serve(&mut self, plan: &[Planned]) {
        let fingerprint: String = plan
            .iter()
            .filter(|planned| planned.naming.established)
            .map(|planned| {
                let metadata = &planned.definition["metadata"];
                format!(
                    "{} {} {};",
                    metadata["uid"], metadata["generation"], planned.naming.accepted
                )
            })
            .collect();
        if fingerprint == self.fingerprint {
            return;
        }
        let mut resources: Vec<Resource> = plan
            .iter()
            .flat_map(|planned| planned.resources.clone())
            .collect();
        schema::custom::sort(&mut resources);
        let catalog = self.builtin.with_all(resources);
        let (before, after) = (caches(&self.server.registry.catalog()), caches(&catalog));
        self.server.registry.set_catalog(catalog);
        for (key, fields) in before {
            if after.get(&key) != Some(&fields) {
                self.server.registry.forget(&key.0, &key.1);
            }
        }
        self.fingerprint = fingerprint;
    }

    /// Writes what was decided; false while objects are still to be removed.
    async fn settle(&self, planned: &Planned) -> Result<bool, ApiError> {
        let definition = &planned.definition;
        if object::is_terminating(definition) {
            let held = object::finalizers(definition)
                .iter()
                .any(|finalizer| finalizer == CLEANUP);
            return if held {
                self.clean_up(planned).await
            } else {
                Ok(true)
            };
        }
        let decided = announced(definition, &planned.naming);
        if decided["status"] == definition["status"] {
            return Ok(true);
        }
        let request = self.request(definition, "status")?;
        let intent = Intent {
            request: &request,
            dry_run: false,
        };
        let written = update_object(&self.server, intent, |current| {
            Ok(announced(current, &planned.naming))
        })
        .await;
        match written {
            Err(error) if error.is_not_found() => Ok(true),
            other => other.map(|_| true),
        }
    }

    fn request(&self, definition: &Value, subresource: &str) -> Result<ResourceRequest, ApiError> {
        let mut request = own_request(&self.server, GROUP, DEFINITIONS, "", object::name(definition))?;
        request.info.verb = "update".into();
        request.info.subresource = subresource.into();
        Ok(request)
    }

    async fn clean_up(&self, planned: &Planned) -> Result<bool, ApiError> {
        let definition = &planned.definition;
        if let Some(resource) = planned.resources.first() {
            let prefix = registry::prefix(&resource.group, &resource.plural);
            let all = || Range::prefix(Bytes::from(prefix.clone()));
            let present = self.server.store.range(all()).await.map_err(store_error)?;
            let mut request = own_request(&self.server, GROUP, DEFINITIONS, "", "")?;
            request.resource = Arc::new(resource.clone());
            request.info.verb = "delete".into();
            request.info.group = resource.group.clone();
            request.info.version = resource.version.clone();
            request.info.resource = resource.plural.clone();
            for kv in &present.kvs {
                let key = String::from_utf8_lossy(&kv.key[prefix.len()..]).into_owned();
                let (namespace, name) = key.split_once('/').unwrap_or(("", &key));
                request.info.namespace = namespace.to_owned();
                request.info.name = name.to_owned();
                match delete_object(&self.server, &request, namespace, name, &DeleteOptions::default()).await
                {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
            let left = self.server.store.range(all()).await.map_err(store_error)?;
            if !left.kvs.is_empty() {
                return Ok(false);
            }
        }
        let request = self.request(definition, "")?;
        let intent = Intent {
            request: &request,
            dry_run: false,
        };
        let without = |current: &Value| {
            let mut freed = current.clone();
            let kept: Vec<String> = object::finalizers(current)
                .into_iter()
                .filter(|finalizer| finalizer != CLEANUP)
                .collect();
            object::set_finalizers(&mut freed, &kept);
            Ok(freed)
        };
        match update_object(&self.server, intent, without).await {
            Err(error) if error.is_not_found() => Ok(true),
            other => other.map(|_| true),
        }
    }
}

/// The definition with its names and conditions in the status.
fn announced(definition: &Value, naming: &Naming) -> Value {
    let mut next = definition.clone();
    let now = object::time(jiff::Timestamp::now());
    object::field(&mut next, "status").insert("acceptedNames".into(), naming.accepted.clone());
    for [name, status, reason, message] in &naming.conditions {
        naming::set_condition(&mut next, [name, status, reason, message], &now);
    }
    next
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(plural: &str, kind: &str, created: &str) -> Value {
        json!({"metadata": {"name": format!("{plural}.example.com"), "creationTimestamp": created},
            "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
    }

    #[test]
    fn the_older_definition_keeps_the_name() {
        let builtin = Catalog::builtin();
        let both = vec![
            definition("gadgets", "Widget", "2026-01-02T00:00:00Z"),
            definition("widgets", "Widget", "2026-01-01T00:00:00Z"),
        ];
        let planned = plan(&builtin, both, &|_| None);
        let served: Vec<(&str, usize)> = planned
            .iter()
            .map(|planned| (object::name(&planned.definition), planned.resources.len()))
            .collect();
        assert_eq!(served, [("widgets.example.com", 1), ("gadgets.example.com", 0)]);
        let told = announced(&planned[1].definition, &planned[1].naming);
        assert_eq!(told["status"]["conditions"][0]["reason"], "ListKindConflict");
        assert_eq!(
            announced(&told, &planned[1].naming),
            told,
            "nothing to write the second time"
        );
    }
}
