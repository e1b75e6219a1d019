//! What the scheduler knows of the cluster: nodes with the pods on them, assumed pods included.

use crate::carried::Carried;
pub use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::tally::{Selection, Tallies, Tally};
use crate::volumes::Volumes;
use api::selector::Labels;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Debug, Default)]
pub struct Cluster {
    nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    /// Changes with all that a decision about a pod may rest on, but for what other pods' affinity rests on.
    version: u64,
    /// Pods on nodes that don't exist (yet, or any more), by node and UID.
    strangers: HashMap<String, BTreeMap<String, Arc<PodInfo>>>,
    /// UID to node name.
    places: HashMap<String, String>,
    /// Image name to the number of nodes that have it.
    images: HashMap<String, usize>,
    tallies: Tallies,
    carried: Carried,
    /// Pods that preempted others on a node and wait for their room, by node and UID.
    nominated: HashMap<String, BTreeMap<String, Arc<PodInfo>>>,
    /// UID to node.
    nominations: HashMap<String, String>,
    pub namespaces: HashMap<String, Labels>,
    pub volumes: Volumes,
    pub budgets: BTreeMap<(String, String), Arc<PodDisruptionBudget>>,
    /// Namespace to services and their selectors.
    services: BTreeMap<(String, String), Labels>,
    /// Selectors of controllers by UID.
    owners: HashMap<String, LabelSelector>,
}

impl Cluster {
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|at| &self.nodes[*at])
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let known = self.index.get(&name).copied();
        let labels = known.map(|at| &self.nodes[at].node.metadata.labels);
        if labels != Some(&node.metadata.labels) {
            self.tallies.forget();
            self.carried.forget();
        }
        let at = known.unwrap_or_else(|| {
            let mut info = NodeInfo::default();
            for pod in self.strangers.remove(&name).into_iter().flatten() {
                info.add(pod.1);
            }
            self.nodes.push(info);
            self.index.insert(name, self.nodes.len() - 1);
            self.nodes.len() - 1
        });
        let old = self.nodes[at].images.clone();
        if !self.nodes[at].is_as(&node) {
            self.version += 1;
        }
        self.nodes[at].set_node(node);
        let new = &self.nodes[at].images;
        if *new != old {
            self.images = count_images(std::mem::take(&mut self.images), &old, new);
        }
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.index.remove(name) else {
            return;
        };
        self.version += 1;
        self.tallies.forget();
        self.carried.forget();
        let info = self.nodes.swap_remove(at);
        self.images = count_images(std::mem::take(&mut self.images), &info.images, &HashMap::new());
        if let Some(moved) = self.nodes.get(at) {
            self.index.insert(moved.name().to_owned(), at);
        }
        if !info.pods.is_empty() {
            self.strangers.insert(name.to_owned(), info.pods);
        }
    }

    /// Puts a pod on a node, or moves or renews it.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        let before = self.version;
        let same = self.node_of(pod.uid()) == Some(node)
            && self.pod(pod.uid()).is_some_and(|old| old.takes_as_much_as(&pod));
        self.remove_pod(pod.uid());
        self.version = if same { before } else { before + 1 };
        self.places.insert(pod.uid().to_owned(), node.to_owned());
        self.volumes.used_by(&pod, node, 1);
        let Some(at) = self.index.get(node) else {
            let there = self.strangers.entry(node.to_owned()).or_default();
            there.insert(pod.uid().to_owned(), pod);
            return;
        };
        let info = &mut self.nodes[*at];
        self.tallies.moved(&pod, info, 1, &self.namespaces);
        self.carried.moved(&pod, info, 1);
        info.add(pod);
    }

    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.places.get(uid).map(String::as_str)
    }

    /// A pod that is on a node.
    pub fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        let place = self.places.get(uid)?;
        match self.node(place) {
            Some(info) => info.pods.get(uid),
            None => self.strangers.get(place)?.get(uid),
        }
    }

    /// The pod, when it was on a node.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let place = self.places.remove(uid)?;
        self.version += 1;
        let pod = match self.index.get(&place) {
            Some(at) => {
                let info = &mut self.nodes[*at];
                let pod = info.remove(uid)?;
                self.tallies.moved(&pod, info, -1, &self.namespaces);
                self.carried.moved(&pod, info, -1);
                pod
            }
            None => {
                let there = self.strangers.get_mut(&place)?;
                let pod = there.remove(uid)?;
                if there.is_empty() {
                    self.strangers.remove(&place);
                }
                pod
            }
        };
        self.volumes.used_by(&pod, &place, -1);
        Some(pod)
    }

    /// What placed pods' own affinity terms say; [`Self::ensure_carried`] first.
    pub fn carried(&self) -> &Carried {
        &self.carried
    }

    pub fn ensure_carried(&mut self) {
        self.carried.ensure(&self.nodes);
    }

    /// How many nodes have this image.
    pub fn nodes_with_image(&self, name: &str) -> usize {
        self.images.get(name).copied().unwrap_or_default()
    }

    /// Keeps a count of `selection` by the topology `key` from now on.
    pub fn ensure_tally(&mut self, selection: &Selection, key: &str) {
        self.tallies.ensure(selection, key, &self.nodes, &self.namespaces);
    }

    pub fn tally(&self, selection: &Selection) -> Option<&Tally> {
        self.tallies.get(selection)
    }

    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    pub fn set_namespace(&mut self, name: String, labels: Labels) {
        if self.namespaces.get(&name) != Some(&labels) {
            self.namespaces.insert(name, labels);
            self.tallies.forget();
        }
    }

    /// `pod` waits for room on `node`, or no longer waits.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: Option<&str>) {
        let uid = pod.uid();
        if self.nominations.get(uid).map(String::as_str) != node {
            self.version += 1;
        }
        if let Some(old) = self.nominations.remove(uid)
            && let Some(there) = self.nominated.get_mut(&old)
        {
            there.remove(uid);
            if there.is_empty() {
                self.nominated.remove(&old);
            }
        }
        if let Some(node) = node {
            self.nominations.insert(uid.to_owned(), node.to_owned());
            let there = self.nominated.entry(node.to_owned()).or_default();
            there.insert(uid.to_owned(), pod.clone());
        }
    }

    /// The node that was made free for this pod.
    pub fn nomination(&self, uid: &str) -> Option<&str> {
        self.nominations.get(uid).map(String::as_str)
    }

    pub fn nobody_waits(&self) -> bool {
        self.nominations.is_empty()
    }

    /// Pods that wait for room on `node` and that `pod` must not take it from.
    pub fn nominated_before<'a>(
        &'a self,
        pod: &'a PodInfo,
        node: &str,
    ) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        let there = self.nominated.get(node).into_iter().flat_map(BTreeMap::values);
        there.filter(|other| other.uid() != pod.uid() && other.priority() >= pod.priority())
    }

    /// Less important pods that wait for room on `node`.
    pub fn nominated_below(&self, pod: &PodInfo, node: &str) -> Vec<Arc<PodInfo>> {
        let there = self.nominated.get(node).into_iter().flat_map(BTreeMap::values);
        there
            .filter(|other| other.priority() < pod.priority())
            .cloned()
            .collect()
    }

    pub fn set_service(&mut self, service: &Service) {
        let (namespace, name) = (&service.metadata.namespace, &service.metadata.name);
        let key = (
            namespace.clone().unwrap_or_default(),
            name.clone().unwrap_or_default(),
        );
        let selector = service.spec.as_ref().and_then(|s| s.selector.clone());
        match selector.filter(|s| !s.is_empty()) {
            Some(selector) => self.services.insert(key, selector),
            None => self.services.remove(&key),
        };
    }

    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        self.services.remove(&(namespace.to_owned(), name.to_owned()));
    }

    pub fn set_owner(&mut self, uid: &str, selector: LabelSelector) {
        self.owners.insert(uid.to_owned(), selector);
    }

    pub fn remove_owner(&mut self, uid: &str) {
        self.owners.remove(uid);
    }

    /// Upstream's `DefaultSelector`: what the pod's services and its controller select, together.
    pub fn default_selector(&self, pod: &PodInfo) -> LabelSelector {
        let mut labels = Labels::new();
        let from = (pod.namespace().to_owned(), String::new());
        for (_, selector) in self
            .services
            .range(from..)
            .take_while(|((ns, _), _)| ns == pod.namespace())
        {
            if api::selector::matches_map(selector, pod.labels()) {
                labels.extend(selector.clone());
            }
        }
        let owner = api::owner::controller_of(&pod.pod.metadata).and_then(|o| self.owners.get(&o.uid));
        let mut merged = owner.cloned().unwrap_or_default();
        if !labels.is_empty() {
            merged.match_labels.get_or_insert_default().extend(labels);
        }
        merged
    }
}

