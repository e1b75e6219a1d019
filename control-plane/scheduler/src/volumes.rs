//! Storage as the scheduler sees it: claims, volumes, classes, drivers, and who uses which claim where.

use crate::pod_info::PodInfo;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Namespace and name.
pub type ClaimKey = (String, String);

#[derive(Debug, Default)]
pub struct Volumes {
    pub claims: HashMap<ClaimKey, Arc<PersistentVolumeClaim>>,
    pub volumes: BTreeMap<String, Arc<PersistentVolume>>,
    pub classes: HashMap<String, Arc<StorageClass>>,
    pub drivers: HashMap<String, Arc<CSIDriver>>,
    pub csi_nodes: HashMap<String, Arc<CSINode>>,
    pub capacities: HashMap<String, Arc<CSIStorageCapacity>>,
    /// Claim to the pods on nodes that use it: UID to node.
    users: HashMap<ClaimKey, HashMap<String, String>>,
    /// Volumes promised to a claim by a decision that is still being carried out.
    pub reserved: HashMap<String, ClaimKey>,
}

/// What has to happen to a claim before its pod can be bound.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Give it this volume.
    Bind {
        claim: Arc<PersistentVolumeClaim>,
        volume: Arc<PersistentVolume>,
    },
    /// Let its class' provisioner make one for this node.
    Provision { claim: Arc<PersistentVolumeClaim> },
}

/// Why a claim cannot be served on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    NoVolume,
    NoSpace,
}

impl Volumes {
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// A pod that uses claims came to a node (1) or left it (-1).
    pub fn used_by(&mut self, pod: &PodInfo, node: &str, sign: i32) {
        for claim in &pod.claims {
            let key = (pod.namespace().to_owned(), claim.name.clone());
            let users = self.users.entry(key.clone()).or_default();
            if sign > 0 {
                users.insert(pod.uid().to_owned(), node.to_owned());
            } else {
                users.remove(pod.uid());
                if users.is_empty() {
                    self.users.remove(&key);
                }
            }
        }
    }

    /// Nodes on which other pods use this claim.
    pub fn nodes_using(&self, claim: &ClaimKey, except: &str) -> impl Iterator<Item = &str> {
        let users = self.users.get(claim).into_iter().flatten();
        users
            .filter(move |(uid, _)| *uid != except)
            .map(|(_, node)| node.as_str())
    }

    /// How the unbound claims of one pod would be served on a node.
    pub fn plan(&self, claims: &[Arc<PersistentVolumeClaim>], node: &Node) -> Result<Vec<Step>, Obstacle> {
        let mut taken: HashSet<&str> = HashSet::new();
        let mut steps = Vec::new();
        for claim in claims {
            let key = claim_key(claim);
            let free = self.volumes.iter().filter(|(name, _)| {
                let promised = self.reserved.get(*name).is_some_and(|to| *to != key);
                !promised && !taken.contains(name.as_str())
            });
            if let Some(volume) = api::volume::find(claim, free.map(|(_, v)| v), Some(node), true) {
                taken.insert(volume.metadata.name.as_deref().unwrap_or_default());
                steps.push(Step::Bind {
                    claim: claim.clone(),
                    volume: volume.clone(),
                });
                continue;
            }
            let class = self.classes.get(api::volume::claim_class(claim));
            let class =
                class.filter(|c| c.provisioner != api::volume::NO_PROVISIONER && !c.provisioner.is_empty());
            let class = class.filter(|c| allows(c, node)).ok_or(Obstacle::NoVolume)?;
            if !self.has_room(class, claim, node) {
                return Err(Obstacle::NoSpace);
            }
            steps.push(Step::Provision { claim: claim.clone() });
        }
        Ok(steps)
    }

    /// Drivers that publish their capacity must have published enough (KEP-1472).
    fn has_room(&self, class: &StorageClass, claim: &PersistentVolumeClaim, node: &Node) -> bool {
        let driver = self
            .drivers
            .get(&class.provisioner)
            .and_then(|d| d.spec.storage_capacity);
        if driver != Some(true) {
            return true;
        }
        let wanted = api::volume::requested(claim);
        self.capacities.values().any(|c| {
            let most = c.maximum_volume_size.as_ref().or(c.capacity.as_ref());
            Some(&c.storage_class_name) == class.metadata.name.as_ref()
                && most.is_some_and(|m| api::quantity::Quantity::of(m) >= wanted)
                && api::selector::matches_some(c.node_topology.as_ref(), node.metadata.labels.as_ref())
        })
    }
}

pub fn claim_key(claim: &PersistentVolumeClaim) -> ClaimKey {
    let meta = &claim.metadata;
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

/// `allowedTopologies`: one of the terms, with all its keys.
fn allows(class: &StorageClass, node: &Node) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    terms.is_empty()
        || terms.iter().any(|term| {
            let mut keys = term.match_label_expressions.iter().flatten();
            keys.all(|k| api::node::label(node, &k.key).is_some_and(|v| k.values.iter().any(|x| x == v)))
        })
}
