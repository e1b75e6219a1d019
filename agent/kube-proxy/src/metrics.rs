//! What the proxy does, in numbers, under upstream's names (pkg/proxy/metrics) and in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use netfilter::Family;

/// Upper bounds of the histograms' buckets, in seconds (upstream: ExponentialBuckets(0.001, 2, 15)).
const BUCKETS: usize = 15;
const FIRST_BUCKET: f64 = 0.001;

/// Name, type, help.
const FAMILIES: &[(&str, &str, &str)] = &[
    (
        "kubeproxy_conntrack_reconciler_deleted_entries_total",
        "counter",
        "Stale connections that were forgotten.",
    ),
    (
        "kubeproxy_sync_full_proxy_rules_duration_seconds",
        "histogram",
        "Time of full syncs.",
    ),
    (
        "kubeproxy_sync_partial_proxy_rules_duration_seconds",
        "histogram",
        "Time of partial syncs.",
    ),
    (
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "histogram",
        "Time of syncs.",
    ),
    (
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "counter",
        "Changes of EndpointSlices.",
    ),
    (
        "kubeproxy_sync_proxy_rules_iptables_last",
        "gauge",
        "Lines written by the last sync.",
    ),
    (
        "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
        "counter",
        "Failed partial syncs.",
    ),
    (
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
        "counter",
        "Failed full syncs.",
    ),
    (
        "kubeproxy_sync_proxy_rules_iptables_total",
        "gauge",
        "Rules of Services by table.",
    ),
    (
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "gauge",
        "When a sync was last asked for.",
    ),
    (
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "gauge",
        "When a sync last succeeded.",
    ),
    (
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "gauge",
        "Services with a policy Local and no local endpoint.",
    ),
    (
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "counter",
        "Changes of Services.",
    ),
];

#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<(&'static str, String), Value>>);

#[derive(Debug)]
enum Value {
    Number(f64),
    Histogram {
        buckets: [u64; BUCKETS],
        sum: f64,
        count: u64,
    },
}

impl Metrics {
    pub fn add(&self, name: &'static str, labels: String, by: usize) {
        self.number(name, labels, |number| *number += by as f64);
    }

    pub fn set(&self, name: &'static str, labels: String, to: f64) {
        self.number(name, labels, |number| *number = to);
    }

    fn number(&self, name: &'static str, labels: String, change: impl FnOnce(&mut f64)) {
        debug_assert!(FAMILIES.iter().any(|family| family.0 == name));
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Value::Number(number) = values.entry((name, labels)).or_insert(Value::Number(0.0)) {
            change(number);
        }
    }

    pub fn observe(&self, name: &'static str, labels: String, took: Duration) {
        debug_assert!(FAMILIES.iter().any(|family| family.0 == name));
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = Value::Histogram {
            buckets: [0; BUCKETS],
            sum: 0.0,
            count: 0,
        };
        if let Value::Histogram { buckets, sum, count } = values.entry((name, labels)).or_insert(empty) {
            let seconds = took.as_secs_f64();
            for (bucket, bound) in buckets.iter_mut().zip(bounds()) {
                *bucket += u64::from(seconds <= bound);
            }
            *sum += seconds;
            *count += 1;
        }
    }

    pub fn render(&self) -> String {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = String::new();
        for (family, kind, help) in FAMILIES {
            let mut of_family = values.iter().filter(|((name, _), _)| name == family).peekable();
            if of_family.peek().is_none() {
                continue;
            }
            let _ = writeln!(out, "# HELP {family} {help}\n# TYPE {family} {kind}");
            for ((_, labels), value) in of_family {
                line(&mut out, family, labels, value);
            }
        }
        out
    }
}

fn line(out: &mut String, family: &str, labels: &str, value: &Value) {
    let braced = |labels: &str| {
        if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        }
    };
    let _ = match value {
        Value::Number(number) => writeln!(out, "{family}{} {number}", braced(labels)),
        Value::Histogram { buckets, sum, count } => {
            let comma = if labels.is_empty() { "" } else { "," };
            for (bucket, bound) in buckets.iter().zip(bounds()) {
                let _ = writeln!(out, "{family}_bucket{{{labels}{comma}le=\"{bound}\"}} {bucket}");
            }
            let own = braced(labels);
            writeln!(
                out,
                "{family}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}\n{family}_sum{own} {sum}\n{family}_count{own} {count}"
            )
        }
    };
}

fn bounds() -> impl Iterator<Item = f64> {
    std::iter::successors(Some(FIRST_BUCKET), |bound| Some(bound * 2.0)).take(BUCKETS)
}

/// The label that tells the families' series apart.
pub fn of(family: Family) -> String {
    format!("ip_family=\"{}\"", family.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_told_in_the_text_format() {
        let metrics = Metrics::default();
        metrics.add(
            "kubeproxy_sync_proxy_rules_service_changes_total",
            String::new(),
            2,
        );
        metrics.set(
            "kubeproxy_sync_proxy_rules_iptables_total",
            "table=\"nat\"".into(),
            7.0,
        );
        metrics.observe(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            of(Family::V4),
            Duration::from_millis(3),
        );
        let text = metrics.render();
        for want in [
            "# TYPE kubeproxy_sync_proxy_rules_service_changes_total counter\n",
            "kubeproxy_sync_proxy_rules_service_changes_total 2\n",
            "kubeproxy_sync_proxy_rules_iptables_total{table=\"nat\"} 7\n",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"} 0\n",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"} 1\n",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1\n",
        ] {
            assert!(text.contains(want), "{want} in {text}");
        }
    }
}
