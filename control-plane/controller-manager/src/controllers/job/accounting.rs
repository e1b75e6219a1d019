//! Counting finished pods exactly once: a pod's UID enters the status before its finalizer goes, and becomes a number
//! once the finalizer is gone (upstream's `trackJobStatusAndRemoveFinalizers`).

use super::failure::{Verdict, judge};
use super::{indexes, is_tracked};
use api::pod::is_terminating;
use k8s_openapi::api::batch::v1::{Job, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// UIDs waiting in the status at most.
const WAITING: usize = 500;

/// The books after this step.
pub struct Books {
    pub status: JobStatus,
    /// Pods to let go once the status is written.
    pub counted: Vec<Arc<Pod>>,
    /// Including those still waiting to become numbers.
    pub succeeded: i32,
    pub failed: i32,
    pub completed: BTreeSet<i32>,
    /// A pod that ended the job, by policy.
    pub verdict: Option<String>,
    /// Nothing waits: the counts are final.
    pub settled: bool,
}

pub fn is_indexed(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.completion_mode.as_deref()) == Some("Indexed")
}

/// Failed, or going away without having succeeded, unless only failed pods are replaced.
pub fn has_failed(job: &Job, pod: &Pod) -> bool {
    let spec = job.spec.as_ref();
    let only_failed = spec.is_some_and(|s| {
        s.pod_replacement_policy.as_deref() == Some("Failed") || s.pod_failure_policy.is_some()
    });
    match api::pod::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => !only_failed && is_terminating(pod),
    }
}

/// `ending` says that the job is over: pods still active are written off.
pub fn balance(job: &Job, pods: &[Arc<Pod>], ending: bool) -> Books {
    let mut status = job.status.clone().unwrap_or_default();
    let completions = job.spec.as_ref().and_then(|s| s.completions).unwrap_or_default();
    let tracked: HashSet<&str> = pods
        .iter()
        .filter(|p| is_tracked(p))
        .filter_map(|p| p.metadata.uid.as_deref())
        .collect();
    let waiting = status.uncounted_terminated_pods.take().unwrap_or_default();
    let fold = |list: Option<Vec<String>>, count: &mut Option<i32>| {
        let (keep, gone): (Vec<_>, Vec<_>) = list
            .unwrap_or_default()
            .into_iter()
            .partition(|uid| tracked.contains(uid.as_str()));
        if !gone.is_empty() {
            *count = Some(count.unwrap_or_default() + i32::try_from(gone.len()).unwrap_or(i32::MAX));
        }
        keep
    };
    let mut succeeded = fold(waiting.succeeded, &mut status.succeeded);
    let mut failed = fold(waiting.failed, &mut status.failed);
    let indexed = is_indexed(job);
    let mut completed = indexes::parse(
        status.completed_indexes.as_deref().unwrap_or_default(),
        completions,
    );
    let mut counted = Vec::new();
    let mut verdict = None;
    let mut left = false;
    for pod in pods.iter().filter(|p| is_tracked(p)) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if succeeded.contains(&uid) || failed.contains(&uid) {
            counted.push(pod.clone());
            continue;
        }
        let success = api::pod::phase(pod) == "Succeeded";
        let failure = has_failed(job, pod);
        if !(success || failure || ending && is_terminating(pod)) {
            continue;
        }
        if succeeded.len() + failed.len() >= WAITING {
            left = true;
            continue;
        }
        counted.push(pod.clone());
        if success && indexed {
            completed.extend(indexes::of(pod).filter(|i| *i < completions));
        } else if success {
            succeeded.push(uid);
        } else if failure {
            match judge(job, pod) {
                Verdict::Ignore => {}
                Verdict::Count => failed.push(uid),
                Verdict::FailJob(message) => {
                    verdict.get_or_insert(message);
                    failed.push(uid);
                }
            }
        }
    }
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    if indexed {
        status.completed_indexes = Some(indexes::render(&completed)).filter(|t| !t.is_empty());
        status.succeeded = Some(number(completed.len())).filter(|n| *n > 0);
    }
    let books = (
        status.succeeded.unwrap_or_default() + number(succeeded.len()),
        status.failed.unwrap_or_default() + number(failed.len()),
    );
    let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
    let settled = succeeded.is_empty() && failed.is_empty() && counted.is_empty() && !left;
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
        succeeded: some(succeeded),
        failed: some(failed),
    });
    Books {
        status,
        counted,
        succeeded: books.0,
        failed: books.1,
        completed,
        verdict,
        settled,
    }
}
