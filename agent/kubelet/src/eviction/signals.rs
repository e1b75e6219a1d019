//! What eviction watches, with upstream's default hard thresholds.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

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

/// `memory.available<100Mi`, less on machines that have little.
const MEMORY_AVAILABLE: u64 = 100 << 20;
/// A pressure is reported this long after it was last seen (upstream's `evictionPressureTransitionPeriod`).
const TRANSITION: Duration = Duration::from_secs(300);

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

impl Reading {
    pub fn threshold(&self) -> u64 {
        match self.signal {
            Signal::Memory => MEMORY_AVAILABLE.min(self.capacity / 10),
            Signal::Storage | Signal::Pids => self.capacity / 10,
            Signal::Inodes => self.capacity / 20,
        }
    }

    /// File systems without a fixed number of inodes have a capacity of none and are never short.
    pub fn is_short(&self) -> bool {
        self.capacity > 0 && self.available < self.threshold()
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

    /// Whether any of them was seen lately.
    pub fn under(&self, signals: &[Signal], now: Instant) -> bool {
        let seen = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let lately = |at: &Instant| now.duration_since(*at) < TRANSITION;
        signals.iter().any(|signal| seen.get(signal).is_some_and(lately))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
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
            let reading = Reading {
                signal,
                available,
                capacity,
            };
            assert_eq!(reading.is_short(), short, "{reading:?}");
        }
    }

    #[test]
    fn a_pressure_is_remembered_for_a_while() {
        let (pressures, start) = (Pressures::default(), Instant::now());
        pressures.note(Signal::Memory, start);
        assert!(pressures.under(&[Signal::Memory], start + Duration::from_secs(299)));
        assert!(!pressures.under(&[Signal::Memory], start + Duration::from_secs(300)));
        assert!(!pressures.under(&[Signal::Storage, Signal::Inodes], start));
    }
}
