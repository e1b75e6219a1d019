//! How fast a target may follow its recommendations: stabilization windows, policies, bounds.

use crate::config::Autoscaling;
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// No recommendation or change is looked at after this (the API allows an hour at most).
const LONGEST: SignedDuration = SignedDuration::from_hours(1);

/// What happened to a target lately.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    recommendations: Vec<(Timestamp, i32)>,
    ups: Vec<(Timestamp, i32)>,
    downs: Vec<(Timestamp, i32)>,
}

impl Memory {
    /// What stood before the first recommendation counts as one.
    pub fn begin(&mut self, replicas: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, replicas));
        }
    }

    pub fn rescaled(&mut self, from: i32, to: i32, now: Timestamp) {
        let (changes, by) = match to > from {
            true => (&mut self.ups, to - from),
            false => (&mut self.downs, from - to),
        };
        changes.push((now, by));
    }

    fn recommend(&mut self, replicas: i32, now: Timestamp) {
        self.recommendations.push((now, replicas));
        for list in [&mut self.recommendations, &mut self.ups, &mut self.downs] {
            list.retain(|(at, _)| now.duration_since(*at) <= LONGEST);
        }
    }

    fn recommended(&self, window: SignedDuration, now: Timestamp) -> impl Iterator<Item = i32> {
        let recent = self
            .recommendations
            .iter()
            .filter(move |(at, _)| now.duration_since(*at) < window);
        recent.map(|(_, replicas)| *replicas)
    }

    /// Pods added less pods removed within the policy's period.
    fn net_change(&self, policy: &HPAScalingPolicy, now: Timestamp) -> i32 {
        let period = SignedDuration::from_secs(policy.period_seconds.into());
        let sum = |changes: &[(Timestamp, i32)]| -> i32 {
            let recent = changes.iter().filter(|(at, _)| now.duration_since(*at) < period);
            recent.map(|(_, by)| by).sum()
        };
        sum(&self.ups) - sum(&self.downs)
    }
}

/// A reason and its message.
pub type Words = (&'static str, &'static str);

#[derive(Debug, PartialEq)]
pub struct Normalized {
    pub replicas: i32,
    /// Of the condition AbleToScale.
    pub able: Words,
    /// Of the condition ScalingLimited, and whether it holds.
    pub limited: (bool, Words),
}

pub struct Bounds {
    pub min: i32,
    pub max: i32,
    pub current: i32,
}

const READY: Words = ("ReadyForNewScale", "recommended size matches current size");
const UP_STABILIZED: Words = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: Words = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const WITHIN: Words = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);
const UP_LIMIT: Words = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const DOWN_LIMIT: Words = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);
const TOO_MANY: Words = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const TOO_FEW: Words = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);

/// What becomes of a recommendation, which is remembered.
pub fn normalize(
    memory: &mut Memory,
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    bounds: &Bounds,
    desired: i32,
    settings: &Autoscaling,
    now: Timestamp,
) -> Normalized {
    let rules = behavior.map(|behavior| {
        let up = Rules::new(behavior.scale_up.as_ref(), &UP, SignedDuration::ZERO);
        let down = Rules::new(
            behavior.scale_down.as_ref(),
            &DOWN,
            settings.downscale_stabilization,
        );
        (up, down)
    });
    let (stabilized, words) = match &rules {
        None => {
            let recent = memory.recommended(settings.downscale_stabilization, now);
            (recent.fold(desired, i32::max), DOWN_STABILIZED)
        }
        Some((up, down)) => {
            let lowest = memory.recommended(up.window, now).fold(desired, i32::min);
            let highest = memory.recommended(down.window, now).fold(desired, i32::max);
            let words = match desired >= bounds.current {
                true => UP_STABILIZED,
                false => DOWN_STABILIZED,
            };
            (bounds.current.max(lowest).min(highest), words)
        }
    };
    let (replicas, why) = match &rules {
        None => limit_plainly(bounds, stabilized),
        Some((up, down)) => limit(memory, bounds, stabilized, up, down, now),
    };
    memory.recommend(desired, now);
    Normalized {
        replicas,
        able: if stabilized == desired { READY } else { words },
        limited: (replicas != stabilized, why),
    }
}

