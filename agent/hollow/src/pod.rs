//! What a hollow pod does next: start, become ready, exit, start again, end.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::time::Duration;

const READY: &str = "hollow.ironlet.dev/ready";
const EXIT_CODES: &str = "hollow.ironlet.dev/exit-codes";
const EXIT_AFTER: &str = "hollow.ironlet.dev/exit-after";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// What a process answers that is killed.
const KILLED: i32 = 137;

#[derive(Debug, PartialEq)]
pub enum Step {
    /// Strategic merge patch of the status.
    Status(Value),
    /// The pod has stopped; its object can go.
    Remove,
    Wait(Duration),
    Rest,
}

/// Where a pod runs.
pub struct Place<'a> {
    pub host_ip: &'a str,
    pub pod_ip: &'a str,
    pub start_delay: Duration,
}

pub fn next(pod: &Pod, place: &Place, now: Timestamp) -> Step {
    let Some(spec) = &pod.spec else { return Step::Rest };
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or_default();
    let ended = matches!(phase, "Failed" | "Succeeded");
    if pod.metadata.deletion_timestamp.is_some() {
        let running = phase == "Running" && !ended;
        return if running {
            ended_status(pod, spec, KILLED, now)
        } else {
            Step::Remove
        };
    }
    if ended {
        return Step::Rest;
    }
    if phase != "Running" {
        let bound = pod.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        return match left(bound, place.start_delay, now) {
            Some(wait) => Step::Wait(wait),
            None => running_status(pod, spec, place, 0, now),
        };
    }
    let ready = is_ready(pod, spec);
    let first = status.container_statuses.iter().flatten().next();
    let restarts = first.map_or(0, |c| c.restart_count);
    if first.is_some_and(|c| c.ready != ready) {
        return running_status(pod, spec, place, restarts, now);
    }
    let Some(code) = exit_code(pod, restarts) else {
        return Step::Rest;
    };
    let started = first.and_then(|c| c.state.as_ref()?.running.as_ref()?.started_at.as_ref());
    let after = annotation(pod, EXIT_AFTER)
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    if let Some(wait) = left(started.map_or(now, |t| t.0), Duration::from_secs(after), now) {
        return Step::Wait(wait);
    }
    match (spec.restart_policy.as_deref(), code) {
        (Some("Never"), _) | (Some("OnFailure"), 0) => ended_status(pod, spec, code, now),
        _ => running_status(pod, spec, place, restarts + 1, now),
    }
}

fn left(from: Timestamp, wait: Duration, now: Timestamp) -> Option<Duration> {
    let due = from.checked_add(SignedDuration::try_from(wait).ok()?).ok()?;
    Duration::try_from(due.duration_since(now))
        .ok()
        .filter(|d| !d.is_zero())
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn exit_code(pod: &Pod, restarts: i32) -> Option<i32> {
    let own = annotation(pod, INDEX).and_then(|index| annotation(pod, &format!("{EXIT_CODES}-{index}")));
    let codes: Vec<i32> = own
        .or_else(|| annotation(pod, EXIT_CODES))?
        .split(',')
        .filter_map(|code| code.trim().parse().ok())
        .collect();
    let attempt = usize::try_from(restarts).unwrap_or_default();
    codes.get(attempt).or(codes.last()).copied()
}

fn is_ready(pod: &Pod, spec: &PodSpec) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    annotation(pod, READY) != Some("false")
        && gates.iter().all(|g| {
            conditions
                .iter()
                .any(|c| c.type_ == g.condition_type && c.status == "True")
        })
}

/// The condition, with the time of its last change kept.
fn condition(pod: &Pod, kind: &str, value: bool, reason: Option<&str>, now: Timestamp) -> Value {
    let value = if value { "True" } else { "False" };
    let conditions = pod
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    let known = conditions.iter().find(|c| c.type_ == kind && c.status == value);
    let since = known
        .and_then(|c| c.last_transition_time.as_ref())
        .map_or(now, |t| t.0);
    json!({"type": kind, "status": value, "reason": reason, "lastTransitionTime": Time(since),
        "observedGeneration": pod.metadata.generation})
}

fn container(
    container: &Container,
    state: ContainerState,
    ready: bool,
    restarts: i32,
    pod: &Pod,
) -> ContainerStatus {
    let image = container.image.clone().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    ContainerStatus {
        name: container.name.clone(),
        image_id: format!("hollow://{image}"),
        image,
        container_id: Some(format!("hollow://{uid}/{}/{restarts}", container.name)),
        ready,
        started: Some(state.running.is_some()),
        restart_count: restarts,
        state: Some(state),
        ..ContainerStatus::default()
    }
}

