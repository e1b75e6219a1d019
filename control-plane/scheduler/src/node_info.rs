//! A node and what runs, or will run, on it.

use crate::pod_info::{PodInfo, Resources};
use api::selector::Labels;
use k8s_openapi::api::core::v1::Node;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub node: Arc<Node>,
    pub pods: BTreeMap<String, Arc<PodInfo>>,
    pub requested: Resources,
    pub scoring_requested: (i64, i64),
    pub allocatable: Resources,
    pub allowed_pods: i64,
    /// Image name to size.
    pub images: Arc<HashMap<String, i64>>,
    /// Pods here that have host ports.
    pub with_ports: usize,
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

    /// Does this version of the node say nothing new to a scheduler?
    pub fn is_as(&self, node: &Node) -> bool {
        let said = |node: &Node| {
            node.status
                .as_ref()
                .map(|s| (s.allocatable.clone(), s.images.clone()))
        };
        self.node.metadata.labels == node.metadata.labels
            && self.node.spec == node.spec
            && said(&self.node) == said(node)
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = api::resources::parse(status.and_then(|s| s.allocatable.as_ref()));
        self.allowed_pods = allocatable
            .get(api::resources::PODS)
            .map(|q| q.value())
            .unwrap_or_default();
        self.allocatable = Resources::of(&allocatable);
        let images = status.and_then(|s| s.images.as_ref());
        let named = images.into_iter().flatten().flat_map(|image| {
            let size = image.size_bytes.unwrap_or_default();
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        self.images = Arc::new(named.collect());
        self.node = node;
    }

    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.count(&pod, 1);
        if let Some(old) = self.pods.insert(pod.uid().to_owned(), pod) {
            self.count(&old, -1);
        }
    }

    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.count(&pod, -1);
        Some(pod)
    }

    fn count(&mut self, pod: &PodInfo, sign: i64) {
        self.requested.add(&pod.requests, sign);
        self.scoring_requested.0 += sign * pod.scoring.0;
        self.scoring_requested.1 += sign * pod.scoring.1;
        if !pod.host_ports.is_empty() {
            self.with_ports = self.with_ports.saturating_add_signed(sign as isize);
        }
    }
}
