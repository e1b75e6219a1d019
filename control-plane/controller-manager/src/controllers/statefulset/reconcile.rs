//! One step of a StatefulSet towards its specification (upstream's `updateStatefulSet`).

use super::claims::{Claims, retention};
use super::identity::{claims, ordinal, pod, repair};
use crate::action::{Action, Announce, reference};
use crate::controllers::history::{self, REVISION_HASH, template_of};
use crate::controllers::owned::claim_all;
use api::event::{NORMAL, WARNING};
use api::pod::{is_available, is_ready, is_terminating, phase};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

pub struct Observed {
    pub set: Arc<StatefulSet>,
    /// Pods that refer to the set as their controller, and those of its namespace that refer to none.
    pub pods: Vec<Arc<Pod>>,
    /// Claims of the namespace, by name.
    pub claims: Claims,
    /// The set's revisions, and those of its namespace that nobody controls.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// Names of revisions in the namespace.
    pub taken: HashSet<String>,
}

pub fn reconcile(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let set = &*observed.set;
    let Some(spec) = &set.spec else { return Vec::new() };
    if api::selector::is_empty(&spec.selector) {
        let message = "This StatefulSet is selecting all pods. A non-empty selector is required.";
        return vec![Action::event(set, WARNING, "SelectingAll", message)];
    }
    let mut plan = Vec::new();
    let adopts = |pod: &Pod| ordinal(set, pod).is_some();
    let pods = claim_all(set, &spec.selector, &observed.pods, adopts, &mut plan);
    let revisions = claim_all(set, &spec.selector, &observed.revisions, |_| true, &mut plan);
    let old = set.status.clone().unwrap_or_default();
    let collisions = old.collision_count.unwrap_or_default();
    let update = history::current(set, &spec.template, collisions, &revisions, &observed.taken);
    plan.extend(update.actions);
    let named = old.current_revision.as_deref();
    let current = revisions.iter().find(|r| Some(history::name(r)) == named);
    let mut step = Step {
        set,
        spec,
        now,
        claims: &observed.claims,
        current: current.unwrap_or(&update.revision),
        update: &update.revision,
        by_ordinal: pods
            .iter()
            .filter_map(|p| Some((ordinal(set, p)?, p.clone())))
            .collect(),
        plan: Vec::new(),
    };
    let mut status = step.status(&old);
    status.collision_count = Some(update.collisions).filter(|n| *n > 0);
    if set.metadata.deletion_timestamp.is_none() {
        step.advance(&status);
    }
    step.complete(&mut status);
    if old != status {
        plan.push(Action::patch_status(set, &old, &status));
    }
    plan.append(&mut step.plan);
    let mut live: HashSet<&str> = pods.iter().filter_map(|p| revision_of(p)).collect();
    live.extend(status.current_revision.as_deref());
    live.extend(status.update_revision.as_deref());
    let limit = spec.revision_history_limit.unwrap_or(10);
    plan.extend(history::truncate(&revisions, limit, |r| {
        live.contains(history::name(r))
    }));
    plan
}

fn revision_of(pod: &Pod) -> Option<&str> {
    pod.metadata
        .labels
        .as_ref()?
        .get(REVISION_HASH)
        .map(String::as_str)
}

struct Step<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    now: Timestamp,
    claims: &'a Claims,
    current: &'a Arc<ControllerRevision>,
    update: &'a Arc<ControllerRevision>,
    by_ordinal: BTreeMap<i32, Arc<Pod>>,
    plan: Vec<Action>,
}

