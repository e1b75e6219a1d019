//! The objects of the API that rules come from, and which Services changed since rules were last made: the cost of a
//! change must not grow with the number of Services.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::runtime::watcher;
use netfilter::Family;

use crate::service_map::{self, NodeFacts, Ports, SERVICE_NAME_LABEL};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Load balancers shall turn away from such a node (upstream: ToBeDeletedTaint).
const DOOMED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Namespace and name of a Service.
pub type Key = (String, String);

/// There is one at a time, so its size does not matter.
#[allow(clippy::large_enum_variant)]
pub enum Event {
    Service(watcher::Event<Service>),
    Slice(watcher::Event<EndpointSlice>),
    Node(watcher::Event<Node>),
}

#[derive(Default)]
pub struct Tracker {
    services: HashMap<Key, Service>,
    slices: HashMap<Key, BTreeMap<String, EndpointSlice>>,
    /// The Service of each slice, by the slice's own namespace and name.
    owners: HashMap<Key, Key>,
    pub node: NodeFacts,
    /// New load balanced connections may come here.
    pub eligible: bool,
    dirty: BTreeSet<Key>,
    /// What a watch that starts anew has not mentioned yet.
    unseen_services: BTreeSet<Key>,
    unseen_slices: BTreeSet<Key>,
    ready: (bool, bool, bool),
}

impl Tracker {
    pub fn new(node_name: &str) -> Self {
        let node = NodeFacts {
            name: node_name.to_owned(),
            ..NodeFacts::default()
        };
        Self {
            node,
            eligible: true,
            ..Self::default()
        }
    }

    /// Everything has been heard of once: rules from half a picture would cut connections off.
    pub fn is_ready(&self) -> bool {
        self.ready == (true, true, true)
    }

    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Service(event) => self.service(event),
            Event::Slice(event) => self.slice(event),
            Event::Node(event) => self.node(event),
        }
    }

    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The Services that changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.dirty)
    }

    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.services.keys()
    }

    pub fn ports(&self, family: Family, key: &Key) -> Ports {
        let Some(service) = self.services.get(key) else {
            return Ports::new();
        };
        let slices = self.slices.get(key).into_iter().flat_map(BTreeMap::values);
        service_map::ports(family, &self.node, service, slices)
    }

    fn service(&mut self, event: watcher::Event<Service>) {
        match event {
            watcher::Event::Init => self.unseen_services = self.services.keys().cloned().collect(),
            watcher::Event::InitApply(service) | watcher::Event::Apply(service) => {
                let key = key_of(&service);
                self.unseen_services.remove(&key);
                self.dirty.insert(key.clone());
                self.services.insert(key, service);
            }
            watcher::Event::Delete(service) => self.forget_service(&key_of(&service)),
            watcher::Event::InitDone => {
                for key in std::mem::take(&mut self.unseen_services) {
                    self.forget_service(&key);
                }
                self.ready.0 = true;
            }
        }
    }

    fn forget_service(&mut self, key: &Key) {
        if self.services.remove(key).is_some() {
            self.dirty.insert(key.clone());
        }
    }

    fn slice(&mut self, event: watcher::Event<EndpointSlice>) {
        match event {
            watcher::Event::Init => self.unseen_slices = self.owners.keys().cloned().collect(),
            watcher::Event::InitApply(slice) | watcher::Event::Apply(slice) => {
                let own = key_of(&slice);
                self.unseen_slices.remove(&own);
                let service = slice.labels().get(SERVICE_NAME_LABEL);
                let owner = service.map(|service| (own.0.clone(), service.clone()));
                if self.owners.get(&own) != owner.as_ref() {
                    self.forget_slice(&own);
                }
                if let Some(owner) = owner {
                    self.dirty.insert(owner.clone());
                    self.slices
                        .entry(owner.clone())
                        .or_default()
                        .insert(own.1.clone(), slice);
                    self.owners.insert(own, owner);
                }
            }
            watcher::Event::Delete(slice) => self.forget_slice(&key_of(&slice)),
            watcher::Event::InitDone => {
                for key in std::mem::take(&mut self.unseen_slices) {
                    self.forget_slice(&key);
                }
                self.ready.1 = true;
            }
        }
    }

    fn forget_slice(&mut self, own: &Key) {
        let Some(owner) = self.owners.remove(own) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&own.1);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.dirty.insert(owner);
    }

    fn node(&mut self, event: watcher::Event<Node>) {
        match event {
            watcher::Event::InitApply(node) | watcher::Event::Apply(node) => {
                let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
                let doomed = taints.is_some_and(|taints| taints.iter().any(|t| t.key == DOOMED_TAINT));
                self.eligible = node.metadata.deletion_timestamp.is_none() && !doomed;
                let facts = facts(&node);
                if facts != self.node {
                    self.node = facts;
                    self.dirty.extend(self.services.keys().cloned());
                }
            }
            watcher::Event::InitDone => self.ready.2 = true,
            watcher::Event::Init | watcher::Event::Delete(_) => {}
        }
    }
}

