//! NodeMetrics, PodMetrics, lists and tables of them, as `metrics.k8s.io/v1beta1` has them.

use std::collections::BTreeMap;
use std::time::Duration;

use api::duration::go_duration;
use api::quantity::{Format, Quantity};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::storage::Usage;

pub const GROUP: &str = "metrics.k8s.io";
pub const GROUP_VERSION: &str = "metrics.k8s.io/v1beta1";

const RESOURCES: [&str; 3] = ["cpu", "memory", "swap"];

type Amounts = [Quantity; 3];

/// One node's or pod's metrics, and what its table row shows.
pub struct Item {
    pub value: Value,
    total: Amounts,
    window: Duration,
}

/// Whom metrics are about.
pub struct About<'a> {
    pub namespace: Option<&'a str>,
    pub name: &'a str,
    pub labels: Option<&'a BTreeMap<String, String>>,
}

pub fn node_metrics(about: &About<'_>, usage: Usage, now: Timestamp) -> Item {
    let total = amounts(&usage);
    let mut value = head("NodeMetrics", about, usage.at, usage.window, now);
    value["usage"] = usage_value(&total);
    Item {
        value,
        total,
        window: usage.window,
    }
}

/// The times are those of the container measured first.
pub fn pod_metrics(about: &About<'_>, containers: &[(&str, Usage)], now: Timestamp) -> Item {
    let earliest = containers
        .iter()
        .map(|(_, usage)| usage)
        .min_by_key(|usage| usage.at);
    let (at, window) = earliest.map_or((0, Duration::ZERO), |usage| (usage.at, usage.window));
    let mut total = Amounts::default();
    let mut values = Vec::new();
    for (name, usage) in containers {
        let amounts = amounts(usage);
        values.push(json!({"name": name, "usage": usage_value(&amounts)}));
        for (sum, amount) in total.iter_mut().zip(amounts) {
            *sum += amount;
        }
    }
    let mut value = head("PodMetrics", about, at, window, now);
    value["containers"] = values.into();
    Item { value, total, window }
}

fn head(kind: &str, about: &About<'_>, at: i128, window: Duration, now: Timestamp) -> Value {
    let mut metadata = json!({"name": about.name, "creationTimestamp": seconds(now)});
    if let Some(namespace) = about.namespace {
        metadata["namespace"] = namespace.into();
    }
    if let Some(labels) = about.labels.filter(|labels| !labels.is_empty()) {
        metadata["labels"] = json!(labels);
    }
    let at = Timestamp::from_nanosecond(at).map_or(Value::Null, |at| seconds(at).into());
    json!({"kind": kind, "apiVersion": GROUP_VERSION, "metadata": metadata,
        "timestamp": at, "window": go_duration(window)})
}

/// RFC 3339 without a fraction.
fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

fn amounts(usage: &Usage) -> Amounts {
    let bytes = |bytes: u64| Quantity::from_units(i64::try_from(bytes).unwrap_or(i64::MAX), Format::BinarySI);
    let cpu = format!("{}n", usage.cpu).parse().unwrap_or_default();
    [cpu, bytes(usage.memory), bytes(usage.swap)]
}

fn usage_value(amounts: &Amounts) -> Value {
    let pairs = RESOURCES.into_iter().zip(amounts);
    pairs
        .map(|(name, amount)| (name.to_owned(), Value::from(amount.to_string())))
        .collect()
}

/// `kind` is that of the items.
pub fn list(kind: &str, items: Vec<Item>) -> Value {
    let items = items.into_iter().map(|mut item| {
        // Items of a typed list don't repeat what they are.
        if let Some(fields) = item.value.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        item.value
    });
    json!({"kind": format!("{kind}List"), "apiVersion": GROUP_VERSION, "metadata": {},
        "items": items.collect::<Vec<_>>()})
}

/// What `kubectl get` prints.
pub fn table(items: &[Item]) -> Value {
    let column = |name: &str, format: &str, description: &str| json!({"name": name, "type": "string", "format": format, "description": description, "priority": 0});
    let mut columns = vec![column("Name", "name", "Name of the resource")];
    columns.extend(RESOURCES.map(|name| column(name, "quantity", "")));
    columns.push(column("Window", "duration", ""));
    let rows = items.iter().map(|item| {
        let mut cells = vec![item.value["metadata"]["name"].clone()];
        cells.extend(item.total.iter().map(|amount| amount.to_string().into()));
        cells.push(go_duration(item.window).into());
        json!({"cells": cells, "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": item.value["metadata"]}})
    });
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
        "columnDefinitions": columns, "rows": rows.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(cpu: u64, memory: u64, at: i128) -> Usage {
        Usage {
            at: at * 1_000_000_000 + 7,
            window: Duration::from_millis(15_020),
            cpu,
            memory,
            swap: 0,
        }
    }

    fn pod() -> Item {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let about = About {
            namespace: Some("n"),
            name: "p",
            labels: Some(&labels),
        };
        let containers = [
            ("a", usage(12_345_678, 1 << 20, 100)),
            ("b", usage(2_000_000, 1536, 90)),
        ];
        pod_metrics(&about, &containers, Timestamp::from_second(200).unwrap())
    }

    #[test]
    fn pods_have_their_containers_and_the_earliest_time() {
        let want = json!({
            "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": {"name": "p", "namespace": "n", "labels": {"app": "web"},
                "creationTimestamp": "1970-01-01T00:03:20Z"},
            "timestamp": "1970-01-01T00:01:30Z", "window": "15.02s",
            "containers": [
                {"name": "a", "usage": {"cpu": "12345678n", "memory": "1Mi", "swap": "0"}},
                {"name": "b", "usage": {"cpu": "2m", "memory": "1536", "swap": "0"}},
            ],
        });
        assert_eq!(pod().value, want);
    }

    #[test]
    fn tables_show_sums_and_lists_hold_plain_items() {
        let table = table(&[pod()]);
        assert_eq!(
            table["rows"][0]["cells"],
            json!(["p", "14345678n", "1050112", "0", "15.02s"])
        );
        let list = list("PodMetrics", vec![pod()]);
        assert_eq!(list["kind"], "PodMetricsList");
        assert_eq!(list["items"][0].get("kind"), None);
        assert_eq!(list["items"][0]["metadata"]["name"], "p");
    }
}