/// Without rules: at most twice as many, or four.
fn limit_plainly(bounds: &Bounds, desired: i32) -> (i32, Words) {
    let fastest = bounds.current.saturating_mul(2).max(4);
    let (most, words) = match bounds.max > fastest {
        true => (fastest, UP_LIMIT),
        false => (bounds.max, TOO_MANY),
    };
    if desired < bounds.min {
        (bounds.min, TOO_FEW)
    } else if desired > most {
        (most, words)
    } else {
        (desired, WITHIN)
    }
}

fn limit(
    memory: &Memory,
    bounds: &Bounds,
    desired: i32,
    up: &Rules<'_>,
    down: &Rules<'_>,
    now: Timestamp,
) -> (i32, Words) {
    let current = bounds.current;
    if desired > current {
        let fastest = up.limit(&UP, memory, current, now).max(current);
        let (most, words) = match bounds.max > fastest {
            true => (fastest, UP_LIMIT),
            false => (bounds.max, TOO_MANY),
        };
        if desired > most {
            return (most, words);
        }
    } else if desired < current {
        let fastest = down.limit(&DOWN, memory, current, now).min(current);
        let (least, words) = match bounds.min < fastest {
            true => (fastest, DOWN_LIMIT),
            false => (bounds.min, TOO_FEW),
        };
        if desired < least {
            return (least, words);
        }
    }
    (desired, WITHIN)
}

/// What differs between the two directions.
struct Direction {
    sign: i32,
    /// Of policies, when the rules have none: type, value, seconds.
    policies: &'static [(&'static str, i32, i32)],
}

const UP: Direction = Direction {
    sign: 1,
    policies: &[("Pods", 4, 15), ("Percent", 100, 15)],
};
const DOWN: Direction = Direction {
    sign: -1,
    policies: &[("Percent", 100, 15)],
};

/// Rules with upstream's defaults filled in.
struct Rules<'a> {
    window: SignedDuration,
    select: &'a str,
    policies: Vec<HPAScalingPolicy>,
}

impl<'a> Rules<'a> {
    fn new(rules: Option<&'a HPAScalingRules>, direction: &Direction, window: SignedDuration) -> Self {
        let seconds = rules.and_then(|rules| rules.stabilization_window_seconds);
        let default = |(type_, value, period_seconds): &(&str, i32, i32)| HPAScalingPolicy {
            type_: (*type_).to_owned(),
            value: *value,
            period_seconds: *period_seconds,
        };
        Self {
            window: seconds.map_or(window, |seconds| SignedDuration::from_secs(seconds.into())),
            select: rules
                .and_then(|rules| rules.select_policy.as_deref())
                .unwrap_or("Max"),
            policies: rules
                .and_then(|rules| rules.policies.clone())
                .unwrap_or_else(|| direction.policies.iter().map(default).collect()),
        }
    }

