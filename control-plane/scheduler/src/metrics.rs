//! The scheduler's figures, under upstream's names.

use crate::queue::Depth;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds in seconds: upstream's exponential buckets from 1 ms, doubling.
const BUCKETS: usize = 15;

#[derive(Clone, Copy, Default)]
struct Histogram {
    buckets: [u64; BUCKETS],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, value: f64) {
        for (at, bucket) in self.buckets.iter_mut().enumerate() {
            *bucket += u64::from(value <= bound(at));
        }
        self.count += 1;
        self.sum += value;
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        for (at, count) in self.buckets.iter().enumerate() {
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{}\"}} {count}", bound(at));
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(
            out,
            "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {}",
            self.sum, self.count
        );
    }
}

fn bound(at: usize) -> f64 {
    0.001 * f64::from(1u32 << at)
}

#[derive(Default)]
pub struct Metrics(Mutex<Figures>);

#[derive(Default)]
struct Figures {
    /// Profile and result.
    attempts: BTreeMap<(String, &'static str), Histogram>,
    preemptions: u64,
    victims: u64,
}

impl Metrics {
    pub fn attempt(&self, profile: &str, scheduled: bool, took: Duration) {
        let result = if scheduled { "scheduled" } else { "unschedulable" };
        self.with(|f| {
            f.attempts
                .entry((profile.into(), result))
                .or_default()
                .observe(took.as_secs_f64())
        });
    }

    pub fn preemption(&self, victims: usize) {
        self.with(|f| {
            f.preemptions += 1;
            f.victims += victims as u64;
        });
    }

    fn with<T>(&self, f: impl FnOnce(&mut Figures) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Prometheus' text format.
    pub fn render(&self, depth: Depth) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str| {
            let _ = writeln!(out, "# TYPE {name} {kind}");
        };
        self.with(|figures| {
            head(&mut out, "scheduler_schedule_attempts_total", "counter");
            for ((profile, result), h) in &figures.attempts {
                let labels = format!("profile=\"{profile}\",result=\"{result}\"");
                let _ = writeln!(out, "scheduler_schedule_attempts_total{{{labels}}} {}", h.count);
            }
            head(
                &mut out,
                "scheduler_scheduling_attempt_duration_seconds",
                "histogram",
            );
            for ((profile, result), h) in &figures.attempts {
                let labels = format!("profile=\"{profile}\",result=\"{result}\"");
                h.write(&mut out, "scheduler_scheduling_attempt_duration_seconds", &labels);
            }
            head(&mut out, "scheduler_preemption_attempts_total", "counter");
            let _ = writeln!(out, "scheduler_preemption_attempts_total {}", figures.preemptions);
            head(&mut out, "scheduler_preemption_victims_total", "counter");
            let _ = writeln!(out, "scheduler_preemption_victims_total {}", figures.victims);
        });
        head(&mut out, "scheduler_pending_pods", "gauge");
        for (queue, pods) in [
            ("active", depth.active),
            ("backoff", depth.backoff),
            ("unschedulable", depth.unschedulable),
        ] {
            let _ = writeln!(out, "scheduler_pending_pods{{queue=\"{queue}\"}} {pods}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let metrics = Metrics::default();
        metrics.attempt("p", true, Duration::from_micros(500));
        metrics.attempt("p", true, Duration::from_millis(3));
        let text = metrics.render(Depth {
            active: 7,
            ..Depth::default()
        });
        for line in [
            "scheduler_schedule_attempts_total{profile=\"p\",result=\"scheduled\"} 2",
            "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"p\",result=\"scheduled\",le=\"0.001\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_bucket{profile=\"p\",result=\"scheduled\",le=\"0.004\"} 2",
            "scheduler_pending_pods{queue=\"active\"} 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
