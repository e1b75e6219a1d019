//! Metrics and the stats summary: only figures that the kubelet has or CRI gives.

use std::collections::BTreeMap;
use std::fmt::Write;

use cri_api::v1::ContainerStats;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Answer, json as json_answer, text};
use crate::context::{Context, name, namespace, uid};
use crate::pod_manager::Pods;
use crate::runtime::{CONTAINER_NAME, PodIdentity, identity};

pub fn kubelet(pods: &Pods) -> Answer {
    let pods = pods.all();
    let phase_of = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.status
            .as_ref()
            .and_then(|status| status.phase.clone())
            .unwrap_or_else(|| "Pending".into())
    };
    let running = pods.iter().filter(|pod| phase_of(pod) == "Running").count();
    let mut body = String::new();
    let _ = writeln!(
        body,
        "# HELP kubelet_running_pods Number of pods that have a running pod sandbox"
    );
    let _ = writeln!(
        body,
        "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {running}"
    );
    let _ = writeln!(
        body,
        "# HELP kubelet_desired_pods The number of pods the kubelet is being instructed to run"
    );
    let _ = writeln!(
        body,
        "# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods{{static=\"\"}} {}",
        pods.len()
    );
    text(StatusCode::OK, body)
}

struct Usage {
    pod: PodIdentity,
    container: String,
    stats: ContainerStats,
}

async fn usage(context: &Context) -> Result<Vec<Usage>, Answer> {
    let stats = context.runtime.container_stats().await;
    let stats = stats.map_err(|error| text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let attributed = stats.into_iter().filter_map(|stats| {
        let attributes = stats.attributes.clone()?;
        let container = attributes.labels.get(CONTAINER_NAME)?.clone();
        Some(Usage {
            pod: identity(&attributes.labels)?,
            container,
            stats,
        })
    });
    Ok(attributed.collect())
}

fn cpu_nanoseconds(stats: &ContainerStats) -> Option<u64> {
    Some(stats.cpu.as_ref()?.usage_core_nano_seconds.as_ref()?.value)
}

fn working_set(stats: &ContainerStats) -> Option<u64> {
    Some(stats.memory.as_ref()?.working_set_bytes.as_ref()?.value)
}

/// What metrics-server scrapes.
pub async fn resource(context: &Context) -> Answer {
    let usage = match usage(context).await {
        Ok(usage) => usage,
        Err(answer) => return answer,
    };
    let mut body = String::from("# TYPE container_cpu_usage_seconds_total counter\n");
    let labels = |usage: &Usage| {
        format!(
            "container=\"{}\",namespace=\"{}\",pod=\"{}\"",
            usage.container, usage.pod.namespace, usage.pod.name
        )
    };
    for entry in &usage {
        if let Some(nanoseconds) = cpu_nanoseconds(&entry.stats) {
            #[allow(clippy::cast_precision_loss)]
            let seconds = nanoseconds as f64 / 1e9;
            let _ = writeln!(
                body,
                "container_cpu_usage_seconds_total{{{}}} {seconds}",
                labels(entry)
            );
        }
    }
    body.push_str("# TYPE container_memory_working_set_bytes gauge\n");
    for entry in &usage {
        if let Some(bytes) = working_set(&entry.stats) {
            let _ = writeln!(
                body,
                "container_memory_working_set_bytes{{{}}} {bytes}",
                labels(entry)
            );
        }
    }
    text(StatusCode::OK, body)
}

pub async fn summary(context: &Context, pods: &Pods) -> Answer {
    let usage = match usage(context).await {
        Ok(usage) => usage,
        Err(answer) => return answer,
    };
    let now = Timestamp::now();
    let mut by_pod: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for entry in &usage {
        let mut container = json!({ "name": entry.container });
        if let Some(nanoseconds) = cpu_nanoseconds(&entry.stats) {
            container["cpu"] = json!({ "time": now, "usageCoreNanoSeconds": nanoseconds });
        }
        if let Some(bytes) = working_set(&entry.stats) {
            container["memory"] = json!({ "time": now, "workingSetBytes": bytes });
        }
        by_pod.entry(entry.pod.uid.clone()).or_default().push(container);
    }
    let pods: Vec<Value> = pods
        .all()
        .iter()
        .map(|pod| {
            let containers = by_pod.remove(uid(pod)).unwrap_or_default();
            let start = pod.status.as_ref().and_then(|status| status.start_time.clone());
            json!({
                "podRef": { "name": name(pod), "namespace": namespace(pod), "uid": uid(pod) },
                "startTime": start,
                "containers": containers,
            })
        })
        .collect();
    json_answer(&json!({ "node": { "nodeName": context.config.node_name }, "pods": pods }))
}
