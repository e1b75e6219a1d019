//! Pod conditions with upstream's reasons and messages (`pkg/kubelet/status/generate.go`).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Resize;
use crate::pod_actions::is_sidecar;

pub(super) struct Facts<'a> {
    pub spec: &'a PodSpec,
    pub phase: &'a str,
    pub init: &'a [ContainerStatus],
    pub containers: &'a [ContainerStatus],
    pub sandbox_ready: bool,
    pub generation: Option<i64>,
}

/// Conditions that only the kubelet sets.
pub const OWN: [&str; 7] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    RESIZE_PENDING,
    RESIZE_IN_PROGRESS,
];
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

#[derive(Clone)]
struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self {
            holds: true,
            reason: None,
            message: None,
        }
    }

    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self {
            holds: false,
            reason: Some(reason),
            message,
        }
    }
}

/// The kubelet's five conditions, followed by those that others own.
pub(super) fn conditions(facts: &Facts, old: &[PodCondition], now: Timestamp) -> Vec<PodCondition> {
    let containers_ready = containers_ready(facts);
    let sandbox = Verdict {
        holds: facts.sandbox_ready,
        reason: None,
        message: None,
    };
    let own = [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized(facts)),
        ("Ready", ready(facts, &containers_ready, old)),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::yes()),
    ];
    let mut conditions: Vec<PodCondition> = own
        .iter()
        .map(|(kind, verdict)| {
            let status = if verdict.holds { "True" } else { "False" };
            let before = old.iter().find(|condition| condition.type_ == *kind);
            let unchanged = before.filter(|condition| condition.status == status);
            PodCondition {
                type_: (*kind).into(),
                status: status.into(),
                reason: verdict.reason.map(Into::into),
                message: verdict.message.clone(),
                last_transition_time: unchanged
                    .and_then(|condition| condition.last_transition_time.clone())
                    .or(Some(Time(now))),
                last_probe_time: None,
                observed_generation: facts.generation,
            }
        })
        .collect();
    let foreign = old
        .iter()
        .filter(|condition| !OWN.contains(&condition.type_.as_str()));
    conditions.extend(foreign.cloned());
    conditions
}

/// Tells controllers that the pod was ended from outside and not by its own failure.
pub(super) fn add_disruption(
    conditions: &mut Vec<PodCondition>,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) {
    if conditions
        .iter()
        .any(|condition| condition.type_ == "DisruptionTarget")
    {
        return;
    }
    conditions.push(PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("TerminationByKubelet".into()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        last_probe_time: None,
        observed_generation: generation,
    });
}

/// Says that a new size is waited for, or on its way; there is no such condition otherwise.
pub(super) fn add_resize(
    conditions: &mut Vec<PodCondition>,
    resize: &Resize,
    old: &[PodCondition],
    generation: Option<i64>,
    promised: Option<i64>,
    now: Timestamp,
) {
    let mut add = |kind: &str, reason: Option<String>, message: Option<String>, generation| {
        let before = old.iter().find(|condition| condition.type_ == kind);
        conditions.push(PodCondition {
            type_: kind.into(),
            status: "True".into(),
            reason,
            message,
            last_transition_time: before
                .and_then(|condition| condition.last_transition_time.clone())
                .or(Some(Time(now))),
            last_probe_time: None,
            observed_generation: generation,
        });
    };
    if let Some((why, of)) = &resize.pending {
        add(
            RESIZE_PENDING,
            Some(why.reason.clone()),
            Some(why.message.clone()),
            of.or(generation),
        );
    }
    if resize.under_way {
        let reason = resize.error.as_ref().map(|_| "Error".to_owned());
        add(RESIZE_IN_PROGRESS, reason, resize.error.clone(), promised);
    }
}

fn listed(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn describe(unknown: &[&str], lacking: &[&str], word: &str) -> Option<String> {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", listed(unknown)));
    }
    if !lacking.is_empty() {
        parts.push(format!("containers with {word} status: {}", listed(lacking)));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn initialized(facts: &Facts) -> Verdict {
    let any_started = facts.containers.iter().any(|status| {
        status.started == Some(true)
            || status
                .state
                .as_ref()
                .is_some_and(|state| state.terminated.is_some() || state.running.is_some())
            || status
                .last_state
                .as_ref()
                .is_some_and(|state| state.terminated.is_some())
    });
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in facts.spec.init_containers.iter().flatten() {
        let Some(status) = facts.init.iter().find(|status| status.name == container.name) else {
            unknown.push(container.name.as_str());
            continue;
        };
        let done = if is_sidecar(container) {
            status.started == Some(true)
        } else {
            status.ready
        };
        if !done {
            incomplete.push(container.name.as_str());
        }
    }
    if facts.phase == "Succeeded" && unknown.is_empty() {
        return Verdict {
            holds: true,
            reason: Some("PodCompleted"),
            message: None,
        };
    }
    match describe(&unknown, &incomplete, "incomplete") {
        Some(message) if !any_started => Verdict::no("ContainersNotInitialized", Some(message)),
        _ => Verdict::yes(),
    }
}

fn containers_ready(facts: &Facts) -> Verdict {
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    let sidecars = facts
        .spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container));
    for (container, statuses) in sidecars
        .map(|c| (c, facts.init))
        .chain(facts.spec.containers.iter().map(|c| (c, facts.containers)))
    {
        match statuses.iter().find(|status| status.name == container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) if !status.ready => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    match facts.phase {
        "Succeeded" if unknown.is_empty() => Verdict::no("PodCompleted", None),
        "Failed" => Verdict::no("PodFailed", None),
        _ => match describe(&unknown, &unready, "unready") {
            Some(message) => Verdict::no("ContainersNotReady", Some(message)),
            None => Verdict::yes(),
        },
    }
}

fn ready(facts: &Facts, containers_ready: &Verdict, old: &[PodCondition]) -> Verdict {
    if !containers_ready.holds {
        return containers_ready.clone();
    }
    let messages: Vec<String> = facts
        .spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match old.iter().find(|condition| condition.type_ == *kind) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{kind}\" does not exist."
                )),
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if messages.is_empty() {
        Verdict::yes()
    } else {
        Verdict::no("ReadinessGatesNotReady", Some(messages.join(", ")))
    }
}
