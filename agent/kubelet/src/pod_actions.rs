//! Decides what must be done to bring a pod's sandbox and containers to its specification
//! (upstream's `computePodActions`).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::container_hash::container_hash;
use crate::runtime_pod::{ContainerState, ObservedContainer, RuntimePod};

/// Which probe found a container failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeFailure {
    Liveness,
    Startup,
}

/// Verdicts about running containers, by container id.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    pub failures: HashMap<String, ProbeFailure>,
    /// Containers with a startup probe that has succeeded.
    pub started: std::collections::HashSet<String>,
    /// Containers whose new size needs a new run.
    pub resized: std::collections::HashSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerToKill {
    pub id: String,
    pub name: String,
    pub message: String,
    pub probe: Option<ProbeFailure>,
}

/// Everything to do, in the order of the fields; indices are into the specification's lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodActions {
    /// A container ended in a way that all containers shall start anew for: its name.
    pub restart_all: Option<String>,
    /// Stop all containers and the sandbox first.
    pub kill_pod: bool,
    pub kill: Vec<ContainerToKill>,
    /// Create a sandbox with this attempt number.
    pub create_sandbox: Option<u32>,
    pub start_ephemeral: Vec<usize>,
    pub start_init: Vec<usize>,
    pub start: Vec<usize>,
}

impl PodActions {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn starts_something(&self) -> bool {
        self.create_sandbox.is_some()
            || !(self.start_ephemeral.is_empty() && self.start_init.is_empty() && self.start.is_empty())
    }
}

/// A sidecar: an init container that keeps running beside the regular ones.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always") && container.restart_policy_rules.is_none()
}

fn pod_restart_policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

/// Whether a container that ended with `exit_code` is to run again: its own rules, its own policy, the pod's.
fn restarts_after(container: &Container, spec: &PodSpec, exit_code: i32) -> bool {
    if ended_for(container, exit_code, "Restart") || ended_for(container, exit_code, "RestartAllContainers") {
        return true;
    }
    match container
        .restart_policy
        .as_deref()
        .unwrap_or(pod_restart_policy(spec))
    {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether a rule of the container asks for `action` after such an end.
pub fn ended_for(container: &Container, exit_code: i32, action: &str) -> bool {
    let mut rules = container
        .restart_policy_rules
        .iter()
        .flatten()
        .filter(|rule| rule.action == action);
    rules.any(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
            listed == (codes.operator == "In")
        })
    })
}

/// The container whose end takes all others with it (KEP-5532).
fn restarts_all(spec: &PodSpec, observed: &RuntimePod) -> Option<String> {
    let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let found = all.find(|container| {
        let run = observed
            .container(&container.name)
            .filter(|run| run.state == ContainerState::Exited);
        run.is_some_and(|run| ended_for(container, run.exit_code, "RestartAllContainers"))
    });
    found.map(|container| container.name.clone())
}

/// Upstream's `ShouldContainerBeRestarted`: the next sync would start this container.
pub fn should_restart(container: &Container, pod: &Pod, observed: &RuntimePod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let Some(spec) = &pod.spec else { return false };
    match observed.container(&container.name) {
        None => true,
        Some(status) => match status.state {
            ContainerState::Running => false,
            ContainerState::Created | ContainerState::Unknown => true,
            ContainerState::Exited => restarts_after(container, spec, status.exit_code),
        },
    }
}

pub fn compute_pod_actions(pod: &Pod, observed: &RuntimePod, verdicts: &Verdicts) -> PodActions {
    let Some(spec) = &pod.spec else {
        return PodActions::default();
    };
    let mut actions = PodActions::default();
    if let Some(attempt) = new_sandbox_attempt(spec, observed) {
        actions.kill_pod = true;
        plan_new_sandbox(spec, observed, attempt, &mut actions);
        return actions;
    }
    actions.restart_all = restarts_all(spec, observed);
    if actions.restart_all.is_some() {
        return actions;
    }
    // Ephemeral containers need no initialized pod, and run once.
    let ephemeral = spec.ephemeral_containers.iter().flatten().enumerate();
    let new = ephemeral.filter(|(_, container)| observed.container(&container.name).is_none());
    actions.start_ephemeral = new.map(|(index, _)| index).collect();
    let initialized = plan_init_containers(spec, observed, verdicts, &mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }
    plan_containers(pod, spec, observed, verdicts, &mut actions);
    actions
}

