//! Cluster and queue under one lock: news comes in, decisions go out.

use crate::algorithm::{Sampling, schedule};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::framework::{ClusterEvent, EventKind};
use crate::metrics::Metrics;
use crate::plugins::volume_binding;
use crate::pod_info::PodInfo;
use crate::preemption::Preemption;
use crate::profile::Profile;
use crate::queue::Queue;
use crate::volumes::{Step, Volumes, claim_key};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, watch};

/// What was decided about one pod.
#[derive(Debug)]
pub enum Decision {
    /// Serve its claims, then bind it; it counts as placed already.
    Bind {
        pod: Arc<PodInfo>,
        node: String,
        steps: Vec<Step>,
    },
    Unschedulable {
        pod: Arc<PodInfo>,
        message: String,
        /// No node can be made free: the pod's nomination ends.
        clear: bool,
    },
    /// The victims go, the pod waits for their room. [`Shared::preempted`] must follow.
    Preempt {
        pod: Arc<PodInfo>,
        message: String,
        node: String,
        victims: Vec<Arc<PodInfo>>,
        /// Less important pods that waited for room there, and have to look elsewhere.
        displaced: Vec<Arc<PodInfo>>,
    },
}

/// How far the claims of a pod are.
#[derive(Debug, PartialEq, Eq)]
pub enum Claims {
    Bound,
    Waiting,
    /// The provisioner gave the node back.
    Refused(String),
}

pub struct Shared {
    state: Mutex<State>,
    pub wake: Notify,
    /// Changes with every change of a claim.
    claims: watch::Sender<u64>,
    profiles: Vec<Profile>,
    pub metrics: Metrics,
}

struct State {
    cluster: Cluster,
    queue: Queue,
    sampling: Sampling,
    /// Pods with a binding on its way; until the watch confirms it, their objects still say "no node".
    assumed: HashSet<String>,
}

/// An event with the names it is about, to be looked up when everything is in place.
struct News {
    kind: EventKind,
    node: Option<String>,
    pod: Option<Arc<PodInfo>>,
}

impl News {
    fn plain(kind: EventKind) -> Self {
        Self {
            kind,
            node: None,
            pod: None,
        }
    }

    fn of_node(kind: EventKind, node: &str) -> Self {
        Self {
            node: Some(node.to_owned()),
            ..Self::plain(kind)
        }
    }

    fn of_pod(kind: EventKind, pod: &Arc<PodInfo>) -> Self {
        Self {
            kind,
            node: api::pod::node_name(&pod.pod).map(str::to_owned),
            pod: Some(pod.clone()),
        }
    }
}

impl Shared {
    pub fn new(config: &Config) -> Self {
        Self {
            state: Mutex::new(State {
                cluster: Cluster::default(),
                queue: Queue::new(config.first_backoff, config.longest_backoff),
                sampling: Sampling::default(),
                assumed: HashSet::new(),
            }),
            wake: Notify::new(),
            claims: watch::Sender::new(0),
            profiles: config.profiles(),
            metrics: Metrics::default(),
        }
    }

    fn profile(&self, pod: &PodInfo) -> Option<&Profile> {
        let wanted = pod
            .spec()
            .scheduler_name
            .as_deref()
            .unwrap_or("default-scheduler");
        self.profiles.iter().find(|p| p.scheduler_name == wanted)
    }

