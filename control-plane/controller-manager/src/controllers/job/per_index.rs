//! Back-off limits per index: how often an index has failed is written on its newest pod, so the newest failed pod of
//! an index stays tracked until the next one carries the number on.

use super::accounting::has_failed;
use super::failure::{Verdict, finished_at, judge, remaining};
use super::{indexes, is_tracked};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

pub fn limit(job: &Job) -> Option<i32> {
    job.spec.as_ref()?.backoff_limit_per_index
}

fn number(pod: &Pod, annotation: &str) -> u32 {
    let annotations = pod.metadata.annotations.as_ref();
    let text = annotations.and_then(|a| a.get(annotation));
    text.and_then(|t| t.parse().ok()).unwrap_or_default()
}

/// This failed pod was its index's last chance.
pub fn is_final(job: &Job, pod: &Pod) -> bool {
    let Some(limit) = limit(job) else { return false };
    let spent = i64::from(number(pod, FAILURES)) >= i64::from(limit);
    match judge(job, pod) {
        Verdict::FailIndex => true,
        Verdict::Ignore => false,
        Verdict::Count | Verdict::FailJob(_) => spent,
    }
}

/// The failed pod each unfinished index is to be tried after.
pub fn predecessors(job: &Job, pods: &[Arc<Pod>], over: &BTreeSet<i32>) -> BTreeMap<i32, Arc<Pod>> {
    let mut last: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    if limit(job).is_none() {
        return last;
    }
    let active: BTreeSet<i32> = pods
        .iter()
        .filter(|p| api::pod::is_active(p) && !has_failed(job, p))
        .filter_map(|p| indexes::of(p))
        .collect();
    let age = |p: &Pod| (number(p, FAILURES) + number(p, IGNORED), finished_at(p));
    for pod in pods.iter().filter(|p| is_tracked(p) && has_failed(job, p)) {
        let Some(index) = indexes::of(pod).filter(|i| !over.contains(i) && !active.contains(i)) else {
            continue;
        };
        if last.get(&index).is_none_or(|known| age(known) <= age(pod)) {
            last.insert(index, pod.clone());
        }
    }
    last
}

/// How long the index of this failed pod waits.
pub fn wait(predecessor: &Pod, now: Timestamp) -> Duration {
    let failures = number(predecessor, FAILURES) + number(predecessor, IGNORED) + 1;
    finished_at(predecessor).map_or(Duration::ZERO, |last| remaining(failures, last, now))
}

/// Writes on a new pod what its predecessors came to.
pub fn carry_on(job: &Job, predecessor: Option<&Pod>, pod: &mut Pod) {
    if limit(job).is_none() {
        return;
    }
    let (mut failures, mut ignored) =
        predecessor.map_or((0, 0), |p| (number(p, FAILURES), number(p, IGNORED)));
    match predecessor.map(|p| judge(job, p)) {
        Some(Verdict::Ignore) => ignored += 1,
        Some(_) => failures += 1,
        None => {}
    }
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(FAILURES.into(), failures.to_string());
    if ignored > 0 {
        annotations.insert(IGNORED.into(), ignored.to_string());
    }
}
