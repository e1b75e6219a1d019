//! One step of a deployment towards its specification (upstream's `syncDeployment`).

use super::annotations::{self, DESIRED_REPLICAS, REVISION, get, number, revision, set_newest, set_sizes};
use super::numbers::{is_rolling, new_set_size, size, wanted};
use super::rolling::{self, Resize, created};
use super::status;
use crate::action::{Action, owner_references_patch};
use api::condition::{self, Condition};
use api::event::{NORMAL, WARNING};
use api::names::hash_name;
use api::owner::{Claim, claim, controller_ref};
use api::well_known::POD_TEMPLATE_HASH;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::HashSet;
use std::sync::Arc;

pub struct Observed {
    pub deployment: Arc<Deployment>,
    /// ReplicaSets that refer to the deployment as their controller, and those of its namespace that refer to none.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// Pods of those sets.
    pub pods: Vec<Arc<Pod>>,
    /// Names of ReplicaSets in the namespace.
    pub taken: HashSet<String>,
    /// Why the last creation failed.
    pub failure: Option<String>,
}

pub fn reconcile(observed: Observed, now: Timestamp) -> Vec<Action> {
    let deployment = observed.deployment.clone();
    let Some(spec) = &deployment.spec else {
        return Vec::new();
    };
    if api::selector::is_empty(&spec.selector) {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        return vec![Action::event(&*deployment, WARNING, "SelectingAll", message)];
    }
    let mut step = Step {
        deployment: &deployment,
        spec,
        now,
        pods: &observed.pods,
        plan: Vec::new(),
    };
    let mut sets = step.claim(&observed.sets);
    sets.sort_by(|a, b| created(a).cmp(&created(b)));
    let new = sets.iter().find(|s| same_template(s, &spec.template)).cloned();
    let new_uid = new.as_ref().map(|n| n.metadata.uid.clone());
    let old: Vec<Arc<ReplicaSet>> = sets
        .iter()
        .filter(|s| Some(&s.metadata.uid) != new_uid.as_ref())
        .cloned()
        .collect();
    let world = World { new, old, all: sets };
    if deployment.metadata.deletion_timestamp.is_some() {
        let status = status::counts(&deployment, world.new.as_ref(), &world.all, now);
        step.report(status);
        return step.plan;
    }
    step.advance(&world, &observed.taken, observed.failure.as_deref());
    step.plan
}

/// The deployment's ReplicaSets, oldest first.
struct World {
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
    all: Vec<Arc<ReplicaSet>>,
}

struct Step<'a> {
    deployment: &'a Arc<Deployment>,
    spec: &'a DeploymentSpec,
    now: Timestamp,
    pods: &'a [Arc<Pod>],
    plan: Vec<Action>,
}

