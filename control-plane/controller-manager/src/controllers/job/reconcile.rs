//! One step of a job towards its end (upstream's `syncJob`).

use super::accounting::{Books, Ending, balance, has_failed, is_indexed};
use super::failure::backoff;
use super::{TRACKING, finished, indexes, per_index, pods, untrack};
use crate::action::Action;
use crate::controllers::owned::{claim_with, create, delete};
use api::condition::{self, Condition};
use api::event::{NORMAL, WARNING};
use api::pod::{is_active, is_ready, is_terminal, is_terminating};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Pods created or deleted by one plan at most.
const BURST: usize = 500;

pub struct Observed {
    pub job: Arc<Job>,
    /// Pods that refer to the job as their controller, and those of its namespace that refer to none.
    pub pods: Vec<Arc<Pod>>,
}

/// How the job ends: the condition that announces it, reason and message.
struct End {
    target: &'static str,
    reason: String,
    message: String,
}

impl End {
    fn failure(reason: &str, message: impl Into<String>) -> Self {
        Self {
            target: "FailureTarget",
            reason: reason.into(),
            message: message.into(),
        }
    }

    fn condition(&self) -> &'static str {
        if self.target == "FailureTarget" {
            "Failed"
        } else {
            "Complete"
        }
    }
}

pub fn reconcile(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let job = &*observed.job;
    let old = job.status.clone().unwrap_or_default();
    let managed = |s: &JobSpec| {
        s.managed_by
            .as_deref()
            .is_some_and(|m| m != "kubernetes.io/job-controller")
    };
    let Some((spec, selector)) = job
        .spec
        .as_ref()
        .filter(|s| !managed(s))
        .and_then(|s| Some((s, s.selector.as_ref()?)))
        .filter(|_| finished(&old).is_none())
    else {
        return Vec::new();
    };
    let mut plan = Vec::new();
    let adopts = |p: &Pod| !is_terminal(p);
    let owned = claim_with(job, selector, &observed.pods, Some(TRACKING), adopts, &mut plan);
    let announced = announced_end(&old);
    let ending = match announced.as_ref().map(End::condition) {
        None => Ending::No,
        Some("Failed") => Ending::Failure,
        Some(_) => Ending::Success,
    };
    let mut books = balance(job, &owned, ending);
    let mut step = Step {
        job,
        spec,
        now,
        active: owned
            .iter()
            .filter(|p| is_active(p) && !has_failed(job, p))
            .cloned()
            .collect(),
        words: Vec::new(),
        writes: Vec::new(),
    };
    let suspended = spec.suspend.unwrap_or_default();
    step.start(&mut books.status, suspended);
    let end = announced.or_else(|| step.end(&books, &owned));
    match &end {
        Some(end) => step.finish(end, &mut books, &owned),
        None if suspended => {
            let active = std::mem::take(&mut step.active);
            step.remove(&active);
        }
        None if job.metadata.deletion_timestamp.is_none() => step.manage(&books, &owned),
        None => {}
    }
    step.suspension(&mut books.status, suspended && end.is_none());
    step.count(&mut books.status, &owned);
    if old != books.status {
        plan.push(Action::patch_status(job, &old, &books.status));
    }
    plan.extend(books.counted.iter().map(|pod| untrack(pod)));
    plan.append(&mut step.words);
    plan.append(&mut step.writes);
    plan
}

/// The end an earlier step has announced.
fn announced_end(status: &JobStatus) -> Option<End> {
    ["FailureTarget", "SuccessCriteriaMet"]
        .into_iter()
        .find_map(|target| {
            let found = condition::find(status.conditions.as_ref(), target).filter(|c| c.status == "True")?;
            Some(End {
                target,
                reason: found.reason().into(),
                message: found.message().into(),
            })
        })
}

struct Step<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    now: Timestamp,
    active: Vec<Arc<Pod>>,
    words: Vec<Action>,
    writes: Vec<Action>,
}