    /// Decides about the next pod, or says when one may be due.
    pub fn decide(
        &self,
        now: Instant,
        pick: impl FnMut(usize) -> usize,
    ) -> Result<Decision, Option<Instant>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let pod = state.queue.next(now)?;
        let Some(profile) = self.profile(&pod) else {
            state.queue.remove(pod.uid());
            return Err(Some(now));
        };
        let result = schedule(profile, &pod, &mut state.cluster, &mut state.sampling, pick);
        self.metrics
            .attempt(&profile.scheduler_name, result.is_ok(), now.elapsed());
        match result {
            Ok(node) => {
                let steps = state.reserve(&pod, &node);
                state.queue.remove(pod.uid());
                state.assumed.insert(pod.uid().to_owned());
                state.cluster.nominate(&pod, None);
                state.cluster.set_pod(pod.clone(), &node);
                state.sampling.batch.settle(state.cluster.version());
                Ok(Decision::Bind { pod, node, steps })
            }
            Err(why) => match why.preemption {
                Preemption::Evict { node, victims } => {
                    self.metrics.preemption(victims.len());
                    let displaced = state.cluster.nominated_below(&pod, &node);
                    for other in &displaced {
                        state.cluster.nominate(other, None);
                        state.queue.retry(other.uid(), now);
                    }
                    state.cluster.nominate(&pod, Some(&node));
                    Ok(Decision::Preempt {
                        pod,
                        message: why.message,
                        node,
                        victims,
                        displaced,
                    })
                }
                outcome => {
                    let clear = outcome == Preemption::Clear && is_nominated(&pod);
                    if clear {
                        state.cluster.nominate(&pod, None);
                    }
                    state.queue.unschedulable(pod.uid(), why.rejected_by, now);
                    Ok(Decision::Unschedulable {
                        pod,
                        message: why.message,
                        clear,
                    })
                }
            },
        }
    }

    /// The victims were told to go: the preemptor waits until they have.
    pub fn preempted(&self, pod: &PodInfo, victims: &[Arc<PodInfo>], told: bool, now: Instant) {
        let mut state = self.lock();
        let gone = victims.iter().any(|v| state.cluster.pod(v.uid()).is_none());
        if gone || !told {
            state.queue.retry(pod.uid(), now);
        } else {
            state.queue.unschedulable(pod.uid(), u64::MAX, now);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The binding was refused; `again` unless the pod is gone.
    pub fn unbind(&self, pod: &Arc<PodInfo>, again: bool, now: Instant) {
        self.change(|state, news| {
            state.release(pod);
            let place = state.cluster.node_of(pod.uid()).map(str::to_owned);
            if state.assumed.remove(pod.uid()) && state.cluster.remove_pod(pod.uid()).is_some() {
                news.push(News {
                    kind: EventKind::PodRemoved,
                    node: place,
                    pod: Some(pod.clone()),
                });
                if again {
                    state.queue.failed(pod.clone(), now);
                }
            }
        });
    }

    /// Are the claims of an assumed pod served?
    pub fn claims_of(&self, pod: &PodInfo, steps: &[Step]) -> Claims {
        let state = self.lock();
        for step in steps {
            let (Step::Bind { claim, .. } | Step::Provision { claim }) = step;
            let Some(now) = state.cluster.volumes.claims.get(&claim_key(claim)) else {
                return Claims::Refused(format!("could not get PVC {}/{}", pod.namespace(), name(claim)));
            };
            let seen = |c: &k8s_openapi::api::core::v1::PersistentVolumeClaim| {
                c.metadata
                    .resource_version
                    .as_deref()
                    .and_then(|v| v.parse::<u64>().ok())
            };
            if api::volume::is_bound(now) {
                continue;
            }
            let selected = api::volume::annotation(&now.metadata, api::volume::SELECTED_NODE).is_some();
            let provisioning = matches!(step, Step::Provision { .. });
            // The annotation we wrote can only be missing from a state newer than our write.
            if provisioning && !selected && seen(now) > seen(claim) {
                return Claims::Refused(format!("provisioning failed for PVC {:?}", name(claim)));
            }
            return Claims::Waiting;
        }
        Claims::Bound
    }

    pub fn claims_changed(&self) -> watch::Receiver<u64> {
        self.claims.subscribe()
    }

    /// The pod's claims are bound: nothing is promised any more.
    pub fn release(&self, pod: &Arc<PodInfo>) {
        self.lock().release(pod);
    }

    pub fn set_pod(&self, pod: Pod) {
        let info = Arc::new(PodInfo::new(Arc::new(pod)));
        let ours = self.profile(&info).is_some();
        self.change(|state, news| {
            if api::pod::is_terminal(&info.pod) {
                return state.forget(info.uid(), news);
            }
            if let Some(node) = api::pod::node_name(&info.pod) {
                state.queue.remove(info.uid());
                state.cluster.nominate(&info, None);
                let confirmed = state.assumed.remove(info.uid());
                let old = state.cluster.pod(info.uid()).filter(|_| !confirmed).cloned();
                state.cluster.set_pod(info.clone(), node);
                match old {
                    None => news.push(News::of_pod(EventKind::PodAdded, &info)),
                    Some(old) if matters(&old, &info) => {
                        news.push(News::of_pod(EventKind::PodUpdated, &info))
                    }
                    Some(_) => {}
                }
            } else if !state.assumed.contains(info.uid()) {
                let gates = info.spec().scheduling_gates.as_ref();
                if ours && gates.is_none_or(Vec::is_empty) && !api::pod::is_terminating(&info.pod) {
                    if let Some(node) = nominated(&info) {
                        state.cluster.nominate(&info, Some(node));
                    }
                    state.queue.set(info.clone());
                } else {
                    state.forget(info.uid(), news);
                }
            }
        });
    }

    pub fn remove_pod(&self, uid: &str) {
        self.change(|state, news| state.forget(uid, news));
    }

    pub fn set_node(&self, node: Node) {
        let node = Arc::new(node);
        self.change(|state, news| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let kinds = match state.cluster.node(name).map(|info| info.node.clone()) {
                None => vec![EventKind::NodeAdded],
                Some(old) => node_changes(&old, &node),
            };
            news.extend(kinds.into_iter().map(|kind| News::of_node(kind, name)));
            state.cluster.set_node(node.clone());
        });
    }

    pub fn remove_node(&self, name: &str) {
        self.change(|state, news| {
            state.cluster.remove_node(name);
            news.push(News::plain(EventKind::NodeRemoved));
        });
    }

    pub fn set_namespace(&self, namespace: Namespace) {
        self.change(|state, news| {
            let labels = namespace.metadata.labels.unwrap_or_default();
            state
                .cluster
                .set_namespace(namespace.metadata.name.unwrap_or_default(), labels);
            news.push(News::plain(EventKind::Namespace));
        });
    }

    /// Changes what no event is about.
    pub fn with_cluster(&self, f: impl FnOnce(&mut Cluster)) {
        f(&mut self.lock().cluster);
    }

    pub fn with_volumes(&self, f: impl FnOnce(&mut Volumes)) {
        self.change(|state, news| {
            f(&mut state.cluster.volumes);
            news.push(News::plain(EventKind::Storage));
        });
        self.claims.send_modify(|n| *n += 1);
    }

    pub fn depth(&self) -> crate::queue::Depth {
        self.lock().queue.depth()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, f: impl FnOnce(&mut State, &mut Vec<News>)) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut news = Vec::new();
        f(state, &mut news);
        let (queue, cluster) = (&mut state.queue, &state.cluster);
        for news in news {
            let event = ClusterEvent {
                kind: news.kind,
                node: news.node.and_then(|name| cluster.node(&name)),
                pod: news.pod.as_deref(),
            };
            let bits = self
                .profiles
                .iter()
                .fold(0, |bits, p| bits | p.woken_by(event.kind));
            let helps = |pod: &PodInfo, by: u64| {
                self.profile(pod).is_some_and(|profile| {
                    let mut asked = profile.plugins.iter().filter(|e| by & e.bit != 0);
                    asked.any(|e| e.plugin.wakes_on(event.kind) && e.plugin.hint(pod, &event))
                })
            };
            queue.wake(bits, helps, Instant::now());
        }
        drop(guard);
        self.wake.notify_one();
    }
}

