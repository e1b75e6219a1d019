//! What the scheduler knows of the cluster: nodes with the pods on them, assumed pods included.

use crate::pod_info::{PodInfo, Resources};
use api::selector::Labels;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A node and what runs, or will run, on it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub node: Arc<Node>,
    pub pods: BTreeMap<String, Arc<PodInfo>>,
    pub requested: Resources,
    pub scoring_requested: (i64, i64),
    pub allocatable: Resources,
    pub allowed_pods: i64,
    /// Image name to size.
    pub images: HashMap<String, i64>,
    known: bool,
}

impl NodeInfo {
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn labels(&self) -> Option<&Labels> {
        self.node.metadata.labels.as_ref()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = api::resources::parse(status.and_then(|s| s.allocatable.as_ref()));
        self.allowed_pods = allocatable
            .get(api::resources::PODS)
            .map(|q| q.value())
            .unwrap_or_default();
        self.allocatable = Resources::of(&allocatable);
        self.images = status
            .and_then(|s| s.images.as_ref())
            .into_iter()
            .flatten()
            .flat_map(|image| {
                image
                    .names
                    .iter()
                    .flatten()
                    .map(|name| (name.clone(), image.size_bytes.unwrap_or_default()))
            })
            .collect();
        self.node = node;
        self.known = true;
    }

    fn count(&mut self, pod: &PodInfo, sign: i64) {
        self.requested.add(&pod.requests, sign);
        self.scoring_requested.0 += sign * pod.scoring.0;
        self.scoring_requested.1 += sign * pod.scoring.1;
    }
}

#[derive(Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<String, NodeInfo>,
    /// UID to node name.
    places: HashMap<String, String>,
    pub namespaces: HashMap<String, Labels>,
    /// Namespace to services and their selectors.
    services: BTreeMap<(String, String), Labels>,
    /// Selectors of controllers by UID.
    owners: HashMap<String, LabelSelector>,
}

impl Cluster {
    /// Nodes that exist (pods may refer to others).
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|n| n.known)
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|n| n.known)
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.nodes.entry(name).or_default().set_node(node);
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            info.known = false;
            if info.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Puts a pod on a node, or moves or renews it.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(pod.uid());
        let info = self.nodes.entry(node.to_owned()).or_default();
        info.count(&pod, 1);
        self.places.insert(pod.uid().to_owned(), node.to_owned());
        info.pods.insert(pod.uid().to_owned(), pod);
    }

    /// A pod that is on a node.
    pub fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.nodes.get(self.places.get(uid)?)?.pods.get(uid)
    }

    /// True when the pod was on a node.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(place) = self.places.remove(uid) else {
            return false;
        };
        let Some(info) = self.nodes.get_mut(&place) else {
            return false;
        };
        if let Some(pod) = info.pods.remove(uid) {
            info.count(&pod, -1);
        }
        if !info.known && info.pods.is_empty() {
            self.nodes.remove(&place);
        }
        true
    }

    pub fn set_service(&mut self, service: &Service) {
        let (namespace, name) = (
            service.metadata.namespace.as_deref(),
            service.metadata.name.as_deref(),
        );
        let key = (
            namespace.unwrap_or_default().to_owned(),
            name.unwrap_or_default().to_owned(),
        );
        match service
            .spec
            .as_ref()
            .and_then(|s| s.selector.clone())
            .filter(|s| !s.is_empty())
        {
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
        cluster.namespaces.insert("default".into(), Labels::new());
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
        assert!(cluster.remove_pod("a") && cluster.remove_pod("b") && !cluster.remove_pod("b"));
        assert!(cluster.nodes.is_empty());
    }
}
