//! Metrics in Prometheus' text format: only figures that the kubelet has or CRI gives.

use std::collections::BTreeMap;
use std::fmt::Write;

use cri_api::v1::{ContainerStats, NetworkInterfaceUsage};
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;

use super::stats::{Measured, container_name, measure, value};
use super::{Answer, text};
use crate::context::{Context, name, namespace};
use crate::pod_manager::Pods;

/// Families in the order of their first sample, each announced once.
#[derive(Default)]
struct Page(Vec<(&'static str, &'static str, String)>);

impl Page {
    fn add(&mut self, family: &'static str, kind: &'static str, labels: &[(&str, &str)], value: f64) {
        let at = match self.0.iter().position(|(name, _, _)| *name == family) {
            Some(at) => at,
            None => {
                self.0.push((family, kind, String::new()));
                self.0.len() - 1
            }
        };
        let escaped = |text: &str| {
            text.replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n")
        };
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escaped(value)))
            .collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        let _ = writeln!(self.0[at].2, "{family}{labels} {value}");
    }

    fn answer(self) -> Answer {
        let families = self.0.into_iter();
        let body: String = families
            .map(|(name, kind, samples)| format!("# TYPE {name} {kind}\n{samples}"))
            .collect();
        let mut answer = text(StatusCode::OK, body);
        let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        answer
    }
}

#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

fn seconds(nanoseconds: u64) -> f64 {
    float(nanoseconds) / 1e9
}

pub fn kubelet(context: &Context, pods: &Pods) -> Answer {
    let mut page = Page::default();
    let pods = pods.all();
    page.add(
        "kubelet_node_name",
        "gauge",
        &[("node", &context.config.node_name)],
        1.0,
    );
    let version = [
        ("git_version", crate::KUBELET_VERSION),
        ("major", "1"),
        ("minor", "36"),
    ];
    page.add("kubernetes_build_info", "gauge", &version, 1.0);
    page.add(
        "kubelet_desired_pods",
        "gauge",
        &[("static", "")],
        pods.len() as f64,
    );
    let mut states: BTreeMap<&str, u64> =
        BTreeMap::from([("created", 0), ("exited", 0), ("running", 0), ("unknown", 0)]);
    let mut running_pods = 0;
    for pod in &pods {
        let Some(status) = &pod.status else { continue };
        running_pods += u64::from(status.phase.as_deref() == Some("Running"));
        for container in status.container_statuses.iter().flatten() {
            let state = container.state.as_ref();
            let word = match state {
                Some(state) if state.running.is_some() => "running",
                Some(state) if state.terminated.is_some() => "exited",
                Some(_) => "created",
                None => "unknown",
            };
            *states.entry(word).or_default() += 1;
        }
    }
    page.add("kubelet_running_pods", "gauge", &[], float(running_pods));
    for (state, count) in states {
        page.add(
            "kubelet_running_containers",
            "gauge",
            &[("container_state", state)],
            float(count),
        );
    }
    page.answer()
}

/// How often probes of which kind had which result.
pub fn probes(context: &Context) -> Answer {
    let mut page = Page::default();
    for (counted, count) in context.probes.counts() {
        let labels = [
            ("container", counted.container.as_str()),
            ("namespace", &counted.namespace),
            ("pod", &counted.pod),
            ("pod_uid", &counted.pod_uid),
            ("probe_type", counted.kind),
            ("result", counted.result),
        ];
        page.add("prober_probe_total", "counter", &labels, float(count));
    }
    page.answer()
}

fn started(pod: &Pod, container: &str) -> Option<f64> {
    let status = pod.status.as_ref()?;
    let all = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let own = all
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == container)?;
    let at = own.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
    #[allow(clippy::cast_precision_loss)]
    let seconds = at.0.as_millisecond() as f64 / 1000.0;
    Some(seconds)
}

