use super::behavior::Memory;
use super::metrics::Reading;
use super::reconcile::{Decision, Observed, Target, conclude, decide, without_target};
use super::replicas::{PodMetric, PodMetrics};
use crate::action::Action;
use crate::config::Autoscaling;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, from_value, json};
use std::sync::Arc;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

/// `state` is what is special about the pod.
fn pod(number: usize, state: &str) -> Arc<Pod> {
    let phase = match state {
        "pending" => "Pending",
        "failed" => "Failed",
        _ => "Running",
    };
    let start = if state == "starting" {
        "2026-01-01T00:59:00Z"
    } else {
        "2026-01-01T00:00:00Z"
    };
    let request = if state == "unrequested" {
        json!({})
    } else {
        json!({"cpu": "1"})
    };
    let body = json!({"metadata": {"name": format!("p{number}"), "namespace": "n", "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": request}}]},
        "status": {"phase": phase, "startTime": start, "conditions": [{"type": "Ready",
            "status": if state == "unready" || state == "starting" { "False" } else { "True" },
            "lastTransitionTime": start}]}});
    Arc::new(from_value(body).unwrap())
}

/// Milli-CPUs by pod; none where the API says nothing.
fn usage(cpus: &[Option<i64>]) -> Reading {
    let metric = |value| PodMetric {
        at: now(),
        window: SignedDuration::from_secs(15),
        value,
    };
    let known = cpus.iter().enumerate();
    let known = known.filter_map(|(number, cpu)| Some((format!("p{number}"), metric((*cpu)?))));
    Reading::Pods(known.collect::<PodMetrics>())
}

fn cpu(percent: i32) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn observed(
    metrics: Value,
    current: i32,
    states: &[&str],
    readings: Vec<Result<Reading, String>>,
) -> Observed {
    let body = json!({"metadata": {"name": "h", "namespace": "n"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
            "minReplicas": 2, "maxReplicas": 20, "metrics": metrics}, "status": {"desiredReplicas": 0}});
    Observed {
        hpa: Arc::new(from_value::<HorizontalPodAutoscaler>(body).unwrap()),
        target: Target {
            spec_replicas: current,
            status_replicas: current,
            selector: "a=b".into(),
            pods: states
                .iter()
                .enumerate()
                .map(|(number, state)| pod(number, state))
                .collect(),
            selecting: vec!["n/h".into()],
            readings,
        },
    }
}

fn run(observed: &Observed) -> Decision {
    decide(observed, &mut Memory::default(), &Autoscaling::default(), now())
}

fn condition<'a>(decision: &'a Decision, kind: &str) -> (&'a str, &'a str, &'a str) {
    let conditions = decision.status.conditions.as_deref().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition.type_ == kind);
    found.map_or(("", "", ""), |found| {
        let text = |field: &'a Option<String>| field.as_deref().unwrap_or_default();
        (&found.status, text(&found.reason), text(&found.message))
    })
}

fn reasons(plan: &[Action]) -> Vec<String> {
    let reason = |action: &Action| match action {
        Action::Event(notice) => Some(notice.reason.clone()),
        _ => None,
    };
    plan.iter().filter_map(reason).collect()
}

#[test]
fn utilization_of_pods_in_every_state() {
    for (what, current, states, cpus, want) in [
        (
            "above target",
            3,
            &["", "", ""][..],
            &[Some(300), Some(500), Some(700)][..],
            Some(5),
        ),
        (
            "within tolerance",
            3,
            &["", "", ""],
            &[Some(320), Some(310), Some(300)],
            None,
        ),
        (
            "below target, stabilized",
            3,
            &["", "", ""],
            &[Some(10), Some(10), Some(10)],
            None,
        ),
        (
            "unready pods would use nothing",
            3,
            &["", "", "pending"],
            &[Some(900), Some(900), None],
            Some(6),
        ),
        (
            "failed pods don't count",
            3,
            &["", "", "failed"],
            &[Some(600), Some(600), Some(9000)],
            Some(4),
        ),
        (
            "missing on the way up uses nothing",
            3,
            &["", "", ""],
            &[Some(450), Some(450), None],
            None,
        ),
        (
            "starting pods' CPU says nothing",
            2,
            &["", "starting"],
            &[Some(300), Some(9000)],
            None,
        ),
    ] {
        let found = run(&observed(
            json!([cpu(30)]),
            current,
            states,
            vec![Ok(usage(cpus))],
        ));
        assert_eq!(found.rescale, want, "{what}: {found:?}");
        assert_eq!(condition(&found, "ScalingActive").1, "ValidMetricFound", "{what}");
    }
}