impl Step<'_> {
    fn start(&self) -> i32 {
        self.spec
            .ordinals
            .as_ref()
            .and_then(|o| o.start)
            .unwrap_or_default()
    }

    fn wanted(&self) -> std::ops::Range<i32> {
        let start = self.start();
        start..start + self.spec.replicas.unwrap_or(1)
    }

    fn is_ordered(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn is_rolling(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref();
        strategy
            .and_then(|s| s.type_.as_deref())
            .unwrap_or("RollingUpdate")
            == "RollingUpdate"
    }

    fn partition(&self) -> Option<i32> {
        let strategy = self.spec.update_strategy.as_ref()?;
        strategy.rolling_update.as_ref()?.partition
    }

    fn is_running_and_ready(&self, pod: &Pod) -> bool {
        phase(pod) == "Running" && is_ready(pod)
    }

    fn is_healthy(&self, pod: &Pod) -> bool {
        let min_ready = self.spec.min_ready_seconds.unwrap_or_default();
        self.is_running_and_ready(pod) && !is_terminating(pod) && is_available(pod, min_ready, self.now)
    }

    fn status(&mut self, old: &StatefulSetStatus) -> StatefulSetStatus {
        let (current, update) = (history::name(self.current), history::name(self.update));
        let count = |f: &dyn Fn(&Pod) -> bool| {
            i32::try_from(self.by_ordinal.values().filter(|p| f(p)).count()).unwrap_or(i32::MAX)
        };
        let of = |name: &str| count(&|p| !is_terminating(p) && revision_of(p) == Some(name));
        let nonzero = |n: i32| (n > 0).then_some(n);
        let min_ready = self.spec.min_ready_seconds.unwrap_or_default();
        let ready = count(&|p| self.is_running_and_ready(p));
        let available = count(&|p| self.is_running_and_ready(p) && is_available(p, min_ready, self.now));
        let status = StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            replicas: count(&|_| true),
            ready_replicas: nonzero(ready),
            available_replicas: Some(available),
            current_replicas: nonzero(of(current)),
            updated_replicas: nonzero(of(update)),
            current_revision: Some(current.into()),
            update_revision: Some(update.into()),
            collision_count: None,
            conditions: old.conditions.clone(),
        };
        if ready != available {
            let seconds = u64::from(min_ready.unsigned_abs()).max(1);
            self.plan.push(Action::Requeue(Duration::from_secs(seconds)));
        }
        status
    }

    /// A rollout that reached every pod makes its revision the current one.
    fn complete(&self, status: &mut StatefulSetStatus) {
        let all = self.spec.replicas.unwrap_or(1);
        let reached = |n: Option<i32>| n.unwrap_or_default() == all;
        if self.is_rolling()
            && status.replicas == all
            && reached(status.updated_replicas)
            && reached(status.ready_replicas)
        {
            status.current_revision = status.update_revision.clone();
            status.current_replicas = status.updated_replicas;
        }
    }

    fn advance(&mut self, status: &StatefulSetStatus) {
        let wanted = self.wanted();
        for (n, pod) in &self.by_ordinal {
            self.plan
                .extend(retention(self.set, self.claims, *n, pod, !wanted.contains(n)));
            if wanted.contains(n) && !is_terminating(pod) {
                self.plan.extend(repair(self.set, pod, *n));
            }
        }
        if self.fill(status) && self.shrink() {
            self.roll();
        }
    }

    /// Creates and recreates pods in order; false when that must come to rest first.
    fn fill(&mut self, status: &StatefulSetStatus) -> bool {
        let ordered = self.is_ordered();
        for n in self.wanted() {
            let Some(pod) = self.by_ordinal.get(&n).cloned() else {
                self.create(n, status);
                if ordered {
                    return false;
                }
                continue;
            };
            if matches!(phase(&pod), "Failed" | "Succeeded") {
                if !is_terminating(&pod) {
                    self.recreate(&pod);
                }
                if ordered {
                    return false;
                }
                continue;
            }
            if phase(&pod) == "Pending" {
                self.claim(n);
            }
            if ordered && !self.is_healthy(&pod) {
                return false;
            }
        }
        true
    }

    fn create(&mut self, n: i32, status: &StatefulSetStatus) {
        let start = self.start();
        let rolling = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.rolling_update.as_ref());
        let current_below = match rolling {
            Some(rolling) => start + rolling.partition.unwrap_or_default(),
            None => start + status.current_replicas.unwrap_or_default(),
        };
        let (template, revision) = match template_of(self.current) {
            Some(template) if self.is_rolling() && n < current_below => (template, self.current),
            _ => (self.spec.template.clone(), self.update),
        };
        if !self.claim(n) {
            return;
        }
        let pod = pod(self.set, &template, history::name(revision), n);
        let announce = self.announcement(&pod, "create", "SuccessfulCreate", "FailedCreate");
        self.plan.push(Action::create(&pod).announced(announce));
    }

    /// Creates missing claims of an ordinal; false while one is on its way out.
    fn claim(&mut self, n: i32) -> bool {
        let set = self.set.metadata.name.as_deref().unwrap_or_default();
        let pod = super::identity::pod_name(self.set, n);
        let mut usable = true;
        for (_, claim) in claims(self.set, n) {
            match self
                .claims
                .get(claim.metadata.name.as_deref().unwrap_or_default())
            {
                Some(known) => usable &= known.metadata.deletion_timestamp.is_none(),
                None => {
                    let name = claim.metadata.name.as_deref().unwrap_or_default();
                    let failure =
                        format!("create Claim {name} for Pod {pod} in StatefulSet {set} failed error: {{}}");
                    let announce = Announce {
                        about: reference(self.set),
                        success: (
                            "SuccessfulCreate",
                            format!("create Claim {{}} Pod {pod} in StatefulSet {set} success").into(),
                        ),
                        failure: ("FailedCreate", failure.into()),
                        source: "",
                    };
                    self.plan.push(Action::create(&claim).announced(announce));
                }
            }
        }
        usable
    }

    fn announcement(&self, pod: &Pod, verb: &str, done: &'static str, failed: &'static str) -> Announce {
        let set = self.set.metadata.name.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        Announce {
            about: reference(self.set),
            success: (
                done,
                format!("{verb} Pod {name} in StatefulSet {set} successful").into(),
            ),
            failure: (
                failed,
                format!("{verb} Pod {name} in StatefulSet {set} failed error: {{}}").into(),
            ),
            source: "",
        }
    }

    fn delete(&mut self, pod: &Pod) {
        let announce = self.announcement(pod, "delete", "SuccessfulDelete", "FailedDelete");
        self.plan.push(Action::delete(pod).announced(announce));
    }

    fn recreate(&mut self, pod: &Pod) {
        let (kind, reason, state) = match phase(pod) {
            "Failed" => (WARNING, "RecreatingFailedPod", "failed"),
            _ => (NORMAL, "RecreatingTerminatedPod", "terminated"),
        };
        let meta = &self.set.metadata;
        let message = format!(
            "StatefulSet {}/{} is recreating {state} Pod {}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
            pod.metadata.name.as_deref().unwrap_or_default()
        );
        self.plan.push(Action::event(self.set, kind, reason, message));
        self.delete(pod);
    }

    /// Deletes pods beyond the wanted ones, highest ordinal first; false while some are left. In order, an unhealthy
    /// pod goes only when none below it is unhealthy: a set that lost its health does not lose its members.
    fn shrink(&mut self) -> bool {
        let wanted = self.wanted();
        let condemned: Vec<Arc<Pod>> = self
            .by_ordinal
            .iter()
            .rev()
            .filter(|(n, _)| !wanted.contains(n))
            .map(|(_, pod)| pod.clone())
            .collect();
        let lowest_unhealthy = condemned.iter().rev().find(|pod| !self.is_healthy(pod));
        let ordered = self.is_ordered();
        for pod in &condemned {
            let may_go =
                self.is_healthy(pod) || lowest_unhealthy.is_some_and(|lowest| Arc::ptr_eq(lowest, pod));
            if !is_terminating(pod) && (may_go || !ordered) {
                self.delete(pod);
            }
            if ordered {
                return false;
            }
        }
        true
    }

    /// Deletes pods of old revisions, highest ordinal first, no more than may be unavailable.
    fn roll(&mut self) {
        if !self.is_rolling() {
            return;
        }
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let replicas = self.spec.replicas.unwrap_or(1);
        let limit = rolling.and_then(|r| r.max_unavailable.as_ref());
        let limit = limit.map_or(1, |l| api::intstr::scaled(Some(l), replicas, false).max(1));
        let mut unavailable = 0;
        let wanted = self.wanted();
        let lowest = wanted.start + self.partition().unwrap_or_default();
        for n in (lowest.min(wanted.end)..wanted.end).rev() {
            let Some(pod) = &self.by_ordinal.get(&n).cloned() else {
                return;
            };
            let stale = revision_of(pod) != Some(history::name(self.update));
            if stale && !is_terminating(pod) {
                self.delete(pod);
                unavailable += 1;
            } else if !self.is_healthy(pod) {
                unavailable += 1;
            }
            if unavailable >= limit {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::statefulset::identity::pod_name;
    use serde_json::{Value, from_value, json};

    fn set(image: &str, extra: Value) -> Arc<StatefulSet> {
        let mut spec = json!({"replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        Arc::new(
            from_value(json!({"metadata": {"name": "db", "namespace": "n", "uid": "ss"}, "spec": spec}))
                .unwrap(),
        )
    }

    struct World(Observed);

    impl World {
        fn new(extra: Value) -> Self {
            Self(Observed {
                set: set("a", extra),
                pods: vec![],
                claims: Claims::new(),
                revisions: vec![],
                taken: HashSet::new(),
            })
        }

        fn edit(&mut self, image: &str, extra: Value) {
            let mut next = (*set(image, extra)).clone();
            next.status = self.0.set.status.clone();
            self.0.set = Arc::new(next);
        }

        fn plan(&self) -> Vec<Action> {
            reconcile(&self.0, "2026-01-01T01:00:00Z".parse().unwrap())
        }

        /// Pods the plan creates (`+`) and deletes (`-`).
        fn step(&mut self) -> Vec<String> {
            let mut words = Vec::new();
            for action in self.plan() {
                match action {
                    Action::Create { body, .. } if body["kind"] == "Pod" => {
                        let mut body = body.clone();
                        words.push(format!("+{}", body["metadata"]["name"].as_str().unwrap()));
                        body["metadata"]["uid"] = body["metadata"]["name"].clone();
                        body["status"] = json!({"phase": "Running", "conditions": [
                            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
                        self.0.pods.push(Arc::new(from_value(body).unwrap()));
                    }
                    Action::Create { body, .. } if body["kind"] == "PersistentVolumeClaim" => {
                        let name = body["metadata"]["name"].as_str().unwrap().to_string();
                        self.0.claims.insert(name, Arc::new(from_value(body).unwrap()));
                    }
                    Action::Create { body, .. } => {
                        self.0.revisions.push(Arc::new(from_value(body.clone()).unwrap()));
                    }
                    Action::Delete { at, .. } => {
                        words.push(format!("-{}", at.key.name));
                        self.0
                            .pods
                            .retain(|p| p.metadata.name.as_deref() != Some(&at.key.name));
                    }
                    Action::Patch { at, patch } if at.key.name.starts_with("data-") => {
                        let claim = self.0.claims.get_mut(&at.key.name).unwrap();
                        let mut value = json!(**claim);
                        value["metadata"]["ownerReferences"] = patch["metadata"]["ownerReferences"].clone();
                        *claim = Arc::new(from_value(value).unwrap());
                    }
                    Action::Patch { patch, .. } => {
                        let mut set = json!(*self.0.set);
                        for (key, value) in patch["status"].as_object().unwrap() {
                            set["status"][key] = value.clone();
                        }
                        self.0.set = Arc::new(from_value(set).unwrap());
                    }
                    _ => {}
                }
            }
            words
        }

        fn settle(&mut self) -> String {
            let mut words = Vec::new();
            for _ in 0..20 {
                if self.plan().is_empty() {
                    return words.join(" ");
                }
                words.extend(self.step());
            }
            panic!("never at rest: {words:?}")
        }

        fn images(&self) -> Vec<String> {
            let mut pods: Vec<_> = self.0.pods.iter().collect();
            pods.sort_by_key(|p| p.metadata.name.clone());
            let image = |p: &&Arc<Pod>| p.spec.as_ref().unwrap().containers[0].image.clone();
            pods.iter().filter_map(image).collect()
        }
    }

    #[test]
    fn pods_come_one_after_the_other_with_their_claims() {
        let mut world = World::new(json!({}));
        assert_eq!(world.step(), ["+db-0"]);
        assert_eq!(world.settle(), "+db-1");
        assert_eq!(world.plan(), []);
        assert_eq!(
            world.0.claims.keys().collect::<Vec<_>>(),
            ["data-db-0", "data-db-1"]
        );
        let spec = world.0.pods[1].spec.clone().unwrap();
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("db-1"), Some("db"))
        );
        let status = world.0.set.status.clone().unwrap();
        assert_eq!(
            (status.ready_replicas, status.updated_replicas),
            (Some(2), Some(2))
        );
        assert_eq!(status.current_revision, status.update_revision);
    }

    #[test]
    fn parallel_sets_do_not_wait_and_ordinals_may_start_anywhere() {
        let mut world =
            World::new(json!({"podManagementPolicy": "Parallel", "ordinals": {"start": 5}, "replicas": 3}));
        assert_eq!(world.step(), ["+db-5", "+db-6", "+db-7"]);
    }

    #[test]
    fn shrinking_takes_the_highest_first() {
        let mut world = World::new(json!({"replicas": 3}));
        world.settle();
        world.edit("a", json!({"replicas": 1}));
        assert_eq!(world.settle(), "-db-2 -db-1");
    }

    #[test]
    fn shrinking_halts_when_an_unhealthy_pod_is_not_the_lowest_one() {
        let mut world = World::new(json!({"replicas": 3}));
        world.settle();
        let healthy = world.0.pods.clone();
        let sick = |pod: &Arc<Pod>| {
            let mut pod = (**pod).clone();
            pod.status.as_mut().unwrap().conditions = None;
            Arc::new(pod)
        };
        world.0.pods = healthy.iter().map(sick).collect();
        world.edit("a", json!({"replicas": 0}));
        assert_eq!(world.settle(), "");
        world.0.pods = vec![healthy[0].clone(), healthy[1].clone(), sick(&healthy[2])];
        assert_eq!(world.step(), ["-db-2"]);
        world.0.pods = vec![sick(&healthy[0]), healthy[1].clone()];
        assert_eq!(world.settle(), "-db-1 -db-0");

        let parallel = |replicas: i32| json!({"replicas": replicas, "podManagementPolicy": "Parallel"});
        let mut world = World::new(parallel(2));
        world.settle();
        world.0.pods = world.0.pods.iter().map(sick).collect();
        world.edit("a", parallel(0));
        assert_eq!(world.step(), ["-db-1", "-db-0"]);
    }

    #[test]
    fn updates_go_from_the_top_and_stop_at_the_partition() {
        let mut world = World::new(json!({"replicas": 3}));
        world.settle();
        let partition = |n: i32| json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": n}}});
        world.edit("b", partition(2));
        assert_eq!(world.settle(), "-db-2 +db-2");
        assert_eq!(world.images(), ["a", "a", "b"]);
        let status = world.0.set.status.clone().unwrap();
        assert_ne!(status.current_revision, status.update_revision);
        world.0.pods.remove(0);
        assert_eq!(world.settle(), "+db-0");
        assert_eq!(
            world.images(),
            ["a", "a", "b"],
            "below the partition the old revision returns"
        );
        world.edit("b", partition(0));
        assert_eq!(world.settle(), "-db-1 +db-1 -db-0 +db-0");
        let status = world.0.set.status.clone().unwrap();
        assert_eq!(status.current_revision, status.update_revision);
    }

    #[test]
    fn on_delete_waits_for_the_user_and_failed_pods_are_recreated() {
        let extra = json!({"updateStrategy": {"type": "OnDelete"}});
        let mut world = World::new(extra.clone());
        world.settle();
        world.edit("b", extra);
        assert_eq!(world.settle(), "");
        let mut pod = (*world.0.pods[0]).clone();
        pod.status.as_mut().unwrap().phase = Some("Failed".into());
        world.0.pods[0] = Arc::new(pod);
        assert!(
            world
                .plan()
                .iter()
                .any(|a| matches!(a, Action::Event(n) if n.reason == "RecreatingFailedPod"))
        );
        assert_eq!(world.settle(), "-db-0 +db-0");
        assert_eq!(world.images(), ["b", "a"]);
        assert_eq!(
            world
                .0
                .pods
                .iter()
                .filter(|p| p.metadata.name == Some(pod_name(&world.0.set, 0)))
                .count(),
            1
        );
    }

    #[test]
    fn claims_belong_to_the_set_or_to_the_pod_that_goes() {
        let owner = |world: &World, claim: &str| {
            let refs = world.0.claims[claim]
                .metadata
                .owner_references
                .clone()
                .unwrap_or_default();
            refs.into_iter().map(|r| r.kind).collect::<Vec<_>>()
        };
        let policy = |replicas: i32, deleted: &str, scaled: &str| {
            json!({"replicas": replicas,
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}})
        };
        let mut world = World::new(policy(2, "Delete", "Delete"));
        world.settle();
        assert_eq!(owner(&world, "data-db-1"), ["StatefulSet"]);
        world.edit("a", policy(1, "Delete", "Delete"));
        world.step();
        assert_eq!(
            (owner(&world, "data-db-0"), owner(&world, "data-db-1")),
            (vec!["StatefulSet".into()], vec!["Pod".into()])
        );
        world.edit("a", policy(1, "Retain", "Retain"));
        world.settle();
        assert_eq!(owner(&world, "data-db-0"), Vec::<String>::new());
    }

    #[test]
    fn a_pod_whose_labels_were_changed_gets_them_back() {
        let mut world = World::new(json!({"replicas": 1}));
        world.settle();
        let mut pod = (*world.0.pods[0]).clone();
        pod.metadata
            .labels
            .as_mut()
            .unwrap()
            .remove("statefulset.kubernetes.io/pod-name");
        world.0.pods[0] = Arc::new(pod);
        let plan = world.plan();
        let [Action::Patch { at, patch }] = &plan[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(at.key.name, "db-0");
        assert_eq!(
            patch["metadata"]["labels"],
            json!({"statefulset.kubernetes.io/pod-name": "db-0"})
        );
    }
}