    /// The number of pods that no policy, or not all of them, let the target pass.
    fn limit(&self, direction: &Direction, memory: &Memory, current: i32, now: Timestamp) -> i32 {
        if self.select == "Disabled" {
            return current;
        }
        let proposed = self.policies.iter().map(|policy| {
            let start = current - memory.net_change(policy, now);
            if policy.type_ == "Pods" {
                return start.saturating_add(direction.sign.saturating_mul(policy.value));
            }
            let factor = 1.0 + f64::from(direction.sign * policy.value) / 100.0;
            let exact = f64::from(start) * factor;
            // Up, a small share of few pods is still one pod.
            (if direction.sign > 0 {
                exact.ceil()
            } else {
                exact.trunc()
            }) as i32
        });
        // `Max` is the largest change: the highest number up, the lowest down.
        let highest = (self.select == "Min") != (direction.sign > 0);
        let chosen = if highest { proposed.max() } else { proposed.min() };
        chosen.unwrap_or(current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn run(
        memory: &mut Memory,
        behavior: &Value,
        current: i32,
        desired: i32,
        second: i64,
    ) -> (i32, &'static str, &'static str) {
        let behavior: Option<HorizontalPodAutoscalerBehavior> = from_value(behavior.clone()).unwrap();
        let bounds = Bounds {
            min: 1,
            max: 100,
            current,
        };
        let settings = Autoscaling::default();
        let normalized = normalize(memory, behavior.as_ref(), &bounds, desired, &settings, at(second));
        assert_eq!(
            normalized.limited.0,
            normalized.limited.1.0 != "DesiredWithinRange"
        );
        (normalized.replicas, normalized.able.0, normalized.limited.1.0)
    }

    #[test]
    fn without_rules_it_doubles_at_most_and_waits_on_the_way_down() {
        let mut memory = Memory::default();
        for (second, current, desired, want) in [
            (0, 1, 50, (4, "ReadyForNewScale", "ScaleUpLimit")),
            (15, 4, 50, (8, "ReadyForNewScale", "ScaleUpLimit")),
            (30, 8, 9, (16, "ScaleDownStabilized", "ScaleUpLimit")),
            (500, 60, 2, (2, "ReadyForNewScale", "DesiredWithinRange")),
            (1000, 60, 0, (1, "ReadyForNewScale", "TooFewReplicas")),
            (2000, 60, 200, (100, "ReadyForNewScale", "TooManyReplicas")),
        ] {
            assert_eq!(
                run(&mut memory, &Value::Null, current, desired, second),
                want,
                "at {second}"
            );
        }
    }

    #[test]
    fn policies_bound_what_changes_in_a_period() {
        let policies = |select: &str| {
            json!({"scaleUp": {"selectPolicy": select, "policies": [
                    {"type": "Pods", "value": 3, "periodSeconds": 60}, {"type": "Percent", "value": 10, "periodSeconds": 60}]},
                "scaleDown": {"selectPolicy": select, "stabilizationWindowSeconds": 0, "policies": [
                    {"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 10, "periodSeconds": 60}]}})
        };
        for (select, current, desired, want, reason) in [
            ("Max", 10, 90, 13, "ScaleUpLimit"),
            ("Min", 10, 90, 11, "ScaleUpLimit"),
            ("Disabled", 10, 90, 10, "ScaleUpLimit"),
            ("Max", 50, 10, 45, "ScaleDownLimit"),
            ("Min", 50, 10, 48, "ScaleDownLimit"),
            ("Disabled", 50, 10, 50, "ScaleDownLimit"),
            ("Max", 10, 12, 12, "DesiredWithinRange"),
        ] {
            let found = run(&mut Memory::default(), &policies(select), current, desired, 0);
            assert_eq!((found.0, found.2), (want, reason), "{select} {current} {desired}");
        }
        let mut memory = Memory::default();
        memory.rescaled(10, 13, at(0));
        assert_eq!(run(&mut memory, &policies("Max"), 13, 90, 30).0, 13);
        assert_eq!(run(&mut memory, &policies("Max"), 13, 90, 61).0, 16);
        memory.rescaled(13, 11, at(61));
        assert_eq!(
            run(&mut memory, &policies("Max"), 11, 90, 62).0,
            16,
            "what was removed may come back"
        );
    }

    #[test]
    fn windows_hold_back_in_both_directions() {
        let behavior = json!({"scaleUp": {"stabilizationWindowSeconds": 60}, "scaleDown": {"stabilizationWindowSeconds": 120}});
        let mut memory = Memory::default();
        for (second, current, desired, want) in [
            (0, 4, 4, (4, "ReadyForNewScale")),
            (15, 4, 6, (4, "ScaleUpStabilized")),
            (61, 4, 7, (6, "ScaleUpStabilized")),
            (70, 6, 2, (6, "ScaleDownStabilized")),
            (182, 6, 2, (2, "ReadyForNewScale")),
        ] {
            let found = run(&mut memory, &behavior, current, desired, second);
            assert_eq!((found.0, found.1), want, "at {second}");
        }
    }
}