impl State {
    fn forget(&mut self, uid: &str, news: &mut Vec<News>) {
        if let Some(pod) = self.queue.get(uid).cloned() {
            self.cluster.nominate(&pod, None);
            self.queue.remove(uid);
        }
        self.assumed.remove(uid);
        let place = self.cluster.node_of(uid).map(str::to_owned);
        if let Some(pod) = self.cluster.remove_pod(uid) {
            self.cluster.nominate(&pod, None);
            news.push(News {
                kind: EventKind::PodRemoved,
                node: place,
                pod: Some(pod),
            });
        }
    }

    /// How the pod's claims will be served on this node; the volumes are promised from now on.
    fn reserve(&mut self, pod: &PodInfo, node: &str) -> Vec<Step> {
        let volumes = &mut self.cluster.volumes;
        let waiting = volume_binding::waiting(pod, volumes);
        if waiting.is_empty() {
            return Vec::new();
        }
        let Some(info) = self.cluster.node(node).map(|n| n.node.clone()) else {
            return Vec::new();
        };
        let volumes = &mut self.cluster.volumes;
        let steps = volumes.plan(&waiting, &info).unwrap_or_default();
        for step in &steps {
            if let Step::Bind { claim, volume } = step {
                let name = volume.metadata.name.clone().unwrap_or_default();
                volumes.reserved.insert(name, claim_key(claim));
            }
        }
        steps
    }