fn key_of(object: &impl ResourceExt) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn facts(node: &Node) -> NodeFacts {
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    NodeFacts {
        name: node.name_any(),
        zone: node.labels().get(ZONE_LABEL).cloned(),
        addresses: addresses
            .filter(|a| a.type_ == "InternalIP" || a.type_ == "ExternalIP")
            .filter_map(|a| a.address.parse().ok())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    fn service(name: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}))
        .unwrap()
    }

    fn slice(name: &str, service: &str) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
            "endpoints": [{"addresses": ["10.244.0.2"]}]}))
        .unwrap()
    }

    fn dirty(tracker: &mut Tracker) -> Vec<String> {
        tracker.take_dirty().into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn only_what_changed_is_dirty() {
        let mut tracker = Tracker::new("n1");
        for name in ["a", "b"] {
            tracker.apply(Event::Service(InitApply(service(name))));
        }
        tracker.apply(Event::Service(InitDone));
        tracker.apply(Event::Slice(InitDone));
        assert!(!tracker.is_ready());
        tracker.apply(Event::Node(InitDone));
        assert!(tracker.is_ready());
        assert_eq!(dirty(&mut tracker), ["a", "b"]);

        tracker.apply(Event::Slice(Apply(slice("s", "a"))));
        assert_eq!(dirty(&mut tracker), ["a"]);
        let key = ("ns".to_owned(), "a".to_owned());
        let endpoints = |tracker: &Tracker| -> usize {
            tracker
                .ports(Family::V4, &key)
                .values()
                .map(|p| p.endpoints.cluster.len())
                .sum()
        };
        assert_eq!(endpoints(&tracker), 1);
        tracker.apply(Event::Slice(Apply(slice("s", "b"))));
        assert_eq!(dirty(&mut tracker), ["a", "b"]);
        assert_eq!(endpoints(&tracker), 0);
        tracker.apply(Event::Slice(Delete(slice("s", "b"))));
        assert_eq!(dirty(&mut tracker), ["b"]);
    }

    #[test]
    fn what_a_new_list_does_not_mention_is_gone() {
        let mut tracker = Tracker::new("n1");
        for name in ["a", "b"] {
            tracker.apply(Event::Service(Apply(service(name))));
            tracker.apply(Event::Slice(Apply(slice(name, name))));
        }
        dirty(&mut tracker);
        tracker.apply(Event::Service(Init));
        tracker.apply(Event::Slice(Init));
        tracker.apply(Event::Service(InitApply(service("a"))));
        tracker.apply(Event::Slice(InitApply(slice("a", "a"))));
        assert_eq!(dirty(&mut tracker), ["a"]);
        tracker.apply(Event::Service(InitDone));
        tracker.apply(Event::Slice(InitDone));
        assert_eq!(dirty(&mut tracker), ["b"]);
        assert_eq!(tracker.services().count(), 1);
    }

    #[test]
    fn a_zone_concerns_every_service() {
        let mut tracker = Tracker::new("n1");
        tracker.apply(Event::Service(Apply(service("a"))));
        dirty(&mut tracker);
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z"}},
            "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}))
        .unwrap();
        tracker.apply(Event::Node(Apply(node.clone())));
        assert_eq!(dirty(&mut tracker), ["a"]);
        assert!(!tracker.eligible);
        tracker.apply(Event::Node(Apply(node)));
        assert!(!tracker.is_dirty());
    }
}