#[test]
fn missing_pods_use_their_request_on_the_way_down() {
    let reading = || vec![Ok(usage(&[Some(10), Some(10), None, Some(10)]))];
    let seen = observed(json!([cpu(40)]), 4, &["", "", "", ""], reading());
    let settings = Autoscaling {
        downscale_stabilization: SignedDuration::ZERO,
        ..Autoscaling::default()
    };
    let found = decide(&seen, &mut Memory::default(), &settings, now());
    assert_eq!(
        found.rescale,
        Some(3),
        "1030 of 4000 is 25 %, five eighths of the target"
    );
    assert_eq!(found.reason, "All metrics below target");
    let current = &found.status.current_metrics.as_ref().unwrap()[0]
        .resource
        .as_ref()
        .unwrap()
        .current;
    assert_eq!(current.average_utilization, Some(1), "shown is what was measured");
}

#[test]
fn kinds_of_metrics() {
    let pods = json!({"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "10"}}});
    let object = |target: Value| {
        json!({"type": "Object", "object": {"metric": {"name": "q"}, "target": target,
            "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "s"}}})
    };
    let external =
        |target: Value| json!({"type": "External", "external": {"metric": {"name": "q"}, "target": target}});
    let value = json!({"type": "Value", "value": "10"});
    let average = json!({"type": "AverageValue", "averageValue": "10"});
    let raw = json!({"type": "Resource", "resource": {"name": "memory", "target": average}});
    for (spec, reading, want, metric) in [
        (pods, usage(&[Some(20_000), Some(20_000)]), 4, "pods metric q"),
        (raw, usage(&[Some(15_000), Some(15_000)]), 3, "memory resource"),
        (
            object(value.clone()),
            Reading::Value(20_000),
            4,
            "Service metric q",
        ),
        (
            object(average.clone()),
            Reading::Value(45_000),
            5,
            "external metric q(nil)",
        ),
        (
            external(value),
            Reading::Value(30_000),
            6,
            "external metric q(nil)",
        ),
        (
            external(average),
            Reading::Value(60_000),
            6,
            "external metric q(nil)",
        ),
    ] {
        // No faster than to four at first without rules; from two that is enough for some only.
        let mut seen = observed(json!([spec]), 2, &["", ""], vec![Ok(reading)]);
        let mut hpa = (*seen.hpa).clone();
        let fast = json!({"scaleUp": {"policies": [{"type": "Pods", "value": 100, "periodSeconds": 15}]}});
        hpa.spec.behavior = from_value(fast).unwrap();
        seen.hpa = Arc::new(hpa);
        let found = run(&seen);
        assert_eq!(found.rescale, Some(want), "{spec}");
        assert_eq!(found.reason, format!("{metric} above target"));
    }
}

#[test]
fn what_cannot_be_read_is_said_and_holds_pods() {
    let absent = || Err("unable to get metrics for resource cpu: none".to_owned());
    let both = json!([cpu(30), cpu(30)]);
    let found = run(&observed(
        both.clone(),
        3,
        &["", "", ""],
        vec![absent(), absent()],
    ));
    assert_eq!(found.rescale, None);
    let message = "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get \
                   metrics for resource cpu: none";
    assert_eq!(
        condition(&found, "ScalingActive"),
        ("False", "FailedGetResourceMetric", message)
    );
    let want = [
        "FailedGetResourceMetric",
        "FailedGetResourceMetric",
        "FailedComputeMetricsReplicas",
    ];
    assert_eq!(reasons(&found.events), want);
    let Some(Action::Event(last)) = found.events.last() else {
        panic!("no event")
    };
    assert_eq!(
        last.message,
        "invalid metrics (2 invalid out of 2), first error is: failed to get cpu resource metric value: failed to get \
         cpu utilization: unable to get metrics for resource cpu: none"
    );
    for (cpus, want) in [([900, 900, 900], Some(6)), ([1, 1, 1], None)] {
        let readings = vec![absent(), Ok(usage(&cpus.map(Some)))];
        let found = run(&observed(both.clone(), 3, &["", "", ""], readings));
        assert_eq!(found.rescale, want, "{cpus:?}");
    }
    let found = run(&observed(
        json!([cpu(30)]),
        2,
        &["", "unrequested"],
        vec![Ok(usage(&[Some(1), Some(1)]))],
    ));
    let message = condition(&found, "ScalingActive").2;
    assert!(
        message.ends_with("missing request for cpu in container c of Pod p1"),
        "{message}"
    );
}

#[test]
fn bounds_and_zero_need_no_metrics() {
    for (current, want, reason) in [
        (0, None, ""),
        (1, Some(2), "Current number of replicas below Spec.MinReplicas"),
        (30, Some(20), "Current number of replicas above Spec.MaxReplicas"),
    ] {
        let found = run(&observed(json!([cpu(30)]), current, &[], vec![]));
        assert_eq!((found.rescale, found.reason.as_str()), (want, reason));
        let disabled = condition(&found, "ScalingActive").1 == "ScalingDisabled";
        assert_eq!(disabled, current == 0);
    }
}

#[test]
fn targets_that_cannot_be_followed() {
    let mut seen = observed(json!([cpu(30)]), 3, &["", "", ""], vec![Ok(usage(&[Some(1)]))]);
    seen.target.selecting.push("n/other".into());
    let found = run(&seen);
    let message = "pods by selector a=b are controlled by multiple HPAs: [n/h n/other]";
    assert_eq!(
        condition(&found, "ScalingActive"),
        ("False", "AmbiguousSelector", message)
    );
    seen.target.selector = String::new();
    let found = run(&seen);
    assert_eq!(
        reasons(&found.events),
        ["SelectorRequired", "FailedComputeMetricsReplicas"]
    );
    let found = without_target(&seen.hpa, "deployments.apps \"d\" not found", now());
    let able = condition(&found, "AbleToScale");
    assert_eq!((able.0, able.1), ("False", "FailedGetScale"));
    assert_eq!(reasons(&found.events), ["FailedGetScale"]);
}

#[test]
fn what_was_done_is_said_and_a_settled_world_is_left_alone() {
    let seen = observed(
        json!([cpu(30)]),
        3,
        &["", "", ""],
        vec![Ok(usage(&[Some(600); 3]))],
    );
    let plan = conclude(&seen.hpa, run(&seen), &Err("no".into()), now());
    assert_eq!(reasons(&plan), ["FailedRescale"]);
    let plan = conclude(&seen.hpa, run(&seen), &Ok(()), now());
    let Some(Action::Event(said)) = plan.first() else {
        panic!("{plan:?}")
    };
    let metric = "cpu resource utilization (percentage of request)";
    assert_eq!(
        said.message,
        format!("New size: 6; reason: {metric} above target")
    );
    let Some(Action::Replace { at, body }) = plan.last() else {
        panic!("{plan:?}")
    };
    assert!(
        at.url
            .ends_with("/autoscaling/v2/namespaces/n/horizontalpodautoscalers/h/status"),
        "{}",
        at.url
    );
    assert_eq!(
        (
            &body["status"]["currentReplicas"],
            &body["status"]["desiredReplicas"]
        ),
        (&json!(3), &json!(6))
    );
    let mut settled = observed(
        json!([cpu(30)]),
        3,
        &["", "", ""],
        vec![Ok(usage(&[Some(300); 3]))],
    );
    let first = run(&settled);
    let mut hpa = (*settled.hpa).clone();
    hpa.status = Some(first.status);
    settled.hpa = Arc::new(hpa);
    assert_eq!(conclude(&settled.hpa, run(&settled), &Ok(()), now()), []);
}
