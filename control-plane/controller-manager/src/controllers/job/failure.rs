//! What failed pods mean for a job: the pod failure policy, and how long the next pod waits.

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

const FIRST_BACKOFF: u64 = 10;
const LONGEST_BACKOFF: u64 = 600;

/// The policy's answer to one failed pod.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Count,
    Ignore,
    /// Counts, and its index isn't tried again.
    FailIndex,
    /// The whole job fails; the message says why.
    FailJob(String),
}

pub fn judge(job: &Job, pod: &Pod) -> Verdict {
    let policy = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref());
    let rules = policy.map(|p| p.rules.as_slice()).unwrap_or_default();
    for (index, rule) in rules.iter().enumerate() {
        let Some(why) = exit_code(rule, pod).or_else(|| condition(rule, pod)) else {
            continue;
        };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {index}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn full_name(pod: &Pod) -> String {
    let meta = &pod.metadata;
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

fn exit_code(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let wanted = rule.on_exit_codes.as_ref()?;
    let status = pod.status.as_ref()?;
    let statuses = status
        .container_statuses
        .iter()
        .flatten()
        .chain(status.init_container_statuses.iter().flatten());
    for container in statuses {
        let named = wanted
            .container_name
            .as_ref()
            .is_none_or(|n| *n == container.name);
        let ended = container.state.as_ref().and_then(|s| s.terminated.as_ref());
        let Some(code) = ended.map(|t| t.exit_code).filter(|code| named && *code != 0) else {
            continue;
        };
        if wanted.values.contains(&code) == (wanted.operator == "In") {
            return Some(format!(
                "Container {} for pod {} failed with exit code {code}",
                container.name,
                full_name(pod)
            ));
        }
    }
    None
}

fn condition(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let have = pod.status.as_ref()?.conditions.as_ref();
    let wanted = rule.on_pod_conditions.iter().flatten();
    wanted
        .filter(|w| {
            let status = w.status.as_deref().unwrap_or("True");
            api::condition::find(have, &w.type_).is_some_and(|c| c.status == status)
        })
        .map(|w| format!("Pod {} has condition {}", full_name(pod), w.type_))
        .next()
}

/// When a finished pod finished, as well as can be told.
pub fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let ends = status
        .container_statuses
        .iter()
        .flatten()
        .filter_map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0));
    let ready = api::condition::find(status.conditions.as_ref(), "Ready");
    ends.max()
        .or_else(|| Some(ready?.last_transition_time.as_ref()?.0))
        .or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|t| t.0))
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

/// What is left of 10 s after the first of `failures` in a row, doubling up to 10 min.
pub fn remaining(failures: u32, last: Timestamp, now: Timestamp) -> Duration {
    let delay = (FIRST_BACKOFF << failures.saturating_sub(1).min(10)).min(LONGEST_BACKOFF);
    let waited = u64::try_from(now.as_second() - last.as_second()).unwrap_or_default();
    Duration::from_secs(delay.saturating_sub(waited))
}

/// How long the next pod waits: failures since the last success count.
pub fn backoff(failed: &[&Arc<Pod>], succeeded: &[&Arc<Pod>], now: Timestamp) -> Duration {
    let success = succeeded.iter().filter_map(|p| finished_at(p)).max();
    let failures = failed
        .iter()
        .filter_map(|p| finished_at(p))
        .filter(|t| success.is_none_or(|s| *t > s));
    let (count, last) = failures.fold((0_u32, None), |(n, last), t| (n + 1, last.max(Some(t))));
    let Some(last) = last else {
        return Duration::ZERO;
    };
    remaining(count, last, now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn failed(code: i32, at: &str) -> Arc<Pod> {
        Arc::new(
            from_value(
                json!({"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": "Failed",
            "conditions": [{"type": "DisruptionTarget", "status": "True"}],
            "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code, "finishedAt": at}}}]}}),
            )
            .unwrap(),
        )
    }

    #[test]
    fn policies_match_the_first_rule() {
        let codes = |operator: &str, action: &str| json!({"action": action, "onExitCodes": {"operator": operator, "values": [42]}});
        let disrupted =
            json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
        let fail = |m: &str| Verdict::FailJob(m.into());
        for (rules, expected) in [
            (json!([]), Verdict::Count),
            (
                json!([codes("In", "FailJob")]),
                fail("Container c for pod n/p failed with exit code 42 matching FailJob rule at index 0"),
            ),
            (json!([codes("NotIn", "FailJob")]), Verdict::Count),
            (json!([codes("NotIn", "FailJob"), disrupted]), Verdict::Ignore),
            (json!([codes("In", "Count"), disrupted]), Verdict::Count),
            (json!([codes("In", "FailIndex")]), Verdict::FailIndex),
        ] {
            let job: Job = from_value(
                json!({"metadata": {}, "spec": {"podFailurePolicy": {"rules": rules}, "template": {}}}),
            )
            .unwrap();
            assert_eq!(
                judge(&job, &failed(42, "2026-01-01T00:00:00Z")),
                expected,
                "{rules}"
            );
        }
    }

    #[test]
    fn waiting_doubles_and_a_success_resets_it() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let (a, b) = (
            failed(1, "2026-01-01T00:00:55Z"),
            failed(1, "2026-01-01T00:00:58Z"),
        );
        let wait = |failed: &[&Arc<Pod>], ok: &[&Arc<Pod>]| backoff(failed, ok, now).as_secs();
        assert_eq!(wait(&[], &[]), 0);
        assert_eq!(wait(&[&a], &[]), 5);
        assert_eq!(wait(&[&a, &b], &[]), 18);
        assert_eq!(wait(&[&a], &[&b]), 0);
    }
}
