//! Derives a pod's API status from what CRI reports (upstream's `generateAPIPodStatus`): container states,
//! phase and conditions.

mod conditions;
mod containers;

pub use conditions::OWN as OWN_CONDITIONS;

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, HostIP, Pod, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::allocation::{Allocation, POD};
use crate::ephemeral;
use crate::pod_actions::{ended_for, is_sidecar};
use crate::runtime_pod::RuntimePod;

/// Why a container is not running although it should be (`state.waiting`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// The reason of a pod that the node could not keep.
pub const EVICTED: &str = "Evicted";

/// Everything but the pod and its containers that a status depends on.
#[derive(Default)]
pub struct Inputs<'a> {
    /// The scheme of container ids, CRI's `runtime_name`.
    pub runtime_name: &'a str,
    pub waiting: HashMap<String, Waiting>,
    /// Container ids that passed their startup probe, or have none and run.
    pub started: std::collections::HashSet<String>,
    /// Container ids that passed their readiness probe, or have none.
    pub ready: std::collections::HashSet<String>,
    /// Termination messages by container id.
    pub messages: HashMap<String, String>,
    pub host_ips: &'a [IpAddr],
    /// The pod was stopped for good: its phase must be final.
    pub terminal: bool,
    /// A refusal by the node (`Evicted`, …): reason and message of the pod itself.
    pub failed: Option<Waiting>,
    pub resize: Resize,
    /// What the node has promised, and put into effect.
    pub allocation: Allocation,
}

/// How far a new size of the pod has come.
#[derive(Clone, Debug, Default)]
pub struct Resize {
    /// Why it cannot be had (now), and for which generation.
    pub pending: Option<(Waiting, Option<i64>)>,
    pub under_way: bool,
    /// Why it cannot be put into effect.
    pub error: Option<String>,
}

pub fn pod_status(pod: &Pod, observed: &RuntimePod, inputs: &Inputs, now: Timestamp) -> PodStatus {
    let Some(spec) = &pod.spec else {
        return PodStatus::default();
    };
    let old = pod.status.clone().unwrap_or_default();
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let init_statuses = containers::statuses(
        pod,
        init,
        true,
        old.init_container_statuses.as_deref(),
        observed,
        inputs,
    );
    let statuses = containers::statuses(
        pod,
        &spec.containers,
        false,
        old.container_statuses.as_deref(),
        observed,
        inputs,
    );
    let debuggers: Vec<Container> = ephemeral::of(pod).map(ephemeral::container).collect();
    let mut debugger_statuses = containers::statuses(
        pod,
        &debuggers,
        false,
        old.ephemeral_container_statuses.as_deref(),
        observed,
        inputs,
    );
    // Nobody waits for them, so nothing says that they are ready.
    for status in &mut debugger_statuses {
        (status.ready, status.started) = (false, None);
    }
    let mut phase = phase(spec, &init_statuses, &statuses, inputs.terminal);
    if is_beginning_anew(spec, &statuses, observed) && matches!(phase.as_str(), "Failed" | "Succeeded") {
        phase = old.phase.clone().unwrap_or_else(|| "Running".to_owned());
    }
    // A final phase never changes again.
    if let Some(done @ ("Failed" | "Succeeded")) = old.phase.as_deref() {
        phase = done.to_owned();
    }
    if inputs.failed.is_some() {
        phase = "Failed".to_owned();
    }
    let generation = pod.metadata.generation;
    let facts = conditions::Facts {
        spec,
        phase: &phase,
        init: &init_statuses,
        containers: &statuses,
        sandbox_ready: observed
            .ready_sandbox()
            .is_some_and(|sandbox| sandbox.host_network || !sandbox.ips.is_empty()),
        generation,
    };
    let mut conditions = conditions::conditions(&facts, old.conditions.as_deref().unwrap_or_default(), now);
    if let Some(evicted) = inputs.failed.as_ref().filter(|failed| failed.reason == EVICTED) {
        conditions::add_disruption(&mut conditions, &evicted.message, generation, now);
    }
    conditions::add_resize(
        &mut conditions,
        &inputs.resize,
        old.conditions.as_deref().unwrap_or_default(),
        generation,
        inputs.allocation.generation,
        now,
    );
    let host_network = spec.host_network.unwrap_or(false);
    let pod_ips: Vec<IpAddr> = if host_network {
        if observed.sandbox().is_some() {
            inputs.host_ips.to_vec()
        } else {
            Vec::new()
        }
    } else {
        observed
            .sandbox()
            .map(|sandbox| sandbox.ips.clone())
            .unwrap_or_default()
    };
    // A stopped pod keeps the address that it had.
    let pod_ips: Option<Vec<PodIP>> = match pod_ips.as_slice() {
        [] => old.pod_ips,
        some => Some(some.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
    };
    let turned_away =
        inputs.failed.is_some() && observed.sandboxes.is_empty() && old.container_statuses.is_none();
    PodStatus {
        phase: Some(phase),
        conditions: Some(conditions),
        message: inputs
            .failed
            .as_ref()
            .map(|failed| failed.message.clone())
            .or(old.message),
        reason: inputs
            .failed
            .as_ref()
            .map(|failed| failed.reason.clone())
            .or(old.reason),
        host_ip: inputs.host_ips.first().map(ToString::to_string),
        host_ips: Some(
            inputs
                .host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.to_string() })
                .collect(),
        ),
        pod_ip: pod_ips
            .as_ref()
            .and_then(|ips| ips.first())
            .map(|ip| ip.ip.clone()),
        pod_ips,
        start_time: old.start_time.or(Some(Time(now))),
        init_container_statuses: (!init.is_empty() && !turned_away).then_some(init_statuses),
        // A pod that was turned away has never had containers.
        container_statuses: (!turned_away).then_some(statuses),
        ephemeral_container_statuses: (!debuggers.is_empty()).then_some(debugger_statuses),
        qos_class: old.qos_class,
        observed_generation: generation,
        allocated_resources: inputs
            .allocation
            .allocated
            .get(POD)
            .and_then(|own| own.requests.clone())
            .or(old.allocated_resources),
        resources: inputs.allocation.actuated.get(POD).cloned().or(old.resources),
        ..PodStatus::default()
    }
}