fn count_images(
    mut counts: HashMap<String, usize>,
    old: &HashMap<String, i64>,
    new: &HashMap<String, i64>,
) -> HashMap<String, usize> {
    for name in new.keys().filter(|name| !old.contains_key(*name)) {
        *counts.entry(name.clone()).or_default() += 1;
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        if let Some(count) = counts.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                counts.remove(name);
            }
        }
    }
    counts
}

#[cfg(test)]
pub mod testing {
    //! Clusters in a line, for plugin tests.
    use super::*;
    use serde_json::{Value, from_value, json};

    pub fn pod(name: &str, mut body: Value) -> Arc<PodInfo> {
        body["metadata"]["name"] = json!(name);
        body["metadata"]["uid"] = json!(name);
        if body["metadata"]["namespace"].is_null() {
            body["metadata"]["namespace"] = json!("default");
        }
        if body["spec"]["containers"].is_null() {
            body["spec"]["containers"] = json!([{"name": "c"}]);
        }
        Arc::new(PodInfo::new(Arc::new(from_value(body).unwrap())))
    }

    pub fn cluster(nodes: &[(&str, Value)], pods: &[(&str, &str, Value)]) -> Cluster {
        let mut cluster = Cluster::default();
        for (name, body) in nodes {
            let mut body = body.clone();
            body["metadata"]["name"] = json!(name);
            if body["status"]["allocatable"].is_null() {
                body["status"]["allocatable"] = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
            }
            cluster.set_node(Arc::new(from_value(body).unwrap()));
        }
        for (name, node, body) in pods {
            cluster.set_pod(pod(name, body.clone()), node);
        }
        cluster.set_namespace("default".into(), Labels::new());
        cluster
    }

    #[test]
    fn sums_follow_pods_in_and_out() {
        let asks = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
        let mut cluster = cluster(
            &[("n", json!({}))],
            &[("a", "n", asks.clone()), ("b", "n", asks.clone())],
        );
        cluster.set_pod(pod("a", asks), "n");
        assert_eq!(cluster.node("n").unwrap().requested.milli_cpu, 2000);
        cluster.remove_node("n");
        assert!(cluster.node("n").is_none());
        cluster.set_node(Arc::new(from_value(json!({"metadata": {"name": "n"}})).unwrap()));
        assert_eq!(
            cluster.node("n").unwrap().requested.milli_cpu,
            2000,
            "pods stay through a node's absence"
        );
        assert!(cluster.remove_pod("a").is_some() && cluster.remove_pod("a").is_none());
        assert_eq!(cluster.node("n").unwrap().requested.milli_cpu, 1000);
    }
}
