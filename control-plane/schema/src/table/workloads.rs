//! Cells of controllers, jobs, autoscalers, nodes and events.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::age::{human_duration, since};
use super::text::{condition, int, is_true, joined, list, plain, text, text_or};

pub(super) fn ready_of_desired(object: &Value, _: Timestamp) -> Value {
    format!(
        "{}/{}",
        int(object, "/status/readyReplicas"),
        int(object, "/spec/replicas")
    )
    .into()
}

pub(super) fn node_status(node: &Value, _: Timestamp) -> Value {
    let ready = match condition(node, "Ready") {
        None => "Unknown",
        Some(_) if is_true(node, "Ready") => "Ready",
        Some(_) => "NotReady",
    };
    if node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        format!("{ready},SchedulingDisabled").into()
    } else {
        ready.into()
    }
}

pub(super) fn node_roles(node: &Value, _: Timestamp) -> Value {
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let roles: BTreeSet<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role),
                None if key == "kubernetes.io/role" => value.as_str(),
                None => None,
            },
        )
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() {
        "<none>".into()
    } else {
        joined(roles, ",").into()
    }
}

pub(super) fn node_address(node: &Value, kind: &str) -> Value {
    let address = list(node, "/status/addresses")
        .iter()
        .find(|address| address["type"] == kind);
    address
        .map_or("<none>", |address| text(address, "/address"))
        .into()
}

