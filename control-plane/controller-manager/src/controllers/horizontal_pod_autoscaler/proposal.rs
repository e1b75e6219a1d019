//! One metric of an autoscaler: what it asks for, how it is called, and what is shown of it.

use super::metrics::{Reading, go_selector};
use super::replicas::{Input, PodMetrics, Proposal};
use api::quantity::{Format, Quantity};
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, MetricSpec, MetricStatus, MetricTarget,
    MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

/// Why a metric says nothing.
pub struct Failure {
    pub reason: &'static str,
    /// Of the event and the condition.
    pub message: String,
    /// For whoever asked for the size.
    pub error: String,
}

/// The size, the metric's name, and what is shown of it.
type Proposed = (i32, String, MetricStatus);

pub fn propose(
    spec: &MetricSpec,
    reading: &Result<Reading, String>,
    input: &Input<'_>,
    status_replicas: i32,
) -> Result<Proposed, Failure> {
    let status = MetricStatus {
        type_: spec.type_.clone(),
        ..MetricStatus::default()
    };
    if let Some(source) = &spec.resource {
        let (proposal, current, metric) = resource(&source.name, None, &source.target, reading, input)
            .map_err(|message| Failure {
                reason: "FailedGetResourceMetric",
                error: format!("failed to get {} resource metric value: {message}", source.name),
                message,
            })?;
        let of = ResourceMetricStatus {
            name: source.name.clone(),
            current,
        };
        return Ok((
            proposal.replicas,
            metric,
            MetricStatus {
                resource: Some(of),
                ..status
            },
        ));
    }
    if let Some(source) = &spec.container_resource {
        let container = Some(source.container.as_str());
        let (proposal, current, metric) = resource(&source.name, container, &source.target, reading, input)
            .map_err(|message| Failure {
            reason: "FailedGetContainerResourceMetric",
            error: format!("failed to get {} container metric value: {message}", source.name),
            message,
        })?;
        let of = ContainerResourceMetricStatus {
            name: source.name.clone(),
            container: source.container.clone(),
            current,
        };
        return Ok((
            proposal.replicas,
            metric,
            MetricStatus {
                container_resource: Some(of),
                ..status
            },
        ));
    }
    if let Some(source) = &spec.pods {
        let target = milli(source.target.average_value.as_ref());
        let proposal = pods(reading)
            .and_then(|metrics| input.average(metrics, None, target))
            .map_err(|message| Failure {
                reason: "FailedGetPodsMetric",
                error: format!("failed to get pods metric value: {message}"),
                message,
            })?;
        let of = PodsMetricStatus {
            metric: source.metric.clone(),
            current: average_value(proposal.usage),
        };
        let metric = format!("pods metric {}", source.metric.name);
        return Ok((
            proposal.replicas,
            metric,
            MetricStatus {
                pods: Some(of),
                ..status
            },
        ));
    }
    if let Some(source) = &spec.object {
        let name = &source.metric.name;
        let selector = go_selector(source.metric.selector.as_ref());
        let (proposal, current) =
            value(&source.target, reading, input, status_replicas).map_err(|message| Failure {
                reason: "FailedGetObjectMetric",
                error: match &source.target.average_value {
                    Some(_) => format!(
                        "failed to get object metric value: failed to get {name} object metric: {message}"
                    ),
                    None => format!("failed to get object metric value: {message}"),
                },
                message,
            })?;
        let metric = match &source.target.average_value {
            Some(_) => format!("external metric {name}({selector})"),
            None => format!("{} metric {name}", source.described_object.kind),
        };
        let of = ObjectMetricStatus {
            described_object: source.described_object.clone(),
            metric: source.metric.clone(),
            current,
        };
        return Ok((
            proposal.replicas,
            metric,
            MetricStatus {
                object: Some(of),
                ..status
            },
        ));
    }
    if let Some(source) = &spec.external {
        let name = &source.metric.name;
        let (proposal, current) =
            value(&source.target, reading, input, status_replicas).map_err(|message| {
                let inner = match &source.target.average_value {
                    Some(_) => format!("failed to get {name} external metric: {message}"),
                    None => format!("failed to get external metric {name}: {message}"),
                };
                Failure {
                    reason: "FailedGetExternalMetric",
                    error: format!("failed to get {name} external metric value: {inner}"),
                    message,
                }
            })?;
        let metric = format!(
            "external metric {name}({})",
            go_selector(source.metric.selector.as_ref())
        );
        let of = ExternalMetricStatus {
            metric: source.metric.clone(),
            current,
        };
        return Ok((
            proposal.replicas,
            metric,
            MetricStatus {
                external: Some(of),
                ..status
            },
        ));
    }
    let message = format!("unknown metric source type {:?}", spec.type_);
    Err(Failure {
        reason: "InvalidMetricSourceType",
        error: message.clone(),
        message,
    })
}

fn resource(
    name: &str,
    container: Option<&str>,
    target: &MetricTarget,
    reading: &Result<Reading, String>,
    input: &Input<'_>,
) -> Result<(Proposal, MetricValueStatus, String), String> {
    if let Some(amount) = &target.average_value {
        let proposal = pods(reading)
            .and_then(|metrics| input.average(metrics, Some(name), milli(Some(amount))))
            .map_err(|error| format!("failed to get {name} usage: {error}"))?;
        return Ok((
            proposal,
            average_value(proposal.usage),
            format!("{name} resource"),
        ));
    }
    let Some(percent) = target.average_utilization else {
        return Err(
            "invalid resource metric source: neither an average utilization target nor an average value \
                    (usage) target was set"
                .to_owned(),
        );
    };
    let proposal = pods(reading)
        .and_then(|metrics| input.utilization(metrics, name, container, percent))
        .map_err(|error| format!("failed to get {name} utilization: {error}"))?;
    let status = MetricValueStatus {
        average_utilization: proposal.utilization,
        ..average_value(proposal.usage)
    };
    let metric = format!("{name} resource utilization (percentage of request)");
    Ok((proposal, status, metric))
}

fn value(
    target: &MetricTarget,
    reading: &Result<Reading, String>,
    input: &Input<'_>,
    status_replicas: i32,
) -> Result<(Proposal, MetricValueStatus), String> {
    let usage = match reading.as_ref().map_err(Clone::clone)? {
        Reading::Value(usage) => *usage,
        Reading::Pods(_) => return Err("metrics of pods where a value is wanted".to_owned()),
    };
    if let Some(average) = &target.average_value {
        let proposal = input.value_per_pod(usage, status_replicas, milli(Some(average)));
        return Ok((proposal, average_value(proposal.usage)));
    }
    let proposal = input.value(usage, milli(target.value.as_ref()))?;
    let status = MetricValueStatus {
        value: Some(Quantity::from_millis(proposal.usage, Format::DecimalSI).to_wire()),
        ..MetricValueStatus::default()
    };
    Ok((proposal, status))
}

fn pods(reading: &Result<Reading, String>) -> Result<PodMetrics, String> {
    match reading {
        Ok(Reading::Pods(metrics)) => Ok(metrics.clone()),
        Ok(Reading::Value(_)) => Err("a value where metrics of pods are wanted".to_owned()),
        Err(error) => Err(error.clone()),
    }
}

fn milli(wire: Option<&Wire>) -> i64 {
    wire.map_or(0, |wire| Quantity::of(wire).milli_value())
}

fn average_value(usage: i64) -> MetricValueStatus {
    MetricValueStatus {
        average_value: Some(Quantity::from_millis(usage, Format::DecimalSI).to_wire()),
        ..MetricValueStatus::default()
    }
}
