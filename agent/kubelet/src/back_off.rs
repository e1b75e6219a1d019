//! Exponential delays between attempts at something that keeps failing, keyed by what fails.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Crash-looping containers and failing image pulls wait 10 s, 20 s, … 5 min (upstream's `MaxCrashLoopBackOff`).
pub const INITIAL: Duration = Duration::from_secs(10);
pub const MAXIMUM: Duration = Duration::from_secs(300);

struct Entry {
    delay: Duration,
    updated: Timestamp,
}

/// Delays by key. A key that has been quiet for twice the maximum starts anew.
pub struct BackOff {
    entries: HashMap<String, Entry>,
    maximum: Duration,
}

impl Default for BackOff {
    fn default() -> Self {
        Self::up_to(MAXIMUM)
    }
}

impl BackOff {
    pub fn up_to(maximum: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            maximum,
        }
    }

    /// The wait still to be served before `key` may be tried again, when its last failure was at `failed`.
    pub fn remaining(&self, key: &str, failed: Timestamp, now: Timestamp) -> Option<Duration> {
        let entry = self.entries.get(key)?;
        if expired(entry, failed) {
            return None;
        }
        let elapsed = Duration::try_from(now.duration_since(failed)).unwrap_or_default();
        entry.delay.checked_sub(elapsed).filter(|left| !left.is_zero())
    }

    /// The delay in force for `key`.
    pub fn delay(&self, key: &str) -> Duration {
        self.entries.get(key).map_or(Duration::ZERO, |entry| entry.delay)
    }

    /// Records an attempt after the failure at `failed`: the next one waits twice as long.
    pub fn advance(&mut self, key: &str, failed: Timestamp, now: Timestamp) {
        let delay = match self.entries.get(key) {
            Some(entry) if !expired(entry, failed) => (entry.delay * 2).min(self.maximum),
            _ => INITIAL.min(self.maximum),
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: now });
    }

    pub fn reset(&mut self, key: &str) {
        self.entries.remove(key);
    }
}

fn expired(entry: &Entry, event: Timestamp) -> bool {
    event.duration_since(entry.updated) > SignedDuration::try_from(MAXIMUM * 2).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn doubles_up_to_the_maximum() {
        let mut back_off = BackOff::default();
        assert_eq!(back_off.remaining("c", at(0), at(0)), None);
        let mut delays = Vec::new();
        for attempt in 0..7 {
            back_off.advance("c", at(attempt), at(attempt));
            delays.push(back_off.delay("c").as_secs());
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn remaining_counts_from_the_failure() {
        let mut back_off = BackOff::default();
        back_off.advance("c", at(100), at(100));
        assert_eq!(
            back_off.remaining("c", at(103), at(105)),
            Some(Duration::from_secs(8))
        );
        assert_eq!(back_off.remaining("c", at(103), at(113)), None);
        assert_eq!(back_off.remaining("other", at(103), at(105)), None);
    }

    #[test]
    fn ten_quiet_minutes_start_anew() {
        let mut back_off = BackOff::default();
        back_off.advance("c", at(0), at(0));
        back_off.advance("c", at(10), at(10));
        assert_eq!(back_off.delay("c").as_secs(), 20);
        assert_eq!(back_off.remaining("c", at(611), at(611)), None);
        back_off.advance("c", at(611), at(611));
        assert_eq!(back_off.delay("c"), INITIAL);
    }
}
