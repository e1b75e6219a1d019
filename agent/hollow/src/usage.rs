//! What hollow pods would use if they were real: their annotations say how much, time makes the sum.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

const CPU: &str = "hollow.ironlet.dev/cpu";
const MEMORY: &str = "hollow.ironlet.dev/memory";
/// Of a container that doesn't say; a real one never uses nothing.
const DEFAULTS: Rate = Rate {
    cpu: 0.001,
    memory: 1 << 20,
};
/// Of the node itself.
const SYSTEM: Rate = Rate {
    cpu: 0.1,
    memory: 256 << 20,
};

/// Cores and bytes used at any time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    cpu: f64,
    memory: i64,
}

/// CPU seconds up to a moment, and the rate since.
#[derive(Clone, Copy, Debug)]
struct Counter {
    total: f64,
    since: Timestamp,
    rate: Rate,
}

impl Counter {
    fn new(since: Timestamp, rate: Rate) -> Self {
        Self {
            total: 0.0,
            since,
            rate,
        }
    }

    /// In whole nanoseconds, as a kernel counts: an error of one more would show as another millicore.
    fn at(&self, now: Timestamp) -> f64 {
        let used = self.total + self.rate.cpu * now.duration_since(self.since).as_secs_f64().max(0.0);
        (used * 1e9).round() / 1e9
    }

    fn change(&mut self, rate: Rate, now: Timestamp) {
        *self = Self {
            total: self.at(now),
            since: now,
            rate,
        };
    }
}

struct Running {
    node: String,
    containers: Vec<String>,
    start: Timestamp,
    /// Each container's.
    counter: Counter,
}

/// Namespace and name.
type Name = (String, String);

pub struct Meter {
    begin: Timestamp,
    pods: Mutex<BTreeMap<Name, Running>>,
}

impl Meter {
    pub fn new(begin: Timestamp) -> Self {
        Self {
            begin,
            pods: Mutex::default(),
        }
    }

    /// A pod as it is now.
    pub fn observe(&self, pod: &Pod, now: Timestamp) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let status = pod.status.as_ref();
        let start = status.and_then(|status| status.start_time.as_ref());
        let runs = status.and_then(|status| status.phase.as_deref()) == Some("Running");
        let (Some(start), Some(spec), true) = (start, &pod.spec, runs) else {
            pods.remove(&name(pod));
            return;
        };
        let rate = rate(pod);
        let known = pods.entry(name(pod)).or_insert_with(|| Running {
            node: spec.node_name.clone().unwrap_or_default(),
            containers: spec.containers.iter().map(|one| one.name.clone()).collect(),
            start: start.0,
            counter: Counter::new(start.0, rate),
        });
        if known.counter.rate != rate {
            known.counter.change(rate, now);
        }
    }

    pub fn forget(&self, pod: &Pod) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.remove(&name(pod));
    }

    /// `/metrics/resource` of one node.
    pub fn page(&self, node: &str, now: Timestamp) -> String {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::new();
        // Samples say when they were taken, as a kubelet's do, so that no delay falsifies them.
        let time = now.as_millisecond();
        let now = Timestamp::from_millisecond(time).unwrap_or(now);
        let mut sample = |family: &str, labels: String, value: f64| {
            let _ = writeln!(page, "{family}{labels} {value} {time}");
        };
        let system = Counter::new(self.begin, SYSTEM);
        let (mut cpu, mut memory) = (system.at(now), SYSTEM.memory as f64);
        for ((namespace, pod), running) in pods.iter().filter(|(_, running)| running.node == node) {
            for container in &running.containers {
                let labels =
                    || format!("{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\"}}");
                let (used, bytes) = (running.counter.at(now), running.counter.rate.memory as f64);
                let start = running.start.as_second() as f64;
                sample("container_cpu_usage_seconds_total", labels(), used);
                sample("container_memory_working_set_bytes", labels(), bytes);
                sample("container_start_time_seconds", labels(), start);
                (cpu, memory) = (cpu + used, memory + bytes);
            }
        }
        sample("node_cpu_usage_seconds_total", String::new(), cpu);
        sample("node_memory_working_set_bytes", String::new(), memory);
        sample("resource_scrape_error", String::new(), 0.0);
        page
    }
}

fn name(pod: &Pod) -> Name {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    (text(&pod.metadata.namespace), text(&pod.metadata.name))
}

fn rate(pod: &Pod) -> Rate {
    let said = |key: &str| {
        let text = pod.metadata.annotations.as_ref()?.get(key)?;
        text.parse::<Quantity>().ok()
    };
    Rate {
        cpu: said(CPU).map_or(DEFAULTS.cpu, |amount| amount.milli_value() as f64 / 1000.0),
        memory: said(MEMORY).map_or(DEFAULTS.memory, |amount| amount.value()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn pod(cpu: &str) -> Pod {
        from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "annotations": {CPU: cpu, MEMORY: "2Mi"}},
            "spec": {"nodeName": "a", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "startTime": "1970-01-01T00:01:40Z"}}),
        )
        .unwrap()
    }

    fn value(page: &str, family: &str) -> Option<f64> {
        let line = page.lines().find(|line| line.starts_with(family))?;
        line.split(' ').nth(1)?.parse().ok()
    }

    #[test]
    fn time_makes_the_sum_and_a_change_keeps_it() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let meter = Meter::new(at(100));
        meter.observe(&pod("500m"), at(100));
        let page = meter.page("a", at(110));
        assert_eq!(value(&page, "container_cpu_usage_seconds_total"), Some(5.0));
        assert_eq!(
            value(&page, "container_memory_working_set_bytes"),
            Some(2_097_152.0)
        );
        assert_eq!(value(&page, "node_cpu_usage_seconds_total"), Some(6.0));
        meter.observe(&pod("2"), at(110));
        let page = meter.page("a", at(115));
        assert_eq!(value(&page, "container_cpu_usage_seconds_total"), Some(15.0));
        assert_eq!(value(&meter.page("b", at(115)), "container"), None);
        meter.forget(&pod("2"));
        assert_eq!(value(&meter.page("a", at(115)), "container"), None);
    }
}