impl Step<'_> {
    fn claim(&mut self, candidates: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
        let mut sets = Vec::new();
        for set in candidates {
            let matches = api::selector::matches(&self.spec.selector, set.metadata.labels.as_ref());
            match claim(&self.deployment.metadata, &set.metadata, matches) {
                Claim::Keep => sets.push(set.clone()),
                Claim::Adopt => {
                    let reference = controller_ref("apps/v1", "Deployment", &self.deployment.metadata);
                    let patch = owner_references_patch(&set.metadata, |list| list.push(json!(reference)));
                    self.plan.push(Action::patch_as_seen(&**set, patch));
                }
                Claim::Release => {
                    let uid = json!(self.deployment.metadata.uid);
                    let patch =
                        owner_references_patch(&set.metadata, |list| list.retain(|r| r["uid"] != uid));
                    self.plan.push(Action::patch_as_seen(&**set, patch));
                }
                Claim::Ignore => {}
            }
        }
        sets
    }

    fn advance(&mut self, world: &World, taken: &HashSet<String>, failure: Option<&str>) {
        if !self.plan.is_empty() {
            // Ownership first; its result brings us back.
            return;
        }
        let paused = self.spec.paused.unwrap_or_default();
        let scaled = world
            .all
            .iter()
            .filter(|s| size(s) > 0)
            .any(|s| number(s, DESIRED_REPLICAS).is_some_and(|n| n != wanted(self.deployment)));
        if paused || scaled {
            if let Some(new) = &world.new {
                self.mark_newest(new, &world.old);
            }
            let resizes = rolling::scale(self.deployment, world.new.as_ref(), &world.old);
            self.resize(&resizes);
            self.renote_sizes(world, &resizes);
            if paused && resizes.is_empty() {
                self.clean_history(&world.old);
            }
            let mut status = status::counts(self.deployment, world.new.as_ref(), &world.all, self.now);
            self.note_pause(&mut status, paused);
            return self.report(status);
        }
        let rolling = is_rolling(self.deployment);
        if !rolling {
            let drops = rolling::drop_old(&world.old);
            if !drops.is_empty() || self.old_pods_run(world) {
                self.resize(&drops);
                return self.report_rollout(world);
            }
        }
        let Some(new) = &world.new else {
            return self.create_new(world, taken, failure);
        };
        self.mark_newest(new, &world.old);
        if let Some(resize) = rolling::resize_new(self.deployment, new, &world.all) {
            self.resize(&[resize]);
            return self.report_rollout(world);
        }
        if rolling {
            let shrunk = rolling::shrink_old(self.deployment, Some(new), &world.old, &world.all);
            if !shrunk.is_empty() {
                self.resize(&shrunk);
                return self.report_rollout(world);
            }
        }
        let counts = status::counts(self.deployment, Some(new), &world.all, self.now);
        if status::is_complete(self.deployment, &counts) {
            self.clean_history(&world.old);
        }
        self.report_rollout(world);
    }

    /// Recreate: no new pod while an old one may still run.
    fn old_pods_run(&self, world: &World) -> bool {
        let new_uid = world.new.as_ref().and_then(|n| n.metadata.uid.clone());
        self.pods.iter().any(|pod| {
            let owner = api::owner::controller_of(&pod.metadata).map(|o| &o.uid);
            owner != new_uid.as_ref() && !api::pod::is_terminal(pod)
        })
    }

    fn create_new(&mut self, world: &World, taken: &HashSet<String>, failure: Option<&str>) {
        let newest = world
            .old
            .iter()
            .map(|s| revision(&s.metadata))
            .max()
            .unwrap_or_default()
            + 1;
        let mut collisions = self
            .deployment
            .status
            .as_ref()
            .and_then(|s| s.collision_count)
            .unwrap_or_default();
        let name_of = |collisions| {
            let hash = hash_name(&self.spec.template, collisions);
            (
                format!(
                    "{}-{hash}",
                    self.deployment.metadata.name.as_deref().unwrap_or_default()
                ),
                hash,
            )
        };
        while taken.contains(&name_of(collisions).0) {
            collisions += 1;
        }
        let (name, hash) = name_of(collisions);
        let mut set = self.new_set(&name, &hash);
        set_newest(&mut set, self.deployment, newest, false);
        let replicas = new_set_size(self.deployment, &world.old, 0);
        if let Some(spec) = &mut set.spec {
            spec.replicas = Some(replicas);
        }
        self.plan.push(Action::create(&set));
        if replicas > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {replicas}");
            self.plan.push(Action::event(
                &**self.deployment,
                NORMAL,
                "ScalingReplicaSet",
                message,
            ));
        }
        self.note_revision(newest);
        let condition = match failure {
            None => (
                "True",
                "NewReplicaSetCreated",
                format!("Created new replica set {name:?}"),
            ),
            Some(message) => ("False", "ReplicaSetCreateError", message.to_owned()),
        };
        let mut status = status::counts(self.deployment, None, &world.all, self.now);
        status.collision_count = Some(collisions).filter(|n| *n > 0);
        if status::deadline(self.deployment).is_some() {
            let progressing = DeploymentCondition::new(
                "Progressing",
                condition.0,
                condition.1,
                &condition.2,
                &Time(self.now),
            );
            condition::set(status.conditions.get_or_insert_default(), progressing);
        }
        // A refusal must be told before we try again, and fail again.
        let at = if failure.is_some() { 0 } else { self.plan.len() };
        let tail = self.plan.split_off(at);
        self.report(status);
        self.plan.extend(tail);
    }

    fn new_set(&self, name: &str, hash: &str) -> ReplicaSet {
        let mut template = self.spec.template.clone();
        let labels = template
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default();
        labels.insert(POD_TEMPLATE_HASH.into(), hash.into());
        let labels = labels.clone();
        let mut selector = self.spec.selector.clone();
        selector
            .match_labels
            .get_or_insert_default()
            .insert(POD_TEMPLATE_HASH.into(), hash.into());
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: self.deployment.metadata.namespace.clone(),
                labels: Some(labels),
                owner_references: Some(vec![controller_ref(
                    "apps/v1",
                    "Deployment",
                    &self.deployment.metadata,
                )]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        }
    }

    /// Annotations and revision of the new set, and the deployment's own revision.
    fn mark_newest(&mut self, new: &Arc<ReplicaSet>, old: &[Arc<ReplicaSet>]) {
        let newest = old
            .iter()
            .map(|s| revision(&s.metadata))
            .max()
            .unwrap_or_default()
            + 1;
        let mut marked = (**new).clone();
        set_newest(&mut marked, self.deployment, newest, true);
        if let Some(spec) = &mut marked.spec {
            spec.min_ready_seconds = self.spec.min_ready_seconds;
        }
        if marked != **new {
            self.plan.push(Action::update(&**new, &marked));
        }
        self.note_revision(revision(&marked.metadata));
    }

    fn note_revision(&mut self, newest: i64) {
        if get(&self.deployment.metadata, REVISION) != Some(newest.to_string().as_str()) {
            let patch = json!({"metadata": {"annotations": {REVISION: newest.to_string()}}});
            self.plan.push(Action::patch(&**self.deployment, patch));
        }
    }

    fn resize(&mut self, resizes: &[Resize]) {
        for (set, target) in resizes.iter().filter(|(set, target)| size(set) != *target) {
            let mut resized = (**set).clone();
            if let Some(spec) = &mut resized.spec {
                spec.replicas = Some(*target);
            }
            set_sizes(&mut resized, self.deployment);
            // No precondition: this controller is the only writer of the fields it changes here.
            let patch = json!({"metadata": {"uid": set.metadata.uid, "annotations": {
                DESIRED_REPLICAS: get(&resized.metadata, DESIRED_REPLICAS),
                annotations::MAX_REPLICAS: get(&resized.metadata, annotations::MAX_REPLICAS)}},
                "spec": {"replicas": target}});
            self.plan.push(Action::patch(&**set, patch));
            let direction = if size(set) < *target { "up" } else { "down" };
            let name = set.metadata.name.as_deref().unwrap_or_default();
            let message = format!(
                "Scaled {direction} replica set {name} from {} to {target}",
                size(set)
            );
            self.plan.push(Action::event(
                &**self.deployment,
                NORMAL,
                "ScalingReplicaSet",
                message,
            ));
        }
    }

    /// Sets that keep their size learn the deployment's new one, or scaling would never look done.
    fn renote_sizes(&mut self, world: &World, resizes: &[Resize]) {
        for set in world.all.iter().filter(|s| size(s) > 0) {
            let resized = resizes
                .iter()
                .any(|(r, n)| r.metadata.uid == set.metadata.uid && *n != size(set));
            let mut noted = (**set).clone();
            set_sizes(&mut noted, self.deployment);
            if !resized && noted.metadata.annotations != set.metadata.annotations {
                let patch =
                    json!({"metadata": {"uid": set.metadata.uid, "annotations": noted.metadata.annotations}});
                self.plan.push(Action::patch(&**set, patch));
            }
        }
    }

    fn clean_history(&mut self, old: &[Arc<ReplicaSet>]) {
        let Some(limit) = self.spec.revision_history_limit.filter(|n| *n != i32::MAX) else {
            return;
        };
        let mut removable: Vec<&Arc<ReplicaSet>> = old
            .iter()
            .filter(|s| s.metadata.deletion_timestamp.is_none())
            .collect();
        removable.sort_by_key(|s| revision(&s.metadata));
        let surplus = removable
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or_default());
        for set in &removable[..surplus] {
            let status = set.status.clone().unwrap_or_default();
            let settled = status.observed_generation >= set.metadata.generation;
            if status.replicas == 0 && size(set) == 0 && settled {
                self.plan.push(Action::delete(&***set));
            }
        }
    }

    fn note_pause(&self, status: &mut DeploymentStatus, paused: bool) {
        if status::deadline(self.deployment).is_none() {
            return;
        }
        let conditions = status.conditions.get_or_insert_default();
        let current = conditions.iter().find(|c| c.type_ == "Progressing").cloned();
        if current
            .as_ref()
            .is_some_and(|c| c.reason() == "ProgressDeadlineExceeded")
        {
            return;
        }
        let was_paused = current.is_some_and(|c| c.reason() == "DeploymentPaused");
        let note = match (paused, was_paused) {
            (true, false) => ("DeploymentPaused", "Deployment is paused"),
            (false, true) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return,
        };
        let condition = DeploymentCondition::new("Progressing", "Unknown", note.0, note.1, &Time(self.now));
        condition::set(conditions, condition);
    }

    fn report_rollout(&mut self, world: &World) {
        let new = world.new.as_ref();
        let mut status = status::counts(self.deployment, new, &world.all, self.now);
        self.note_pause(&mut status, false);
        if let Some(new) = new
            && status::deadline(self.deployment).is_some()
            && condition::find(status.conditions.as_ref(), "Progressing").is_none()
        {
            let message = format!(
                "Found new replica set {:?}",
                new.metadata.name.as_deref().unwrap_or_default()
            );
            let found = DeploymentCondition::new(
                "Progressing",
                "True",
                "FoundNewReplicaSet",
                &message,
                &Time(self.now),
            );
            condition::set(status.conditions.get_or_insert_default(), found);
        }
        let again = status::rollout(self.deployment, &mut status, new, &world.all, self.now);
        self.report(status);
        self.plan.extend(again.map(Action::Requeue));
    }

    fn report(&mut self, status: DeploymentStatus) {
        let old = self.deployment.status.clone().unwrap_or_default();
        if old != status {
            self.plan
                .push(Action::patch_status(&**self.deployment, &old, &status));
        }
    }
}