impl Step<'_> {
    fn start(&self, status: &mut JobStatus, suspended: bool) {
        if !suspended && status.start_time.is_none() {
            status.start_time = Some(Time(self.now));
        }
    }

    /// Whether, and how, the job ends now.
    fn end(&mut self, books: &Books, pods: &[Arc<Pod>]) -> Option<End> {
        if let Some(message) = &books.verdict {
            return Some(End::failure("PodFailurePolicy", message));
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if books.failed > limit || self.restarts(pods, limit) {
            let message = "Job has reached the specified backoff limit";
            return Some(End::failure("BackoffLimitExceeded", message));
        }
        let suspended = self.spec.suspend.unwrap_or_default();
        let started = books.status.start_time.as_ref().map(|t| t.0);
        if let (Some(deadline), Some(started), false) =
            (self.spec.active_deadline_seconds, started, suspended)
        {
            let left = started.as_second() + deadline - self.now.as_second();
            if left <= 0 {
                let message = "Job was active longer than specified deadline";
                return Some(End::failure("DeadlineExceeded", message));
            }
            self.words
                .push(Action::Requeue(Duration::from_secs(left.unsigned_abs())));
        }
        self.policy(books).or_else(|| self.completion(books))
    }

    /// What limits per index and the success policy say.
    fn policy(&self, books: &Books) -> Option<End> {
        let completions = self.spec.completions.filter(|_| is_indexed(self.job))?;
        let given_up = i32::try_from(books.given_up.len()).unwrap_or(i32::MAX);
        if self.spec.max_failed_indexes.is_some_and(|most| given_up > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(End::failure("MaxFailedIndexesExceeded", message));
        }
        if given_up > 0 && given_up + books.succeeded >= completions {
            return Some(End::failure("FailedIndexes", "Job has failed indexes"));
        }
        let policy = self.spec.success_policy.as_ref()?;
        let rule = indexes::fulfilled(policy, &books.completed, completions)?;
        Some(End {
            target: "SuccessCriteriaMet",
            reason: "SuccessPolicy".into(),
            message: format!("Matched rules at index {rule}"),
        })
    }

    fn completion(&self, books: &Books) -> Option<End> {
        let complete = match self.spec.completions {
            Some(completions) => books.succeeded >= completions,
            None => books.succeeded > 0 && self.active.is_empty(),
        };
        complete.then(|| End {
            target: "SuccessCriteriaMet",
            reason: "CompletionsReached".into(),
            message: "Reached expected number of succeeded pods".into(),
        })
    }

    /// Containers restarted in place count too (upstream's `pastBackoffLimitOnFailure`).
    fn restarts(&self, pods: &[Arc<Pod>], limit: i32) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|t| t.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let statuses = pods
            .iter()
            .filter(|p| matches!(api::pod::phase(p), "Running" | "Pending"))
            .filter_map(|p| p.status.as_ref())
            .flat_map(|s| {
                let init = s.init_container_statuses.iter().flatten();
                s.container_statuses.iter().flatten().chain(init)
            });
        let count: i32 = statuses.map(|s| s.restart_count).sum();
        if limit == 0 { count > 0 } else { count >= limit }
    }

    /// Announces the end, stops what runs, and declares it once every pod is counted and gone.
    fn finish(&mut self, end: &End, books: &mut Books, pods: &[Arc<Pod>]) {
        let active = std::mem::take(&mut self.active);
        self.remove(&active);
        let set = |status: &mut JobStatus, kind: &str| {
            let new = JobCondition::new(kind, "True", &end.reason, &end.message, &Time(self.now));
            condition::set(status.conditions.get_or_insert_default(), new)
        };
        set(&mut books.status, end.target);
        let terminating = pods.iter().any(|p| is_terminating(p) && !is_terminal(p));
        if !books.settled || !active.is_empty() || terminating {
            return;
        }
        set(&mut books.status, end.condition());
        if end.condition() == "Complete" {
            books.status.completion_time = Some(Time(self.now));
            if self
                .spec
                .completions
                .is_some_and(|wanted| books.succeeded > wanted)
            {
                let message = "Too many succeeded pods running after completion count reached";
                self.words
                    .push(Action::event(self.job, WARNING, "TooManySucceededPods", message));
            }
            self.words
                .push(Action::event(self.job, NORMAL, "Completed", "Job completed"));
        } else {
            self.words
                .push(Action::event(self.job, WARNING, &end.reason, &*end.message));
        }
    }

    fn remove(&mut self, pods: &[Arc<Pod>]) {
        let deletions = pods.iter().take(BURST).map(|pod| delete(self.job, pod));
        self.writes.extend(deletions);
    }

    /// Upstream's `manageJob`.
    fn manage(&mut self, books: &Books, pods: &[Arc<Pod>]) {
        let count = |n: i32| usize::try_from(n).unwrap_or_default();
        let parallelism = count(self.spec.parallelism.unwrap_or(1));
        let wanted = match self.spec.completions {
            Some(completions) => parallelism.min(count(completions - books.succeeded)),
            None if books.succeeded > 0 => self.active.len().min(parallelism),
            None => parallelism,
        };
        let indexed = is_indexed(self.job);
        let completions = self.spec.completions.unwrap_or_default();
        self.active.sort_by_key(|p| {
            let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (
                Reverse(is_ready(p)),
                api::pod::node_name(p).is_none(),
                created,
                p.metadata.name.clone(),
            )
        });
        let mut surplus = Vec::new();
        let mut running = BTreeSet::new();
        if indexed {
            // Two pods of an index, or one of a finished index, are one too many.
            self.active.retain(|pod| {
                let keep = indexes::of(pod)
                    .is_some_and(|i| i < completions && !books.completed.contains(&i) && running.insert(i));
                if !keep {
                    surplus.push(pod.clone());
                }
                keep
            });
        }
        if self.active.len() > wanted {
            surplus.extend(self.active.drain(wanted..));
        }
        if !surplus.is_empty() {
            return self.remove(&surplus);
        }
        // Pods that are going but haven't failed yet are not replaced before they have.
        let leaving = pods
            .iter()
            .filter(|p| is_terminating(p) && !is_terminal(p) && !has_failed(self.job, p));
        let missing = wanted
            .saturating_sub(self.active.len() + leaving.clone().count())
            .min(BURST);
        if missing == 0 {
            return;
        }
        let failed: Vec<&Arc<Pod>> = pods.iter().filter(|p| has_failed(self.job, p)).collect();
        let succeeded: Vec<&Arc<Pod>> = pods
            .iter()
            .filter(|p| api::pod::phase(p) == "Succeeded")
            .collect();
        let limited = per_index::limit(self.job).is_some();
        let wait = backoff(&failed, &succeeded, self.now);
        if !wait.is_zero() && !limited {
            self.words.push(Action::Requeue(wait));
            return;
        }
        let template = &self.spec.template;
        if !indexed {
            let pod = pods::make(self.job, template, None, None);
            self.writes.extend((0..missing).map(|_| create(self.job, &pod)));
            return;
        }
        running.extend(leaving.filter_map(|p| indexes::of(p)));
        let taken =
            |i: &i32| books.completed.contains(i) || books.given_up.contains(i) || running.contains(i);
        for index in (0..completions).filter(|i| !taken(i)).take(missing) {
            let predecessor = books.predecessors.get(&index);
            let wait = predecessor.map_or(Duration::ZERO, |p| per_index::wait(p, self.now));
            if wait.is_zero() {
                let pod = pods::make(self.job, template, Some(index), predecessor.map(|p| &**p));
                self.writes.push(create(self.job, &pod));
            } else {
                self.words.push(Action::Requeue(wait));
            }
        }
    }

    fn suspension(&mut self, status: &mut JobStatus, suspended: bool) {
        let known = condition::find(status.conditions.as_ref(), "Suspended").map(|c| c.status == "True");
        if suspended == known.unwrap_or(false) || (finished(status).is_some() && known.is_none()) {
            return;
        }
        let (value, reason, word, message) = if suspended {
            ("True", "JobSuspended", "Suspended", "Job suspended")
        } else {
            ("False", "JobResumed", "Resumed", "Job resumed")
        };
        let new = JobCondition::new("Suspended", value, reason, message, &Time(self.now));
        condition::set(status.conditions.get_or_insert_default(), new);
        status.start_time = (!suspended).then_some(Time(self.now));
        self.words.push(Action::event(self.job, NORMAL, word, message));
    }

    fn count(&self, status: &mut JobStatus, pods: &[Arc<Pod>]) {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let active = pods.iter().filter(|p| is_active(p));
        let active = if finished(status).is_some() {
            0
        } else {
            active.count()
        };
        status.active = Some(number(active)).filter(|n| *n > 0);
        let ready = pods.iter().filter(|p| is_active(p) && is_ready(p));
        status.ready = Some(number(ready.count()));
        let terminating = pods.iter().filter(|p| is_terminating(p) && !is_terminal(p));
        status.terminating = Some(number(terminating.count()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::job::{TRACKING, is_tracked};
    use serde_json::{Value, from_value, json};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + seconds).unwrap()
    }

    /// A job and its pods in a world where every plan is carried out at once.
    struct World {
        observed: Observed,
        made: usize,
        events: Vec<String>,
    }

    impl World {
        fn new(spec: Value) -> Self {
            let mut spec = spec;
            spec["selector"] = json!({"matchLabels": {"job": "j"}});
            spec["template"] = json!({"metadata": {"labels": {"job": "j"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}});
            let job = json!({"metadata": {"name": "j", "namespace": "n", "uid": "job"}, "spec": spec});
            let observed = Observed {
                job: Arc::new(from_value(job).unwrap()),
                pods: vec![],
            };
            Self {
                observed,
                made: 0,
                events: vec![],
            }
        }

        fn edit(&mut self, change: impl FnOnce(&mut Value)) {
            let mut job = json!(*self.observed.job);
            change(&mut job);
            self.observed.job = Arc::new(from_value(job).unwrap());
        }

        fn settle(&mut self, now: i64) -> Option<Duration> {
            let mut again = None;
            for _ in 0..20 {
                let plan = reconcile(&self.observed, at(now));
                again = plan.iter().find_map(|a| match a {
                    Action::Requeue(d) => Some(*d),
                    _ => None,
                });
                if plan.iter().all(|a| matches!(a, Action::Requeue(_))) {
                    return again;
                }
                for action in plan {
                    self.carry_out(action);
                }
            }
            panic!("never at rest: {again:?}")
        }

        fn carry_out(&mut self, action: Action) {
            match action {
                Action::Create { mut body, .. } => {
                    self.made += 1;
                    body["metadata"]["name"] = json!(format!("p{}", self.made));
                    body["metadata"]["uid"] = body["metadata"]["name"].clone();
                    body["status"] = json!({"phase": "Running"});
                    self.observed.pods.push(Arc::new(from_value(body).unwrap()));
                }
                Action::Delete { at, .. } => self.pod(&at.key.name, |pod| {
                    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                    pod["status"]["phase"] = json!("Failed");
                }),
                Action::Patch { patch, .. } if patch.get("status").is_some() => self.edit(|job| {
                    if job.get("status").is_none() {
                        job["status"] = json!({});
                    }
                    for (key, value) in patch["status"].as_object().unwrap() {
                        if key == "uncountedTerminatedPods"
                            && value.is_object()
                            && job["status"][key].is_object()
                        {
                            for (k, v) in value.as_object().unwrap() {
                                job["status"][key][k] = v.clone();
                            }
                        } else {
                            job["status"][key] = value.clone();
                        }
                    }
                }),
                Action::Patch { at, patch } => self.pod(&at.key.name, |pod| {
                    pod["metadata"]["finalizers"] = patch["metadata"]["finalizers"].clone();
                }),
                Action::Event(notice) => self.events.push(notice.reason),
                _ => {}
            }
            self.observed.pods.retain(|p| !is_terminating(p) || is_tracked(p));
        }

        fn pod(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
            let pods = &mut self.observed.pods;
            let pod = pods
                .iter_mut()
                .find(|p| p.metadata.name.as_deref() == Some(name))
                .unwrap();
            let mut value = json!(**pod);
            change(&mut value);
            *pod = Arc::new(from_value(value).unwrap());
        }

        fn end(&mut self, name: &str, phase: &str, now: i64) {
            self.pod(name, |pod| {
                pod["status"] = json!({"phase": phase, "containerStatuses": [{"name": "c", "image": "", "imageID": "",
                    "ready": false, "restartCount": 0, "state": {"terminated": {
                        "exitCode": i32::from(phase == "Failed") * 42, "finishedAt": at(now).to_string()}}}]});
            });
        }

        fn status(&self) -> JobStatus {
            self.observed.job.status.clone().unwrap()
        }

        fn conditions(&self) -> Vec<String> {
            let list = self.status().conditions.unwrap_or_default();
            let render =
                |c: JobCondition| format!("{}={} {}", c.type_, c.status, c.reason.unwrap_or_default());
            list.into_iter().map(render).collect()
        }
    }

    #[test]
    fn completions_are_reached_and_then_all_is_quiet() {
        let mut world = World::new(json!({"completions": 3, "parallelism": 2}));
        world.settle(0);
        assert_eq!((world.made, world.status().active), (2, Some(2)));
        assert!(world.observed.pods.iter().all(|p| is_tracked(p)));
        world.end("p1", "Succeeded", 1);
        world.end("p2", "Succeeded", 1);
        world.settle(1);
        assert_eq!(
            (world.made, world.status().active, world.status().succeeded),
            (3, Some(1), Some(2))
        );
        world.end("p3", "Succeeded", 2);
        world.settle(2);
        assert_eq!(world.status().succeeded, Some(3));
        assert_eq!(
            world.conditions(),
            [
                "SuccessCriteriaMet=True CompletionsReached",
                "Complete=True CompletionsReached"
            ]
        );
        assert_eq!(world.status().completion_time, Some(Time(at(2))));
        assert!(!world.observed.pods.iter().any(|p| is_tracked(p)), "{TRACKING}");
        assert_eq!(world.events, ["Completed"]);
        assert_eq!(reconcile(&world.observed, at(3)), []);
    }

    #[test]
    fn failures_are_retried_with_backoff_up_to_the_limit() {
        let mut world = World::new(json!({"completions": 1, "parallelism": 1, "backoffLimit": 1}));
        world.settle(0);
        world.end("p1", "Failed", 1);
        assert_eq!(world.settle(1), Some(Duration::from_secs(10)));
        assert_eq!((world.made, world.status().failed), (1, Some(1)));
        world.settle(11);
        assert_eq!(world.made, 2);
        world.end("p2", "Failed", 12);
        world.settle(12);
        assert_eq!(world.status().failed, Some(2));
        assert_eq!(
            world.conditions(),
            [
                "FailureTarget=True BackoffLimitExceeded",
                "Failed=True BackoffLimitExceeded"
            ]
        );
        assert_eq!(world.events, ["BackoffLimitExceeded"]);
        assert_eq!(reconcile(&world.observed, at(100)), []);
    }

    #[test]
    fn indexed_jobs_run_every_index_once() {
        let mut world = World::new(json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"}));
        world.settle(0);
        let index = |w: &World| {
            w.observed
                .pods
                .iter()
                .filter_map(|p| indexes::of(p))
                .collect::<Vec<_>>()
        };
        assert_eq!(index(&world), [0, 1]);
        let pod = &world.observed.pods[1];
        assert_eq!(pod.spec.as_ref().unwrap().hostname.as_deref(), Some("j-1"));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("j-1-"));
        world.end("p1", "Succeeded", 1);
        world.settle(1);
        assert_eq!(index(&world), [0, 1, 2]);
        assert_eq!(world.status().completed_indexes.as_deref(), Some("0"));
        world.end("p2", "Failed", 2);
        world.settle(2);
        world.settle(12);
        assert_eq!(index(&world), [0, 1, 2, 1]);
        world.end("p3", "Succeeded", 13);
        world.end("p4", "Succeeded", 13);
        world.settle(13);
        let status = world.status();
        assert_eq!(
            (status.completed_indexes.as_deref(), status.succeeded),
            (Some("0-2"), Some(3))
        );
        assert_eq!(status.failed, Some(1));
        assert!(finished(&status).is_some());
    }

    #[test]
    fn a_deadline_ends_the_job_and_its_pods() {
        let mut world = World::new(json!({"completions": 1, "parallelism": 1, "activeDeadlineSeconds": 30}));
        assert_eq!(world.settle(0), Some(Duration::from_secs(30)));
        world.settle(30);
        assert_eq!(world.conditions()[1], "Failed=True DeadlineExceeded");
        assert_eq!((world.observed.pods.len(), world.status().active), (0, None));
    }

    #[test]
    fn suspending_stops_pods_and_resuming_starts_anew() {
        let mut world = World::new(json!({"completions": 1, "parallelism": 1}));
        world.settle(0);
        world.edit(|job| job["spec"]["suspend"] = json!(true));
        world.settle(5);
        assert_eq!((world.observed.pods.len(), world.status().start_time), (0, None));
        assert_eq!(world.conditions(), ["Suspended=True JobSuspended"]);
        world.edit(|job| job["spec"]["suspend"] = json!(false));
        world.settle(50);
        assert_eq!(world.status().start_time, Some(Time(at(50))));
        assert_eq!(world.conditions(), ["Suspended=False JobResumed"]);
        assert_eq!(world.events, ["Suspended", "Resumed"]);
        assert_eq!(world.observed.pods.len(), 1);
    }

    #[test]
    fn the_failure_policy_ends_the_job_or_overlooks_a_pod() {
        let policy = |action: &str| {
            json!({"completions": 1, "parallelism": 1, "podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": [
                {"action": action, "onExitCodes": {"operator": "In", "values": [42]}}]}})
        };
        let mut world = World::new(policy("FailJob"));
        world.settle(0);
        world.end("p1", "Failed", 1);
        world.settle(1);
        assert_eq!(world.conditions()[1], "Failed=True PodFailurePolicy");
        let mut world = World::new(policy("Ignore"));
        world.settle(0);
        world.end("p1", "Failed", 1);
        world.settle(20);
        assert_eq!((world.made, world.status().failed), (2, None));
    }

    #[test]
    fn indexes_with_limits_of_their_own_fail_alone() {
        let spec = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed",
            "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX});
        let mut world = World::new(spec);
        world.settle(0);
        world.end("p1", "Failed", 1);
        assert_eq!(world.settle(1), Some(Duration::from_secs(10)));
        assert!(
            is_tracked(&world.observed.pods[0]),
            "its successor needs the number"
        );
        world.end("p2", "Succeeded", 2);
        world.settle(11);
        assert_eq!(world.made, 3);
        let annotations = world.observed.pods[2].metadata.annotations.clone().unwrap();
        assert_eq!(annotations["batch.kubernetes.io/job-index-failure-count"], "1");
        assert_eq!(
            (world.status().failed, world.status().failed_indexes.as_deref()),
            (Some(1), Some(""))
        );
        world.end("p3", "Failed", 12);
        world.settle(12);
        let status = world.status();
        assert_eq!(
            (
                status.failed,
                status.succeeded,
                status.failed_indexes.as_deref(),
                status.completed_indexes.as_deref()
            ),
            (Some(2), Some(1), Some("0"), Some("1"))
        );
        assert_eq!(
            world.conditions(),
            ["FailureTarget=True FailedIndexes", "Failed=True FailedIndexes"]
        );
        assert_eq!(reconcile(&world.observed, at(100)), []);
    }

    #[test]
    fn too_many_failed_indexes_end_the_job() {
        let spec = json!({"completions": 4, "parallelism": 2, "completionMode": "Indexed",
            "backoffLimitPerIndex": 0, "maxFailedIndexes": 0, "backoffLimit": i32::MAX});
        let mut world = World::new(spec);
        world.settle(0);
        world.end("p1", "Failed", 1);
        world.settle(1);
        assert_eq!(world.conditions()[1], "Failed=True MaxFailedIndexesExceeded");
        assert_eq!(
            (world.made, world.status().failed_indexes.as_deref()),
            (2, Some("0"))
        );
    }

    #[test]
    fn the_success_policy_ends_the_job_early() {
        let spec = json!({"completions": 5, "parallelism": 2, "completionMode": "Indexed", "backoffLimit": 6,
            "successPolicy": {"rules": [{"succeededIndexes": "0-2", "succeededCount": 1}]}});
        let mut world = World::new(spec);
        world.settle(0);
        world.end("p2", "Succeeded", 1);
        world.settle(1);
        assert_eq!(
            world.conditions(),
            [
                "SuccessCriteriaMet=True SuccessPolicy",
                "Complete=True SuccessPolicy"
            ]
        );
        let status = world.status();
        assert_eq!(
            (status.succeeded, status.failed, status.active),
            (Some(1), None, None)
        );
        assert_eq!(world.observed.pods.len(), 1);
    }

    #[test]
    fn an_adopted_pod_is_tracked() {
        let mut world = World::new(json!({"completions": 1, "parallelism": 1}));
        world.settle(0);
        world.pod("p1", |pod| {
            pod["metadata"]["ownerReferences"] = json!([]);
            pod["metadata"]["finalizers"] = json!([]);
        });
        let plan = reconcile(&world.observed, at(1));
        let [Action::Patch { patch, .. }] = &plan[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(patch["metadata"]["finalizers"], json!([TRACKING]));
        assert_eq!(patch["metadata"]["ownerReferences"][0]["uid"], "job");
    }
}
