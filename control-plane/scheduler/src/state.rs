//! Cluster and queue under one lock: news comes in, decisions go out.

use crate::algorithm::{Unschedulable, schedule};
use crate::cluster::Cluster;
use crate::framework::{ClusterEvent, Plugin};
use crate::plugins;
use crate::pod_info::PodInfo;
use crate::queue::Queue;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// What was decided about one pod.
#[derive(Debug)]
pub enum Decision {
    /// Bind it; it counts as placed already.
    Bind {
        pod: Arc<PodInfo>,
        node: String,
    },
    Unschedulable {
        pod: Arc<PodInfo>,
        why: Unschedulable,
    },
}

pub struct Shared {
    state: Mutex<State>,
    pub wake: Notify,
    plugins: Vec<Box<dyn Plugin>>,
    scheduler_name: String,
}

#[derive(Default)]
struct State {
    cluster: Cluster,
    queue: Queue,
    /// Pods with a binding on its way; until the watch confirms it, their objects still say "no node".
    assumed: HashSet<String>,
}

impl Shared {
    pub fn new(scheduler_name: &str) -> Self {
        Self {
            state: Mutex::default(),
            wake: Notify::new(),
            plugins: plugins::all(),
            scheduler_name: scheduler_name.into(),
        }
    }

    /// Decides about the next pod, or says when one may be due.
    pub fn decide(
        &self,
        now: Instant,
        pick: impl FnOnce(usize) -> usize,
    ) -> Result<Decision, Option<Instant>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = state.queue.next(now)?;
        match schedule(&self.plugins, &pod, &state.cluster, pick) {
            Ok(node) => {
                state.queue.remove(pod.uid());
                state.assumed.insert(pod.uid().to_owned());
                state.cluster.set_pod(pod.clone(), &node);
                Ok(Decision::Bind { pod, node })
            }
            Err(why) => {
                state.queue.unschedulable(pod.uid(), why.rejected_by.clone(), now);
                Ok(Decision::Unschedulable { pod, why })
            }
        }
    }

    /// The binding was refused; `again` unless the pod is gone.
    pub fn unbind(&self, pod: &Arc<PodInfo>, again: bool, now: Instant) {
        self.change(|state, events| {
            if state.assumed.remove(pod.uid()) && state.cluster.remove_pod(pod.uid()) {
                events.push(ClusterEvent::PodRemoved);
                if again {
                    state.queue.failed(pod.clone(), now);
                }
            }
        });
    }

    pub fn set_pod(&self, pod: Pod) {
        let info = Arc::new(PodInfo::new(Arc::new(pod)));
        let ours = info
            .spec()
            .scheduler_name
            .as_deref()
            .unwrap_or("default-scheduler")
            == self.scheduler_name;
        self.change(|state, events| {
            if api::pod::is_terminal(&info.pod) {
                return state.forget(info.uid(), events);
            }
            if let Some(node) = api::pod::node_name(&info.pod) {
                state.queue.remove(info.uid());
                let confirmed = state.assumed.remove(info.uid());
                let old = state.cluster.pod(info.uid()).filter(|_| !confirmed);
                match old {
                    None => events.push(ClusterEvent::PodAdded),
                    Some(old) if matters(old, &info) => events.push(ClusterEvent::PodUpdated),
                    Some(_) => {}
                }
                state.cluster.set_pod(info.clone(), node);
            } else if !state.assumed.contains(info.uid()) {
                let gated = info
                    .spec()
                    .scheduling_gates
                    .as_ref()
                    .is_some_and(|g| !g.is_empty());
                if ours && !gated && !api::pod::is_terminating(&info.pod) {
                    state.queue.set(info.clone());
                } else {
                    state.queue.remove(info.uid());
                }
            }
        });
    }

    pub fn remove_pod(&self, uid: &str) {
        self.change(|state, events| state.forget(uid, events));
    }

    pub fn set_node(&self, node: Node) {
        let node = Arc::new(node);
        self.change(|state, events| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            match state.cluster.node(name).map(|info| info.node.clone()) {
                None => events.push(ClusterEvent::NodeAdded),
                Some(old) => events.extend(node_changes(&old, &node)),
            }
            state.cluster.set_node(node.clone());
        });
    }

    pub fn remove_node(&self, name: &str) {
        self.change(|state, events| {
            state.cluster.remove_node(name);
            events.push(ClusterEvent::NodeRemoved);
        });
    }

    pub fn set_namespace(&self, namespace: Namespace) {
        self.change(|state, events| {
            let labels = namespace.metadata.labels.unwrap_or_default();
            state
                .cluster
                .namespaces
                .insert(namespace.metadata.name.unwrap_or_default(), labels);
            events.push(ClusterEvent::Namespace);
        });
    }

    pub fn remove_namespace(&self, name: &str) {
        self.change(|state, _| {
            state.cluster.namespaces.remove(name);
        });
    }

    pub fn set_service(&self, service: &Service) {
        self.change(|state, _| state.cluster.set_service(service));
    }

    pub fn remove_service(&self, namespace: &str, name: &str) {
        self.change(|state, _| state.cluster.remove_service(namespace, name));
    }

    pub fn set_owner(&self, uid: &str, selector: LabelSelector) {
        self.change(|state, _| state.cluster.set_owner(uid, selector));
    }

    pub fn remove_owner(&self, uid: &str) {
        self.change(|state, _| state.cluster.remove_owner(uid));
    }

    fn change(&self, f: impl FnOnce(&mut State, &mut Vec<ClusterEvent>)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = Vec::new();
        f(&mut state, &mut events);
        let cares = |name: &str, event| self.plugins.iter().any(|p| p.name() == name && p.wakes_on(event));
        for event in events {
            state.queue.wake(event, cares, Instant::now());
        }
        drop(state);
        self.wake.notify_one();
    }
}

