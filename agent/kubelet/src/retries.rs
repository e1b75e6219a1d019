//! When to try again what failed before the runtime had a container to show for it: upstream's pod workers wait
//! `backOffPeriod` after a failed sync. What ran and ended has its own, growing delays in `back_off`.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

/// Upstream's `backOffPeriod`, and how much of it jitter may add (`workerBackOffPeriodJitterFactor`).
const PERIOD: Duration = Duration::from_secs(10);
const JITTER: f64 = 0.5;

/// The sandbox's key beside those of containers, whose names are never empty.
pub const SANDBOX: &str = "";

/// All that users can change of a pod; its status is what the kubelet itself says.
type Wanted = (
    Option<i64>,
    Option<BTreeMap<String, String>>,
    Option<BTreeMap<String, String>>,
);

#[derive(Default)]
pub struct Retries {
    due: HashMap<String, Instant>,
    wanted: Wanted,
}

impl Retries {
    /// A pod that was changed may be tried at once.
    pub fn note(&mut self, pod: &Pod) {
        let meta = &pod.metadata;
        let wanted = (meta.generation, meta.labels.clone(), meta.annotations.clone());
        if wanted != self.wanted {
            self.due.clear();
            self.wanted = wanted;
        }
    }

    /// `share` of the jitter, from 0 to 1; the wait.
    pub fn failed(&mut self, key: &str, now: Instant, share: f64) -> Duration {
        let wait = PERIOD.mul_f64(1.0 + JITTER * share.clamp(0.0, 1.0));
        self.due.insert(key.to_owned(), now + wait);
        wait
    }

    /// The wait that is left before `key` may be tried.
    pub fn left(&self, key: &str, now: Instant) -> Option<Duration> {
        let left = self.due.get(key)?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

/// Whether a container's failure to start, by its waiting reason, is timed here: a container that was made is in
/// `CrashLoopBackOff` when it ends, and images have delays of their own.
pub fn applies(reason: &str) -> bool {
    !matches!(
        reason,
        "RunContainerError" | "PostStartHookError" | "ErrImagePull" | "ImagePullBackOff"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_seconds_and_up_to_half_as_much_again() {
        let start = Instant::now();
        for (share, after, expected) in [
            (0.0, 0, Some(10_000)),
            (1.0, 0, Some(15_000)),
            (0.5, 12_000, Some(500)),
            (0.5, 12_500, None),
            (7.0, 15_000, None),
        ] {
            let mut retries = Retries::default();
            retries.failed("c", start, share);
            let now = start + Duration::from_millis(after);
            let expected = expected.map(Duration::from_millis);
            assert_eq!(retries.left("c", now), expected, "{share} {after}");
            assert_eq!(retries.left(SANDBOX, now), None, "each has its own time");
        }
    }

    #[test]
    fn only_a_change_of_what_is_wanted_shortens_the_wait() {
        let now = Instant::now();
        let pod = |meta, phase| {
            serde_json::from_value(serde_json::json!({"metadata": meta, "status": {"phase": phase}}))
        };
        let first = || serde_json::json!({"generation": 1, "resourceVersion": "1"});
        for (changed, phase, waits) in [
            (first(), "Pending", true),
            (first(), "Running", true),
            (
                serde_json::json!({"generation": 1, "resourceVersion": "2"}),
                "Pending",
                true,
            ),
            (serde_json::json!({"generation": 2}), "Pending", false),
            (
                serde_json::json!({"generation": 1, "labels": {"a": "b"}}),
                "Pending",
                false,
            ),
            (
                serde_json::json!({"generation": 1, "annotations": {"a": "b"}}),
                "Pending",
                false,
            ),
        ] {
            let mut retries = Retries::default();
            retries.note(&pod(first(), "Pending").unwrap());
            retries.failed("c", now, 0.0);
            let what = format!("{changed} {phase}");
            retries.note(&pod(changed, phase).unwrap());
            assert_eq!(retries.left("c", now).is_some(), waits, "{what}");
        }
    }

    #[test]
    fn what_ran_and_what_is_pulled_has_other_delays() {
        for (reason, expected) in [
            ("CreateContainerError", true),
            ("CreateContainerConfigError", true),
            ("ErrImageNeverPull", true),
            ("ImageInspectError", true),
            ("RunContainerError", false),
            ("PostStartHookError", false),
            ("ErrImagePull", false),
            ("ImagePullBackOff", false),
        ] {
            assert_eq!(applies(reason), expected, "{reason}");
        }
    }
}
