//! One step of a DaemonSet towards its specification (upstream's `syncDaemonSet`).

use super::placement::{Place, daemon_spec, place, target, tie};
use super::rolling::{Daemons, Roll, limits, roll};
use crate::action::Action;
use crate::controllers::history::{self, REVISION_HASH};
use crate::controllers::owned::{claim_all, create, delete, pod_of};
use api::event::{NORMAL, WARNING};
use api::pod::{is_available, is_ready, is_terminal, is_terminating};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Pods created or deleted by one plan at most.
const BURST: usize = 250;
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(15 * 60);
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// By node: when a failed daemon was last deleted, and how long the next one waits.
pub type Kills = BTreeMap<String, (Timestamp, Duration)>;

pub struct Observed {
    pub set: Arc<DaemonSet>,
    /// Pods that refer to the set as their controller, and those of its namespace that refer to none.
    pub pods: Vec<Arc<Pod>>,
    pub nodes: Vec<Arc<Node>>,
    /// The set's revisions, and those of its namespace that nobody controls.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Names of revisions in the namespace.
    pub taken: HashSet<String>,
    pub kills: Kills,
}

/// The plan, and the new record of failed pods deleted.
pub fn reconcile(observed: &Observed, now: Timestamp) -> (Vec<Action>, Kills) {
    let set = &*observed.set;
    let Some(spec) = &set.spec else {
        return Default::default();
    };
    if api::selector::is_empty(&spec.selector) {
        let message = "This daemon set is selecting all pods. A non-empty selector is required.";
        let event = Action::event(set, WARNING, "SelectingAll", message);
        return (vec![event], Kills::new());
    }
    let mut plan = Vec::new();
    let pods = claim_all(
        set,
        &spec.selector,
        &observed.pods,
        |p| !is_terminal(p),
        &mut plan,
    );
    let revisions = claim_all(set, &spec.selector, &observed.revisions, |_| true, &mut plan);
    if set.metadata.deletion_timestamp.is_some() {
        return (plan, Kills::new());
    }
    let collisions = set
        .status
        .as_ref()
        .and_then(|s| s.collision_count)
        .unwrap_or_default();
    let current = history::current(set, &spec.template, collisions, &revisions, &observed.taken);
    let hash = api_hash(&current.revision);
    plan.extend(current.actions);
    let mut step = Step {
        set,
        spec,
        now,
        hash,
        daemon: daemon_spec(set),
        by_node: by_node(&pods),
        kills: observed.kills.clone(),
        create: Vec::new(),
        delete: Vec::new(),
        words: Vec::new(),
    };
    let places: Vec<(&str, Place)> = observed
        .nodes
        .iter()
        .filter_map(|n| Some((n.metadata.name.as_deref()?, place(&step.daemon, n))))
        .collect();
    for (node, place) in &places {
        step.settle(node, *place);
    }
    step.drop_homeless(&places);
    step.update(&places);
    let mut status = step.status(&places);
    status.collision_count = Some(current.collisions).filter(|n| *n > 0);
    let old = set.status.clone().unwrap_or_default();
    if old != status {
        plan.push(Action::patch_status(set, &old, &status));
    }
    plan.append(&mut step.words);
    step.delete.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    step.delete.dedup_by(|a, b| a.metadata.uid == b.metadata.uid);
    plan.extend(step.delete.iter().take(BURST).map(|pod| delete(set, pod)));
    plan.extend(
        step.create
            .iter()
            .take(BURST)
            .map(|node| create(set, &step.pod(node))),
    );
    let live: HashSet<&str> = pods.iter().filter_map(|p| label(p)).collect();
    plan.extend(history::truncate(
        &revisions,
        spec.revision_history_limit.unwrap_or(10),
        |r| history::name(r) == history::name(&current.revision) || live.contains(api_hash(r).as_str()),
    ));
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    let ripening = pods
        .iter()
        .any(|p| is_ready(p) && !is_available(p, min_ready, now));
    if ripening {
        plan.push(Action::Requeue(Duration::from_secs(u64::from(
            min_ready.unsigned_abs(),
        ))));
    }
    (plan, step.kills)
}

