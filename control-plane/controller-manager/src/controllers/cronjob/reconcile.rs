//! One step of a CronJob: its books, its next job, its history (upstream's `syncCronJob`).

use super::schedule::Schedule;
use crate::action::{Action, Announce, reference};
use crate::controllers::job::is_finished;
use api::event::{NORMAL, WARNING};
use api::owner::controller_ref;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::Duration;

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed starts than this are worth a warning.
const MANY: i64 = 100;
/// Looking again a little after the time, not a little before.
const MARGIN: Duration = Duration::from_millis(100);

pub struct Observed {
    pub cron_job: Arc<CronJob>,
    /// Those it controls.
    pub jobs: Vec<Arc<Job>>,
}

pub fn reconcile(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let cron_job = &*observed.cron_job;
    let spec = &cron_job.spec;
    let old = cron_job.status.clone().unwrap_or_default();
    let mut step = Step {
        cron_job,
        spec,
        jobs: &observed.jobs,
        now,
        status: old.clone(),
        plan: Vec::new(),
    };
    step.count();
    if cron_job.metadata.deletion_timestamp.is_none() {
        step.start();
        step.clean(spec.successful_jobs_history_limit, "Complete");
        step.clean(spec.failed_jobs_history_limit, "Failed");
    }
    if step.status != old {
        step.plan.push(Action::patch_status(cron_job, &old, &step.status));
    }
    step.plan
}

struct Step<'a> {
    cron_job: &'a CronJob,
    spec: &'a CronJobSpec,
    jobs: &'a [Arc<Job>],
    now: Timestamp,
    status: CronJobStatus,
    plan: Vec<Action>,
}

/// A start that is due, and when to look again.
struct Due {
    start: Option<Timestamp>,
    again: Option<Timestamp>,
    many: bool,
}

