//! The last two measurements of everything, and the usage between them (upstream's `pkg/storage`).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::samples::{PodName, Point, Scrape};

/// A container younger than this says too little by its own total.
const YOUNGEST: i128 = 10_000_000_000;

/// A measurement and the one before it, of the same run.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Series {
    last: Point,
    previous: Option<Point>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Nanoseconds since 1970.
    pub at: i128,
    pub window: Duration,
    /// Billionths of a core.
    pub cpu: u64,
    pub memory: u64,
    pub swap: u64,
}

#[derive(Default)]
pub struct Storage {
    nodes: BTreeMap<String, Series>,
    pods: BTreeMap<PodName, BTreeMap<String, Series>>,
}

impl Storage {
    /// One round of scrapes, by node; what it doesn't speak of is forgotten.
    pub fn store(&mut self, round: impl IntoIterator<Item = (String, Scrape)>, resolution: Duration) {
        let old = std::mem::take(self);
        for (name, scrape) in round {
            if let Some(point) = scrape.node {
                let series = next(old.nodes.get(&name), point, None);
                self.nodes.insert(name, series);
            }
            for (pod, containers) in scrape.pods {
                let known = old.pods.get(&pod);
                let containers = containers.into_iter().map(|(name, point)| {
                    let series = next(known.and_then(|known| known.get(&name)), point, Some(resolution));
                    (name, series)
                });
                let containers = containers.collect();
                self.pods.insert(pod, containers);
            }
        }
    }

    /// Whether any node or pod can be answered for.
    pub fn is_ready(&self) -> bool {
        let known = |series: &Series| series.previous.is_some();
        self.nodes.values().any(known) || self.pods.values().flat_map(BTreeMap::values).any(known)
    }

    pub fn node(&self, name: &str) -> Option<Usage> {
        self.nodes.get(name).and_then(usage)
    }

    /// Usage of all the pod's containers, or nothing while one has been measured once only.
    pub fn pod(&self, pod: &PodName) -> Option<Vec<(&str, Usage)>> {
        let containers = self.pods.get(pod)?;
        if containers.values().any(|series| series.previous.is_none()) {
            return None;
        }
        let used = containers
            .iter()
            .filter_map(|(name, series)| Some((name.as_str(), usage(series)?)));
        Some(used.collect())
    }
}

/// The series with a new measurement. A container that began within `resolution` is measured from its start.
fn next(known: Option<&Series>, point: Point, resolution: Option<Duration>) -> Series {
    let age = point.at - point.start;
    let fresh = resolution.is_some_and(|limit| age < nanoseconds(limit) && age >= YOUNGEST);
    let previous = if fresh {
        Some(Point {
            at: point.start,
            cpu: 0,
            ..point
        })
    } else {
        // It did not restart since.
        known
            .filter(|known| point.start < known.last.at)
            .and_then(|known| match point.at > known.last.at {
                true => Some(known.last),
                false => known.previous.filter(|previous| previous.at < point.at),
            })
    };
    Series {
        last: point,
        previous,
    }
}

fn usage(series: &Series) -> Option<Usage> {
    let (last, previous) = (series.last, series.previous?);
    if last.start < previous.start {
        return None;
    }
    let used = last.cpu.checked_sub(previous.cpu)?;
    let window = Duration::from_nanos(u64::try_from(last.at - previous.at).ok()?);
    Some(Usage {
        at: last.at,
        window,
        cpu: (used as f64 / window.as_secs_f64()) as u64,
        memory: last.memory,
        swap: last.swap,
    })
}

fn nanoseconds(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOLUTION: Duration = Duration::from_secs(15);
    const SECOND: i128 = 1_000_000_000;

    fn point(start: i128, at: i128, cpu_seconds: u64) -> Point {
        Point {
            start: start * SECOND,
            at: at * SECOND,
            cpu: cpu_seconds * 1_000_000_000,
            memory: 4096,
            swap: 0,
        }
    }

    fn round(node: Point, containers: &[(&str, Point)]) -> [(String, Scrape); 1] {
        let containers = containers
            .iter()
            .map(|(name, point)| ((*name).to_owned(), *point));
        let pods = [(("n".to_owned(), "p".to_owned()), containers.collect())].into();
        let scrape = Scrape {
            node: Some(node),
            pods,
        };
        [("node".to_owned(), scrape)]
    }

    fn pod(storage: &Storage) -> Option<Vec<(String, u64, u64)>> {
        let containers = storage.pod(&("n".into(), "p".into()))?;
        let plain =
            |(name, usage): (&str, Usage)| (name.to_owned(), usage.cpu / 1_000_000, usage.window.as_secs());
        Some(containers.into_iter().map(plain).collect())
    }

    #[test]
    fn usage_is_what_was_used_between_two_measurements() {
        let mut storage = Storage::default();
        storage.store(round(point(0, 100, 50), &[("c", point(10, 100, 5))]), RESOLUTION);
        assert!(!storage.is_ready());
        assert_eq!((storage.node("node"), pod(&storage)), (None, None));
        storage.store(round(point(0, 110, 65), &[("c", point(10, 110, 10))]), RESOLUTION);
        assert!(storage.is_ready());
        let node = storage.node("node").unwrap();
        assert_eq!((node.cpu, node.window), (1_500_000_000, Duration::from_secs(10)));
        assert_eq!(pod(&storage), Some(vec![("c".into(), 500, 10)]));
        storage.store([], RESOLUTION);
        assert_eq!((storage.node("node"), pod(&storage)), (None, None));
    }

    #[test]
    fn the_same_measurement_again_changes_nothing() {
        let mut storage = Storage::default();
        for at in [100, 110, 110] {
            let cpu = u64::try_from(at).unwrap();
            storage.store(round(point(0, at, cpu), &[]), RESOLUTION);
        }
        assert_eq!(storage.node("node").unwrap().cpu, 1_000_000_000);
    }

    #[test]
    fn young_and_restarted_containers() {
        for (containers, want) in [
            // Began 12 s ago: counted from its start.
            (
                vec![("a", point(0, 110, 9)), ("b", point(98, 110, 6))],
                Some(vec![("a".to_owned(), 100, 10), ("b".to_owned(), 500, 12)]),
            ),
            // Too young to say anything, so the pod says nothing.
            (vec![("a", point(0, 110, 9)), ("b", point(105, 110, 1))], None),
            // Restarted.
            (vec![("a", point(101, 130, 1))], None),
            // Counted backwards.
            (vec![("a", point(0, 110, 1))], Some(vec![])),
        ] {
            let mut storage = Storage::default();
            storage.store(round(point(0, 100, 1), &[("a", point(0, 100, 8))]), RESOLUTION);
            storage.store(round(point(0, 110, 2), &containers), RESOLUTION);
            assert_eq!(pod(&storage), want, "{containers:?}");
        }
    }
}
