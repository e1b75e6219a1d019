//! Counting finished pods exactly once: a pod's UID enters the status before its finalizer goes, and becomes a number
//! once the finalizer is gone (upstream's `trackJobStatusAndRemoveFinalizers`).

use super::failure::{Verdict, judge};
use super::{indexes, is_tracked, per_index};
use api::pod::is_terminating;
use k8s_openapi::api::batch::v1::{Job, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet, HashSet};
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
    /// Indexes not tried again, where they have limits of their own.
    pub given_up: BTreeSet<i32>,
    /// The failed pod that an index is to be tried after.
    pub predecessors: BTreeMap<i32, Arc<Pod>>,
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

/// The end that was announced: pods still active are written off, as failed or as not needed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    No,
    Failure,
    Success,
}

pub fn balance(job: &Job, pods: &[Arc<Pod>], ending: Ending) -> Books {
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
    let read = |text: &Option<String>| indexes::parse(text.as_deref().unwrap_or_default(), completions);
    let mut completed = read(&status.completed_indexes);
    let mut given_up = read(&status.failed_indexes);
    let index = |pod: &Pod| indexes::of(pod).filter(|i| *i < completions);
    for pod in pods.iter().filter(|p| indexed && is_tracked(p)) {
        let stopped = ending != Ending::No && is_terminating(pod);
        if api::pod::phase(pod) == "Succeeded" {
            completed.extend(index(pod));
        } else if !stopped && has_failed(job, pod) && per_index::is_final(job, pod) {
            given_up.extend(index(pod));
        }
    }
    let over = &completed | &given_up;
    let predecessors = per_index::predecessors(job, pods, &over);
    let releasing = ending != Ending::No || job.metadata.deletion_timestamp.is_some();
    let mut counted = Vec::new();
    let mut verdict = None;
    let mut left = false;
    let mut postponed = 0;
    for pod in pods.iter().filter(|p| is_tracked(p)) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if succeeded.contains(&uid) || failed.contains(&uid) {
            counted.push(pod.clone());
            continue;
        }
        let success = api::pod::phase(pod) == "Succeeded";
        let written_off = releasing && is_terminating(pod);
        let failure = match ending {
            Ending::No => has_failed(job, pod),
            Ending::Failure => has_failed(job, pod) || written_off,
            Ending::Success => has_failed(job, pod) && !written_off,
        };
        if !(success || failure || written_off) {
            continue;
        }
        if succeeded.len() + failed.len() >= WAITING {
            left = true;
            continue;
        }
        let judged = (failure && (!indexed || index(pod).is_some())).then(|| judge(job, pod));
        if let Some(Verdict::FailJob(message)) = &judged {
            verdict.get_or_insert_with(|| message.clone());
        }
        let counts = judged.is_some_and(|j| j != Verdict::Ignore);
        let precedes = predecessors.values().any(|p| p.metadata.uid == pod.metadata.uid);
        if precedes && !releasing {
            postponed += usize::from(counts);
            continue;
        }
        counted.push(pod.clone());
        if counts {
            failed.push(uid);
        } else if success && !indexed {
            succeeded.push(uid);
        }
    }
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    if indexed {
        status.completed_indexes = Some(indexes::render(&completed)).filter(|t| !t.is_empty());
        status.succeeded = Some(number(completed.len())).filter(|n| *n > 0);
        status.failed_indexes = per_index::limit(job).map(|_| indexes::render(&given_up));
    }
    let books = (
        status.succeeded.unwrap_or_default() + number(succeeded.len()),
        status.failed.unwrap_or_default() + number(failed.len() + postponed),
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
        given_up,
        predecessors,
        verdict,
        settled,
    }
}