/// A container has ended in a way that takes all others with it, and has not been started again.
fn is_beginning_anew(spec: &PodSpec, statuses: &[ContainerStatus], observed: &RuntimePod) -> bool {
    let runs = |container: &&Container| {
        observed
            .running_containers()
            .any(|run| run.name == container.name)
    };
    let gone = spec.containers.iter().filter(|container| !runs(container));
    gone.into_iter().any(|container| {
        let status = statuses.iter().find(|status| status.name == container.name);
        let states = status
            .into_iter()
            .flat_map(|status| [&status.state, &status.last_state]);
        let mut ends = states.flatten().filter_map(|state| state.terminated.as_ref());
        ends.any(|end| ended_for(container, end.exit_code, "RestartAllContainers"))
    })
}

/// Upstream's `getPhase`.
fn phase(spec: &PodSpec, init: &[ContainerStatus], containers: &[ContainerStatus], terminal: bool) -> String {
    let find = |list: &[ContainerStatus], name: &str| list.iter().find(|status| status.name == name).cloned();
    let (mut pending_init, mut failed_init) = (0, 0);
    for container in spec.init_containers.iter().flatten() {
        let state = find(init, &container.name);
        let last = state
            .as_ref()
            .and_then(|s| s.last_state.clone())
            .and_then(|s| s.terminated);
        let started = state.as_ref().and_then(|s| s.started).unwrap_or(false);
        let current = state.and_then(|s| s.state).unwrap_or_default();
        if is_sidecar(container) {
            let up = current.running.is_some() && started || current.terminated.is_some();
            let was_up = current.waiting.is_some() && last.is_some();
            if !up && !was_up {
                pending_init += 1;
            }
        } else if let Some(ended) = current.terminated {
            failed_init += usize::from(ended.exit_code != 0);
        } else if let Some(last) = last.filter(|_| current.running.is_none()) {
            failed_init += usize::from(last.exit_code != 0);
        } else {
            pending_init += 1;
        }
    }
    let (mut unknown, mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0, 0);
    for container in &spec.containers {
        let Some(status) = find(containers, &container.name) else {
            unknown += 1;
            continue;
        };
        let state = status.state.unwrap_or_default();
        if state.running.is_some() {
            running += 1;
        } else if let Some(ended) = state.terminated {
            stopped += 1;
            succeeded += usize::from(ended.exit_code == 0);
        } else if status.last_state.is_some_and(|last| last.terminated.is_some()) {
            stopped += 1;
        } else if state.waiting.is_some() {
            waiting += 1;
        } else {
            unknown += 1;
        }
    }
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let done = if stopped == succeeded {
        "Succeeded"
    } else {
        "Failed"
    };
    if failed_init > 0 && policy == "Never" {
        return "Failed".to_owned();
    }
    let phase = match () {
        () if terminal && running == 0 && waiting == 0 && unknown == 0 && stopped > 0 => done,
        () if terminal => "Failed",
        () if pending_init > 0 && running == 0 && stopped == 0 || waiting > 0 => "Pending",
        () if running > 0 && unknown == 0 => "Running",
        () if stopped > 0 && unknown == 0 => match policy {
            "Always" => "Running",
            _ if stopped == succeeded => "Succeeded",
            "Never" => "Failed",
            _ => "Running",
        },
        () => "Pending",
    };
    phase.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime_pod::{ContainerState, ObservedContainer, ObservedSandbox};
    use ContainerState::{Exited, Running};

    fn pod(policy: &str, init: &[&str], containers: &[&str]) -> Pod {
        let make = |names: &[&str]| -> Vec<Container> {
            names
                .iter()
                .map(|name| Container {
                    name: (*name).into(),
                    ..Default::default()
                })
                .collect()
        };
        let spec = PodSpec {
            restart_policy: Some(policy.into()),
            init_containers: Some(make(init)),
            containers: make(containers),
            ..Default::default()
        };
        Pod {
            spec: Some(spec),
            ..Default::default()
        }
    }

    fn observed(containers: &[(&str, ContainerState, i32)]) -> RuntimePod {
        RuntimePod {
            sandboxes: vec![ObservedSandbox {
                ready: true,
                ips: vec!["10.244.0.2".parse().unwrap()],
                ..Default::default()
            }],
            containers: containers
                .iter()
                .map(|(name, state, exit_code)| ObservedContainer {
                    id: format!("{name}-id"),
                    name: (*name).into(),
                    state: *state,
                    exit_code: *exit_code,
                    ..Default::default()
                })
                .collect(),
        }
    }

    fn inputs(observed: &RuntimePod) -> Inputs<'static> {
        let ids: std::collections::HashSet<String> = observed
            .running_containers()
            .map(|container| container.id.clone())
            .collect();
        Inputs {
            started: ids.clone(),
            ready: ids,
            ..Default::default()
        }
    }

    fn condition(status: &PodStatus, kind: &str) -> String {
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == kind)
            .unwrap();
        match &condition.reason {
            Some(reason) => format!("{} {reason}", condition.status),
            None => condition.status.clone(),
        }
    }

    #[test]
    fn phases() {
        for (policy, init, states, terminal, expected) in [
            ("Always", vec![], vec![], false, "Pending"),
            ("Always", vec![], vec![("a", Running, 0)], false, "Pending"),
            (
                "Always",
                vec![],
                vec![("a", Running, 0), ("b", Running, 0)],
                false,
                "Running",
            ),
            (
                "Always",
                vec![],
                vec![("a", Exited, 0), ("b", Exited, 0)],
                false,
                "Running",
            ),
            (
                "Always",
                vec![],
                vec![("a", Exited, 0), ("b", Exited, 0)],
                true,
                "Succeeded",
            ),
            (
                "Always",
                vec![],
                vec![("a", Exited, 1), ("b", Exited, 0)],
                true,
                "Failed",
            ),
            ("Always", vec![], vec![], true, "Failed"),
            (
                "OnFailure",
                vec![],
                vec![("a", Exited, 1), ("b", Exited, 0)],
                false,
                "Running",
            ),
            (
                "OnFailure",
                vec![],
                vec![("a", Exited, 0), ("b", Exited, 0)],
                false,
                "Succeeded",
            ),
            (
                "Never",
                vec![],
                vec![("a", Exited, 1), ("b", Exited, 0)],
                false,
                "Failed",
            ),
            (
                "Never",
                vec![],
                vec![("a", Exited, 1), ("b", Running, 0)],
                false,
                "Running",
            ),
            ("Never", vec!["i"], vec![("i", Exited, 1)], false, "Failed"),
            ("Always", vec!["i"], vec![("i", Running, 0)], false, "Pending"),
        ] {
            let observed = observed(&states);
            let inputs = Inputs {
                terminal,
                ..inputs(&observed)
            };
            let status = pod_status(
                &pod(policy, &init, &["a", "b"]),
                &observed,
                &inputs,
                Timestamp::UNIX_EPOCH,
            );
            assert_eq!(
                status.phase.as_deref(),
                Some(expected),
                "{policy} {states:?} terminal={terminal}"
            );
        }
    }

    #[test]
    fn a_final_phase_stays() {
        let mut pod = pod("Always", &[], &["a"]);
        pod.status = Some(PodStatus {
            phase: Some("Succeeded".into()),
            ..Default::default()
        });
        let observed = observed(&[("a", Running, 0)]);
        let status = pod_status(&pod, &observed, &inputs(&observed), Timestamp::UNIX_EPOCH);
        assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    }

    #[test]
    fn conditions_of_a_running_pod() {
        let observed = observed(&[("a", Running, 0), ("b", Running, 0)]);
        let pod = pod("Always", &[], &["a", "b"]);
        let status = pod_status(&pod, &observed, &inputs(&observed), Timestamp::UNIX_EPOCH);
        for kind in [
            "PodReadyToStartContainers",
            "Initialized",
            "Ready",
            "ContainersReady",
            "PodScheduled",
        ] {
            assert_eq!(condition(&status, kind), "True", "{kind}");
        }
        let mut partly = inputs(&observed);
        partly.ready.remove("b-id");
        let status = pod_status(&pod, &observed, &partly, Timestamp::UNIX_EPOCH);
        assert_eq!(condition(&status, "Ready"), "False ContainersNotReady");
        let ready = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Ready")
            .unwrap();
        assert_eq!(
            ready.message.as_deref(),
            Some("containers with unready status: [b]")
        );
    }

    #[test]
    fn conditions_before_and_after_the_work() {
        let none = RuntimePod::default();
        let status = pod_status(
            &pod("Always", &["i"], &["a"]),
            &none,
            &inputs(&none),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(condition(&status, "PodReadyToStartContainers"), "False");
        assert_eq!(
            condition(&status, "Initialized"),
            "False ContainersNotInitialized"
        );
        let done = observed(&[("a", Exited, 0)]);
        let status = pod_status(
            &pod("Never", &[], &["a"]),
            &done,
            &inputs(&done),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(condition(&status, "Ready"), "False PodCompleted");
    }

    #[test]
    fn transition_times_move_only_with_the_status() {
        let running = observed(&[("a", Running, 0)]);
        let mut pod = pod("Always", &[], &["a"]);
        let first = pod_status(&pod, &running, &inputs(&running), Timestamp::UNIX_EPOCH);
        pod.status = Some(first.clone());
        let later = Timestamp::from_second(60).unwrap();
        let again = pod_status(&pod, &running, &inputs(&running), later);
        assert_eq!(first, again, "an unchanged pod has an unchanged status");
        let mut unready = inputs(&running);
        unready.ready.clear();
        let changed = pod_status(&pod, &running, &unready, later);
        let ready = changed
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Ready")
            .unwrap();
        assert_eq!(ready.last_transition_time, Some(Time(later)));
    }

    #[test]
    fn waiting_containers_tell_why() {
        let crashed = observed(&[("a", Exited, 3)]);
        let waiting = Waiting {
            reason: "CrashLoopBackOff".into(),
            message: "back-off 10s restarting".into(),
        };
        let inputs = Inputs {
            waiting: [("a".to_owned(), waiting)].into(),
            ..inputs(&crashed)
        };
        let status = pod_status(
            &pod("Always", &[], &["a"]),
            &crashed,
            &inputs,
            Timestamp::UNIX_EPOCH,
        );
        let container = &status.container_statuses.unwrap()[0];
        let state = container.state.clone().unwrap();
        assert_eq!(state.waiting.unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(
            container
                .last_state
                .clone()
                .unwrap()
                .terminated
                .unwrap()
                .exit_code,
            3
        );
        assert_eq!(status.phase.as_deref(), Some("Running"));
    }

    #[test]
    fn a_pod_that_begins_anew_is_not_over() {
        let mut pod = pod("Never", &[], &["a", "b"]);
        pod.spec.as_mut().unwrap().containers[0].restart_policy_rules =
            serde_json::from_value(serde_json::json!([
                { "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [42] } }
            ]))
            .unwrap();
        for (exit_code, expected) in [(42, "Running"), (1, "Failed")] {
            let ended = observed(&[("a", Exited, exit_code), ("b", Exited, 137)]);
            let mut before = pod_status(&pod, &ended, &inputs(&ended), Timestamp::UNIX_EPOCH);
            before.phase = Some("Running".into());
            pod.status = Some(before);
            let after = observed(&[]);
            let status = pod_status(&pod, &after, &inputs(&after), Timestamp::UNIX_EPOCH);
            assert_eq!(status.phase.as_deref(), Some(expected));
        }
    }
}
