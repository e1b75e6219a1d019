//! From what the metrics say to a number of pods, and what the autoscaler says about it (upstream's `horizontal.go`).

use super::behavior::{Bounds, Memory, Words, normalize};
use super::metrics::Reading;
use super::proposal::propose;
use super::replicas::{Input, Tolerances};
use crate::action::Action;
use crate::config::Autoscaling;
use api::event::{NORMAL, WARNING};
use api::quantity::Quantity;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;

pub struct Observed {
    pub hpa: Arc<HorizontalPodAutoscaler>,
    pub target: Target,
}

/// The state of the scale that the autoscaler acts on.
pub struct Target {
    pub spec_replicas: i32,
    pub status_replicas: i32,
    pub selector: String,
    pub pods: Vec<Arc<Pod>>,
    /// Autoscalers, with namespace, that scale these pods; ourselves among them.
    pub selecting: Vec<String>,
    /// One a metric of the specification.
    pub readings: Vec<Result<Reading, String>>,
}

/// What is to be done, and what is to be said if it succeeds.
#[derive(Debug, PartialEq)]
pub struct Decision {
    /// The new size, if it is one.
    pub rescale: Option<i32>,
    pub reason: String,
    pub status: HorizontalPodAutoscalerStatus,
    pub events: Vec<Action>,
}

type Status = HorizontalPodAutoscalerStatus;

/// Sizes without metrics are not asked for.
pub fn wants_metrics(hpa: &HorizontalPodAutoscaler, replicas: i32) -> bool {
    let min = min_replicas(hpa);
    let max = hpa.spec.max_replicas;
    !(replicas == 0 && min != 0) && (min..=max).contains(&replicas)
}

fn min_replicas(hpa: &HorizontalPodAutoscaler) -> i32 {
    hpa.spec.min_replicas.unwrap_or(1)
}

/// The scale could not be had.
pub fn without_target(hpa: &HorizontalPodAutoscaler, error: &str, now: Timestamp) -> Decision {
    let mut status = hpa.status.clone().unwrap_or_default();
    let message = format!("the HPA controller was unable to get the target's current scale: {error}");
    set_condition(&mut status, "AbleToScale", false, "FailedGetScale", message, now);
    Decision {
        rescale: None,
        reason: String::new(),
        status,
        events: vec![Action::event(hpa, WARNING, "FailedGetScale", error)],
    }
}

pub fn decide(observed: &Observed, memory: &mut Memory, settings: &Autoscaling, now: Timestamp) -> Decision {
    let (hpa, target) = (&*observed.hpa, &observed.target);
    let mut status = hpa.status.clone().unwrap_or_default();
    let current = target.spec_replicas;
    let message = "the HPA controller was able to get the target's current scale";
    set_condition(
        &mut status,
        "AbleToScale",
        true,
        "SucceededGetScale",
        message,
        now,
    );
    memory.begin(current, now);
    let (min, max) = (min_replicas(hpa), hpa.spec.max_replicas);
    status.current_replicas = Some(current);
    let decided = |status: Status, desired: i32, reason: &str, events| Decision {
        rescale: (desired != current).then_some(desired),
        reason: reason.to_owned(),
        status: Status {
            desired_replicas: desired,
            ..status
        },
        events,
    };
    if current == 0 && min != 0 {
        let message = "scaling is disabled since the replica count of the target is zero";
        set_condition(
            &mut status,
            "ScalingActive",
            false,
            "ScalingDisabled",
            message,
            now,
        );
        status.current_metrics = None;
        return decided(status, 0, "", Vec::new());
    }
    if !wants_metrics(hpa, current) {
        status.current_metrics = None;
        return match current > max {
            true => decided(
                status,
                max,
                "Current number of replicas above Spec.MaxReplicas",
                Vec::new(),
            ),
            false => decided(
                status,
                min,
                "Current number of replicas below Spec.MinReplicas",
                Vec::new(),
            ),
        };
    }
    let mut say = Say {
        hpa,
        status: &mut status,
        events: Vec::new(),
        now,
    };
    let computed = compute(observed, settings, &mut say);
    let mut events = say.events;
    let (proposed, metric) = match computed {
        Ok(found) => found,
        Err(error) => {
            events.push(Action::event(hpa, WARNING, "FailedComputeMetricsReplicas", error));
            return Decision {
                rescale: None,
                reason: String::new(),
                status,
                events,
            };
        }
    };
    let reason = match proposed.cmp(&current) {
        std::cmp::Ordering::Greater => format!("{metric} above target"),
        std::cmp::Ordering::Less => "All metrics below target".to_owned(),
        std::cmp::Ordering::Equal => String::new(),
    };
    let behavior = hpa.spec.behavior.as_ref();
    let normal = normalize(
        memory,
        behavior,
        &Bounds { min, max, current },
        proposed,
        settings,
        now,
    );
    set_words(&mut status, "AbleToScale", true, normal.able, now);
    set_words(
        &mut status,
        "ScalingLimited",
        normal.limited.0,
        normal.limited.1,
        now,
    );
    decided(status, normal.replicas, &reason, events)
}