/// The attempt number of the sandbox to create when the present one cannot be used (upstream's `PodSandboxChanged`).
fn new_sandbox_attempt(spec: &PodSpec, observed: &RuntimePod) -> Option<u32> {
    let Some(newest) = observed.sandbox() else {
        return Some(0);
    };
    let next = newest.attempt + 1;
    if observed.sandboxes.iter().filter(|sandbox| sandbox.ready).count() > 1 || !newest.ready {
        return Some(next);
    }
    if newest.host_network != spec.host_network.unwrap_or(false) {
        return Some(next);
    }
    (!newest.host_network && newest.ips.is_empty()).then_some(next)
}

fn plan_new_sandbox(spec: &PodSpec, observed: &RuntimePod, attempt: u32, actions: &mut PodActions) {
    if pod_restart_policy(spec) == "Never" && attempt != 0 && !observed.containers.is_empty() {
        return;
    }
    let start: Vec<usize> = (0..spec.containers.len())
        .filter(|index| {
            let container = &spec.containers[*index];
            observed.container(&container.name).is_none_or(|status| {
                status.state != ContainerState::Exited || restarts_after(container, spec, status.exit_code)
            })
        })
        .collect();
    if start.is_empty() {
        return;
    }
    actions.create_sandbox = Some(attempt);
    if spec
        .init_containers
        .as_ref()
        .is_some_and(|containers| !containers.is_empty())
    {
        actions.start_init = vec![0];
    } else {
        actions.start = start;
    }
}

/// Plans the init containers; true when the regular containers may run.
fn plan_init_containers(
    spec: &PodSpec,
    observed: &RuntimePod,
    verdicts: &Verdicts,
    actions: &mut PodActions,
) -> bool {
    let containers = spec.init_containers.as_deref().unwrap_or_default();
    if containers.is_empty() {
        return true;
    }
    let was_initialized = spec
        .containers
        .iter()
        .any(|container| observed.container(&container.name).is_some());
    let mut initialized = was_initialized;
    // Until the pod is initialized the latest init container with a status tells how far it has come;
    // the earlier ones matter only where they are sidecars.
    let mut progress_found = was_initialized;
    for (index, container) in containers.iter().enumerate().rev() {
        let sidecar = is_sidecar(container);
        let Some(status) = observed.container(&container.name) else {
            if sidecar && (was_initialized || progress_found) {
                actions.start_init.push(index);
            }
            continue;
        };
        let leads = !progress_found;
        progress_found = true;
        if !sidecar && !leads {
            continue;
        }
        match status.state {
            ContainerState::Created => actions.start_init.push(index),
            ContainerState::Unknown => {
                actions.kill.push(ContainerToKill {
                    id: status.id.clone(),
                    name: container.name.clone(),
                    message: "Init container is in \"unknown\" state, try killing it before restart".into(),
                    probe: None,
                });
                actions.start_init.push(index);
            }
            ContainerState::Running if !sidecar => {}
            ContainerState::Running => {
                if let Some(probe) = verdicts.failures.get(&status.id) {
                    actions
                        .kill
                        .push(probe_kill(status, *probe, "Init container", true));
                    actions.start_init.push(index);
                } else if verdicts.resized.contains(&status.id) {
                    actions.kill.push(resize_kill(status));
                    actions.start_init.push(index);
                } else if leads
                    && (container.startup_probe.is_none() || verdicts.started.contains(&status.id))
                {
                    advance(index, containers.len(), &mut initialized, actions);
                }
            }
            ContainerState::Exited if sidecar => actions.start_init.push(index),
            ContainerState::Exited if status.exit_code == 0 => {
                advance(index, containers.len(), &mut initialized, actions);
            }
            ContainerState::Exited if restarts_after(container, spec, status.exit_code) => {
                actions.start_init.push(index);
            }
            ContainerState::Exited => {
                actions.kill_pod = true;
                actions.start_init.clear();
                return false;
            }
        }
    }
    if !progress_found {
        actions.start_init = vec![0];
    }
    actions.start_init.sort_unstable();
    actions.start_init.dedup();
    initialized
}

fn advance(index: usize, count: usize, initialized: &mut bool, actions: &mut PodActions) {
    if index + 1 == count {
        *initialized = true;
    } else {
        actions.start_init.push(index + 1);
    }
}

