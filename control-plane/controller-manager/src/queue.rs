//! The work queue: a key is worked on by one task at a time, is never queued twice, and waits longer after each failure.

use crate::key::Key;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// client-go's item backoff: 5 ms doubling up to 1000 s.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1000);

#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Key>,
    /// Queued, or to be queued again when the work in progress on it ends.
    dirty: HashSet<Key>,
    working: HashSet<Key>,
    delayed: BTreeSet<(Instant, Key)>,
    /// When a key of `delayed` is due.
    due: HashMap<Key, Instant>,
    failures: HashMap<Key, u32>,
}

impl Queue {
    pub fn add(&self, key: Key) {
        self.with(|state| state.add(key));
        self.wake.notify_one();
    }

    pub fn add_after(&self, key: Key, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.with(|state| state.delay(key, Instant::now() + delay));
        self.wake.notify_one();
    }

    /// Waits for the next key; the caller owns it until [`Self::done`].
    pub async fn next(&self) -> Key {
        loop {
            let notified = self.wake.notified();
            let (next, due) = self.with(|state| state.take(Instant::now()));
            if let Some(key) = next {
                return key;
            }
            match due {
                Some(due) => {
                    let _ = tokio::time::timeout_at(due.into(), notified).await;
                }
                None => notified.await,
            }
        }
    }

    /// The work on `key` ended; after a failure it comes back by itself.
    pub fn done(&self, key: &Key, succeeded: bool) {
        let delay = self.with(|state| state.done(key, succeeded));
        match delay {
            Some(delay) => self.add_after(key.clone(), delay),
            None => self.wake.notify_one(),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl State {
    fn add(&mut self, key: Key) {
        if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// The earliest wish counts, as in client-go, or keys that ask to be looked at again and again would pile up.
    fn delay(&mut self, key: Key, due: Instant) {
        if let Some(known) = self.due.get(&key) {
            if *known <= due {
                return;
            }
            self.delayed.remove(&(*known, key.clone()));
        }
        self.due.insert(key.clone(), due);
        self.delayed.insert((due, key));
    }

    fn take(&mut self, now: Instant) -> (Option<Key>, Option<Instant>) {
        while self.delayed.first().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, key)) = self.delayed.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
        let next = self.ready.pop_front();
        if let Some(key) = &next {
            self.dirty.remove(key);
            self.working.insert(key.clone());
        }
        (next, self.delayed.first().map(|(due, _)| *due))
    }

    fn done(&mut self, key: &Key, succeeded: bool) -> Option<Duration> {
        self.working.remove(key);
        if self.dirty.contains(key) {
            self.ready.push_back(key.clone());
        }
        if succeeded {
            self.failures.remove(key);
            return None;
        }
        let failures = self.failures.entry(key.clone()).or_insert(0);
        let delay = FIRST_BACKOFF
            .saturating_mul(1 << (*failures).min(20))
            .min(LONGEST_BACKOFF);
        *failures += 1;
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_worked_on_once_at_a_time_and_not_lost() {
        let now = Instant::now();
        let mut state = State::default();
        let key = Key::new("a", "b");
        state.add(key.clone());
        state.add(key.clone());
        assert_eq!(state.take(now).0, Some(key.clone()));
        assert_eq!(state.take(now).0, None);
        state.add(key.clone());
        assert_eq!(state.take(now).0, None, "in work: waits");
        assert_eq!(state.done(&key, true), None);
        assert_eq!(state.take(now).0, Some(key.clone()), "and comes back");
        assert_eq!(state.done(&key, false), Some(Duration::from_millis(5)));
        assert_eq!(state.done(&key, false), Some(Duration::from_millis(10)));
        for _ in 0..40 {
            state.done(&key, false);
        }
        assert_eq!(state.done(&key, false), Some(LONGEST_BACKOFF));
        state.done(&key, true);
        assert_eq!(state.done(&key, false), Some(FIRST_BACKOFF));
    }

    #[test]
    fn delayed_keys_become_ready_when_due() {
        let now = Instant::now();
        let mut state = State::default();
        let key = Key::new("", "n");
        for seconds in [7, 5, 6] {
            state.delay(key.clone(), now + Duration::from_secs(seconds));
        }
        assert_eq!(state.take(now), (None, Some(now + Duration::from_secs(5))));
        assert_eq!(state.take(now + Duration::from_secs(5)), (Some(key), None));
    }
}