pub(super) fn job_status(job: &Value, _: Timestamp) -> Value {
    let deleted = job.pointer("/metadata/deletionTimestamp").is_some();
    let status = if is_true(job, "Complete") {
        "Complete"
    } else if is_true(job, "Failed") {
        "Failed"
    } else if deleted {
        "Terminating"
    } else if is_true(job, "Suspended") {
        "Suspended"
    } else if is_true(job, "FailureTarget") {
        "FailureTarget"
    } else if is_true(job, "SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    status.into()
}

pub(super) fn job_completions(job: &Value, _: Timestamp) -> Value {
    let done = int(job, "/status/succeeded");
    match (job.pointer("/spec/completions"), int(job, "/spec/parallelism")) {
        (Some(completions), _) => format!("{done}/{completions}").into(),
        (None, parallelism) if parallelism > 1 => format!("{done}/1 of {parallelism}").into(),
        (None, _) => format!("{done}/1").into(),
    }
}

pub(super) fn job_duration(job: &Value, now: Timestamp) -> Value {
    let time = |pointer| {
        job.pointer(pointer)
            .and_then(Value::as_str)
            .and_then(|text| text.parse::<Timestamp>().ok())
    };
    match (time("/status/startTime"), time("/status/completionTime")) {
        (None, _) => "".into(),
        (Some(start), end) => human_duration(end.unwrap_or(now).as_second() - start.as_second()).into(),
    }
}

pub(super) fn last_schedule(job: &Value, now: Timestamp) -> Value {
    match job.pointer("/status/lastScheduleTime") {
        None => "<none>".into(),
        time => since(time, now).into(),
    }
}

pub(super) fn autoscaler_targets(autoscaler: &Value, _: Timestamp) -> Value {
    let current = list(autoscaler, "/status/currentMetrics");
    let metrics: Vec<String> = list(autoscaler, "/spec/metrics")
        .iter()
        .enumerate()
        .map(|(index, metric)| metric_text(metric, current.get(index)))
        .collect();
    const SHOWN: usize = 2;
    let shown = metrics
        .iter()
        .take(SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    match metrics.len() {
        0 => "<none>".into(),
        count if count > SHOWN => format!("{shown} + {} more...", count - SHOWN).into(),
        _ => shown.into(),
    }
}

fn metric_text(metric: &Value, status: Option<&Value>) -> String {
    let name = text(metric, "/type");
    let field = match name {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return "<unknown type>".into(),
    };
    let target = &metric[field]["target"];
    let current = status.map(|status| &status[field]["current"]);
    let (key, unit) = if target.get("averageUtilization").is_some() {
        ("averageUtilization", "%")
    } else if target.get("averageValue").is_some() {
        ("averageValue", "")
    } else {
        ("value", "")
    };
    let now = current.and_then(|current| current.get(key)).map_or_else(
        || "<unknown>".to_owned(),
        |value| format!("{}{unit}", plain(value)),
    );
    let wanted = target
        .get(key)
        .map_or_else(|| "<auto>".to_owned(), |value| format!("{}{unit}", plain(value)));
    let average =
        if key == "averageValue" && name != "Resource" && name != "ContainerResource" && name != "Pods" {
            " (avg)"
        } else {
            ""
        };
    match name {
        "Resource" => format!("{}: {now}/{wanted}", text(metric, "/resource/name")),
        "ContainerResource" => format!("{}: {now}/{wanted}", text(metric, "/containerResource/name")),
        _ => format!("{now}/{wanted}{average}"),
    }
}

pub(super) fn cpu_target(autoscaler: &Value, _: Timestamp) -> Value {
    let percent = |pointer: &str, absent: &str| {
        autoscaler
            .pointer(pointer)
            .map_or_else(|| absent.to_owned(), |value| format!("{value}%"))
    };
    let (now, wanted) = (
        percent("/status/currentCPUUtilizationPercentage", "<unknown>"),
        percent("/spec/targetCPUUtilizationPercentage", "<auto>"),
    );
    format!("cpu: {now}/{wanted}").into()
}

pub(super) fn scale_target(autoscaler: &Value, _: Timestamp) -> Value {
    format!(
        "{}/{}",
        text(autoscaler, "/spec/scaleTargetRef/kind"),
        text(autoscaler, "/spec/scaleTargetRef/name")
    )
    .into()
}

pub(super) fn controller(object: &Value, _: Timestamp) -> Value {
    let owner = list(object, "/metadata/ownerReferences")
        .iter()
        .find(|owner| owner["controller"] == true);
    owner.map_or_else(
        || "<none>".into(),
        |owner| {
            let group = text(owner, "/apiVersion")
                .split_once('/')
                .map_or(String::new(), |(group, _)| format!(".{group}"));
            format!(
                "{}{group}/{}",
                text(owner, "/kind").to_lowercase(),
                text(owner, "/name")
            )
            .into()
        },
    )
}

/// Both event APIs, told apart by where they keep the object.
pub(super) fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let core = event.get("involvedObject").is_some();
    let pick = |core_name: &'static str, other: &'static str| if core { core_name } else { other };
    let time = |pointer: &str| event.pointer(pointer).filter(|time| !time.is_null());
    let first = time(pick("/firstTimestamp", "/deprecatedFirstTimestamp")).or_else(|| time("/eventTime"));
    let last = time("/series/lastObservedTime")
        .or_else(|| time(pick("/lastTimestamp", "/deprecatedLastTimestamp")))
        .or(first);
    let count = match int(event, "/series/count") {
        0 => int(event, pick("/count", "/deprecatedCount")).max(1),
        count => count,
    };
    let object = &event[pick("involvedObject", "regarding")];
    let kind = text(object, "/kind").to_lowercase();
    let target = match text(object, "/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = &event[pick("source", "deprecatedSource")];
    let component = text_or(
        source,
        "/component",
        text_or(event, "/reportingComponent", text(event, "/reportingController")),
    );
    let host = text_or(source, "/host", text(event, "/reportingInstance"));
    vec![
        since(last, now).into(),
        text(event, "/type").into(),
        text(event, "/reason").into(),
        target.into(),
        text(object, "/fieldPath").into(),
        joined(
            [component, host].into_iter().filter(|part| !part.is_empty()),
            ", ",
        )
        .into(),
        text(event, pick("/message", "/note")).trim().into(),
        since(first, now).into(),
        count.into(),
        text(event, "/metadata/name").into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::cells_of;
    use super::*;

    #[test]
    fn nodes() {
        let node = json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T11:00:00Z", "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "master"}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Ironlet", "kernelVersion": "6.12", "containerRuntimeVersion": "ironlet://1"}}});
        assert_eq!(
            cells_of("", "v1", "nodes", &node),
            [
                "n",
                "Ready,SchedulingDisabled",
                "control-plane,master",
                "60m",
                "v1.36.0",
                "1.2.3.4",
                "<none>",
                "Ironlet",
                "6.12",
                "ironlet://1"
            ]
            .map(Value::from)
        );
    }

    #[test]
    fn deployments_and_jobs() {
        let deployment = json!({"metadata": {"name": "d", "creationTimestamp": "2026-01-01T11:59:00Z"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["y", "x"]}]}, "template": {"spec": {"containers": [{"name": "x", "image": "i"}, {"name": "y", "image": "j"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}});
        assert_eq!(
            cells_of("apps", "v1", "deployments", &deployment),
            [
                json!("d"),
                json!("2/3"),
                json!(3),
                json!(2),
                json!("60s"),
                json!("x,y"),
                json!("i,j"),
                json!("a=b,c in (x,y)")
            ]
        );
        let job = json!({"metadata": {"name": "j"}, "spec": {"completions": 2}, "status": {"succeeded": 1, "startTime": "2026-01-01T11:59:00Z"}});
        assert_eq!(
            cells_of("batch", "v1", "jobs", &job)[..5],
            ["j", "Running", "1/2", "60s", "<unknown>"].map(Value::from)
        );
    }

    #[test]
    fn events_of_both_groups() {
        let core = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{a}"}, "type": "Normal", "reason": "Pulled",
            "message": "done\n", "source": {"component": "kubelet", "host": "n"}, "firstTimestamp": "2026-01-01T11:58:00Z", "lastTimestamp": "2026-01-01T11:59:00Z", "count": 2});
        let expected = [
            json!("60s"),
            json!("Normal"),
            json!("Pulled"),
            json!("pod/p"),
            json!("spec.containers{a}"),
            json!("kubelet, n"),
            json!("done"),
            json!("2m"),
            json!(2),
            json!("e"),
        ];
        assert_eq!(cells_of("", "v1", "events", &core), expected);
        let other = json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{a}"}, "type": "Normal", "reason": "Pulled", "note": "done",
            "reportingController": "kubelet", "reportingInstance": "n", "eventTime": "2026-01-01T11:58:00.000000Z", "series": {"count": 2, "lastObservedTime": "2026-01-01T11:59:00.000000Z"}});
        assert_eq!(cells_of("events.k8s.io", "v1", "events", &other), expected);
    }

    #[test]
    fn autoscalers_show_current_and_target() {
        let autoscaler = json!({"metadata": {"name": "h"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 1, "maxReplicas": 5,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]}, "status": {"currentReplicas": 2}});
        assert_eq!(
            cells_of("autoscaling", "v2", "horizontalpodautoscalers", &autoscaler)[1..6],
            [
                json!("Deployment/d"),
                json!("cpu: <unknown>/80%"),
                json!("1"),
                json!("5"),
                json!("2")
            ]
        );
    }
}