    fn release(&mut self, pod: &PodInfo) {
        let ours = |(namespace, name): &(String, String)| {
            namespace == pod.namespace() && pod.claims.iter().any(|c| c.name == *name)
        };
        self.cluster.volumes.reserved.retain(|_, claim| !ours(claim));
    }
}

fn name(claim: &k8s_openapi::api::core::v1::PersistentVolumeClaim) -> &str {
    claim.metadata.name.as_deref().unwrap_or_default()
}

fn nominated(pod: &PodInfo) -> Option<&str> {
    let name = pod.pod.status.as_ref()?.nominated_node_name.as_deref();
    name.filter(|name| !name.is_empty())
}

fn is_nominated(pod: &PodInfo) -> bool {
    nominated(pod).is_some()
}

/// Did anything change that another pod's placement depends on?
fn matters(old: &PodInfo, new: &PodInfo) -> bool {
    old.labels() != new.labels()
        || old.requests != new.requests
        || api::pod::is_terminating(&old.pod) != api::pod::is_terminating(&new.pod)
}

fn node_changes(old: &Node, new: &Node) -> Vec<EventKind> {
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    let cordon = |n: &Node| (api::node::is_unschedulable(n), api::node::taints(n).to_vec());
    let mut events = Vec::new();
    if allocatable(old) != allocatable(new) {
        events.push(EventKind::NodeAllocatable);
    }
    if old.metadata.labels != new.metadata.labels {
        events.push(EventKind::NodeLabels);
    }
    if cordon(old) != cordon(new) {
        events.push(EventKind::NodeTaints);
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
            Ok(Decision::Bind { pod, node, .. }) => Some((pod, node)),
            _ => None,
        }
    }

    #[test]
    fn assumed_pods_take_room_until_refused() {
        let (shared, now) = (Shared::new(&Config::default()), Instant::now());
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
        let (shared, now) = (Shared::new(&Config::default()), Instant::now());
        shared.set_node(node("4"));
        shared.set_pod(pod("other", json!({"schedulerName": "mine"})));
        shared.set_pod(pod("gated", json!({"schedulingGates": [{"name": "g"}]})));
        assert!(shared.decide(now, |_| 0).is_err());
        shared.set_pod(pod("gated", json!({})));
        assert!(bound(&shared, now).is_some());
    }

    #[test]
    fn a_new_node_wakes_the_rejected() {
        let (shared, now) = (Shared::new(&Config::default()), Instant::now());
        shared.set_pod(pod("a", json!({})));
        assert!(matches!(
            shared.decide(now, |_| 0),
            Ok(Decision::Unschedulable { .. })
        ));
        shared.set_node(node("4"));
        assert!(bound(&shared, now + std::time::Duration::from_secs(20)).is_some());
    }

    #[test]
    fn a_preemptor_waits_for_its_victims_and_gets_their_room() {
        let (shared, now) = (Shared::new(&Config::default()), Instant::now());
        shared.set_node(node("4"));
        shared.set_pod(pod("low", json!({"nodeName": "n", "priority": 1})));
        shared.set_pod(pod("vip", json!({"priority": 10})));
        let Ok(Decision::Preempt {
            pod: vip,
            node,
            victims,
            ..
        }) = shared.decide(now, |_| 0)
        else {
            panic!("preempts")
        };
        assert_eq!((node.as_str(), victims[0].name()), ("n", "low"));
        assert!(
            shared.decide(now, |_| 0).is_err(),
            "nobody decides about it meanwhile"
        );
        shared.preempted(&vip, &victims, true, now);
        shared.set_pod(pod("thief", json!({"priority": 5})));
        shared.remove_pod("low");
        let later = now + std::time::Duration::from_secs(20);
        let (first, _) = bound(&shared, later).unwrap();
        assert_eq!(first.name(), "vip", "less important pods don't take the room");
    }
}
