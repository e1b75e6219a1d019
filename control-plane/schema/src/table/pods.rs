//! The pods table: what state a pod is in, in a word.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age::since;
use super::text::{int, is_true, list, text, text_or};

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match &summary.last_restart {
        Some(time) if summary.restarts > 0 => format!(
            "{} ({} ago)",
            summary.restarts,
            since(Some(&time.as_str().into()), now)
        ),
        _ => summary.restarts.to_string(),
    };
    let gates = list(pod, "/spec/readinessGates");
    let open = gates
        .iter()
        .filter(|gate| is_true(pod, text(gate, "/conditionType")))
        .count();
    vec![
        text(pod, "/metadata/name").into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        since(pod.pointer("/metadata/creationTimestamp"), now).into(),
        text_or(pod, "/status/podIPs/0/ip", "<none>").into(),
        text_or(pod, "/spec/nodeName", "<none>").into(),
        text_or(pod, "/status/nominatedNodeName", "<none>").into(),
        if gates.is_empty() {
            "<none>".into()
        } else {
            format!("{open}/{}", gates.len()).into()
        },
    ]
}

/// A finished pod's row says so, and clients may fade it.
pub(super) fn row_condition(pod: &Value) -> Option<Value> {
    let (reason, message) = match text(pod, "/status/phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!({"type": "Completed", "status": "True", "reason": reason, "message": message}))
}

struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<String>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let sidecars: Vec<&str> = list(pod, "/spec/initContainers")
            .iter()
            .filter(|container| text(container, "/restartPolicy") == "Always")
            .map(|container| text(container, "/name"))
            .collect();
        let mut summary = Self {
            reason: text_or(pod, "/status/reason", text(pod, "/status/phase")).to_owned(),
            ready: 0,
            total: list(pod, "/spec/containers").len() + sidecars.len(),
            restarts: 0,
            last_restart: None,
        };
        if list(pod, "/status/conditions")
            .iter()
            .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated")
        {
            summary.reason = "SchedulingGated".into();
        }
        let initializing = summary.add_init_containers(pod, &sidecars);
        if !initializing || is_true(pod, "Initialized") {
            summary.add_containers(pod, &sidecars);
        }
        if pod.pointer("/metadata/deletionTimestamp").is_some() {
            if text(pod, "/status/reason") == "NodeLost" {
                summary.reason = "Unknown".into();
            } else if !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
                summary.reason = "Terminating".into();
            }
        }
        summary
    }

    fn add_init_containers(&mut self, pod: &Value, sidecars: &[&str]) -> bool {
        for (index, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.count_restarts(status);
            let started_sidecar = sidecars.contains(&text(status, "/name")) && status["started"] == true;
            let terminated = status.pointer("/state/terminated");
            let waiting = text(status, "/state/waiting/reason");
            if terminated.is_some_and(|terminated| int(terminated, "/exitCode") == 0) {
                continue;
            }
            if started_sidecar {
                self.ready += usize::from(status["ready"] == true);
                continue;
            }
            self.reason = match terminated {
                Some(terminated) => format!("Init:{}", ended(terminated)),
                None if !matches!(waiting, "" | "PodInitializing") => format!("Init:{waiting}"),
                None => format!("Init:{index}/{}", list(pod, "/spec/initContainers").len()),
            };
            return true;
        }
        false
    }

    fn add_containers(&mut self, pod: &Value, sidecars: &[&str]) {
        (self.restarts, self.last_restart) = (0, None);
        for status in list(pod, "/status/initContainerStatuses")
            .iter()
            .filter(|status| sidecars.contains(&text(status, "/name")))
        {
            self.count_restarts(status);
        }
        let mut running = false;
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            self.count_restarts(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(terminated) = status.pointer("/state/terminated") {
                self.reason = ended(terminated);
            } else if status["ready"] == true && status.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            self.reason = if is_true(pod, "Ready") {
                "Running".into()
            } else {
                "NotReady".into()
            };
        }
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += int(status, "/restartCount");
        let finished = text(status, "/lastState/terminated/finishedAt");
        // RFC 3339 text in UTC sorts like the time it means.
        if !finished.is_empty() && self.last_restart.as_deref().is_none_or(|last| last < finished) {
            self.last_restart = Some(finished.to_owned());
        }
    }
}

fn ended(terminated: &Value) -> String {
    match (text(terminated, "/reason"), int(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cells_of;
    use super::*;

    fn pod(spec: Value, mut status: Value) -> Value {
        status["podIPs"] = json!([{"ip": "10.0.0.1"}]);
        json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T11:58:00Z"}, "spec": spec, "status": status})
    }

    #[test]
    fn ready_status_and_restarts() {
        let one = json!({"containers": [{"name": "a"}], "nodeName": "n"});
        let init = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let sidecar = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
        for (spec, status, expected) in [
            (&one, json!({"phase": "Pending"}), ["0/1", "Pending", "0"]),
            (
                &one,
                json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}]}),
                ["1/1", "Running", "0"],
            ),
            (
                &one,
                json!({"phase": "Running", "containerStatuses": [{"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "2026-01-01T11:55:00Z"}}}]}),
                ["0/1", "CrashLoopBackOff", "3 (5m ago)"],
            ),
            (
                &one,
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 2}}}]}),
                ["0/1", "ExitCode:2", "0"],
            ),
            (
                &one,
                json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                ["0/1", "Completed", "0"],
            ),
            (
                &one,
                json!({"phase": "Failed", "reason": "Evicted"}),
                ["0/1", "Evicted", "0"],
            ),
            (
                &one,
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
                ["0/1", "SchedulingGated", "0"],
            ),
            (
                &init,
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}),
                ["0/1", "Init:1/2", "0"],
            ),
            (
                &init,
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 1, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
                ["0/1", "Init:Error", "1"],
            ),
            (
                &sidecar,
                json!({"phase": "Running", "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
                "containerStatuses": [{"ready": true, "state": {"running": {}}}]}),
                ["2/2", "Running", "0"],
            ),
        ] {
            let cells = cells_of("", "v1", "pods", &pod(spec.clone(), status.clone()));
            assert_eq!(cells[1..4], expected.map(Value::from), "{status}");
            assert_eq!((&cells[4], &cells[5]), (&json!("2m"), &json!("10.0.0.1")));
        }
    }

    #[test]
    fn deleted_pods_terminate() {
        let mut deleted = pod(json!({"containers": [{}]}), json!({"phase": "Running"}));
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T11:59:00Z");
        assert_eq!(cells_of("", "v1", "pods", &deleted)[2], "Terminating");
        deleted["status"]["reason"] = json!("NodeLost");
        assert_eq!(cells_of("", "v1", "pods", &deleted)[2], "Unknown");
    }
}