impl Step<'_> {
    fn say(&mut self, kind: &'static str, reason: &str, message: impl Into<String>) {
        self.plan
            .push(Action::event(self.cron_job, kind, reason, message));
    }

    /// Brings the list of active jobs, and the last success, up to date.
    fn count(&mut self) {
        let mut active = self.status.active.take().unwrap_or_default();
        let expected = self
            .status
            .last_schedule_time
            .as_ref()
            .map(|t| self.job_name(t.0));
        for job in self.jobs {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            let listed = active.iter().position(|r| r.uid == job.metadata.uid);
            match (is_finished(job), listed) {
                (None, None) if expected.as_deref() == Some(name) => active.push(reference(&**job)),
                (None, None) => {
                    let message = format!("Saw a job that the controller did not create or forgot: {name}");
                    self.say(WARNING, "UnexpectedJob", message);
                }
                (Some(condition), Some(index)) => {
                    active.remove(index);
                    let message = format!("Saw completed job: {name}, condition: {condition}");
                    self.say(NORMAL, "SawCompletedJob", message);
                }
                (Some(_), None) | (None, Some(_)) => {}
            }
            if is_finished(job) == Some("Complete") {
                let completed = job.status.as_ref().and_then(|s| s.completion_time.clone());
                self.status.last_successful_time = self.status.last_successful_time.take().max(completed);
            }
        }
        let (there, missing): (Vec<_>, Vec<_>) = active
            .into_iter()
            .partition(|r| self.jobs.iter().any(|job| job.metadata.uid == r.uid));
        for job in missing {
            let name = job.name.unwrap_or_default();
            self.say(NORMAL, "MissingJob", format!("Active job went missing: {name}"));
        }
        self.status.active = (!there.is_empty()).then_some(there);
    }

    fn start(&mut self) {
        let zone = match self.spec.time_zone.as_deref().map(TimeZone::get) {
            None => TimeZone::UTC,
            Some(Ok(zone)) => zone,
            Some(Err(error)) => {
                let name = self.spec.time_zone.as_deref().unwrap_or_default();
                let message = format!("invalid timeZone: {name:?}: {error}");
                return self.say(WARNING, "UnknownTimeZone", message);
            }
        };
        if self.spec.suspend.unwrap_or_default() {
            return;
        }
        let text = &self.spec.schedule;
        let schedule = match Schedule::parse(text, zone.clone()) {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: {text:?} : {error}");
                return self.say(WARNING, "UnparseableSchedule", message);
            }
        };
        let due = self.due(&schedule);
        if let Some(again) = due.again {
            let left = Duration::try_from(again.duration_since(self.now)).unwrap_or_default();
            self.plan.push(Action::Requeue(left + MARGIN));
        }
        let Some(start) = due.start else { return };
        if due.many {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check \
                           clock skew";
            self.say(WARNING, "TooManyMissedTimes", message);
        }
        let deadline = self.spec.starting_deadline_seconds;
        if deadline.is_some_and(|d| start.as_second() + d < self.now.as_second()) {
            let start = start.strftime("%a, %d %b %Y %H:%M:%S +0000");
            let message = format!("Missed scheduled time to start a job: {start}");
            return self.say(WARNING, "MissSchedule", message);
        }
        if self
            .status
            .last_schedule_time
            .as_ref()
            .is_some_and(|t| t.0 == start)
        {
            return;
        }
        let name = self.job_name(start);
        let known = self.jobs.iter().find(|j| j.metadata.name.as_ref() == Some(&name));
        if let Some(job) = known {
            // Made before a restart that lost the status.
            if is_finished(job).is_none() {
                let active = self.status.active.get_or_insert_default();
                if !active.iter().any(|r| r.uid == job.metadata.uid) {
                    active.push(reference(&**job));
                }
            }
            self.status.last_schedule_time = Some(Time(start));
            return;
        }
        match self.spec.concurrency_policy.as_deref() {
            Some("Forbid") if self.status.active.is_some() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                return self.say(NORMAL, "JobAlreadyActive", message);
            }
            Some("Replace") => {
                let active = self.status.active.take().unwrap_or_default();
                let replaced = self
                    .jobs
                    .iter()
                    .filter(|job| active.iter().any(|r| r.uid == job.metadata.uid));
                let deletions: Vec<Action> = replaced.map(|job| self.delete(job)).collect();
                self.plan.extend(deletions);
            }
            _ => {}
        }
        let job = self.job(name, start, zone);
        self.plan.push(Action::create(&job).announced(Announce {
            about: reference(self.cron_job),
            success: ("SuccessfulCreate", "Created job {}".into()),
            failure: ("FailedCreate", "Error creating job: {}".into()),
            source: "",
        }));
        self.status.last_schedule_time = Some(Time(start));
    }

    fn due(&self, schedule: &Schedule) -> Due {
        let created = self.cron_job.metadata.creation_timestamp.as_ref();
        let last = self.status.last_schedule_time.as_ref().or(created);
        let last = last.map_or(self.now, |t| t.0);
        let deadline = self.spec.starting_deadline_seconds;
        let earliest = deadline
            .and_then(|d| self.now.checked_sub(SignedDuration::from_secs(d)).ok())
            .map_or(last, |horizon| horizon.max(last));
        let (start, many) = most_recent(schedule, earliest, self.now);
        let from = match most_recent(schedule, last, self.now) {
            (Some(start), _) => start,
            (None, _) if last > self.now => self.now,
            (None, _) => last,
        };
        let again = schedule.next(from).filter(|t| *t > self.now);
        Due {
            start,
            again: again.or_else(|| schedule.next(self.now)),
            many,
        }
    }

    fn job_name(&self, start: Timestamp) -> String {
        let name = self.cron_job.metadata.name.as_deref().unwrap_or_default();
        format!("{name}-{}", start.as_second() / 60)
    }

    fn job(&self, name: String, start: Timestamp, zone: TimeZone) -> Job {
        let template = self.spec.job_template.clone();
        let meta = template.metadata.unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        let local = start.to_zoned(zone.clone());
        let form = if local.offset().is_zero() {
            "%Y-%m-%dT%H:%M:%SZ"
        } else {
            "%Y-%m-%dT%H:%M:%S%:z"
        };
        annotations.insert(SCHEDULED.into(), local.strftime(form).to_string());
        Job {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: self.cron_job.metadata.namespace.clone(),
                labels: meta.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controller_ref(
                    "batch/v1",
                    "CronJob",
                    &self.cron_job.metadata,
                )]),
                ..ObjectMeta::default()
            },
            spec: template.spec,
            status: None,
        }
    }

    fn delete(&self, job: &Job) -> Action {
        Action::delete(job).announced(Announce {
            about: reference(self.cron_job),
            success: ("SuccessfulDelete", "Deleted job {}".into()),
            failure: ("FailedDelete", "Deleted job: {}".into()),
            source: "",
        })
    }

    /// Deletes the oldest jobs that ended this way, beyond those to be kept.
    fn clean(&mut self, limit: Option<i32>, condition: &str) {
        let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else {
            return;
        };
        let mut ended: Vec<&Arc<Job>> = self
            .jobs
            .iter()
            .filter(|j| is_finished(j) == Some(condition) && j.metadata.deletion_timestamp.is_none())
            .collect();
        ended.sort_by_key(|job| {
            let start = job.status.as_ref().and_then(|s| s.start_time.as_ref());
            (start.is_none(), start.map(|t| t.0), job.metadata.name.clone())
        });
        let surplus = ended.len().saturating_sub(limit);
        let deletions: Vec<Action> = ended[..surplus].iter().map(|job| self.delete(job)).collect();
        self.plan.extend(deletions);
    }
}

