//! How many pods a metric asks for (upstream's `replica_calculator.go`).

use crate::config::Autoscaling;
use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One pod's measurement, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PodMetric {
    pub at: Timestamp,
    pub window: SignedDuration,
    pub value: i64,
}

/// By the pod's name.
pub type PodMetrics = BTreeMap<String, PodMetric>;

/// How far a ratio may be from one before anything is done.
#[derive(Clone, Copy, Debug)]
pub struct Tolerances {
    pub down: f64,
    pub up: f64,
}

impl Tolerances {
    fn accept(&self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What every calculation looks at.
pub struct Input<'a> {
    /// Those the target's selector selects.
    pub pods: &'a [Arc<Pod>],
    pub current: i32,
    pub tolerances: Tolerances,
    pub settings: &'a Autoscaling,
    pub now: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposal {
    pub replicas: i32,
    /// In thousandths: the average, or the value itself where nothing is averaged.
    pub usage: i64,
    /// Percent of what is requested.
    pub utilization: Option<i32>,
}

struct Ratio {
    ratio: f64,
    usage: i64,
    utilization: Option<i32>,
}

impl Input<'_> {
    /// Percent of the requests of `container`, or of the whole pod.
    pub fn utilization(
        &self,
        metrics: PodMetrics,
        resource: &str,
        container: Option<&str>,
        target: i32,
    ) -> Result<Proposal, String> {
        let requests: Result<BTreeMap<&str, i64>, String> = self
            .pods
            .iter()
            .map(|pod| Ok((name(pod), request(pod, container, resource)?)))
            .collect();
        let ratio = |metrics: &PodMetrics| {
            let requests = requests.as_ref().map_err(Clone::clone)?;
            let known: Vec<(i64, i64)> = metrics
                .iter()
                .filter_map(|(pod, metric)| Some((metric.value, *requests.get(pod.as_str())?)))
                .collect();
            let sum =
                |of: fn(&(i64, i64)) -> i64| known.iter().map(|pair| i128::from(of(pair))).sum::<i128>();
            let (used, requested) = (sum(|pair| pair.0), sum(|pair| pair.1));
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
            Ok(Ratio {
                ratio: f64::from(utilization) / f64::from(target),
                usage: average(used, known.len()),
                utilization: Some(utilization),
            })
        };
        // A pod that says nothing counts, on the way down, as using all it requests.
        let all = |pod: &str| {
            let request = requests.as_ref().ok().and_then(|requests| requests.get(pod));
            request.copied().unwrap_or_default() * i64::from(target.max(100)) / 100
        };
        self.of_pods(metrics, Some(resource), &ratio, &all)
    }

    /// An amount a pod. `resource` is given when it is one of the pod's own.
    pub fn average(
        &self,
        metrics: PodMetrics,
        resource: Option<&str>,
        target: i64,
    ) -> Result<Proposal, String> {
        let ratio = |metrics: &PodMetrics| {
            let used = metrics.values().map(|metric| i128::from(metric.value)).sum();
            let usage = average(used, metrics.len());
            Ok(Ratio {
                ratio: usage as f64 / target as f64,
                usage,
                utilization: None,
            })
        };
        self.of_pods(metrics, resource, &ratio, &|_| target)
    }

    fn of_pods(
        &self,
        mut metrics: PodMetrics,
        resource: Option<&str>,
        ratio: &dyn Fn(&PodMetrics) -> Result<Ratio, String>,
        missing_value: &dyn Fn(&str) -> i64,
    ) -> Result<Proposal, String> {
        self.some_pods()?;
        let groups = self.group(&metrics, resource);
        metrics.retain(|pod, _| {
            !groups.ignored.contains(pod.as_str()) && !groups.unready.contains(pod.as_str())
        });
        if metrics.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
        }
        let first = ratio(&metrics)?;
        let proposal = |replicas| Proposal {
            replicas,
            usage: first.usage,
            utilization: first.utilization,
        };
        let up_with_unready = !groups.unready.is_empty() && first.ratio > 1.0;
        if !up_with_unready && groups.missing.is_empty() {
            let replicas = match self.tolerances.accept(first.ratio) {
                true => self.current,
                false => ceil(first.ratio * groups.ready as f64),
            };
            return Ok(proposal(replicas));
        }
        let mut assume = |pods: &BTreeSet<&str>, value: &dyn Fn(&str) -> i64| {
            for pod in pods {
                let metric = PodMetric {
                    at: self.now,
                    window: SignedDuration::ZERO,
                    value: value(pod),
                };
                metrics.insert((*pod).to_owned(), metric);
            }
        };
        if first.ratio < 1.0 {
            assume(&groups.missing, missing_value);
        } else if first.ratio > 1.0 {
            assume(&groups.missing, &|_| 0);
        }
        if up_with_unready {
            assume(&groups.unready, &|_| 0);
        }
        let second = ratio(&metrics)?.ratio;
        let turned = (first.ratio < 1.0 && second > 1.0) || (first.ratio > 1.0 && second < 1.0);
        let replicas = ceil(second * metrics.len() as f64);
        let wrong_way =
            (second < 1.0 && replicas > self.current) || (second > 1.0 && replicas < self.current);
        let keep = self.tolerances.accept(second) || turned || wrong_way;
        Ok(proposal(if keep { self.current } else { replicas }))
    }