/// What metrics-server scrapes.
pub async fn resource(context: &Context, pods: &Pods) -> Answer {
    match measure(context, pods).await {
        Ok(measured) => resource_page(&measured).answer(),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn resource_page(measured: &Measured) -> Page {
    let mut page = Page::default();
    for (pod, stats) in &measured.pods {
        let of_pod = [("namespace", namespace(pod)), ("pod", name(pod))];
        let Some(linux) = stats.as_ref().and_then(|stats| stats.linux.as_ref()) else {
            continue;
        };
        for stats in &linux.containers {
            let Some(container) = container_name(stats) else {
                continue;
            };
            let labels = [("container", container), of_pod[0], of_pod[1]];
            if let Some(used) = cpu(stats) {
                page.add(
                    "container_cpu_usage_seconds_total",
                    "counter",
                    &labels,
                    seconds(used),
                );
            }
            let memory = stats
                .memory
                .as_ref()
                .and_then(|memory| value(memory.working_set_bytes.as_ref()));
            if let Some(bytes) = memory {
                page.add(
                    "container_memory_working_set_bytes",
                    "gauge",
                    &labels,
                    float(bytes),
                );
            }
            if let Some(at) = started(pod, container) {
                page.add("container_start_time_seconds", "gauge", &labels, at);
            }
            let swap = stats
                .swap
                .as_ref()
                .and_then(|swap| value(swap.swap_usage_bytes.as_ref()));
            if let Some(bytes) = swap {
                page.add("container_swap_usage_bytes", "gauge", &labels, float(bytes));
            }
        }
        let used = linux
            .cpu
            .as_ref()
            .and_then(|cpu| value(cpu.usage_core_nano_seconds.as_ref()));
        if let Some(used) = used {
            page.add("pod_cpu_usage_seconds_total", "counter", &of_pod, seconds(used));
        }
        let memory = linux
            .memory
            .as_ref()
            .and_then(|memory| value(memory.working_set_bytes.as_ref()));
        if let Some(bytes) = memory {
            page.add("pod_memory_working_set_bytes", "gauge", &of_pod, float(bytes));
        }
    }
    page.add(
        "node_cpu_usage_seconds_total",
        "counter",
        &[],
        seconds(measured.node.cpu_nanoseconds),
    );
    page.add(
        "node_memory_working_set_bytes",
        "gauge",
        &[],
        float(measured.node.memory_working_set),
    );
    page.add("resource_scrape_error", "gauge", &[], 0.0);
    page
}

fn cpu(stats: &ContainerStats) -> Option<u64> {
    value(stats.cpu.as_ref()?.usage_core_nano_seconds.as_ref())
}

/// The families that dashboards know from cAdvisor.
pub async fn cadvisor(context: &Context, pods: &Pods) -> Answer {
    match measure(context, pods).await {
        Ok(measured) => cadvisor_page(context, &measured).answer(),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn cadvisor_page(context: &Context, measured: &Measured) -> Page {
    let mut page = Page::default();
    page.add(
        "machine_memory_bytes",
        "gauge",
        &[],
        context.memory_capacity as f64,
    );
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    page.add("machine_cpu_cores", "gauge", &[], cpus as f64);
    for (pod, stats) in &measured.pods {
        let Some(linux) = stats.as_ref().and_then(|stats| stats.linux.as_ref()) else {
            continue;
        };
        let group = context.cgroups.parent(pod);
        for stats in &linux.containers {
            container_families(&mut page, pod, &group, stats);
        }
        for one in linux.network.iter().flat_map(|network| &network.interfaces) {
            network_families(&mut page, pod, &group, one);
        }
        if let Some(count) = linux
            .process
            .as_ref()
            .and_then(|process| value(process.process_count.as_ref()))
        {
            let labels = [
                ("id", group.as_str()),
                ("namespace", namespace(pod)),
                ("pod", name(pod)),
            ];
            page.add("container_processes", "gauge", &labels, float(count));
        }
    }
    page
}

fn container_families(page: &mut Page, pod: &Pod, group: &str, stats: &ContainerStats) {
    let Some(container) = container_name(stats) else {
        return;
    };
    let id = stats
        .attributes
        .as_ref()
        .map(|attributes| attributes.id.clone())
        .unwrap_or_default();
    let specified = pod.spec.iter().flat_map(|spec| {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
    });
    let image = specified
        .into_iter()
        .find(|one| one.name == container)
        .and_then(|one| one.image.clone());
    let (path, image) = (format!("{group}/{id}"), image.unwrap_or_default());
    let labels = [
        ("container", container),
        ("id", path.as_str()),
        ("image", image.as_str()),
        ("name", id.as_str()),
        ("namespace", namespace(pod)),
        ("pod", name(pod)),
    ];
    if let Some(used) = cpu(stats) {
        let labels = [&labels[..1], &[("cpu", "total")], &labels[1..]].concat();
        page.add(
            "container_cpu_usage_seconds_total",
            "counter",
            &labels,
            seconds(used),
        );
    }
    let memory = stats.memory.as_ref();
    let figure =
        |of: fn(&cri_api::v1::MemoryUsage) -> Option<&cri_api::v1::UInt64Value>| value(memory.and_then(of));
    let disk = stats.writable_layer.as_ref();
    for (family, kind, amount) in [
        (
            "container_memory_usage_bytes",
            "gauge",
            figure(|m| m.usage_bytes.as_ref()),
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            figure(|m| m.working_set_bytes.as_ref()),
        ),
        ("container_memory_rss", "gauge", figure(|m| m.rss_bytes.as_ref())),
        (
            "container_fs_usage_bytes",
            "gauge",
            disk.and_then(|disk| value(disk.used_bytes.as_ref())),
        ),
        (
            "container_fs_inodes_total",
            "gauge",
            disk.and_then(|disk| value(disk.inodes_used.as_ref())),
        ),
    ] {
        if let Some(amount) = amount {
            page.add(family, kind, &labels, float(amount));
        }
    }
    if let Some(at) = started(pod, container) {
        page.add("container_start_time_seconds", "gauge", &labels, at);
    }
}

fn network_families(page: &mut Page, pod: &Pod, group: &str, one: &NetworkInterfaceUsage) {
    let labels = [
        ("id", group),
        ("interface", one.name.as_str()),
        ("namespace", namespace(pod)),
        ("pod", name(pod)),
    ];
    for (family, amount) in [
        ("container_network_receive_bytes_total", &one.rx_bytes),
        ("container_network_receive_errors_total", &one.rx_errors),
        ("container_network_transmit_bytes_total", &one.tx_bytes),
        ("container_network_transmit_errors_total", &one.tx_errors),
    ] {
        if let Some(amount) = value(amount.as_ref()) {
            page.add(family, "counter", &labels, float(amount));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn families_are_announced_once() {
        let mut page = Page::default();
        page.add("a_total", "counter", &[("x", "1\"2")], 3.0);
        page.add("b", "gauge", &[], 0.5);
        page.add("a_total", "counter", &[("x", "2")], 4.0);
        let body = page.answer().into_body().collect().await.unwrap().to_bytes();
        let expected =
            "# TYPE a_total counter\na_total{x=\"1\\\"2\"} 3\na_total{x=\"2\"} 4\n# TYPE b gauge\nb 0.5\n";
        assert_eq!(body, expected);
    }
}