/// The latest start after `earliest` that has come, and whether far too many have.
fn most_recent(schedule: &Schedule, earliest: Timestamp, now: Timestamp) -> (Option<Timestamp>, bool) {
    let Some(first) = schedule.next(earliest).filter(|t| *t <= now) else {
        return (None, false);
    };
    let Some(second) = schedule.next(first).filter(|t| *t <= now) else {
        return (Some(first), false);
    };
    let between = (second.as_second() - first.as_second()).max(1);
    let missed = (now.as_second() - first.as_second()) / between + 1;
    // From here the few that are left are asked for one by one; intervals need not be equal.
    let near = first.checked_add(SignedDuration::from_secs((missed - 2) * between));
    let mut latest = second;
    let mut next = schedule.next(near.unwrap_or(second).max(first));
    while let Some(time) = next.filter(|t| *t <= now) {
        latest = latest.max(time);
        next = schedule.next(time);
    }
    (Some(latest), missed > MANY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn cron_job(spec: Value, status: Value) -> Arc<CronJob> {
        let mut full = json!({"schedule": "*/5 * * * *", "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1,
            "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}}});
        for (key, value) in spec.as_object().unwrap() {
            full[key] = value.clone();
        }
        let meta =
            json!({"name": "c", "namespace": "n", "uid": "cj", "creationTimestamp": "2026-01-01T00:00:00Z"});
        Arc::new(from_value(json!({"metadata": meta, "spec": full, "status": status})).unwrap())
    }

    fn job(name: &str, ended: Option<&str>) -> Arc<Job> {
        let conditions = ended.map(|kind| json!([{"type": kind, "status": "True"}]));
        let status = json!({"startTime": "2026-01-01T00:05:00Z", "completionTime": "2026-01-01T00:06:00Z",
            "conditions": conditions});
        Arc::new(
            from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "status": status}))
                .unwrap(),
        )
    }

    fn run(cron_job: Arc<CronJob>, jobs: Vec<Arc<Job>>, now: &str) -> (Vec<String>, Value) {
        let plan = reconcile(&Observed { cron_job, jobs }, now.parse().unwrap());
        let mut status = Value::Null;
        let words = plan.into_iter().filter_map(|action| match action {
            Action::Create { body, .. } => {
                Some(format!("create {}", body["metadata"]["name"].as_str().unwrap()))
            }
            Action::Delete { at, .. } => Some(format!("delete {}", at.key.name)),
            Action::Event(notice) => Some(notice.reason),
            Action::Patch { patch, .. } => {
                status = patch["status"].clone();
                None
            }
            Action::Requeue(delay) => Some(format!("again in {}", delay.as_secs())),
            other => panic!("{other:?}"),
        });
        (words.collect(), status)
    }

    const MINUTE_5: i64 = 1_767_225_600 / 60 + 5;

    #[test]
    fn jobs_start_when_their_time_has_come() {
        let name = format!("c-{MINUTE_5}");
        let (words, status) = run(cron_job(json!({}), json!({})), vec![], "2026-01-01T00:04:00Z");
        assert_eq!((words, status), (vec!["again in 60".to_string()], Value::Null));
        let (words, status) = run(cron_job(json!({}), json!({})), vec![], "2026-01-01T00:05:01Z");
        assert_eq!(words, ["again in 299".to_string(), format!("create {name}")]);
        assert_eq!(status, json!({"lastScheduleTime": "2026-01-01T00:05:00Z"}));
        let started = cron_job(json!({}), status);
        let (words, status) = run(started, vec![job(&name, None)], "2026-01-01T00:05:01Z");
        assert_eq!(words, ["again in 299"]);
        assert_eq!(status["active"][0]["name"], json!(name));
        // The status was lost, the job was not.
        let (words, status) = run(
            cron_job(json!({}), json!({})),
            vec![job(&name, None)],
            "2026-01-01T00:05:02Z",
        );
        assert_eq!(words, ["UnexpectedJob", "again in 298"]);
        assert_eq!(status["lastScheduleTime"], "2026-01-01T00:05:00Z");
    }

    #[test]
    fn what_keeps_a_job_from_starting() {
        let active =
            json!({"active": [{"name": "old", "uid": "old"}], "lastScheduleTime": "2026-01-01T00:00:00Z"});
        let create = format!("create c-{MINUTE_5}");
        let old = || vec![job("old", None)];
        for (spec, jobs, expected) in [
            (json!({"suspend": true}), old(), vec![]),
            (json!({"timeZone": "Mars/Base"}), old(), vec!["UnknownTimeZone"]),
            (
                json!({"schedule": "nonsense"}),
                old(),
                vec!["UnparseableSchedule"],
            ),
            (
                json!({"concurrencyPolicy": "Forbid"}),
                old(),
                vec!["again in 280", "JobAlreadyActive"],
            ),
            (
                json!({"concurrencyPolicy": "Replace"}),
                old(),
                vec!["again in 280", "delete old", &create],
            ),
            (
                json!({"concurrencyPolicy": "Allow"}),
                old(),
                vec!["again in 280", &create],
            ),
            (
                json!({"concurrencyPolicy": "Forbid"}),
                vec![],
                vec!["MissingJob", "again in 280", &create],
            ),
            (
                json!({"startingDeadlineSeconds": 10}),
                old(),
                vec!["again in 280"],
            ),
        ] {
            let (words, _) = run(
                cron_job(spec.clone(), active.clone()),
                jobs,
                "2026-01-01T00:05:20Z",
            );
            assert_eq!(words, expected, "{spec}");
        }
    }

    #[test]
    fn of_many_missed_starts_the_last_counts() {
        let (words, status) = run(cron_job(json!({}), json!({})), vec![], "2026-01-02T00:01:00Z");
        let last = MINUTE_5 - 5 + 24 * 60;
        assert_eq!(
            words,
            [
                "again in 240".into(),
                "TooManyMissedTimes".into(),
                format!("create c-{last}")
            ]
        );
        assert_eq!(status["lastScheduleTime"], "2026-01-02T00:00:00Z");
    }

    #[test]
    fn ended_jobs_leave_the_list_and_old_ones_go() {
        let status =
            json!({"active": [{"name": "c", "uid": "c"}], "lastScheduleTime": "2026-01-01T00:05:00Z"});
        let jobs = vec![
            job("a", Some("Complete")),
            job("b", Some("Failed")),
            job("c", Some("Complete")),
        ];
        let (words, status) = run(cron_job(json!({}), status), jobs, "2026-01-01T00:06:00Z");
        assert_eq!(words, ["SawCompletedJob", "again in 240", "delete a"]);
        assert_eq!(
            status,
            json!({"active": null, "lastSuccessfulTime": "2026-01-01T00:06:00Z"})
        );
    }
}