fn plan_containers(
    pod: &Pod,
    spec: &PodSpec,
    observed: &RuntimePod,
    verdicts: &Verdicts,
    actions: &mut PodActions,
) {
    let mut kept = 0;
    for (index, container) in spec.containers.iter().enumerate() {
        let status = match observed.container(&container.name) {
            Some(status) if status.state == ContainerState::Running => status,
            other => {
                if should_restart(container, pod, observed) {
                    actions.start.push(index);
                    if let Some(unknown) = other.filter(|status| status.state == ContainerState::Unknown) {
                        actions.kill.push(ContainerToKill {
                            id: unknown.id.clone(),
                            name: container.name.clone(),
                            message: "Container is in \"unknown\" state, try killing it before restart"
                                .into(),
                            probe: None,
                        });
                    }
                }
                continue;
            }
        };
        if status.hash != container_hash(container) {
            actions.kill.push(ContainerToKill {
                id: status.id.clone(),
                name: container.name.clone(),
                message: format!(
                    "Container {} definition changed, will be restarted",
                    container.name
                ),
                probe: None,
            });
            actions.start.push(index);
        } else if verdicts.resized.contains(&status.id) {
            actions.kill.push(resize_kill(status));
            actions.start.push(index);
        } else if let Some(probe) = verdicts.failures.get(&status.id) {
            // A container killed for its probe ends with a failure.
            let restart = restarts_after(container, spec, 137);
            actions
                .kill
                .push(probe_kill(status, *probe, "Container", restart));
            if restart {
                actions.start.push(index);
            }
        } else {
            kept += 1;
        }
    }
    if kept == 0 && actions.start.is_empty() {
        actions.kill_pod = true;
        actions.kill.clear();
        // Sidecars must not keep a pod alive whose work is done.
        actions.start_init.clear();
    }
}

fn resize_kill(status: &ObservedContainer) -> ContainerToKill {
    ContainerToKill {
        id: status.id.clone(),
        name: status.name.clone(),
        message: format!("Container {} resize requires restart", status.name),
        probe: None,
    }
}