fn api_hash(revision: &ControllerRevision) -> String {
    let labels = revision.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(REVISION_HASH))
        .cloned()
        .unwrap_or_default()
}

fn label(pod: &Pod) -> Option<&str> {
    pod.metadata
        .labels
        .as_ref()?
        .get(REVISION_HASH)
        .map(String::as_str)
}

/// Daemons by the node they are on or meant for, those longest there first.
fn by_node(pods: &[Arc<Pod>]) -> BTreeMap<String, Vec<Arc<Pod>>> {
    let mut map: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods.iter().filter(|p| !(is_terminating(p) && is_terminal(p))) {
        if let Some(node) = target(pod) {
            map.entry(node.into()).or_default().push(pod.clone());
        }
    }
    for pods in map.values_mut() {
        pods.sort_by_key(|p| {
            let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (api::pod::node_name(p).is_none(), created, p.metadata.name.clone())
        });
    }
    map
}

struct Step<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    now: Timestamp,
    /// Of the current template.
    hash: String,
    daemon: PodSpec,
    by_node: BTreeMap<String, Vec<Arc<Pod>>>,
    kills: Kills,
    create: Vec<String>,
    delete: Vec<Arc<Pod>>,
    words: Vec<Action>,
}

impl Step<'_> {
    /// Upstream's `podsShouldBeOnNode`.
    fn settle(&mut self, node: &str, place: Place) {
        let pods = self.by_node.get(node).cloned().unwrap_or_default();
        if !place.stays {
            self.delete
                .extend(pods.into_iter().filter(|p| !is_terminating(p)));
            return;
        }
        if pods.is_empty() {
            if place.starts {
                self.create.push(node.into());
            }
            return;
        }
        let mut running = Vec::new();
        for pod in pods.into_iter().filter(|p| !is_terminating(p)) {
            match api::pod::phase(&pod) {
                "Failed" => self.kill(node, pod),
                "Succeeded" => {
                    self.say(NORMAL, "SucceededDaemonPod", "succeeded", "delete", &pod, node);
                    self.delete.push(pod);
                }
                _ => running.push(pod),
            }
        }
        // While surging, the oldest of each kind may stay together.
        let surging = limits(self.set, 1).0 > 0 && self.is_rolling();
        let (new, old): (Vec<_>, Vec<_>) = running.iter().cloned().partition(|p| self.is_current(p));
        let surplus: Vec<Arc<Pod>> = if surging {
            new.into_iter().skip(1).chain(old.into_iter().skip(1)).collect()
        } else {
            running.into_iter().skip(1).collect()
        };
        self.delete.extend(surplus);
    }

    fn kill(&mut self, node: &str, pod: Arc<Pod>) {
        let previous = self.kills.get(node).copied();
        if let Some((at, delay)) = previous {
            let waited = self.now.duration_since(at).unsigned_abs();
            if waited < delay {
                self.words.push(Action::Requeue(delay - waited));
                return;
            }
        }
        let calm = |(at, delay): &(Timestamp, Duration)| {
            self.now.duration_since(*at).unsigned_abs() > (*delay * 2).max(LONGEST_BACKOFF)
        };
        let delay = previous
            .filter(|p| !calm(p))
            .map_or(FIRST_BACKOFF, |(_, delay)| (delay * 2).min(LONGEST_BACKOFF));
        self.kills.insert(node.into(), (self.now, delay));
        self.say(WARNING, "FailedDaemonPod", "failed", "kill", &pod, node);
        self.delete.push(pod);
    }

    fn say(&mut self, kind: &'static str, reason: &str, state: &str, verb: &str, pod: &Pod, node: &str) {
        let (namespace, name) = (
            pod.metadata.namespace.as_deref().unwrap_or_default(),
            pod.metadata.name.as_deref().unwrap_or_default(),
        );
        let message =
            format!("Found {state} daemon pod {namespace}/{name} on node {node}, will try to {verb} it");
        self.words.push(Action::event(self.set, kind, reason, message));
    }

    /// Daemons that wait for a node that is gone.
    fn drop_homeless(&mut self, places: &[(&str, Place)]) {
        let known: HashSet<&str> = places.iter().map(|(n, _)| *n).collect();
        let homeless = self
            .by_node
            .iter()
            .filter(|(node, _)| !known.contains(node.as_str()))
            .flat_map(|(_, pods)| pods)
            .filter(|p| api::pod::node_name(p).is_none() && !is_terminating(p));
        self.delete.extend(homeless.cloned());
    }

    fn is_rolling(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref();
        strategy
            .and_then(|s| s.type_.as_deref())
            .unwrap_or("RollingUpdate")
            == "RollingUpdate"
    }

    fn is_current(&self, pod: &Pod) -> bool {
        label(pod) == Some(&self.hash)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.spec.min_ready_seconds.unwrap_or_default(), self.now)
    }

    fn update(&mut self, places: &[(&str, Place)]) {
        if !self.is_rolling() {
            return;
        }
        let desired = i32::try_from(places.iter().filter(|(_, p)| p.starts).count()).unwrap_or(i32::MAX);
        let daemons: Vec<Daemons> = places
            .iter()
            .map(|(node, place)| {
                let pods = self.by_node.get(*node).into_iter().flatten();
                let pods = pods.filter(|p| !is_terminal(p));
                let (new, old) = pods.partition(|p| self.is_current(p));
                Daemons {
                    node,
                    starts: place.starts,
                    new,
                    old,
                }
            })
            .collect();
        let Roll { delete, surge } = roll(&daemons, limits(self.set, desired), |p| self.is_available(p));
        let delete: Vec<Arc<Pod>> = delete.into_iter().cloned().collect();
        let surge: Vec<String> = surge.into_iter().map(str::to_owned).collect();
        self.delete.extend(delete);
        self.create.extend(surge);
    }

    fn pod(&self, node: &str) -> Pod {
        let mut pod = pod_of(self.set, &self.spec.template);
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(REVISION_HASH.into(), self.hash.clone());
        let annotations = self.set.metadata.annotations.as_ref();
        if let Some(generation) = annotations.and_then(|a| a.get(TEMPLATE_GENERATION)) {
            labels.insert("pod-template-generation".into(), generation.clone());
        }
        let mut spec = self.daemon.clone();
        tie(&mut spec, node);
        pod.spec = Some(spec);
        pod
    }

    fn status(&self, places: &[(&str, Place)]) -> DaemonSetStatus {
        let mut status = DaemonSetStatus {
            observed_generation: self.set.metadata.generation,
            conditions: self.set.status.as_ref().and_then(|s| s.conditions.clone()),
            ..DaemonSetStatus::default()
        };
        let (mut updated, mut available) = (0, 0);
        for (node, place) in places {
            let pod = self.by_node.get(*node).and_then(|pods| pods.first());
            if !place.starts {
                status.number_misscheduled += i32::from(pod.is_some());
                continue;
            }
            status.desired_number_scheduled += 1;
            let Some(pod) = pod else { continue };
            status.current_number_scheduled += 1;
            status.number_ready += i32::from(is_ready(pod));
            available += i32::from(is_ready(pod) && self.is_available(pod));
            updated += i32::from(self.is_current(pod));
        }
        let nonzero = |n: i32| (n != 0).then_some(n);
        status.updated_number_scheduled = nonzero(updated);
        status.number_available = nonzero(available);
        status.number_unavailable = nonzero(status.desired_number_scheduled - available);
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn observed(image: &str, strategy: Value, status: Value) -> Observed {
        let set = json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "ds", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "d"}}, "updateStrategy": strategy,
                "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}}},
            "status": status,
        });
        let node = |name: &str| Arc::new(from_value(json!({"metadata": {"name": name}})).unwrap());
        Observed {
            set: Arc::new(from_value(set).unwrap()),
            pods: vec![],
            nodes: vec![node("n1"), node("n2")],
            revisions: vec![],
            taken: HashSet::new(),
            kills: Kills::new(),
        }
    }

    fn rolling() -> Value {
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})
    }

    /// Carries out creations: revisions as they are, pods bound, running and ready.
    fn carry_out(world: &mut Observed, plan: &[Action]) {
        for action in plan {
            match action {
                Action::Create { body, .. } if body["kind"] == "Pod" => {
                    let mut body = body.clone();
                    let mut pod: Pod = from_value(body.clone()).unwrap();
                    let node = target(&pod).unwrap().to_owned();
                    body["metadata"]["name"] = json!(format!("d-{node}-{}", world.pods.len()));
                    body["metadata"]["uid"] = body["metadata"]["name"].clone();
                    body["spec"]["nodeName"] = json!(node);
                    body["status"] = json!({"phase": "Running", "conditions": [
                        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
                    pod = from_value(body).unwrap();
                    world.pods.push(Arc::new(pod));
                }
                Action::Create { body, .. } => {
                    world.revisions.push(Arc::new(from_value(body.clone()).unwrap()));
                }
                Action::Delete { at, .. } => {
                    world
                        .pods
                        .retain(|p| p.metadata.name.as_deref() != Some(&at.key.name));
                }
                Action::Patch { patch, .. } if patch.get("status").is_some() => {
                    let mut set = json!(*world.set);
                    for (key, value) in patch["status"].as_object().unwrap() {
                        set["status"][key] = value.clone();
                    }
                    world.set = Arc::new(from_value(set).unwrap());
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn settle(world: &mut Observed) -> usize {
        for round in 0..20 {
            let (plan, _) = reconcile(world, now());
            if plan.is_empty() {
                return round;
            }
            carry_out(world, &plan);
        }
        panic!("never at rest")
    }

    fn deletions(plan: &[Action]) -> usize {
        plan.iter().filter(|a| matches!(a, Action::Delete { .. })).count()
    }

    #[test]
    fn every_node_gets_one_daemon_and_then_all_is_quiet() {
        let mut world = observed("a", rolling(), json!({}));
        settle(&mut world);
        let mut nodes: Vec<_> = world.pods.iter().map(|p| target(p).unwrap().to_owned()).collect();
        nodes.sort();
        assert_eq!(nodes, ["n1", "n2"]);
        assert_eq!(reconcile(&world, now()).0, []);
        let status = world.set.status.clone().unwrap();
        assert_eq!((status.desired_number_scheduled, status.number_ready), (2, 2));
        assert_eq!(
            (status.updated_number_scheduled, status.number_unavailable),
            (Some(2), None)
        );
    }

    #[test]
    fn an_update_replaces_one_daemon_at_a_time() {
        let mut world = observed("a", rolling(), json!({}));
        settle(&mut world);
        world.set = observed("b", rolling(), json!(world.set.status)).set;
        for _ in 0..20 {
            let (plan, _) = reconcile(&world, now());
            assert!(deletions(&plan) <= 1, "{plan:?}");
            carry_out(&mut world, &plan);
            assert!(!world.pods.is_empty());
        }
        assert_eq!(reconcile(&world, now()).0, []);
        let image = |p: &Arc<Pod>| p.spec.as_ref().unwrap().containers[0].image.clone();
        assert!(world.pods.iter().all(|p| image(p).as_deref() == Some("b")));
        assert_eq!((world.pods.len(), world.revisions.len()), (2, 2));
    }

    #[test]
    fn on_delete_leaves_old_daemons_alone() {
        let strategy = json!({"type": "OnDelete"});
        let mut world = observed("a", strategy.clone(), json!({}));
        settle(&mut world);
        world.set = observed("b", strategy, json!(world.set.status)).set;
        assert_eq!(deletions(&reconcile(&world, now()).0), 0);
        assert_eq!(settle(&mut world), 1, "only revision and status");
    }

    #[test]
    fn failed_daemons_are_deleted_with_backoff() {
        let mut world = observed("a", rolling(), json!({}));
        settle(&mut world);
        let mut pod = (*world.pods[0]).clone();
        pod.status.as_mut().unwrap().phase = Some("Failed".into());
        world.pods[0] = Arc::new(pod);
        let (plan, kills) = reconcile(&world, now());
        assert_eq!(deletions(&plan), 1);
        assert!(
            plan.iter()
                .any(|a| matches!(a, Action::Event(n) if n.reason == "FailedDaemonPod"))
        );
        world.kills = kills;
        let (plan, _) = reconcile(&world, now());
        assert_eq!(deletions(&plan), 0, "too soon");
        assert!(plan.contains(&Action::Requeue(FIRST_BACKOFF)));
    }
}
