//! What eviction watches, and when there is too little of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::settings::Settings;

/// An amount or a percentage of the capacity.
pub fn threshold(text: &str, capacity: u64) -> Option<u64> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.trim().parse().ok()?;
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                clippy::cast_sign_loss
            )]
            let share = (capacity as f64 * percent / 100.0) as u64;
            Some(share)
        }
        None => u64::try_from(text.parse::<api::quantity::Quantity>().ok()?.value()).ok(),
    }
}

/// Upstream's default is too much for machines that have little memory: there it is a tenth.
const DEFAULT_MEMORY: &str = "100Mi";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    Memory,
    Storage,
    Inodes,
    Pids,
}

impl Signal {
    /// As messages and pod requests name it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Storage => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// As thresholds name it.
    fn key(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::Storage => "nodefs.available",
            Self::Inodes => "nodefs.inodesFree",
            Self::Pids => "pid.available",
        }
    }

    /// What must be left by a table of thresholds.
    pub fn threshold(self, table: &BTreeMap<String, String>, capacity: u64) -> Option<u64> {
        let text = table.get(self.key())?;
        let amount = threshold(text, capacity)?;
        Some(if self == Self::Memory && text == DEFAULT_MEMORY {
            amount.min(capacity / 10)
        } else {
            amount
        })
    }

    pub fn grace(self, table: &BTreeMap<String, String>) -> Option<Duration> {
        crate::settings::parse_duration(table.get(self.key())?)
    }

    pub fn is_disk(self) -> bool {
        matches!(self, Self::Storage | Self::Inodes)
    }
}

/// How much there is of something, and how much of it is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub signal: Signal,
    pub available: u64,
    pub capacity: u64,
}

/// A signal below its threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub reading: Reading,
    pub threshold: u64,
    /// Pods are given time to end.
    pub soft: bool,
}

/// How long soft thresholds have been crossed.
#[derive(Default)]
pub struct Crossings(HashMap<Signal, Instant>);

impl Crossings {
    /// What is short now: below its hard threshold, or below its soft one for longer than its grace period.
    pub fn shortages(&mut self, readings: &[Reading], settings: &Settings, now: Instant) -> Vec<Shortage> {
        let mut short = Vec::new();
        // File systems without a fixed number of inodes have a capacity of none and are never short.
        for reading in readings.iter().filter(|reading| reading.capacity > 0) {
            let (signal, capacity) = (reading.signal, reading.capacity);
            let below = |table| {
                signal
                    .threshold(table, capacity)
                    .filter(|threshold| reading.available < *threshold)
            };
            let soft = below(&settings.eviction_soft);
            let since = soft.map(|_| *self.0.entry(signal).or_insert(now));
            if soft.is_none() {
                self.0.remove(&signal);
            }
            let grace = signal
                .grace(&settings.eviction_soft_grace_period)
                .unwrap_or_default();
            let shortage = |threshold, soft| Shortage {
                reading: *reading,
                threshold,
                soft,
            };
            if let Some(threshold) = below(&settings.eviction_hard) {
                short.push(shortage(threshold, false));
            } else if let Some(threshold) = soft.filter(|_| since.is_some_and(|since| now - since >= grace)) {
                short.push(shortage(threshold, true));
            }
        }
        short
    }
}

/// When each pressure was last seen.
#[derive(Default)]
pub struct Pressures(Mutex<HashMap<Signal, Instant>>);

impl Pressures {
    pub fn note(&self, signal: Signal, now: Instant) {
        self.0
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .insert(signal, now);
    }

    /// Whether any of them was seen within the transition period.
    pub fn under(&self, signals: &[Signal], now: Instant, transition: Duration) -> bool {
        let seen = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let lately = |at: &Instant| now.duration_since(*at) < transition;
        signals.iter().any(|signal| seen.get(signal).is_some_and(lately))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(signal: Signal, available: u64, capacity: u64) -> Reading {
        Reading {
            signal,
            available,
            capacity,
        }
    }

    #[test]
    fn hard_thresholds() {
        for (signal, available, capacity, short) in [
            (Signal::Memory, (100 << 20) - 1, 8 << 30, true),
            (Signal::Memory, 100 << 20, 8 << 30, false),
            (Signal::Memory, 60 << 20, 512 << 20, false),
            (Signal::Memory, 50 << 20, 512 << 20, true),
            (Signal::Storage, 9, 100, true),
            (Signal::Storage, 10, 100, false),
            (Signal::Inodes, 4, 100, true),
            (Signal::Inodes, 0, 0, false),
            (Signal::Pids, 5, 100, true),
        ] {
            let readings = [reading(signal, available, capacity)];
            let found = Crossings::default().shortages(&readings, &Settings::default(), Instant::now());
            assert_eq!(!found.is_empty(), short, "{readings:?}");
        }
    }

    #[test]
    fn soft_thresholds_wait_for_their_grace_period() {
        let table = |value: &str| BTreeMap::from([("memory.available".to_owned(), value.to_owned())]);
        let settings = Settings {
            eviction_soft: table("1Gi"),
            eviction_soft_grace_period: table("1m"),
            ..Default::default()
        };
        let (mut crossings, start) = (Crossings::default(), Instant::now());
        let mut look = |seconds, available| {
            let readings = [reading(Signal::Memory, available, 8 << 30)];
            let found = crossings.shortages(&readings, &settings, start + Duration::from_secs(seconds));
            found.first().map(|shortage| shortage.soft)
        };
        let (below, above, bare) = ((1 << 30) - 1, 1 << 30, 1 << 20);
        assert_eq!(
            [look(0, below), look(59, below), look(60, below)],
            [None, None, Some(true)]
        );
        assert_eq!(
            [look(61, above), look(62, below), look(63, bare)],
            [None, None, Some(false)]
        );
    }

    #[test]
    fn a_pressure_is_remembered_for_a_while() {
        let (pressures, start) = (Pressures::default(), Instant::now());
        pressures.note(Signal::Memory, start);
        let under = |signals: &[Signal], seconds| {
            let now = start + Duration::from_secs(seconds);
            pressures.under(signals, now, Duration::from_secs(300))
        };
        assert!(under(&[Signal::Memory], 299));
        assert!(!under(&[Signal::Memory], 300));
        assert!(!under(&[Signal::Storage, Signal::Inodes], 0));
    }
}