impl State {
    fn forget(&mut self, uid: &str, events: &mut Vec<ClusterEvent>) {
        self.queue.remove(uid);
        self.assumed.remove(uid);
        if self.cluster.remove_pod(uid) {
            events.push(ClusterEvent::PodRemoved);
        }
    }
}

/// Did anything change that another pod's placement depends on?
fn matters(old: &PodInfo, new: &PodInfo) -> bool {
    old.labels() != new.labels()
        || old.requests != new.requests
        || api::pod::is_terminating(&old.pod) != api::pod::is_terminating(&new.pod)
}

fn node_changes(old: &Node, new: &Node) -> Vec<ClusterEvent> {
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    let cordon = |n: &Node| (api::node::is_unschedulable(n), api::node::taints(n).to_vec());
    let mut events = Vec::new();
    if allocatable(old) != allocatable(new) {
        events.push(ClusterEvent::NodeAllocatable);
    }
    if old.metadata.labels != new.metadata.labels {
        events.push(ClusterEvent::NodeLabels);
    }
    if cordon(old) != cordon(new) {
        events.push(ClusterEvent::NodeTaints);
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn pod(name: &str, mut spec: Value) -> Pod {
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "3"}}}]);
        }
        from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": spec})).unwrap()
    }

    fn node(cpu: &str) -> Node {
        from_value(json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": cpu, "pods": "10"}}}))
            .unwrap()
    }

    fn bound(shared: &Shared, now: Instant) -> Option<(Arc<PodInfo>, String)> {
        match shared.decide(now, |_| 0) {
            Ok(Decision::Bind { pod, node }) => Some((pod, node)),
            _ => None,
        }
    }

    #[test]
    fn assumed_pods_take_room_until_refused() {
        let (shared, now) = (Shared::new("default-scheduler"), Instant::now());
        shared.set_node(node("4"));
        shared.set_pod(pod("a", json!({})));
        shared.set_pod(pod("b", json!({})));
        let (first, _) = bound(&shared, now).unwrap();
        assert_eq!(first.name(), "a");
        shared.set_pod(pod("a", json!({})));
        assert!(
            matches!(shared.decide(now, |_| 0), Ok(Decision::Unschedulable { pod, .. }) if pod.name() == "b")
        );
        assert!(
            shared.decide(now, |_| 0).is_err(),
            "the assumed pod isn't queued again by its own old state"
        );
        shared.unbind(&first, false, now);
        let later = now + std::time::Duration::from_secs(20);
        assert_eq!(
            bound(&shared, later).map(|b| b.0.name().to_owned()),
            Some("b".into())
        );
    }

    #[test]
    fn only_our_pods_and_only_ungated_ones() {
        let (shared, now) = (Shared::new("default-scheduler"), Instant::now());
        shared.set_node(node("4"));
        shared.set_pod(pod("other", json!({"schedulerName": "mine"})));
        shared.set_pod(pod("gated", json!({"schedulingGates": [{"name": "g"}]})));
        assert!(shared.decide(now, |_| 0).is_err());
        shared.set_pod(pod("gated", json!({})));
        assert!(bound(&shared, now).is_some());
    }

    #[test]
    fn a_new_node_wakes_the_rejected() {
        let (shared, now) = (Shared::new("default-scheduler"), Instant::now());
        shared.set_pod(pod("a", json!({})));
        assert!(matches!(
            shared.decide(now, |_| 0),
            Ok(Decision::Unschedulable { .. })
        ));
        shared.set_node(node("4"));
        assert!(bound(&shared, now + std::time::Duration::from_secs(20)).is_some());
    }
}