fn terminated(code: i32, now: Timestamp) -> ContainerState {
    let reason = if code == 0 { "Completed" } else { "Error" };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: code,
            reason: Some(reason.into()),
            started_at: Some(Time(now)),
            finished_at: Some(Time(now)),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn running_status(pod: &Pod, spec: &PodSpec, place: &Place, restarts: i32, now: Timestamp) -> Step {
    let ready = is_ready(pod, spec);
    let old = pod.status.clone().unwrap_or_default();
    let before = old.container_statuses.iter().flatten().next();
    let same = before
        .filter(|c| c.restart_count == restarts)
        .and_then(|c| c.state.clone());
    let state = same
        .filter(|s| s.running.is_some())
        .unwrap_or_else(|| ContainerState {
            running: Some(k8s_openapi::api::core::v1::ContainerStateRunning {
                started_at: Some(Time(now)),
            }),
            ..ContainerState::default()
        });
    let main = spec.containers.iter().map(|c| {
        let mut status = container(c, state.clone(), ready, restarts, pod);
        if restarts > 0 {
            status.last_state = exit_code(pod, restarts - 1).map(|code| terminated(code, now));
        }
        status
    });
    let init = spec.init_containers.iter().flatten().map(|c| {
        let stays = c.restart_policy.as_deref() == Some("Always");
        let state = if stays { state.clone() } else { terminated(0, now) };
        container(c, state, true, 0, pod)
    });
    let host = spec.host_network.unwrap_or_default();
    let ip = if host {
        place.host_ip
    } else {
        old.pod_ip.as_deref().unwrap_or(place.pod_ip)
    };
    let unready = (!ready).then_some("ContainersNotReady");
    Step::Status(json!({
        "phase": "Running", "hostIP": place.host_ip, "podIP": ip,
        "hostIPs": [{"ip": place.host_ip}], "podIPs": [{"ip": ip}],
        "startTime": old.start_time.unwrap_or(Time(now)),
        "observedGeneration": pod.metadata.generation,
        "conditions": [
            condition(pod, "PodReadyToStartContainers", true, None, now),
            condition(pod, "Initialized", true, None, now),
            condition(pod, "Ready", ready, unready, now),
            condition(pod, "ContainersReady", ready, unready, now),
        ],
        "containerStatuses": main.collect::<Vec<_>>(),
        "initContainerStatuses": init.collect::<Vec<_>>(),
    }))
}

fn ended_status(pod: &Pod, spec: &PodSpec, code: i32, now: Timestamp) -> Step {
    let restarts = pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten())
        .map(|c| c.restart_count)
        .max();
    let ended = spec
        .containers
        .iter()
        .map(|c| container(c, terminated(code, now), false, restarts.unwrap_or_default(), pod));
    let (phase, reason) = if code == 0 {
        ("Succeeded", "PodCompleted")
    } else {
        ("Failed", "PodFailed")
    };
    Step::Status(json!({
        "phase": phase,
        "observedGeneration": pod.metadata.generation,
        "conditions": [
            condition(pod, "PodReadyToStartContainers", false, None, now),
            condition(pod, "Ready", false, Some(reason), now),
            condition(pod, "ContainersReady", false, Some(reason), now),
        ],
        "containerStatuses": ended.collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        host_ip: "10.192.0.1",
        pod_ip: "10.0.0.1",
        start_delay: Duration::from_secs(2),
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + seconds).unwrap()
    }

    fn pod(restart_policy: &str, annotations: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations},
            "spec": {"nodeName": "hollow-0", "restartPolicy": restart_policy, "containers": [{"name": "c"}]},
        }))
        .unwrap()
    }

    /// Carries out steps until the pod rests, or this much time has passed.
    fn live(pod: &mut Pod, from: i64, to: i64) -> Step {
        let mut now = from;
        loop {
            match next(pod, &PLACE, at(now)) {
                Step::Status(patch) => {
                    let mut status = json!(pod.status.clone().unwrap_or_default());
                    for (key, value) in patch.as_object().unwrap() {
                        status[key] = value.clone();
                    }
                    pod.status = serde_json::from_value(status).unwrap();
                }
                Step::Wait(wait) if now + i64::try_from(wait.as_secs()).unwrap() <= to => {
                    now += i64::try_from(wait.as_secs()).unwrap();
                }
                step => return step,
            }
        }
    }

    fn seen(pod: &Pod) -> (String, bool, i32) {
        let status = pod.status.as_ref().unwrap();
        let container = &status.container_statuses.as_ref().unwrap()[0];
        (
            status.phase.clone().unwrap(),
            container.ready,
            container.restart_count,
        )
    }

    #[test]
    fn a_pod_runs_until_it_is_deleted() {
        let mut pod = pod("Always", json!({}));
        assert_eq!(next(&pod, &PLACE, at(0)), Step::Wait(Duration::from_secs(2)));
        assert_eq!(live(&mut pod, 2, 100), Step::Rest);
        assert_eq!(seen(&pod), ("Running".into(), true, 0));
        pod.metadata
            .annotations
            .get_or_insert_default()
            .insert(READY.into(), "false".into());
        assert_eq!(live(&mut pod, 3, 100), Step::Rest);
        assert_eq!(seen(&pod), ("Running".into(), false, 0));
        pod.metadata.deletion_timestamp = Some(Time(at(4)));
        assert_eq!(live(&mut pod, 4, 100), Step::Remove);
        assert_eq!(seen(&pod), ("Failed".into(), false, 0));
    }

    #[test]
    fn exits_end_a_pod_or_restart_its_containers() {
        for (policy, annotations, expected) in [
            ("Never", json!({EXIT_CODES: "3"}), ("Failed", 0)),
            ("Never", json!({EXIT_CODES: "0"}), ("Succeeded", 0)),
            ("OnFailure", json!({EXIT_CODES: "1,1,0"}), ("Succeeded", 2)),
            (
                "Never",
                json!({EXIT_CODES: "0", "hollow.ironlet.dev/exit-codes-1": "7", INDEX: "1"}),
                ("Failed", 0),
            ),
            (
                "Never",
                json!({EXIT_CODES: "0", "hollow.ironlet.dev/exit-codes-1": "7", INDEX: "0"}),
                ("Succeeded", 0),
            ),
            (
                "Never",
                json!({EXIT_CODES: "0", EXIT_AFTER: "1000"}),
                ("Running", 0),
            ),
        ] {
            let mut pod = pod(policy, annotations.clone());
            live(&mut pod, 2, 100);
            let (phase, _, restarts) = seen(&pod);
            assert_eq!((phase.as_str(), restarts), expected, "{annotations}");
        }
    }
}
