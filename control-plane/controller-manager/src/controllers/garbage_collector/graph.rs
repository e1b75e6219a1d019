//! Who owns whom: the metadata of every object in the cluster, by UID.

use crate::discovery::Kind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

pub const ORPHAN: &str = "orphan";
pub const FOREGROUND: &str = "foregroundDeletion";

/// UIDs known to be gone; beyond this many all are forgotten, and asked for again.
const REMEMBERED: usize = 4096;

/// What the collector needs to know of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub kind: Arc<Kind>,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub owners: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub deleting: bool,
}

impl Item {
    pub fn new(kind: &Arc<Kind>, meta: &ObjectMeta) -> Self {
        Self {
            kind: kind.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }

    /// Deleted in the foreground: it waits for its dependents.
    pub fn waits_for_dependents(&self) -> bool {
        self.deleting && self.has(FOREGROUND)
    }

    /// Deleted, but its dependents are to stay.
    pub fn orphans_dependents(&self) -> bool {
        self.deleting && self.has(ORPHAN)
    }

    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.has(finalizer)
    }

    pub fn blocks(&self, owner: &str) -> bool {
        self.owners
            .iter()
            .any(|r| r.uid == owner && r.block_owner_deletion == Some(true))
    }
}

#[derive(Default)]
pub struct Graph {
    items: HashMap<String, Item>,
    dependents: HashMap<String, BTreeSet<String>>,
    absent: HashSet<String>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &Item> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|d| self.items.get(d))
    }

    pub fn is_absent(&self, uid: &str) -> bool {
        self.absent.contains(uid)
    }

    pub fn set_absent(&mut self, uid: &str) {
        if self.absent.len() >= REMEMBERED {
            self.absent.clear();
        }
        self.absent.insert(uid.to_owned());
    }

    /// An object appeared or changed; returns the UIDs worth a look.
    pub fn set(&mut self, item: Item) -> Vec<String> {
        let mut look = Vec::new();
        let waiting =
            |items: &HashMap<String, Item>, uid: &str| items.get(uid).is_some_and(Item::waits_for_dependents);
        if let Some(old) = self.items.get(&item.uid) {
            for owner in &old.owners {
                if let Some(set) = self.dependents.get_mut(&owner.uid) {
                    set.remove(&item.uid);
                }
                if waiting(&self.items, &owner.uid) {
                    look.push(owner.uid.clone());
                }
            }
        }
        self.absent.remove(&item.uid);
        for owner in &item.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(item.uid.clone());
        }
        let mine = item.waits_for_dependents()
            || item.orphans_dependents()
            || item
                .owners
                .iter()
                .any(|o| !self.items.contains_key(&o.uid) || waiting(&self.items, &o.uid));
        if mine {
            look.push(item.uid.clone());
        }
        self.items.insert(item.uid.clone(), item);
        look
    }

    /// An object is gone; its dependents are worth a look, and owners that waited for it.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(item) = self.items.remove(uid) else {
            return Vec::new();
        };
        self.set_absent(uid);
        let mut look: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in item.owners {
            if let Some(set) = self.dependents.get_mut(&owner.uid) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
            if self.items.get(&owner.uid).is_some_and(Item::waits_for_dependents) {
                look.push(owner.uid);
            }
        }
        look
    }
}