    /// A value that is to stay at `target`, whatever it is of.
    pub fn value(&self, usage: i64, target: i64) -> Result<Proposal, String> {
        let ratio = usage as f64 / target as f64;
        let replicas = if self.current == 0 {
            ceil(ratio)
        } else if self.tolerances.accept(ratio) {
            self.current
        } else {
            let ready = |pod: &&Arc<Pod>| api::pod::phase(pod) == "Running" && api::pod::is_ready(pod);
            self.some_pods()
                .map_err(|error| format!("unable to calculate ready pods: {error}"))?;
            ceil(ratio * self.pods.iter().filter(ready).count() as f64)
        };
        Ok(Proposal {
            replicas,
            usage,
            utilization: None,
        })
    }

    /// A value that is divided among the pods; `replicas` is how many there are.
    pub fn value_per_pod(&self, usage: i64, replicas: i32, target: i64) -> Proposal {
        let ratio = usage as f64 / (target as f64 * f64::from(replicas));
        Proposal {
            replicas: match self.tolerances.accept(ratio) {
                true => replicas,
                false => ceil(usage as f64 / target as f64),
            },
            usage: (usage as f64 / f64::from(replicas)).ceil() as i64,
            utilization: None,
        }
    }

    fn some_pods(&self) -> Result<(), String> {
        match self.pods.is_empty() {
            true => Err("no pods returned by selector while calculating replica count".to_owned()),
            false => Ok(()),
        }
    }

    fn group(&self, metrics: &PodMetrics, resource: Option<&str>) -> Groups<'_> {
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = name(pod);
            if api::pod::is_terminating(pod) || api::pod::phase(pod) == "Failed" {
                groups.ignored.insert(name);
            } else if api::pod::phase(pod) == "Pending" {
                groups.unready.insert(name);
            } else {
                match metrics.get(name) {
                    None => _ = groups.missing.insert(name),
                    Some(metric) if resource == Some("cpu") && self.is_unready(pod, metric) => {
                        groups.unready.insert(name);
                    }
                    Some(_) => groups.ready += 1,
                }
            }
        }
        groups
    }

    /// Starting takes CPU that says nothing about the work to come.
    fn is_unready(&self, pod: &Pod, metric: &PodMetric) -> bool {
        let status = pod.status.as_ref();
        let condition = api::condition::find(status.and_then(|s| s.conditions.as_ref()), "Ready");
        let (Some(condition), Some(start)) = (condition, status.and_then(|s| s.start_time.as_ref())) else {
            return true;
        };
        let changed = condition
            .last_transition_time
            .as_ref()
            .map_or(Timestamp::MIN, |at| at.0);
        let after = |from: Timestamp, span| from.saturating_add(span).unwrap_or(Timestamp::MAX);
        let unready = condition.status == "False";
        if after(start.0, self.settings.cpu_initialization_period) > self.now {
            unready || metric.at < after(changed, metric.window)
        } else {
            unready && after(start.0, self.settings.initial_readiness_delay) > changed
        }
    }
}

#[derive(Default)]
struct Groups<'a> {
    ready: usize,
    unready: BTreeSet<&'a str>,
    missing: BTreeSet<&'a str>,
    ignored: BTreeSet<&'a str>,
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn ceil(replicas: f64) -> i32 {
    replicas.ceil() as i32
}

fn average(sum: i128, count: usize) -> i64 {
    let count = i128::try_from(count).unwrap_or(1).max(1);
    i64::try_from(sum / count).unwrap_or(i64::MAX)
}

/// Thousandths requested by one container, or by the pod: what it asks for itself, or all its long-running containers.
fn request(pod: &Pod, container: Option<&str>, resource: &str) -> Result<i64, String> {
    let Some(spec) = &pod.spec else {
        return Ok(0);
    };
    let pod_level = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    if container.is_none() && pod_level.is_some_and(|requests| !requests.is_empty()) {
        return match api::resources::pod_requests(pod).get(resource) {
            Some(amount) => Ok(amount.milli_value()),
            None => Err(format!(
                "missing pod-level request for {resource} in Pod {}",
                name(pod)
            )),
        };
    }
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| api::resources::is_sidecar(c));
    let mut sum = 0;
    for one in spec.containers.iter().chain(sidecars) {
        if container.is_none_or(|wanted| wanted == one.name) {
            sum += container_request(one, resource).ok_or_else(|| {
                format!(
                    "missing request for {resource} in container {} of Pod {}",
                    one.name,
                    name(pod)
                )
            })?;
            if container.is_some() {
                return Ok(sum);
            }
        }
    }
    match container {
        Some(container) => Err(format!("container {container} not found in Pod {}", name(pod))),
        None => Ok(sum),
    }
}

fn container_request(container: &Container, resource: &str) -> Option<i64> {
    let requests = container.resources.as_ref()?.requests.as_ref()?;
    requests
        .get(resource)
        .map(|wire| Quantity::of(wire).milli_value())
}