/// The status and the events after the target was rescaled, or was not.
pub fn conclude(
    hpa: &HorizontalPodAutoscaler,
    decision: Decision,
    rescaled: &Result<(), String>,
    now: Timestamp,
) -> Vec<Action> {
    let Decision {
        rescale,
        reason,
        mut status,
        events: mut plan,
    } = decision;
    if let Some(size) = rescale {
        match rescaled {
            Ok(()) => {
                let message = format!("the HPA controller was able to update the target scale to {size}");
                set_condition(&mut status, "AbleToScale", true, "SucceededRescale", message, now);
                let message = format!("New size: {size}; reason: {reason}");
                plan.push(Action::event(hpa, NORMAL, "SuccessfulRescale", message));
                status.last_scale_time = Some(Time(now));
            }
            Err(error) => {
                let message = format!("New size: {size}; reason: {reason}; error: {error}");
                plan.push(Action::event(hpa, WARNING, "FailedRescale", message));
                let message = format!("the HPA controller was unable to update the target scale: {error}");
                set_condition(
                    &mut status,
                    "AbleToScale",
                    false,
                    "FailedUpdateScale",
                    message,
                    now,
                );
                let old = hpa.status.as_ref();
                status.desired_replicas = old.map(|s| s.desired_replicas).unwrap_or_default();
                status.current_metrics = old.and_then(|s| s.current_metrics.clone());
            }
        }
    }
    if hpa.status.as_ref() != Some(&status) {
        plan.push(Action::replace_sub(
            &HorizontalPodAutoscaler {
                status: Some(status),
                ..hpa.clone()
            },
            "status",
        ));
    }
    plan
}

struct Say<'a> {
    hpa: &'a HorizontalPodAutoscaler,
    status: &'a mut Status,
    events: Vec<Action>,
    now: Timestamp,
}

impl Say<'_> {
    fn warn(&mut self, reason: &str, message: &str) {
        self.events
            .push(Action::event(self.hpa, WARNING, reason, message));
    }

    fn active(&mut self, active: bool, reason: &str, message: &str) {
        set_condition(self.status, "ScalingActive", active, reason, message, self.now);
    }
}

/// The largest proposal and the metric that made it.
fn compute(observed: &Observed, settings: &Autoscaling, say: &mut Say<'_>) -> Result<(i32, String), String> {
    let target = &observed.target;
    if target.selector.is_empty() {
        say.warn("SelectorRequired", "selector is required");
        say.active(
            false,
            "InvalidSelector",
            "the HPA target's scale is missing a selector",
        );
        return Err("selector is required".to_owned());
    }
    if let Err(error) = api::selector::parse(&target.selector) {
        let message =
            format!("couldn't convert selector into a corresponding internal selector object: {error}");
        say.warn("InvalidSelector", &message);
        say.active(false, "InvalidSelector", &message);
        return Err(message);
    }
    if target.selecting.len() > 1 {
        let message = format!(
            "pods by selector {} are controlled by multiple HPAs: [{}]",
            target.selector,
            target.selecting.join(" ")
        );
        say.warn("AmbiguousSelector", &message);
        say.active(false, "AmbiguousSelector", &message);
        return Err(message);
    }
    let spec = &observed.hpa.spec;
    let rules = |up: bool| {
        let behavior = spec.behavior.as_ref()?;
        let rules = if up {
            behavior.scale_up.as_ref()
        } else {
            behavior.scale_down.as_ref()
        };
        let tolerance: f64 = Quantity::of(rules?.tolerance.as_ref()?).milli_value() as f64;
        Some(tolerance / 1000.0)
    };
    let input = Input {
        pods: &target.pods,
        current: target.spec_replicas,
        tolerances: Tolerances {
            down: rules(false).unwrap_or(settings.tolerance),
            up: rules(true).unwrap_or(settings.tolerance),
        },
        settings,
        now: say.now,
    };
    let specs = spec.metrics.as_deref().unwrap_or_default();
    let mut statuses = Vec::new();
    let mut best: Option<(i32, String)> = None;
    let mut failures = Vec::new();
    for (spec, reading) in specs.iter().zip(&target.readings) {
        match propose(spec, reading, &input, target.status_replicas) {
            Ok((replicas, metric, status)) => {
                statuses.push(status);
                if best.as_ref().is_none_or(|(most, _)| replicas > *most) {
                    best = Some((replicas, metric));
                }
            }
            Err(failure) => {
                statuses.push(MetricStatus::default());
                say.warn(failure.reason, &failure.message);
                failures.push(failure);
            }
        }
    }
    say.status.current_metrics = Some(statuses);
    let scaling_down = |best: &(i32, String)| !failures.is_empty() && best.0 < target.spec_replicas;
    match (best, failures.first()) {
        (Some(best), _) if !scaling_down(&best) => {
            let message = format!(
                "the HPA was able to successfully calculate a replica count from {}",
                best.1
            );
            say.active(true, "ValidMetricFound", &message);
            Ok(best)
        }
        // What is not known may need the pods.
        (_, Some(first)) => {
            let message = format!(
                "the HPA was unable to compute the replica count: {}",
                first.message
            );
            say.active(false, first.reason, &message);
            let (invalid, all) = (failures.len(), specs.len());
            Err(format!(
                "invalid metrics ({invalid} invalid out of {all}), first error is: {}",
                first.error
            ))
        }
        (_, None) => Err("invalid metrics (0 invalid out of 0), first error is: %!v(<nil>)".to_owned()),
    }
}

fn set_words(status: &mut Status, kind: &str, holds: bool, words: Words, now: Timestamp) {
    set_condition(status, kind, holds, words.0, words.1, now);
}

fn set_condition(
    status: &mut Status,
    kind: &str,
    holds: bool,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) {
    let value = if holds { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().position(|condition| condition.type_ == kind);
    let since = known
        .map(|at| &conditions[at])
        .filter(|condition| condition.status == value)
        .map_or(Some(Time(now)), |condition| {
            condition.last_transition_time.clone()
        });
    let new = HorizontalPodAutoscalerCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: since,
    };
    match known {
        Some(at) => conditions[at] = new,
        None => conditions.push(new),
    }
}