/// Equal but for the hash label.
fn same_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(theirs) = set.spec.as_ref().and_then(|s| s.template.as_ref()) else {
        return false;
    };
    let labels = |t: &PodTemplateSpec| {
        let mut labels = t
            .metadata
            .as_ref()
            .and_then(|m| m.labels.clone())
            .unwrap_or_default();
        labels.remove(POD_TEMPLATE_HASH);
        labels
    };
    let annotations = |t: &PodTemplateSpec| {
        t.metadata
            .as_ref()
            .and_then(|m| m.annotations.clone())
            .unwrap_or_default()
    };
    theirs.spec == template.spec
        && labels(theirs) == labels(template)
        && annotations(theirs) == annotations(template)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn deployment(image: &str, strategy: &str) -> Deployment {
        let mut spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 1, "strategy": {"type": strategy},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}});
        if strategy == "RollingUpdate" {
            spec["strategy"]["rollingUpdate"] = json!({"maxSurge": 1, "maxUnavailable": 0});
        }
        from_value(
            json!({"metadata": {"name": "web", "namespace": "n", "uid": "d", "generation": 1}, "spec": spec}),
        )
        .unwrap()
    }

    /// The server's and the ReplicaSet controller's part: applies a plan, and makes every wanted pod available.
    fn apply(deployment: &mut Deployment, sets: &mut Vec<Arc<ReplicaSet>>, plan: &[Action]) {
        for action in plan {
            match action {
                Action::Create { body, .. } => {
                    let mut set: ReplicaSet = from_value(body.clone()).unwrap();
                    set.metadata.uid = set.metadata.name.clone();
                    set.metadata.creation_timestamp =
                        Some(Time(Timestamp::from_second(sets.len() as i64).unwrap()));
                    sets.push(Arc::new(set));
                }
                Action::Patch { at, patch } if at.url.contains("/deployments/") => {
                    *deployment = merged(deployment, patch);
                }
                Action::Patch { at, patch } => {
                    for set in sets
                        .iter_mut()
                        .filter(|s| s.metadata.name.as_deref() == Some(&at.key.name))
                    {
                        *set = Arc::new(merged(&**set, patch));
                    }
                }
                Action::Delete { at, .. } => {
                    sets.retain(|s| s.metadata.name.as_deref() != Some(&at.key.name))
                }
                Action::Event(_) | Action::Requeue(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        for set in sets {
            let n = size(set);
            *set = Arc::new(merged(
                &**set,
                &json!({"status": {"replicas": n, "readyReplicas": n, "availableReplicas": n}}),
            ));
        }
    }

    fn merged<T: serde::Serialize + serde::de::DeserializeOwned>(object: &T, patch: &Value) -> T {
        fn merge(into: &mut Value, patch: &Value) {
            let Value::Object(patch) = patch else {
                return *into = patch.clone();
            };
            if !into.is_object() {
                *into = json!({});
            }
            for (key, value) in patch {
                if value.is_null() {
                    into.as_object_mut().unwrap().remove(key);
                } else {
                    merge(&mut into[key], value);
                }
            }
        }
        let mut value = json!(object);
        merge(&mut value, patch);
        from_value(value).unwrap()
    }

    fn step(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Vec<Action> {
        let taken = sets.iter().filter_map(|s| s.metadata.name.clone()).collect();
        let observed = Observed {
            deployment: Arc::new(deployment.clone()),
            sets: sets.to_vec(),
            pods: Vec::new(),
            taken,
            failure: None,
        };
        reconcile(observed, now())
    }

    /// Runs to rest; returns the sizes of all sets at every step.
    fn converge(deployment: &mut Deployment, sets: &mut Vec<Arc<ReplicaSet>>) -> Vec<Vec<i32>> {
        let mut history = Vec::new();
        for _ in 0..30 {
            let plan = step(deployment, sets);
            if plan.is_empty() {
                return history;
            }
            apply(deployment, sets, &plan);
            history.push(sets.iter().map(|s| size(s)).collect());
        }
        panic!("no rest after {history:?}");
    }

    fn reason(deployment: &Deployment) -> String {
        let conditions = deployment.status.as_ref().and_then(|s| s.conditions.as_ref());
        condition::find(conditions, "Progressing")
            .map(|c| c.reason().to_owned())
            .unwrap_or_default()
    }

    #[test]
    fn a_rollout_keeps_its_promises_and_comes_to_rest() {
        let (mut web, mut sets) = (deployment("a", "RollingUpdate"), Vec::new());
        converge(&mut web, &mut sets);
        assert_eq!(
            (sets.len(), size(&sets[0]), reason(&web).as_str()),
            (1, 2, "NewReplicaSetAvailable")
        );
        assert_eq!(get(&web.metadata, REVISION), Some("1"));
        let status = web.status.clone();
        web = Deployment {
            status,
            metadata: web.metadata.clone(),
            ..deployment("b", "RollingUpdate")
        };
        let history = converge(&mut web, &mut sets);
        assert!(
            history
                .iter()
                .all(|sizes| (2..=3).contains(&sizes.iter().sum::<i32>())),
            "{history:?}"
        );
        assert_eq!(sets.iter().map(|s| size(s)).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(
            (get(&web.metadata, REVISION), reason(&web).as_str()),
            (Some("2"), "NewReplicaSetAvailable")
        );
        let status = web.status.clone();
        web = Deployment {
            status,
            metadata: web.metadata.clone(),
            ..deployment("a", "RollingUpdate")
        };
        converge(&mut web, &mut sets);
        assert_eq!(
            sets.iter().map(|s| size(s)).collect::<Vec<_>>(),
            [2, 0],
            "rolled back to the first set"
        );
        assert_eq!(revision(&sets[0].metadata), 3);
        let status = web.status.clone();
        web = Deployment {
            status,
            metadata: web.metadata.clone(),
            ..deployment("c", "RollingUpdate")
        };
        converge(&mut web, &mut sets);
        assert_eq!(sets.len(), 2, "the history holds one old revision");
    }

    #[test]
    fn recreation_never_mixes_old_and_new() {
        let (mut web, mut sets) = (deployment("a", "Recreate"), Vec::new());
        converge(&mut web, &mut sets);
        web = Deployment {
            status: web.status.clone(),
            metadata: web.metadata.clone(),
            ..deployment("b", "Recreate")
        };
        let history = converge(&mut web, &mut sets);
        assert!(
            history
                .iter()
                .all(|sizes| sizes.iter().filter(|n| **n > 0).count() <= 1),
            "{history:?}"
        );
        assert_eq!(sets.iter().map(|s| size(s)).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn a_selector_for_everything_is_refused() {
        let mut web = deployment("a", "Recreate");
        web.spec.as_mut().unwrap().selector = Default::default();
        assert!(matches!(&step(&web, &[])[..], [Action::Event(n)] if n.reason == "SelectingAll"));
    }
}