fn probe_kill(status: &ObservedContainer, probe: ProbeFailure, what: &str, restart: bool) -> ContainerToKill {
    let kind = match probe {
        ProbeFailure::Liveness => "liveness",
        ProbeFailure::Startup => "startup",
    };
    let suffix = if restart { ", will be restarted" } else { "" };
    ContainerToKill {
        id: status.id.clone(),
        name: status.name.clone(),
        message: format!("{what} {} failed {kind} probe{suffix}", status.name),
        probe: Some(probe),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime_pod::ObservedSandbox;
    use ContainerState::{Exited, Running};
    use k8s_openapi::api::core::v1::EphemeralContainer;

    fn container(name: &str) -> Container {
        Container {
            name: name.into(),
            image: Some("i".into()),
            ..Default::default()
        }
    }

    fn sidecar(name: &str) -> Container {
        Container {
            restart_policy: Some("Always".into()),
            ..container(name)
        }
    }

    fn pod(policy: &str, init: Vec<Container>, containers: Vec<Container>) -> Pod {
        let spec = PodSpec {
            restart_policy: Some(policy.into()),
            init_containers: Some(init),
            containers,
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
                id: "s".into(),
                ready: true,
                ips: vec!["10.0.0.2".parse().unwrap()],
                ..Default::default()
            }],
            containers: containers
                .iter()
                .map(|(name, state, exit_code)| ObservedContainer {
                    id: format!("{name}-id"),
                    name: (*name).into(),
                    state: *state,
                    exit_code: *exit_code,
                    hash: container_hash(&container(name)),
                    ..Default::default()
                })
                .collect(),
        }
    }

    /// Renders actions compactly so that tables can be read.
    fn plan(pod: &Pod, observed: &RuntimePod, verdicts: &Verdicts) -> String {
        let actions = compute_pod_actions(pod, observed, verdicts);
        let mut words = Vec::new();
        if actions.kill_pod {
            words.push("kill-pod".to_owned());
        }
        words.extend(
            actions
                .restart_all
                .iter()
                .map(|name| format!("restart-all:{name}")),
        );
        words.extend(actions.kill.iter().map(|kill| format!("kill:{}", kill.name)));
        words.extend(actions.create_sandbox.map(|attempt| format!("sandbox:{attempt}")));
        words.extend(
            actions
                .start_ephemeral
                .iter()
                .map(|index| format!("ephemeral:{index}")),
        );
        words.extend(actions.start_init.iter().map(|index| format!("init:{index}")));
        words.extend(actions.start.iter().map(|index| format!("start:{index}")));
        words.join(" ")
    }

    #[test]
    fn sandbox_decisions() {
        let none = RuntimePod::default();
        let mut dead = observed(&[("a", Exited, 0)]);
        dead.sandboxes[0].ready = false;
        let mut addressless = observed(&[("a", Running, 0)]);
        addressless.sandboxes[0].ips.clear();
        let plain = |policy| pod(policy, vec![], vec![container("a")]);
        let verdicts = Verdicts::default();
        for (pod, observed, expected) in [
            (plain("Always"), &none, "kill-pod sandbox:0 start:0"),
            (
                pod("Always", vec![container("i")], vec![container("a")]),
                &none,
                "kill-pod sandbox:0 init:0",
            ),
            (plain("Always"), &dead, "kill-pod sandbox:1 start:0"),
            (plain("Never"), &dead, "kill-pod"),
            (plain("OnFailure"), &dead, "kill-pod"),
            (plain("Always"), &addressless, "kill-pod sandbox:1 start:0"),
        ] {
            assert_eq!(plan(&pod, observed, &verdicts), expected);
        }
    }

    #[test]
    fn ephemeral_containers_run_once() {
        let mut pod = pod("Always", vec![], vec![container("a")]);
        let debugger = EphemeralContainer {
            name: "debugger".into(),
            ..Default::default()
        };
        pod.spec.as_mut().unwrap().ephemeral_containers = Some(vec![debugger]);
        for (states, expected) in [
            (vec![("a", Running, 0)], "ephemeral:0"),
            (vec![("a", Exited, 1)], "ephemeral:0 start:0"),
            (vec![("a", Running, 0), ("debugger", Running, 0)], ""),
            (vec![("a", Running, 0), ("debugger", Exited, 1)], ""),
        ] {
            let found = plan(&pod, &observed(&states), &Verdicts::default());
            assert_eq!(found, expected, "{states:?}");
        }
    }

    #[test]
    fn container_decisions() {
        let two = |policy| pod(policy, vec![], vec![container("a"), container("b")]);
        let verdicts = Verdicts::default();
        for (policy, states, expected) in [
            ("Always", vec![("a", Running, 0), ("b", Running, 0)], ""),
            ("Always", vec![("a", Running, 0)], "start:1"),
            ("Always", vec![("a", Exited, 0), ("b", Running, 0)], "start:0"),
            ("OnFailure", vec![("a", Exited, 0), ("b", Running, 0)], ""),
            ("OnFailure", vec![("a", Exited, 1), ("b", Running, 0)], "start:0"),
            ("Never", vec![("a", Exited, 1), ("b", Running, 0)], ""),
            ("Never", vec![("a", Exited, 1), ("b", Exited, 0)], "kill-pod"),
        ] {
            assert_eq!(
                plan(&two(policy), &observed(&states), &verdicts),
                expected,
                "{policy} {states:?}"
            );
        }
    }

    #[test]
    fn a_changed_image_restarts_whatever_the_policy() {
        let mut changed = pod("Never", vec![], vec![container("a")]);
        changed.spec.as_mut().unwrap().containers[0].image = Some("new".into());
        let states = observed(&[("a", Running, 0)]);
        assert_eq!(plan(&changed, &states, &Verdicts::default()), "kill:a start:0");
    }

    #[test]
    fn failed_probes_kill() {
        let verdicts = Verdicts {
            failures: [("a-id".to_owned(), ProbeFailure::Liveness)].into(),
            ..Default::default()
        };
        let states = observed(&[("a", Running, 0), ("b", Running, 0)]);
        for (policy, expected) in [
            ("Always", "kill:a start:0"),
            ("OnFailure", "kill:a start:0"),
            ("Never", "kill:a"),
        ] {
            let pod = pod(policy, vec![], vec![container("a"), container("b")]);
            assert_eq!(plan(&pod, &states, &verdicts), expected, "{policy}");
        }
        let pod = pod("Always", vec![], vec![container("a"), container("b")]);
        let actions = compute_pod_actions(&pod, &states, &verdicts);
        assert_eq!(
            actions.kill[0].message,
            "Container a failed liveness probe, will be restarted"
        );
    }

    #[test]
    fn init_containers_run_in_order() {
        let verdicts = Verdicts::default();
        let make = |policy| pod(policy, vec![container("i"), container("j")], vec![container("a")]);
        for (policy, states, expected) in [
            ("Always", vec![], "init:0"),
            ("Always", vec![("i", Running, 0)], ""),
            ("Always", vec![("i", Exited, 0)], "init:1"),
            ("Always", vec![("i", Exited, 1)], "init:0"),
            ("Never", vec![("i", Exited, 1)], "kill-pod"),
            ("Always", vec![("i", Exited, 0), ("j", Exited, 0)], "start:0"),
            (
                "Always",
                vec![("i", Exited, 0), ("j", Exited, 0), ("a", Running, 0)],
                "",
            ),
        ] {
            assert_eq!(
                plan(&make(policy), &observed(&states), &verdicts),
                expected,
                "{policy} {states:?}"
            );
        }
    }

    #[test]
    fn sidecars_keep_running_beside_the_rest() {
        let verdicts = Verdicts::default();
        let make = |policy| pod(policy, vec![sidecar("s"), container("i")], vec![container("a")]);
        for (policy, states, expected) in [
            ("Always", vec![("s", Running, 0)], "init:1"),
            ("Always", vec![("s", Exited, 1), ("i", Running, 0)], "init:0"),
            ("Always", vec![("s", Running, 0), ("i", Exited, 0)], "start:0"),
            (
                "Never",
                vec![("s", Exited, 0), ("i", Exited, 0), ("a", Running, 0)],
                "init:0",
            ),
            (
                "Never",
                vec![("s", Running, 0), ("i", Exited, 0), ("a", Exited, 0)],
                "kill-pod",
            ),
        ] {
            assert_eq!(
                plan(&make(policy), &observed(&states), &verdicts),
                expected,
                "{policy} {states:?}"
            );
        }
    }

    #[test]
    fn a_sidecar_with_a_startup_probe_holds_the_next_back() {
        let mut probed = sidecar("s");
        probed.startup_probe = Some(Default::default());
        let pod = pod("Always", vec![probed], vec![container("a")]);
        let states = observed(&[("s", Running, 0)]);
        assert_eq!(plan(&pod, &states, &Verdicts::default()), "");
        let started = Verdicts {
            started: ["s-id".to_owned()].into(),
            ..Default::default()
        };
        assert_eq!(plan(&pod, &states, &started), "start:0");
    }

    #[test]
    fn exit_code_rules_override_the_policy() {
        let mut ruled = container("a");
        ruled.restart_policy = Some("Never".into());
        ruled.restart_policy_rules = Some(vec![k8s_openapi::api::core::v1::ContainerRestartRule {
            action: "Restart".into(),
            exit_codes: Some(k8s_openapi::api::core::v1::ContainerRestartRuleOnExitCodes {
                operator: "In".into(),
                values: Some(vec![42]),
            }),
        }]);
        let pod = pod("Never", vec![], vec![ruled, container("b")]);
        let verdicts = Verdicts::default();
        assert_eq!(
            plan(
                &pod,
                &observed(&[("a", Exited, 42), ("b", Running, 0)]),
                &verdicts
            ),
            "start:0"
        );
        assert_eq!(
            plan(&pod, &observed(&[("a", Exited, 1), ("b", Running, 0)]), &verdicts),
            ""
        );
    }

    #[test]
    fn one_container_can_take_all_with_it() {
        let mut watcher = container("a");
        watcher.restart_policy = Some("Never".into());
        watcher.restart_policy_rules = serde_json::from_value(serde_json::json!([
            { "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [42] } }
        ]))
        .unwrap();
        let pod = pod("Never", vec![container("i")], vec![watcher, container("b")]);
        for (exit_code, expected) in [(42, "restart-all:a"), (1, "")] {
            let observed = observed(&[("i", Exited, 0), ("a", Exited, exit_code), ("b", Running, 0)]);
            assert_eq!(plan(&pod, &observed, &Verdicts::default()), expected);
        }
    }
}
